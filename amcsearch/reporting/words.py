"""Numbers for people: with a unit, and no more digits than they carry."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Final

from amcsearch.core import Metric, digits, printable
from amcsearch.runs import Interval

__all__ = [
    "LABELS",
    "axis",
    "axis_of",
    "change",
    "cost",
    "deviation",
    "escape",
    "interval",
    "kibibytes",
    "known",
    "marked",
    "measured",
    "milliseconds",
    "percent",
    "points",
    "preformatted",
    "seconds",
    "size",
    "table",
    "warnings_section",
    "with_small",
]

LABELS: Final = {
    "macs": "MACs",
    "params": "Parameters",
    "latency_ms": "Latency",
    "energy_mj": "Energy",
    "model_bytes": "Model size",
    "peak_memory_bytes": "Peak memory",
}
_AXES: Final = {
    "macs": ("MACs (millions)", 1e-6),
    "params": ("Parameters (thousands)", 1e-3),
    "latency_ms": ("Predicted latency (ms)", 1.0),
    "energy_mj": ("Predicted energy (mJ)", 1.0),
    "model_bytes": ("Model size (KiB)", 1 / 1024),
    "peak_memory_bytes": ("Peak memory (KiB)", 1 / 1024),
}


def axis(name: str) -> tuple[str, float]:
    """Return the label of an axis of a cost, and what to multiply the cost by; one of the user's own has its name."""
    return _AXES.get(name, (name, 1.0))


_NONE: Final = "–"
_SPACE: Final = "\u00a0"  # a unit stays on the line of its number


def escape(value: object) -> str:
    """Text that is safe inside HTML; control characters and lone surrogates are shown as escapes."""
    return html.escape(printable(str(value)))


def preformatted(text: str) -> str:
    """Return a block of HTML that shows a text of several lines as it is."""
    lines = "\n".join(escape(line) for line in text.split("\n"))
    return f"<pre>{lines}</pre>"


def warnings_section(texts: Iterable[str]) -> str:
    """Return the section of a page that lists warnings, or nothing where there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<section class='warnings' id='warnings'><h2>Warnings</h2><ul>{items}</ul></section>" if items else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """Return a table of cells that are HTML already; the first of each row is its heading."""
    lines = ["<div class='scroll'><table><thead><tr>", *(f"<th>{cell}</th>" for cell in head), "</tr></thead><tbody>"]
    for i, (first, *cells) in enumerate(rows):
        mark = " class='chosen'" if i == chosen else ""
        lines.append(f"<tr{mark}><th>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def marked(text: str, kind: str = "good") -> str:
    """Return a text in the colour of what is good or bad."""
    return f"<span class='{kind}'>{escape(text)}</span>"


def with_small(text: str, small: str) -> str:
    """Return a text with a small one below it, where there is one."""
    return f"{escape(text)}<small>{escape(small)}</small>" if small else escape(text)


def known(value: float | None) -> float | None:
    """Return a number, or None for one that is not finite."""
    return value if value is not None and math.isfinite(value) else None


def measured(metric: Metric, value: float | None, digits: int = 2) -> str:
    """Write a value of a metric with its unit: 93.75 %, or 0.412 K."""
    value = known(value)
    return _NONE if value is None else metric.text(value, digits).replace(" ", _SPACE)


def change(metric: Metric, before: float | None, after: float | None) -> str:
    """Write the change of a metric with its sign: in percentage points of a share, else in its unit."""
    before, after = known(before), known(after)
    if before is None or after is None:
        return _NONE
    if metric.is_share:
        return points(before, after)
    unit = f"{_SPACE}{metric.unit}" if metric.unit else ""
    return f"{after - before:+.4g}{unit}".replace("-", "−")


def axis_of(metric: Metric) -> str:
    """Return the label of an axis of a metric on the search split."""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.label} on search split{unit}"


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share as per cent."""
    share = known(share)
    return _NONE if share is None else f"{100 * share:.{digits}f}{_SPACE}%"


def points(before: float | None, after: float | None) -> str:
    """Write the change of a share in percentage points, with its sign."""
    before, after = known(before), known(after)
    if before is None or after is None:
        return _NONE
    return f"{100 * (after - before):+.2f}{_SPACE}points".replace("-", "−")


def milliseconds(value: float | None) -> str:
    """Write a time, such as 0.512 ms."""
    value = known(value)
    return _NONE if value is None else f"{digits(value)}{_SPACE}ms"


def deviation(value: float | None) -> str:
    """Write the standard deviation of a time, such as ±0.012 ms, or nothing."""
    return "" if known(value) is None else f"±{milliseconds(value)}"


def interval(measured: Interval, unit: str = "") -> str:
    """Write the ends of a 95 % interval, or nothing."""
    low, high = known(measured.low), known(measured.high)
    return "" if low is None or high is None else f"{digits(low)}–{digits(high)}{unit}"


def cost(name: str, value: float | None) -> str:
    """Write a cost with its unit; one of the user's own names its unit itself."""
    value = known(value)
    if value is None:
        return _NONE
    if name in ("macs", "params", "bytes"):
        return _count(value)
    if name in ("model_bytes", "peak_memory_bytes"):
        return kibibytes(value)
    return digits(value) + {"latency_ms": f"{_SPACE}ms", "energy_mj": f"{_SPACE}mJ"}.get(name, "")


def size(value: int) -> str:
    """Write bytes as kB or MB."""
    return f"{value / 1e6:.2f}{_SPACE}MB" if value >= 1e6 else f"{value / 1e3:.0f}{_SPACE}kB"


def kibibytes(value: float) -> str:
    """Write bytes as KiB or MiB, the units in which limits are written."""
    return f"{digits(value / 2**20)}{_SPACE}MiB" if value >= 2**20 else f"{digits(value / 2**10)}{_SPACE}KiB"


def seconds(value: float) -> str:
    """Write a duration."""
    return f"{value:.1f}{_SPACE}s" if value < 120 else f"{value // 60:.0f}{_SPACE}min {value % 60:.0f}{_SPACE}s"


def _count(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return digits(value / scale) + _SPACE + unit
    return f"{value:.0f}"
