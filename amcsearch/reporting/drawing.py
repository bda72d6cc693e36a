"""How every picture looks: one palette, quiet axes, and SVG that takes its colours from the page.

The palette is Okabe and Ito's (2008, "Color Universal Design"), safe for the colour-blind; series differ in shape or
dash too. Pictures are drawn in the light palette; inside a page each colour becomes a CSS variable, so that dark mode
recolours them.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from amcsearch.core import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "BAND",
    "INK",
    "LINE",
    "MUTED",
    "SECOND",
    "SURFACE",
    "drawing",
    "legend_above",
    "page_svg",
    "series",
    "standalone_svg",
    "whole_ticks",
]

INK: Final = "#1b1f24"
MUTED: Final = "#6a727d"
LINE: Final = "#dfe3e8"
BAND: Final = "#eceff3"
SURFACE: Final = "#fdfdfd"
ACCENT: Final = "#0072b2"
SECOND: Final = "#d55e00"
_VARIABLES: Final = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    BAND: "--band",
    SURFACE: "--surface",
    ACCENT: "--accent",
    SECOND: "--second",
}
_STYLE: Final[dict[Any, Any]] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": LINE,
    "axes.linewidth": 1.0,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "figure.facecolor": "none",
}


_SERIES: Final = (ACCENT, SECOND, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, MUTED)
_DASHES: Final[tuple[Any, ...]] = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def series(number: int) -> tuple[str, Any]:
    """Return the colour and the dash of a series by its number: another dash where colours come again."""
    return _SERIES[number % len(_SERIES)], _DASHES[(number // len(_SERIES)) % len(_DASHES)]


@contextmanager
def drawing(width: float = 4.9, height: float = 3.5) -> Iterator[tuple["Figure", "Axes"]]:
    """Give a figure of ``width`` x ``height`` inches with one pair of axes, in our style."""
    import matplotlib  # half of a second that most verbs need not wait
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def whole_ticks(axis: "Axis") -> None:
    """Mark about six whole numbers on an axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))


def page_svg(figure: "Figure", name: str, label: str) -> str:
    """Return the figure as an element of a page, coloured by its CSS variables.

    ``name`` keeps the ids of several pictures apart; ``label`` tells a screen reader what is seen.
    """
    svg = _svg(figure, name)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    width = re.search(r'<svg[^>]*? width="([0-9.]+)pt"', svg)
    size = f' style="max-width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    svg = re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*pt"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*pt"', r"\1", svg)
    label = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"{size}', 1)


def standalone_svg(figure: "Figure", name: str) -> str:
    """Return the figure as an SVG file on a light ground."""
    figure.patch.set_facecolor(SURFACE)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + _svg(figure, name)


def _svg(figure: "Figure", name: str) -> str:
    import matplotlib

    stream = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # The salt makes ids, and so the whole text, a function of the picture alone.
    # Names of layers may hold anything: what no font has is not warned of, and control characters are shown as text.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(stream, format="svg", metadata=nothing, facecolor=figure.get_facecolor())
    svg = "\n".join(map(printable, stream.getvalue().split("\n")))
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg).rstrip()


def legend_above(axes: "Axes", columns: int) -> None:
    """Put the legend above the axes, at their left end."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.4)
