"""What a page or a style sheet loads from other hosts."""

import re
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urlsplit

__all__ = ["loaded_by_page", "loaded_by_style"]

_CSS: Final = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")
_LOADING: Final = ("script", "img", "iframe", "source", "video", "audio", "embed")
_FOLLOWED: Final = ("canonical", "next", "prev", "alternate")  # a link element that loads nothing


def loaded_by_page(html: str) -> list[str]:
    """Addresses on other hosts that a browser loads with the page: scripts, styles, fonts, pictures, frames."""
    page = _Page()
    page.feed(html)
    return [*(address for address in page.loaded if urlsplit(address).netloc), *loaded_by_style(html)]


def loaded_by_style(css: str) -> list[str]:
    """Addresses on other hosts that a style sheet loads."""
    return [str(address) for address in _CSS.findall(css)]


class _Page(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of an element that loads one."""
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in _FOLLOWED:
            self.loaded.append(values.get("href") or "")
        elif tag in _LOADING:
            self.loaded.append(values.get("src") or "")
        self.loaded += [part.split()[0] for part in (values.get("srcset") or "").split(",") if part.split()]
