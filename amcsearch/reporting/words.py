"""Numbers for people: with a unit, and no more digits than they carry."""

import html
from typing import Any, Final

__all__ = [
    "LABELS",
    "axis",
    "cost",
    "deviation",
    "escape",
    "interval",
    "milliseconds",
    "percent",
    "points",
    "seconds",
    "size",
]

LABELS: Final = {
    "accuracy": "Accuracy",
    "macs": "MACs",
    "params": "Parameters",
    "latency_ms": "Latency",
    "energy_mj": "Energy",
}
_AXES: Final = {
    "macs": ("MACs (millions)", 1e-6),
    "params": ("Parameters (thousands)", 1e-3),
    "latency_ms": ("Predicted latency (ms)", 1.0),
    "energy_mj": ("Predicted energy (mJ)", 1.0),
}


def axis(name: str) -> tuple[str, float]:
    """Return the label of an axis of a cost, and what to multiply the cost by; one of the user's own has its name."""
    return _AXES.get(name, (name, 1.0))


_NONE: Final = "–"
_SPACE: Final = "\u00a0"  # a unit stays on the line of its number


def escape(value: Any) -> str:
    """Text that is safe inside HTML."""
    return html.escape(str(value))


def number(value: Any) -> float | None:
    """Return a plain number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def percent(share: Any, digits: int = 1) -> str:
    """Write a share as per cent."""
    value = number(share)
    return _NONE if value is None else f"{100 * value:.{digits}f}{_SPACE}%"


def points(before: Any, after: Any) -> str:
    """Write the change of a share in percentage points, with its sign."""
    a, b = number(before), number(after)
    return _NONE if a is None or b is None else f"{100 * (b - a):+.2f}{_SPACE}points".replace("-", "−")


def milliseconds(value: Any) -> str:
    """Write a time, such as 0.512 ms."""
    found = number(value)
    return _NONE if found is None else f"{_digits(found)}{_SPACE}ms"


def deviation(value: Any) -> str:
    """Write the standard deviation of a time, such as ±0.012 ms, or nothing."""
    found = number(value)
    return "" if found is None else f"±{milliseconds(found)}"


def interval(measured: Any, unit: str = "") -> str:
    """Write the ends of a 95 % interval, or nothing."""
    low, high = (number(measured.get(end)) if isinstance(measured, dict) else None for end in ("low", "high"))
    return "" if low is None or high is None else f"{_digits(low)}–{_digits(high)}{unit}"


def cost(name: str, value: Any) -> str:
    """Write a cost with its unit; one of the user's own names its unit itself."""
    found = number(value)
    if found is None:
        return _NONE
    if name == "latency_ms":
        return milliseconds(found)
    if name in ("macs", "params", "bytes"):
        return _count(found)
    return _digits(found) + (f"{_SPACE}mJ" if name == "energy_mj" else "")


def size(value: Any) -> str:
    """Write bytes as kB or MB."""
    found = number(value)
    if found is None:
        return _NONE
    return f"{found / 1e6:.2f}{_SPACE}MB" if found >= 1e6 else f"{found / 1e3:.0f}{_SPACE}kB"


def seconds(value: Any) -> str:
    """Write a duration."""
    found = number(value)
    if found is None:
        return _NONE
    return f"{found:.1f}{_SPACE}s" if found < 120 else f"{found // 60:.0f}{_SPACE}min {found % 60:.0f}{_SPACE}s"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent where that reads well."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _count(value: float) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:#.3g}".rstrip(".") + _SPACE + unit
    return f"{value:.0f}"
