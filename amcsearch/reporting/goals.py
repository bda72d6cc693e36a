"""What ``prune`` was asked for and what it achieved, in sentences for the terminal and the page."""

from typing import Final

from amcsearch.reporting.record import Record
from amcsearch.reporting.words import escape, percent, points
from amcsearch.runs import Goal, KeepAccuracyGoal, PairedChange, RoundSummary, TargetGoal

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
    lines = [] if record.summary is None else goal_lines(record.summary.goal)
    if not lines:
        return ""
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<section id='goal'><h2>Asked and achieved</h2>{text}</section>"


def goal_lines(goal: Goal | None) -> list[str]:
    """Sentences about a goal; none for a known policy."""
    if isinstance(goal, TargetGoal):
        return _target(goal)
    return _keep_accuracy(goal) if isinstance(goal, KeepAccuracyGoal) else []


def _target(goal: TargetGoal) -> list[str]:
    unit, step = _UNITS.get(goal.cost, goal.cost), goal.smallest_step
    left = (
        "no group has a step left" if step is None else f"one more step of any group would add at least {_number(step)}"
    )
    ladder = f"{goal.allocation} ladder" + (" of the last round" if goal.rounds else "")
    return [
        f"Target: {goal.cost} = {goal.asked}, at most {_number(goal.limit)} {unit}; achieved "
        f"{_number(goal.achieved)} {unit} ({goal.achieved / goal.dense:.4f}x of dense); {left}.",
        *(_round(i, part, unit) for i, part in enumerate(goal.rounds, 1)),
        f"Rung {goal.rung} of {goal.rungs - 1} of the {ladder} came to "
        f"{_number(goal.rung_value)} {unit}; {goal.moves} steps of single groups filled the rest.",
    ]


def _round(number: int, part: RoundSummary, unit: str) -> str:
    return (
        f"Round {number}: {_number(part.achieved)} {unit} of at most {_number(part.limit)}; on the search split "
        f"{percent(part.accuracy_pruned)} as pruned, {percent(part.accuracy_finetuned)} fine-tuned."
    )


def _keep_accuracy(goal: KeepAccuracyGoal) -> list[str]:
    level = percent(goal.confidence, 0)
    lines = [
        f"Asked: lose less than {goal.points:g} points of accuracy, at {level} one-sided confidence, paired with "
        f"the dense network, {goal.evaluated}.",
        f"Achieved: rung {goal.rung} of {goal.rungs - 1} of the {goal.allocation} ladder"
        + ("." if goal.rung else ", the dense network: nothing bolder could be shown to keep its accuracy."),
    ]
    parts = (
        ("On the part of the search split that the search saw", goal.search),
        ("Verified on the part that it did not see", goal.verification),
    )
    lines += [f"{where}: {_change(part)}." for where, part in parts if goal.rung and part.change is not None]
    lines += [
        f"Bolder rung {part.rung} did not stand the verification: {_change(part.evidence)}." for part in goal.failed
    ]
    return lines


def _change(part: PairedChange) -> str:
    change, low = points(0.0, part.change), points(0.0, part.change_low)
    return f"{change} on {part.samples} samples, lower bound {low}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
