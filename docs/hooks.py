"""Hooks of MkDocs: generated parts, the pages that live beside their scripts, and no resource of another host."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from generate import GENERATORS
from hosts import loaded_by_page, loaded_by_style

__all__ = ["on_files", "on_page_markdown", "on_post_build"]

ROOT = Path(__file__).parents[1]
_PLACE = re.compile(r"<!-- generate: (\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live elsewhere: how to contribute, the changelog, and the measurements with their pictures."""
    elsewhere = {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}
    for path in sorted((ROOT / "benchmarks").rglob("*")):
        if path.suffix in (".md", ".png"):
            elsewhere[path.relative_to(ROOT).as_posix()] = path
    for name, path in elsewhere.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put generated text in its places.

    Raises:
        PluginError: a page asks for text that nothing generates.
    """

    def generated(match: re.Match[str]) -> str:
        if match[1] not in GENERATORS:
            raise PluginError(f"{page.file.src_uri}: nothing generates {match[1]!r}; known: {', '.join(GENERATORS)}")
        return GENERATORS[match[1]]()

    return _PLACE.sub(generated, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Check that no page or style loads anything from another host.

    Raises:
        PluginError: names the file and the address.
    """
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix not in (".html", ".css"):
            continue
        text = path.read_text(encoding="utf-8")
        loaded = loaded_by_page(text) if path.suffix == ".html" else loaded_by_style(text)
        if loaded:
            raise PluginError(f"{path} loads {', '.join(loaded)} from another host; keep a copy in docs, or do without")
