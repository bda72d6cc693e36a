"""Plans, comparisons, fronts and energies as text for a terminal, and what texts of runs share with them."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.core import Metric, alike, counted

if TYPE_CHECKING:
    from amcsearch.jobs import Comparison, EnergyReport, LayerReport, SearchPlan
    from amcsearch.runs import (
        EvaluatedPolicy,
        FrontChoice,
        FrontResult,
        FrontSummary,
        TableSummary,
    )
    from amcsearch.search import Mean

__all__ = [
    "choice_text",
    "columns",
    "comparison_text",
    "count",
    "energy_text",
    "front_text",
    "left_out",
    "number",
    "plan_text",
    "table_said",
    "with_sigma",
]


LONG_SEARCH_S: Final = 60.0  # from here on a plan names --workers: starting processes takes seconds


def plan_text(plan: "SearchPlan", workers: int = 1, batch: int = 1) -> str:
    """What a search would do; of a long one, how ``--workers`` uses the other cores with policies of a ``batch``."""
    network, groups = plan.network, counted(plan.network.groups, "channel group")
    rows = [["cost", "dense", "limit", "largest uniform policy"]]
    for name, dense in plan.dense.items():
        limit = plan.budget.get(name)
        rows.append(
            [name, f"{dense:.6g}", "" if limit is None else f"{limit:.6g}", f"{plan.largest_uniform[name]:.6g}"]
        )
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in plan.expected_seconds.items())
    lines = [
        f"{plan.name}: {network.factory}, {counted(network.layers, 'layer')}, {groups}",
        *(f"  not pruned: {skipped.name}: {skipped.reason}" for skipped in network.skipped),
        *(f"  left alone: {layer}" for layer in network.left_alone),
        "samples: " + ", ".join(f"{name} {count}" for name, count in plan.samples.items()),
        f"channel multiple {plan.channel_multiple}, {plan.policies:.3g} policies{left_out(plan.widths_left_out)}",
        *columns(rows),
        f"selection: {plan.selection}",
        f"{plan.agent}: {counted(plan.trials, 'evaluation')}" + (f", then {plan.baseline}" if plan.baseline else ""),
        *(f"WARNING: {text}" for text in plan.warnings),
        f"expected time: about {plan.total_seconds / 60:.1f} minutes ({parts})",
        *_side_by_side(plan, workers, batch, os.cpu_count() or 1),
    ]
    return "\n".join(lines)


def _side_by_side(plan: "SearchPlan", workers: int, batch: int, cores: int) -> tuple[str, ...]:
    busy = workers if plan.fills_workers else min(workers, batch)
    if busy > 1:
        return (f"the time of the search is that of one worker, and {busy} share it",)
    if cores == 1 or plan.expected_seconds["search"] < LONG_SEARCH_S:
        return ()
    if plan.fills_workers:
        return (
            f"evaluations use one of {cores} cores: --workers {cores} evaluates side by side, with the same results",
        )
    options = f"--workers {cores} --set search.batch={2 * cores}"
    return (
        f"evaluations use one of {cores} cores: {options} evaluates side by side; what an agent finds depends on its "
        "batch, not on the workers",
    )


def comparison_text(comparison: "Comparison") -> str:
    """Agents side by side, each a mean over seeds with the half width of its interval."""
    first, *others = comparison.agents
    head = ["", "evaluations", "best reward", comparison.metric.metric.word, f"reward at {comparison.seconds:.3g} s"]
    rows = [[*head, "hypervolume", "seconds", f"difference to {first.agent}"]]
    scale, unit = comparison.metric.metric.scale, " %" if comparison.metric.metric.is_share else ""
    for agent in comparison.agents:
        rows.append(
            [
                agent.agent,
                f"{agent.evaluations:g}",
                _mean(agent.best_reward),
                _mean(agent.metric, scale) + unit,
                _mean(agent.reward_at_equal_seconds),
                _mean(agent.hypervolume),
                _mean(agent.seconds),
                "" if agent.difference is None else _mean(agent.difference, sign="+"),
            ]
        )
    seeds, lines = len(comparison.seeds), []
    for agent in others:
        sentence = f"{agent.agent} reached {first.agent}'s best reward under {agent.reached_reference} of {seeds} seeds"
        count = agent.evaluations_to_reference
        lines.append(sentence if count is None else f"{sentence}, after {count:.3g} evaluations in the mean")
    interval = "± half of the 95 % interval of the mean" if seeds > 1 else "one seed: no interval"
    first_line = f"{counted(seeds, 'seed')}, {counted(comparison.trials, 'evaluation')} each; {interval}"
    legend = (
        f"reward: search.reward of the best policy, at last and after the fastest agent's {comparison.seconds:.3g} s; "
        f"{head[3]}: of that at last; hypervolume: share of what trials span in {', '.join(comparison.objectives)}; "
        "seconds: of evaluations and agent; difference: of best rewards, seed by seed"
    )
    lines = [first_line, legend, f"selection: {comparison.selection}", *lines]
    return "\n".join([*columns(rows), "", *lines, *(f"{name}: {path}" for name, path in comparison.files.items())])


def _mean(mean: "Mean", scale: float = 1.0, sign: str = "") -> str:
    if not math.isfinite(mean.value):
        return "–"
    half = "" if mean.half_width is None else f" ± {mean.half_width * scale:.2g}"
    return f"{mean.value * scale:{sign}.4g}{half}"


def left_out(widths: int) -> str:
    """How many widths no search proposes, as the end of a line; nothing where all are."""
    return f"; {counted(widths, 'width')} left out, no faster than wider ones" if widths else ""


def table_said(table: "TableSummary") -> str:
    """How well a latency table predicts networks that it had not seen."""
    errors, accuracy = table.accuracy, "not checked on this network"
    if errors is not None and None not in (errors.mape, errors.within_5, errors.within_10):
        accuracy = (
            f"mean error {errors.mape:.2%}, {errors.within_5:.0%} within 5 %, {errors.within_10:.0%} within 10 % "
            "on networks it had not seen"
        )
        if errors.noise_mape is not None:
            accuracy += f"; measuring twice differs by {errors.noise_mape:.2%}"
    return f"latency table {table.name}: {accuracy}"


def front_text(result: "FrontResult") -> str:
    """What the dense network and the cheapest policies cost on every device, what was evaluated, and the files."""
    summary = result.summary
    rows = [["device", "cost", "dense", "smallest", "of dense", "policies"]]
    for (device, along), points in result.points.groupby(["device", "along"], sort=False):
        cost = str(along)
        dense, least = summary.device(str(device)).dense[cost], float(points[cost].min())
        share = f"{least / dense:.3g}x" if dense else ""
        rows.append([str(device), cost, _cost(cost, dense), _cost(cost, least), share, str(len(points))])
    metric = summary.judged_by
    lines = [f"errors from {summary.errors_from}; {summary.confidence_text}"]
    for each in summary.evaluated:
        lines.append(f"  {each.device}, {each.along}: error {each.error:.3g}, {_measured(each, metric)}")
    lines += [f"WARNING: {text}" for text in summary.warnings]
    return "\n".join([*columns(rows), "", *lines, *(f"{name}: {path}" for name, path in result.files.items())])


def choice_text(choice: "FrontChoice", summary: "FrontSummary", path: Path) -> str:
    """The policy of a budget: what it costs, how far that and its metric are known, and its file."""
    rows = [["cost", "predicted", "of dense", "limit"]]
    for name, value in choice.cost.items():
        share = choice.of_dense.get(name)
        of_dense = "" if share is None else f"{share:.3f}x"
        rows.append([name, _cost(name, value), of_dense, _cost(name, choice.limits.get(name))])
    metric, measured = summary.judged_by, choice.measured
    lines = [f"predicted error: {choice.error:.4g} (0 is dense)", f"confidence: {choice.confidence.text}"]
    if measured is not None:
        lines.append(f"measured before fine-tuning: {_measured(measured, metric)}, {summary.samples} samples")
    if choice.table is not None:
        lines.append(table_said(choice.table))
        if choice.table.origin is not None:
            lines.append(f"latency table {choice.table.origin.sentence}")
    return "\n".join([f"device {choice.device}", *columns(rows), *lines, f"policy: {path}"])


def _measured(policy: "EvaluatedPolicy", metric: "Metric") -> str:
    """The metric of an evaluated policy, with the ends of its interval."""
    interval = [metric.text(end) for end in (policy.low, policy.high) if end is not None]
    return f"{metric.word} {metric.text(policy.metric)}" + (f" ({' to '.join(interval)})" if interval else "")


def energy_text(report: "EnergyReport") -> str:
    """Energy of every layer by what it is spent on, dense beside pruned and sparse, and which layer costs most."""
    lines = [f"{report.device}, batch {report.batch}", *columns(_energy_rows(report))]
    for name, network in report.networks.items():
        surplus = network.dram_bytes / max(network.dram_least_bytes, 1.0)
        lines += [
            f"{name}: {network.costliest}",
            f"{name}: {network.dram_bytes:,.0f} bytes from and to DRAM, {surplus:.2f} times the lower bound",
        ]
    if report.without_static:
        lines.append("static power is left out: it needs device.table, a latency table of this device")
    if report.measured is not None:
        calls = ", ".join(f"{name} {value:.4g} mJ" for name, value in report.measured.call_mj.items())
        counter, scale = report.measured.counter, report.measured.scale
        lines.append(f"measured above idling by {counter}: {calls}; {scale:.3g} x predicted")
    return "\n".join([*lines, *(f"{name}: {path}" for name, path in report.files.items())])


def _energy_rows(report: "EnergyReport") -> list[list[str]]:
    """A head, a row a layer, and a row of sums a network, all of one length."""
    dense = report.networks["dense"]
    others = {
        name: {layer.name: layer for layer in network.layers}
        for name, network in report.networks.items()
        if name != "dense"
    }
    beside = {"pruned": "pruned to", "sparse": f"density, {report.storage}"}
    rows = [["layer", "channels", "mJ", *dense.parts_mj, *(cell for name in others for cell in (beside[name], "mJ"))]]
    for layer in dense.layers:
        row = [layer.name, _channels(layer), *map(number, (layer.energy_mj, *layer.parts_mj.values()))]
        for name, layers in others.items():
            after = layers.get(layer.name)
            if after is None:
                row += ["vanished", number(0.0)]
                continue
            changed = _channels(after) if name == "pruned" else number(report.densities.get(layer.name))
            row += [changed, number(after.energy_mj)]
        rows.append(row)
    for name, network in report.networks.items():
        rows.append([f"{name}, all", "", *map(number, (network.energy_mj, *network.parts_mj.values()))])
    return [row + [""] * (len(rows[0]) - len(row)) for row in rows]


def _channels(layer: "LayerReport") -> str:
    return f"{layer.in_channels}→{layer.out_channels}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def count(value: float | None) -> str:
    """A whole number with commas, nothing for None."""
    return "" if value is None else f"{value:,.0f}"


def with_sigma(value: float, sigma: float) -> str:
    """A value and its standard deviation, with decimals that show both: ``0.0130 ± 0.0002``."""
    return " ± ".join(alike(value, sigma, sigma))


def _cost(name: str, value: float | None) -> str:
    """A cost with its unit, as on the page: ``96.0 KiB``, ``0.110 ms``; nothing for None."""
    from amcsearch.reporting import cost_text

    return "" if value is None else cost_text(name, value).replace("\u00a0", " ")


def number(value: float | None) -> str:
    """A number to four digits, nothing for None."""
    return "" if value is None else f"{value:.4g}"
