"""The pictures of a run, each a function from a ``Record`` to SVG, or to None where there is nothing to draw."""

import math
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from amcsearch.core import TrialState
from amcsearch.reporting.drawing import ACCENT, BAND, INK, LINE, MUTED, SECOND, SURFACE, drawing, page_svg
from amcsearch.reporting.record import Record
from amcsearch.reporting.words import axis, number

__all__ = ["channels", "convergence", "front", "latency"]

_BAND_SHARE: Final = 0.10
_LABEL_LENGTH: Final = 24


def front(record: Record, cost: str) -> str | None:
    """Accuracy on the search split against one cost: every evaluated policy, the front, the chosen one, dense."""
    title, scale = axis(cost)
    rows = _complete(record.trials)
    rows = rows[rows[cost].notna() & rows["accuracy"].notna()]
    if rows.empty:
        return None
    with drawing() as (figure, axes):
        for agent, group in sorted(rows.groupby("agent", sort=False), key=lambda pair: pair[0] == record.agent):
            colour = ACCENT if agent == record.agent else MUTED
            x, y = group[cost] * scale, group["accuracy"] * 100
            axes.scatter(x, y, s=13, color=colour, alpha=0.5, linewidths=0, label=str(agent))
        _front_line(axes, record.front, cost, scale)
        _landmarks(axes, record, cost, scale)
        axes.set_xlabel(title)
        axes.set_ylabel("Accuracy on search split (%)")
        _legend(axes, columns=2)
        return page_svg(
            figure, f"front-{cost.replace('_', '-')}", f"Accuracy against {title} of all evaluated policies"
        )


def _front_line(axes: Axes, rows: pd.DataFrame, cost: str, scale: float) -> None:
    rows = rows[rows[cost].notna() & rows["accuracy"].notna()].sort_values([cost, "accuracy"], ascending=[True, False])
    best = rows["accuracy"].cummax()
    rows = rows[(rows["accuracy"] == best) & ~best.duplicated()]
    if len(rows):
        x, y = rows[cost] * scale, rows["accuracy"] * 100
        axes.step(x, y, where="post", color=INK, linewidth=1.4, marker="o", markersize=3, label="front")


def _landmarks(axes: Axes, record: Record, cost: str, scale: float) -> None:
    limit = record.budget.get(cost)
    if limit is not None:
        axes.axvline(limit * scale, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)), label="budget")
    finalist = next((f for f in record.entries("finalists") if f.get("chosen")), None)
    match = _complete(record.trials)
    match = match[(match["agent"] == record.agent) & (match["number"] == (finalist or {}).get("trial"))]
    if len(match):
        x, y = match[cost].iloc[0] * scale, match["accuracy"].iloc[0] * 100
        axes.scatter(
            [x], [y], s=90, marker="*", color=SECOND, edgecolors=SURFACE, linewidths=0.8, zorder=5, label="chosen"
        )
    dense, accuracy = number(record.block("dense").get(cost)), number(record.summary.get("dense_search_accuracy"))
    if cost == "latency_ms":
        dense = number(record.block("dense").get("latency_ms_predicted"))
    if dense is not None and accuracy is not None:
        axes.scatter([dense * scale], [accuracy * 100], s=34, marker="D", color=INK, zorder=4, label="dense")


def channels(record: Record) -> str | None:
    """Channels kept in every group, as bars in front of all channels."""
    rows = [(str(e.get("group")), number(e.get("channels")), number(e.get("kept"))) for e in record.entries("network")]
    complete = [(name, every, kept) for name, every, kept in rows if every and kept is not None]
    if not complete:
        return None
    names = [_short(name) for name, _, _ in complete]
    places = np.arange(len(complete))
    with drawing(4.9, max(2.2, 0.9 + 0.235 * len(complete))) as (figure, axes):
        axes.barh(places, [every for _, every, _ in complete], height=0.72, color=LINE, label="dense")
        axes.barh(places, [kept for _, _, kept in complete], height=0.72, color=ACCENT, label="kept")
        for place, (_, every, kept) in enumerate(complete):
            axes.annotate(
                f"{kept:.0f} of {every:.0f}", (every, place), (4, 0), textcoords="offset points", va="center",
                color=MUTED, fontsize=8,
            )  # fmt: skip
        axes.set_yticks(places, names)
        axes.set_ylim(len(complete) - 0.4, -0.6)
        axes.set_xlim(0, max(every for _, every, _ in complete) * 1.22)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("Channels")
        _legend(axes, columns=2)
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
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _legend(axes, columns=len(curves))
        return page_svg(figure, "convergence", "Best reward so far against the number of evaluations")


def latency(record: Record) -> str | None:
    """Predicted against measured latency of the finalists, with y = x and a band of ±10 %."""
    found = [(f, *_predicted_and_measured(f)) for f in record.entries("finalists")]
    known = [(f, p, m, low, high) for f, p, m, low, high in found if p and m and low and high]
    if not known:
        return None
    ends = [value for _, *values in known for value in values]
    low_end, high_end = min(ends) * 0.94, max(ends) * 1.06
    line = np.array([low_end, high_end])
    with drawing() as (figure, axes):
        band = axes.fill_between(line, line * (1 - _BAND_SHARE), line * (1 + _BAND_SHARE), color=BAND, linewidth=0)
        band.set_label("±10 %")
        axes.plot(line, line, color=MUTED, linewidth=1, label="measured = predicted")
        for chosen, colour, marker, label in ((False, ACCENT, "o", "finalists"), (True, SECOND, "*", "chosen")):
            points = [values for f, *values in known if bool(f.get("chosen")) is chosen]
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
        _legend(axes, columns=2)
        return page_svg(figure, "latency", "Predicted against measured latency of the finalists")


def _predicted_and_measured(entry: dict[str, Any]) -> tuple[float | None, float | None, float | None, float | None]:
    measured = entry.get("latency_ms_measured")
    measured = measured if isinstance(measured, dict) else {}
    ends = (number(measured.get(name)) for name in ("median", "low", "high"))
    return (number(entry.get("latency_ms_predicted")), *ends)  # type: ignore[return-value]


def _best_so_far(rows: pd.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    complete = rows["state"] == TrialState.COMPLETE.value
    rewards = rows["reward"].where(complete & rows["reward"].notna(), -math.inf).to_numpy(dtype=np.float64)
    best = np.maximum.accumulate(rewards)
    return np.where(np.isfinite(best), best, np.nan)


def _complete(trials: pd.DataFrame) -> pd.DataFrame:
    return trials[trials["state"] == TrialState.COMPLETE.value]


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.4)


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else "…" + name[-_LABEL_LENGTH + 1 :]
