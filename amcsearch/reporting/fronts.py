"""The page of whole fronts: one picture a cost, devices as series, and how far predictions are to be trusted."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from amcsearch.core import BadInputError, InfeasibleBudgetError, counted
from amcsearch.reporting.drawing import INK, MUTED, drawing, legend_above, page_svg, series
from amcsearch.reporting.page import document
from amcsearch.reporting.words import LABELS, axis_of, cost, escape, measured, percent, preformatted, warnings_section
from amcsearch.runs import EvaluatedPolicy, FrontDevice, FrontResult, FrontSummary

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["front_page"]

_SHARES: Final = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2)  # of dense, in the table of what a budget buys


def front_page(result: FrontResult) -> str:
    """Return the page of a front, self-contained HTML."""
    summary = result.summary
    costs = list(dict.fromkeys(name for device in summary.devices for name in device.dense))
    body = [warnings_section(summary.warnings), _trust(summary)]
    body.append(f"<section class='pictures'>{''.join(_picture(result, name) for name in costs)}</section>")
    body += [_bought(result, costs), _devices(summary, costs), _commands(result)]
    lead = (
        f"Fronts of {len(costs)} costs on {len(summary.devices)} devices; errors of every width from "
        f"{summary.errors_from}, policies of least error by exact dynamic programming"
    )
    return document(summary.name, lead, "pruning fronts", body)


def _trust(summary: FrontSummary) -> str:
    """What the evaluated policies say of the predicted errors, or that there are none."""
    metric, count = summary.judged_by, len(summary.evaluated)
    dense = f"The dense network has {measured(metric, summary.dense_metric)} on {summary.samples} samples."
    if not count:
        text = (
            f"Predicted only: no policy was evaluated. Errors order policies, they say nothing of the metric. {dense}"
        )
        return f"<section id='trust'><h2>How far to trust it</h2><p>{escape(text)}</p></section>"
    ranks = summary.rank_correlation
    sentences = [
        f"Evaluated: {counted(count, 'policy', 'policies')} of the fronts, removed, recovered, before fine-tuning."
    ]
    if ranks is not None:
        sentences.append(f"Rank correlation of predicted error and what was lost: {ranks:.2f}.")
    sentences.append("Between them the metric is interpolated.")
    figure = f"<figure>{_measured_against_error(summary)}</figure>"
    note = "Bars are 95 % intervals, paired with the dense network; the line is what is expected of other policies."
    lead = f"<p>{escape(' '.join([*sentences, dense]))}</p><p class='note'>{note}</p>"
    return f"<section id='trust'><h2>How far to trust it</h2>{lead}{figure}</section>"


def _measured_against_error(summary: FrontSummary) -> str:
    metric = summary.judged_by
    largest = max(each.error for each in summary.evaluated)
    errors = np.linspace(0.0, largest, 400)
    with drawing(6.4, 3.3) as (figure, axes):
        expected = summary.expected(errors) * metric.scale
        axes.plot(errors, expected, color=MUTED, linewidth=1.4, label="expected")
        for number, device in enumerate(summary.devices):
            mine = [each for each in summary.evaluated if each.device == device.name]
            if mine:
                _draw_measured(axes, [each.error for each in mine], mine, summary, number, device.name)
        axes.scatter([0.0], [summary.dense_metric * metric.scale], s=34, marker="D", color=INK, label="dense", zorder=4)
        axes.set_xlabel("Predicted error")
        axes.set_ylabel(axis_of(metric))
        legend_above(axes, 3)
        return page_svg(figure, "trust", f"{metric.label} as measured against the predicted error")


def _draw_measured(
    axes: "Axes",
    x: Sequence[float],
    policies: Sequence[EvaluatedPolicy],
    summary: FrontSummary,
    number: int,
    label: str | None,
) -> None:
    """Evaluated policies with their intervals, in the colour of their device."""
    scale = summary.judged_by.scale
    y = np.array([each.metric for each in policies])
    low = np.array([each.metric if each.low is None else each.low for each in policies])
    high = np.array([each.metric if each.high is None else each.high for each in policies])
    bars = np.maximum([y - low, high - y], 0.0) * scale
    colour, _ = series(number)
    axes.errorbar(
        x, y * scale, yerr=bars, fmt="o", color=colour, markersize=4.5, elinewidth=1.2, capsize=2.5, label=label
    )


def _picture(result: FrontResult, name: str) -> str:
    """The fronts against one cost as a share of dense: the expected metric, or the error where it is predicted only."""
    summary, has_metric = result.summary, bool(result.summary.evaluated)
    metric = summary.judged_by
    label = LABELS.get(name, name)
    with drawing() as (figure, axes):
        for number, device in enumerate(summary.devices):
            rows = _along(result.points, device, name)
            if rows.empty or not device.dense.get(name):
                continue
            colour, dash = series(number)
            x = rows[name] / device.dense[name]
            y = rows["expected"] * metric.scale if has_metric else rows["error"]
            style = {"color": colour, "linestyle": dash, "linewidth": 1.8, "label": device.name}
            axes.step(x, y, where="post", **style)
            mine = [each for each in summary.evaluated if (each.device, each.along) == (device.name, name)]
            if mine:
                at = {str(row.policy): share for row, share in zip(rows.itertuples(), x, strict=True)}
                _draw_measured(axes, [at[each.policy.to_json()] for each in mine], mine, summary, number, None)
        axes.set_xlim(0.0, 1.02)
        axes.set_xlabel(f"{label} (share of the dense network's)")
        axes.set_ylabel(axis_of(metric) if has_metric else "Predicted error")
        legend_above(axes, 2)
        svg = page_svg(figure, f"front-{name.replace('_', '-')}", f"Fronts against {label}, one a device")
    quantity = metric.label if has_metric else "Predicted error"
    title = escape(f"{quantity} against {label}")
    return f"<section id='front-{escape(name)}'><h2>{title}</h2><figure>{svg}</figure></section>"


def _along(points: "pd.DataFrame", device: FrontDevice, name: str) -> "pd.DataFrame":
    return points[(points["device"] == device.name) & (points["along"] == name)]


def _bought(result: FrontResult, costs: Sequence[str]) -> str:
    """What each share of each cost leaves of the metric, or of what error."""
    has_metric = bool(result.summary.evaluated)
    head = "".join(f"<th>{share:g}x</th>" for share in _SHARES)
    rows = []
    for device in result.summary.devices:
        for name in costs:
            if not _along(result.points, device, name).empty:
                cells = "".join(f"<td>{escape(_at(result, device, name, share))}</td>" for share in _SHARES)
                label = f"{device.name}: {LABELS.get(name, name)}"
                rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    quantity = f"{result.summary.judged_by.label}, expected before fine-tuning" if has_metric else "Predicted error"
    note = (
        f"{quantity}, within such a share of the dense network's cost; – is out of reach, ? beyond what was evaluated."
    )
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return (
        f"<section id='budgets'><h2>What a budget leaves</h2><p class='note'>{escape(note)}</p>"
        f"<div class='scroll'>{table}</div></section>"
    )


def _at(result: FrontResult, device: FrontDevice, name: str, share: float) -> str:
    try:
        choice = result.within({name: f"{share}x"}, device.name)
    except (InfeasibleBudgetError, BadInputError):
        return "–"
    if not result.summary.evaluated:
        return f"{choice.error:.3g}"
    expected = choice.confidence.expected
    return "?" if expected is None else measured(result.summary.judged_by, expected, 1)


def _devices(summary: FrontSummary, costs: Sequence[str]) -> str:
    """What the dense network costs on every device, and how well that is known."""
    head = "".join(f"<th>{escape(LABELS.get(name, name))}</th>" for name in costs)
    rows = []
    for device in summary.devices:
        cells = "".join(f"<td>{escape(cost(name, device.dense.get(name)))}</td>" for name in costs)
        errors = None if device.table is None else device.table.accuracy
        known = "" if device.table is None else "not checked" if errors is None else percent(errors.mape)
        rows.append(
            f"<tr><th>{escape(device.name)}</th>{cells}<td>{escape(known)}</td><td>{device.channel_multiple}</td></tr>"
        )
    note = (
        "Costs of the dense network; the mean error of the latency table on variants of the network that it had not "
        "seen; what kept channels are multiples of."
    )
    head = f"<tr><th></th>{head}<th>Table's error</th><th>Multiple</th></tr>"
    return (
        f"<section id='devices'><h2>Devices</h2><p class='note'>{note}</p><div class='scroll'><table>"
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _commands(result: FrontResult) -> str:
    folder, device = Path(result.files["page"]).parent.name, result.summary.devices[0]
    name = "latency_ms" if "latency_ms" in device.dense else next(iter(device.dense))
    run = shlex.quote(folder)
    text = (
        f"# the policy of any budget on any device, as {run}/policy.json\n"
        f"amcsearch front {run} --budget {name}=0.4x --device {shlex.quote(device.name)} "
        f"-o {run}/policy.json\n\n"
        f"# prune by it, fine-tune, export, measure\namcsearch prune {run}/config.yaml --policy {run}/policy.json"
    )
    return f"<section id='commands'><h2>How to go on</h2>{preformatted(text)}</section>"
