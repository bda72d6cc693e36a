"""Latency tables side by side: a picture of what devices, runtimes and settings make of the same policies, and a page.

The picture is a file of its own, and part of the page, which has every number too.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from amcsearch.reporting.drawing import INK, LINE, MUTED, drawing, page_svg, series, standalone_svg
from amcsearch.reporting.page import document
from amcsearch.reporting.words import escape, milliseconds, percent, table, with_small
from amcsearch.runs import TableComparison, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_table_comparison"]

_COMPARISON: Final = (10.8, 3.75)  # inches, without the legend
_LEGEND_LINE, _MARGIN = 0.16, 0.1  # inches
_LETTER, _HANDLE, _MOST_COLUMNS = 0.075, 0.6, 6  # inches that a letter and the line before a name take in the legend
_LONGEST_LABEL: Final = 110  # characters of a name in the legend
_MARKERS: Final = "osD^vPX*"
_ABREAST: Final = 0.6  # of the room between two multiples, for the points of all tables
_LOG_FROM: Final = 10.0  # times as slow as another table: each still has a line that is seen
_LEAST: Final = 720  # pixels of the picture in a page, which scrolls on a phone
_HEADROOM: Final = 0.92  # of the axes, below which a label has room


def write_table_comparison(comparison: TableComparison, folder: Path) -> dict[str, Path]:
    """Draw what tables say of one network, and write the page with the picture and every number; return both files.

    Raises:
        BadInputError: a file that cannot be written.
    """
    files = {"picture": folder / "tables.svg", "page": folder / "tables.html"}
    with _picture(comparison) as figure:
        svg = standalone_svg(figure, "tables")
        figure.suptitle("")  # the page has it as its own
        inline = page_svg(figure, "tables", _title(comparison))
    for path, text in zip(files.values(), (svg, _page(comparison, inline)), strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return files


def _title(comparison: TableComparison) -> str:
    return f"{comparison.network}: the same policies on {len(comparison.tables)} tables"


def _page(comparison: TableComparison, picture: str) -> str:
    """The picture; a row a table with latency, deviation and speed-up of every policy; and what the tables are."""
    rows = [["MACs kept", *(f"{share:.0%}" for share in comparison.macs)]]
    for each in comparison.tables:
        cells = zip(each.ms, each.sigma_ms, each.speed_up, strict=True)
        latencies = (
            with_small(milliseconds(ms), f"±{percent(sigma / ms)}, {speed_up:.2f}x") for ms, sigma, speed_up in cells
        )
        rows.append([escape(each.name), *latencies])
    numbers = table(["Table", *map(escape, comparison.policies)], rows)
    note = (
        "Latency as each table predicts it; below it its standard deviation, and how many times as fast as dense it is."
    )
    described = "".join(
        f"<tr><th>{escape(each.name)}</th><td>{escape(each.description)}</td></tr>" for each in comparison.tables
    )
    figure = f"<figure style='min-width:{_LEAST}px'>{picture}</figure>"
    body = [
        f"<section id='picture'><div class='scroll'>{figure}</div></section>",
        f"<section id='latency' class='names'><h2>Latency</h2><p class='note'>{note}</p>{numbers}</section>",
        f"<section id='tables'><h2>Tables</h2><table class='plain'><tbody>{described}</tbody></table></section>",
    ]
    lead = f"The same policies of one network on {len(comparison.tables)} latency tables"
    return document(comparison.network, lead, "latency tables", body)


@contextmanager
def _picture(comparison: TableComparison) -> Iterator["Figure"]:
    labels = [_label(each.name) for each in comparison.tables]
    columns = min(len(labels), _MOST_COLUMNS, int(_COMPARISON[0] / (_HANDLE + _LETTER * max(map(len, labels)))) or 1)
    height = _COMPARISON[1] + _LEGEND_LINE * math.ceil(len(labels) / columns)
    with drawing(_COMPARISON[0], height) as (figure, first):
        first.remove()
        figure.set_layout_engine("constrained", w_pad=_MARGIN, h_pad=_MARGIN)
        latency, speed_up, grid = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 0.9))
        _latencies(latency, comparison)
        _speed_ups(speed_up, comparison)
        _grids(grid, comparison)
        handles, _ = latency.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=8)
        figure.suptitle(_title(comparison), color=INK)
        yield figure


def _label(name: str) -> str:
    """A name that fits into a line: of a path the end tells most."""
    return name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"


def _latencies(axes: "Axes", comparison: TableComparison) -> None:
    """Latency of every policy with its standard deviation; on a logarithmic scale where devices are far apart."""
    order = np.argsort(comparison.macs)
    shares = 100.0 * np.array(comparison.macs)[order]
    for number, each in enumerate(comparison.tables):
        values, spread = np.array(each.ms)[order], np.array(each.sigma_ms)[order]
        axes.plot(shares, values, **_style(number), label=each.name)
        axes.fill_between(shares, values - spread, values + spread, color=series(number)[0], alpha=0.15, linewidth=0)
    dense = [each.ms[0] for each in comparison.tables]
    title = "Predicted latency (ms)"
    if max(dense) > _LOG_FROM * min(dense):
        title += ", logarithmic"
        axes.set_yscale("log", subs=[2, 5])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7, labelcolor=MUTED)
    else:
        axes.set_ylim(0)
    _finish(axes, title)


def _speed_ups(axes: "Axes", comparison: TableComparison) -> None:
    """How many times as fast as dense every policy is, beside what its MACs promise."""
    order = np.argsort(comparison.macs)
    shares = 100.0 * np.array(comparison.macs)[order]
    for number, each in enumerate(comparison.tables):
        axes.plot(shares, np.array(each.speed_up)[order], **_style(number))
    promised, top = 100.0 / shares, 1.15 * max(max(each.speed_up) for each in comparison.tables)
    axes.plot(shares, promised, color=MUTED, linewidth=1.0, linestyle="dotted")
    axes.set_ylim(0, top)
    at = int(np.argmax(promised <= _HEADROOM * top))  # the first point with room above it
    place = (shares[at], promised[at])
    axes.annotate("as MACs", place, (4, 2), textcoords="offset points", color=MUTED, fontsize=8)
    _finish(axes, "Times as fast as dense")


def _style(number: int) -> dict[str, Any]:
    """A look that no other table has; another marker too where colours come again, for points have no dash."""
    colour, dash = series(number)
    marker = _MARKERS[(number + number // len(_MARKERS)) % len(_MARKERS)]
    return {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}


def _finish(axes: "Axes", title: str) -> None:
    axes.set_xlim(0, 103)
    axes.set_xlabel("MACs kept (%)")
    axes.set_title(title, fontsize=9, loc="left", color=INK)


def _grids(axes: "Axes", comparison: TableComparison) -> None:
    """What a finer channel grid saves on every device, the grids that are used in rings."""
    multiples = sorted({int(step) for each in comparison.tables for step in each.grid}, reverse=True)
    count = len(comparison.tables)
    for number, each in enumerate(comparison.tables):
        offset = _ABREAST * ((number + 0.5) / count - 0.5)
        at = [place for place, multiple in enumerate(multiples) if str(multiple) in each.grid]
        x, y = [place + offset for place in at], [_yield(each.grid[str(multiples[place])]) for place in at]
        axes.plot(x, y, **{**_style(number), "linestyle": "none"})
        used = [i for i, place in enumerate(at) if multiples[place] == each.channel_multiple]
        axes.scatter([x[i] for i in used], [y[i] for i in used], s=90, facecolors="none", edgecolors=INK, zorder=4)
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    for place in range(1, len(multiples)):
        axes.axvline(place - 0.5, color=LINE, linewidth=0.7, zorder=0)
    axes.set_xticks(range(len(multiples)), [f"{2 * multiple} → {multiple}" for multiple in multiples])
    axes.set_xlabel("Finer channel grid (ring: the one used)")
    axes.set_title("Time saved per MACs saved", fontsize=9, loc="left", color=INK)
    axes.grid(visible=False, axis="x")


def _yield(step: Iterable[float]) -> float:
    """Share of time that a finer grid saves, for each share of MACs."""
    macs, time = step
    return time / macs if macs else 0.0
