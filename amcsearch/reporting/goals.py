"""What ``prune`` was asked for and what it achieved, in sentences for the terminal and the page."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from amcsearch.reporting.record import Record
from amcsearch.reporting.words import escape, percent, points

__all__ = ["goal", "goal_lines"]

_UNITS: Final = {
    "macs": "MACs",
    "params": "parameters",
    "bytes": "bytes of weights",
    "latency_ms": "ms",
    "energy_mj": "mJ",
}


def goal(record: Record) -> str:
    """The section of the page, or nothing where the run had no such goal."""
    found = record.summary.get("goal")
    lines = goal_lines(found) if isinstance(found, dict) else []
    if not lines:
        return ""
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<section id='goal'><h2>Asked and achieved</h2>{text}</section>"


def goal_lines(found: Mapping[str, Any]) -> list[str]:
    """Sentences about the summary's ``goal``; none for a known policy."""
    return _LINES[found["kind"]](found) if found.get("kind") in _LINES else []


def _target(found: Mapping[str, Any]) -> list[str]:
    unit, dense = _UNITS.get(found["cost"], found["cost"]), found["dense"]
    step = found["smallest_step"]
    left = (
        "no group has a step left" if step is None else f"one more step of any group would add at least {_number(step)}"
    )
    rounds = found.get("rounds", [])
    ladder = f"{found['allocation']} ladder" + (" of the last round" if rounds else "")
    return [
        f"Target: {found['cost']} = {found['asked']}, at most {_number(found['limit'])} {unit}; achieved "
        f"{_number(found['achieved'])} {unit} ({found['achieved'] / dense:.4f}x of dense); {left}.",
        *(_round(i, part, unit) for i, part in enumerate(rounds, 1)),
        f"Rung {found['rung']} of {found['rungs'] - 1} of the {ladder} came to "
        f"{_number(found['rung_value'])} {unit}; {found['moves']} steps of single groups filled the rest.",
    ]


def _round(number: int, part: Mapping[str, Any], unit: str) -> str:
    return (
        f"Round {number}: {_number(part['achieved'])} {unit} of at most {_number(part['limit'])}; on the search split "
        f"{percent(part['accuracy_pruned'])} as pruned, {percent(part['accuracy_finetuned'])} fine-tuned."
    )


def _keep_accuracy(found: Mapping[str, Any]) -> list[str]:
    level = percent(found["confidence"], 0)
    lines = [
        f"Asked: lose less than {found['points']:g} points of accuracy, at {level} one-sided confidence, paired with "
        f"the dense network, {found['evaluated']}.",
        f"Achieved: rung {found['rung']} of {found['rungs'] - 1} of the {found['allocation']} ladder"
        + ("." if found["rung"] else ", the dense network: nothing bolder could be shown to keep its accuracy."),
    ]
    parts = (
        ("On the part of the search split that the search saw", found["search"]),
        ("Verified on the part that it did not see", found["verification"]),
    )
    lines += [f"{where}: {_change(part)}." for where, part in parts if found["rung"] and part["change"] is not None]
    lines += [
        f"Bolder rung {part['rung']} did not stand the verification: {_change(part)}." for part in found["failed"]
    ]
    return lines


_LINES: Final[Mapping[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "target": _target,
    "keep_accuracy": _keep_accuracy,
}


def _change(part: Mapping[str, Any]) -> str:
    change, low = points(0.0, part["change"]), points(0.0, part["change_low"])
    return f"{change} on {part['samples']} samples, lower bound {low}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
