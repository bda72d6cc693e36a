"""The pictures of a run, each a function from a ``Record`` to SVG, or to None where there is nothing to draw.

And that of a comparison of agents, from its curves.
"""

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, TrialState
from amcsearch.reporting.drawing import (
    ACCENT,
    BAND,
    INK,
    LINE,
    MUTED,
    SECOND,
    SURFACE,
    drawing,
    legend_above,
    page_svg,
    series,
    standalone_svg,
    whole_ticks,
)
from amcsearch.reporting.record import Record
from amcsearch.reporting.words import axis, axis_of, known
from amcsearch.runs import FinalistSummary, metric_column

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["channels", "comparison_picture", "convergence", "front", "latency"]

_BAND_SHARE: Final = 0.10
_LABEL_LENGTH: Final = 24
_POINTS: Final = 400  # along the seconds
_BAND: Final = 0.16  # opacity

Array = NDArray[np.float64]


def front(record: Record, cost: str) -> str | None:
    """The metric on the search split against one cost: every evaluated policy, the front, the chosen one, dense."""
    title, scale = axis(cost)
    rows, metric = _complete(record.trials), record.metric
    column = metric_column(rows.columns)
    rows = rows[rows[cost].notna() & rows[column].notna()]
    if rows.empty:
        return None
    with drawing() as (figure, axes):
        for agent, group in sorted(rows.groupby("agent", sort=False), key=lambda pair: pair[0] == record.agent):
            colour = ACCENT if agent == record.agent else MUTED
            x, y = group[cost] * scale, group[column] * metric.scale
            axes.scatter(x, y, s=13, color=colour, alpha=0.5, linewidths=0, label=str(agent))
        _front_line(axes, record, cost, scale)
        _landmarks(axes, record, cost, scale)
        axes.set_xlabel(title)
        axes.set_ylabel(axis_of(metric))
        legend_above(axes, columns=2)
        return page_svg(
            figure, f"front-{cost.replace('_', '-')}", f"{metric.label} against {title} of all evaluated policies"
        )


def _front_line(axes: "Axes", record: Record, cost: str, scale: float) -> None:
    rows, metric = record.front, record.metric
    column, higher = metric_column(rows.columns), metric.higher_is_better
    rows = rows[rows[cost].notna() & rows[column].notna()].sort_values([cost, column], ascending=[True, not higher])
    best = rows[column].cummax() if higher else rows[column].cummin()
    rows = rows[(rows[column] == best) & ~best.duplicated()]
    if len(rows):
        x, y = rows[cost] * scale, rows[column] * metric.scale
        axes.step(x, y, where="post", color=INK, linewidth=1.4, marker="o", markersize=3, label="front")


def _landmarks(axes: "Axes", record: Record, cost: str, scale: float) -> None:
    summary = record.summary
    if summary is None:
        return
    if cost in summary.budget:
        limit = summary.budget[cost].limit * scale
        axes.axvline(limit, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)), label="budget")
    match = _complete(record.trials)
    match = match[(match["agent"] == record.agent) & (match["number"] == (summary.chosen and summary.chosen.trial))]
    if len(match):
        x, y = match[cost].iloc[0] * scale, match[metric_column(match.columns)].iloc[0] * summary.metric.scale
        axes.scatter(
            [x], [y], s=90, marker="*", color=SECOND, edgecolors=SURFACE, linewidths=0.8, zorder=5, label="chosen"
        )
    dense, value = summary.dense.cost.get(cost), known(summary.dense_search_metric)
    if dense is not None and value is not None:
        axes.scatter(
            [dense * scale], [value * summary.metric.scale], s=34, marker="D", color=INK, zorder=4, label="dense"
        )


def channels(record: Record) -> str | None:
    """Channels kept in every group, as bars in front of all channels."""
    groups = () if record.summary is None else record.summary.network
    if not groups:
        return None
    positions = np.arange(len(groups))
    with drawing(4.9, max(2.2, 0.9 + 0.235 * len(groups))) as (figure, axes):
        axes.barh(positions, [group.channels for group in groups], height=0.72, color=LINE, label="dense")
        axes.barh(positions, [group.kept for group in groups], height=0.72, color=ACCENT, label="kept")
        for position, group in enumerate(groups):
            text = f"{group.kept} of {group.channels}" if group.kept else "vanished"
            axes.annotate(
                text, (group.channels, position), (4, 0), textcoords="offset points",
                va="center", color=MUTED, fontsize=8,
            )  # fmt: skip
        axes.set_yticks(positions, [_short(group.group) for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlim(0, max(group.channels for group in groups) * 1.22)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        whole_ticks(axes.xaxis)
        axes.set_xlabel("Channels")
        legend_above(axes, columns=2)
        return page_svg(figure, "channels", "Channels kept in every group of the network")


def convergence(record: Record) -> str | None:
    """Best reward so far against evaluations spent: the agent and its baseline."""
    curves = [(agent, _best_so_far(rows)) for agent, rows in record.trials.groupby("agent", sort=False)]
    curves = [(agent, curve) for agent, curve in curves if np.isfinite(curve).any()]
    if not curves:
        return None
    with drawing() as (figure, axes):
        for agent, curve in curves:
            mine = agent == record.agent
            style: Any = "solid" if mine else (0, (5, 2))
            axes.step(
                np.arange(1, len(curve) + 1), curve, where="post", linewidth=1.8, linestyle=style,
                color=ACCENT if mine else SECOND, label=str(agent), zorder=3 if mine else 2,
            )  # fmt: skip
        axes.set_xlabel("Evaluations")
        axes.set_ylabel("Best reward so far")
        axes.set_xlim(left=1)
        whole_ticks(axes.xaxis)
        legend_above(axes, columns=len(curves))
        return page_svg(figure, "convergence", "Best reward so far against the number of evaluations")


def latency(record: Record) -> str | None:
    """Predicted against measured latency of the finalists, with y = x and a band of ±10 %."""
    finalists = () if record.summary is None else record.summary.finalists
    rows = [(finalist.chosen, _predicted_and_measured(finalist)) for finalist in finalists]
    rows = [(chosen, values) for chosen, values in rows if np.isfinite(values).all() and all(values)]
    if not rows:
        return None
    ends = [value for _, values in rows for value in values]
    low_end, high_end = min(ends) * 0.94, max(ends) * 1.06
    line = np.array([low_end, high_end])
    with drawing() as (figure, axes):
        band = axes.fill_between(line, line * (1 - _BAND_SHARE), line * (1 + _BAND_SHARE), color=BAND, linewidth=0)
        band.set_label("±10 %")
        axes.plot(line, line, color=MUTED, linewidth=1, label="measured = predicted")
        for chosen, colour, marker, label in ((False, ACCENT, "o", "finalists"), (True, SECOND, "*", "chosen")):
            points = [values for is_chosen, values in rows if is_chosen is chosen]
            if points:
                p, m, low, high = np.array(points).T
                size = 11 if chosen else 5
                axes.errorbar(
                    p, m, yerr=(np.maximum(m - low, 0), np.maximum(high - m, 0)), fmt=marker, color=colour,
                    markersize=size, markeredgecolor=SURFACE, elinewidth=1.2, capsize=2.5, label=label,
                )  # fmt: skip
        axes.set_xlim(low_end, high_end)
        axes.set_ylim(low_end, high_end)
        axes.set_xlabel("Predicted latency (ms)")
        axes.set_ylabel("Measured latency (ms)")
        legend_above(axes, columns=2)
        return page_svg(figure, "latency", "Predicted against measured latency of the finalists")


def _predicted_and_measured(finalist: FinalistSummary) -> tuple[float, float, float, float]:
    """Predicted latency, and the median and ends of the measured one, in ms; NaN where there is none."""
    predicted, measured = finalist.latency_ms_predicted, finalist.latency_ms_measured
    if measured is None:
        return math.nan, math.nan, math.nan, math.nan
    return math.nan if predicted is None else predicted, measured.median, measured.low, measured.high


def comparison_picture(curves: "pd.DataFrame") -> str:
    """Return an SVG file: the mean over seeds of every agent's best reward so far, and the range of its seeds.

    ``curves`` has one row an evaluation with ``agent``, ``seed``, ``evaluation``, ``seconds`` and ``best_reward``. A
    search that ended early keeps its best. A mean begins where every seed has a complete trial.

    Raises:
        BadInputError: no rows.
    """
    if curves.empty:
        raise BadInputError("a comparison without an evaluation has no picture")
    with drawing(8.6, 3.7) as (figure, axes):
        axes.remove()
        left, right = figure.subplots(1, 2, sharey=True)
        most, longest = int(curves["evaluation"].max()), float(curves["seconds"].max())
        _draw_agents(left, curves, "evaluation", np.arange(1.0, most + 1))
        _draw_agents(right, curves, "seconds", np.linspace(0.0, longest, _POINTS))
        left.set_xlabel("Evaluations")
        left.set_ylabel("Best reward so far")
        right.set_xlabel("Seconds of evaluation and of the agent")
        left.set_xlim(left=1)
        right.set_xlim(left=0)
        whole_ticks(left.xaxis)
        count = curves["agent"].nunique()
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=min(4, count))
        return standalone_svg(figure, "comparison")


def _draw_agents(axes: "Axes", curves: "pd.DataFrame", along: str, grid: Array) -> None:
    for number, (agent, rows) in enumerate(curves.groupby("agent", sort=False)):
        seeds = np.array([_on_grid(of_seed, along, grid) for _, of_seed in rows.groupby("seed")])
        colour, dash = series(number)
        mean = seeds.mean(axis=0)
        axes.step(grid, mean, where="post", linewidth=1.8, label=str(agent), color=colour, linestyle=dash)
        if len(seeds) > 1:
            axes.fill_between(
                grid, seeds.min(axis=0), seeds.max(axis=0), step="post", alpha=_BAND, linewidth=0, color=colour
            )


def _on_grid(rows: "pd.DataFrame", along: str, grid: Array) -> Array:
    """Best reward at every point of the grid, NaN before the first."""
    rewards = rows["best_reward"].to_numpy(dtype=np.float64)
    at = np.searchsorted(rows[along].to_numpy(dtype=np.float64), grid, side="right") - 1
    values = np.where(at >= 0, rewards[np.maximum(at, 0)], np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _best_so_far(rows: "pd.DataFrame") -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    counts = (rows["state"] == TrialState.COMPLETE.value) & np.isfinite(rows["reward"])
    rewards = rows["reward"].where(counts, -math.inf).to_numpy(dtype=np.float64)
    best = np.maximum.accumulate(rewards)
    return np.where(np.isfinite(best), best, np.nan)


def _complete(trials: "pd.DataFrame") -> "pd.DataFrame":
    return trials[trials["state"] == TrialState.COMPLETE.value]


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else "…" + name[-_LABEL_LENGTH + 1 :]
