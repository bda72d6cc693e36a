"""What a run was asked for and achieved, and why its finalist was chosen: sentences for the terminal and the page."""

from collections.abc import Sequence
from typing import Final

from amcsearch.core import ACCURACY, Metric, counted
from amcsearch.reporting.record import Record
from amcsearch.reporting.words import change, escape, measured, percent
from amcsearch.runs import FinalistSummary, Goal, KeepAccuracyGoal, PairedChange, RoundSummary, Summary, TargetGoal

__all__ = ["choice", "goal", "goal_lines", "judgement_of"]

_UNITS: Final = {
    "macs": "MACs",
    "params": "parameters",
    "bytes": "bytes of weights",
    "latency_ms": "ms",
    "energy_mj": "mJ",
    "model_bytes": "bytes",
    "peak_memory_bytes": "bytes",
}


def goal(record: Record) -> str:
    """The section of the page, or nothing where the run had no such goal."""
    lines = [] if record.summary is None else goal_lines(record.summary.goal, record.summary.metric)
    if not lines:
        return ""
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f"<section id='goal'><h2>Asked and achieved</h2>{text}</section>"


def goal_lines(goal: Goal | None, metric: Metric = ACCURACY) -> list[str]:
    """Sentences about a goal; none for a known policy."""
    if isinstance(goal, TargetGoal):
        return _target(goal, metric)
    return _keep_accuracy(goal, metric) if isinstance(goal, KeepAccuracyGoal) else []


def _target(goal: TargetGoal, metric: Metric) -> list[str]:
    unit, step = _UNITS.get(goal.cost, goal.cost), goal.smallest_step
    left = (
        "no group has a step left" if step is None else f"one more step of any group would add at least {_number(step)}"
    )
    sequence = f"{goal.allocation} sequence" + (" of the last round" if goal.rounds else "")
    return [
        f"Target: {goal.cost} = {goal.asked}, at most {_number(goal.limit)} {unit}; achieved "
        f"{_number(goal.achieved)} {unit} ({goal.achieved / goal.dense:.4f}x of dense); {left}.",
        *(_round(i, part, unit, metric) for i, part in enumerate(goal.rounds, 1)),
        f"Level {goal.level} of {goal.levels - 1} of the {sequence} came to "
        f"{_number(goal.level_value)} {unit}; {counted(goal.moves, 'step')} of single groups filled the rest.",
    ]


def _round(number: int, part: RoundSummary, unit: str, metric: Metric) -> str:
    return (
        f"Round {number}: {_number(part.achieved)} {unit} of at most {_number(part.limit)}; on the search split "
        f"{measured(metric, part.metric_pruned, 1)} as pruned, {measured(metric, part.metric_finetuned, 1)} fine-tuned."
    )


def _keep_accuracy(goal: KeepAccuracyGoal, metric: Metric) -> list[str]:
    tolerance = f"{goal.points:g} points of {metric.word}" if metric.is_share else metric.text(goal.points)
    change = (
        f"lose less than {tolerance}" if metric.higher_is_better else f"{metric.word} higher by less than {tolerance}"
    )
    level = percent(goal.confidence, 0)
    lines = [
        f"Asked: {change}, at {level} one-sided confidence, paired with the dense network, {goal.evaluated}.",
        f"Achieved: level {goal.level} of {goal.levels - 1} of the {goal.allocation} sequence"
        + (
            "." if goal.level else ", the dense network: nothing bolder could be shown to keep its " + metric.word + "."
        ),
    ]
    parts = (
        ("On the part of the search split that the search saw", goal.search),
        ("Verified on the part that it did not see", goal.verification),
    )
    lines += [f"{where}: {_change(part, metric)}." for where, part in parts if goal.level and part.change is not None]
    lines += [
        f"Bolder level {part.level} did not stand the verification: {_change(part.evidence, metric)}."
        for part in goal.failed
    ]
    return lines


def _change(part: PairedChange, metric: Metric) -> str:
    """The change of the metric itself; what is gained of one that is better when lower is taken from it."""
    sign, bound = (1.0, "lower") if metric.higher_is_better else (-1.0, "upper")
    changed, worst = (None if gain is None else sign * gain for gain in (part.change, part.change_low))
    return f"{change(metric, 0.0, changed)} on {part.samples} samples, {bound} bound {change(metric, 0.0, worst)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def choice(summary: Summary, doubt: str | None) -> str:
    """Return why the chosen finalist was: the best within the budget, or the closest to it where none is within.

    ``doubt`` is why the measurement decides nothing, None where it does.
    """
    entries = summary.finalists
    is_awaited = any(entry.latency_ms_measured is None for entry in entries)
    if not is_awaited and doubt is None and any(entry.chosen and _is_beyond(summary, entry) for entry in entries):
        return "none of them is within the limit on latency as measured, and the one closest to it was chosen"
    by = f"within the budget as {'predicted' if is_awaited else 'measured'}"
    if any(entry.metric_trained is not None for entry in entries):
        by = f"{judgement_of(summary)} {_training_rounds(entries)}".rstrip()
    return f"the best one {by} was chosen"


def _is_beyond(summary: Summary, entry: FinalistSummary) -> bool:
    """Whether the middle of what was measured of a finalist is beyond a limit on latency."""
    limits = [limit for limit in summary.judged.limits if limit.cost == "latency_ms"]
    pairs = [(limit, entry.latency_ratio if limit.of_dense else entry.latency_ms_measured) for limit in limits]
    return any(measured is not None and measured.median > limit.limit for limit, measured in pairs)


def judgement_of(summary: Summary) -> str:
    """Return what finalists were judged after and in: a short fine-tuning, the data type of the device, or both."""
    parts = ["after a short fine-tuning"] * any(entry.epochs_trained for entry in summary.finalists)
    return " and ".join([*parts, *[f"in {escape(summary.dtype)}"] * (summary.dtype != "float32")])


def _training_rounds(entries: Sequence[FinalistSummary]) -> str:
    """How many finalists were trained for how long, if any: ``of each``, or every round and the epochs in all."""
    epochs = [entry.epochs_trained for entry in entries if entry.epochs_trained]
    if not epochs:
        return ""
    rounds = {length: sum(each >= length for each in epochs) for length in sorted(set(epochs))}
    if len(rounds) < 2:
        in_reserve = any(entry.round > 1 and not entry.epochs_trained for entry in entries)
        return "of each but the reserves" if in_reserve else "of each"
    total = sum(length * count for length, count in rounds.items())
    parts = [f"{count} for {counted(length, 'epoch')}" for length, count in rounds.items()]
    return f"of {', the best '.join(parts)}, {total} epochs in all,"
