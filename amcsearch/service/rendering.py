"""HTML of the page's templates, and whether a request wants HTML."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from amcsearch.reporting import axis
from amcsearch.service.records import BestSoFar

__all__ = ["STATIC", "drawn", "fragment", "wants_html"]

_FOLDER: Final = Path(__file__).parent / "pages"
STATIC: Final = _FOLDER / "static"
"""Folder of styles and scripts, which anybody may fetch."""
_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86400.0
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})


def _moment(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    for most, unit, name in ((2 * _MINUTE_S, 1.0, "s"), (2 * _HOUR_S, _MINUTE_S, "min"), (2 * _DAY_S, _HOUR_S, "h")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / _DAY_S:.0f} days"


def _cost(name: str) -> str:
    return axis(name)[0].partition(" (")[0]


def _judged(best: BestSoFar) -> str:
    return best.judged_by.metric.text(best.metric)


_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined
)
_TEMPLATES.filters |= {"moment": _moment, "duration": _duration, "judged": _judged, "cost": _cost}


def fragment(template: str, values: Mapping[str, object]) -> str:
    """Return the text of a template."""
    return _TEMPLATES.get_template(template).render(values)


def drawn(
    template: str, values: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """Return a page of a template."""
    return HTMLResponse(fragment(template, values), status, headers)


def wants_html(request: Request) -> bool:
    """Whether ``Accept`` names HTML and no JSON before it, as that of a browser that opens an address (RFC 9110)."""
    weights: dict[str, float] = {}
    for part in request.headers.get("accept", "").split(","):
        kind, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        weights[kind] = float(quality) if quality.replace(".", "", 1).isdecimal() else 0.0
    html = max((weight for kind, weight in weights.items() if kind in _HTML), default=0.0)
    other = max((weight for kind, weight in weights.items() if kind.endswith(("/json", "+json"))), default=0.0)
    return html > 0.0 and html >= other
