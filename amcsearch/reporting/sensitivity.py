"""Sensitivity curves as a CSV and one picture of small multiples; summed beside joint losses as another."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.reporting.drawing import ACCENT, INK, LINE, MUTED, SECOND, drawing, standalone_svg
from amcsearch.runs import make_folder, replacing

__all__ = ["write_additivity", "write_curves"]

Row = tuple[str, int, float, float, str]
Joint = tuple[float, float, PruningPolicy]

_COLUMNS: Final = 4
_PANEL: Final = (1.9, 1.35)  # inches
_STYLES: Final = {"recovered": (ACCENT, "-", "o"), "bare": (SECOND, "--", "s")}
_LEAST_NATS: Final = 1e-4  # smaller and negative increases are drawn there


def write_curves(rows: Iterable[Row], folder: Path) -> dict[str, str]:
    """Write ``sensitivity.csv`` and ``sensitivity.svg`` to ``folder`` and return their paths as ``csv`` and ``svg``.

    ``rows`` are (group, kept channels, loss in nats, accuracy as a share, ``recovered`` or ``bare``), each group's
    ending with all its channels.

    Raises:
        BadInputError: no rows, or a folder that cannot be written.
    """
    found = list(rows)
    if not found:
        raise BadInputError("sensitivity found no channel group to prune; look at the layers named as skipped")
    make_folder(folder)
    paths = {"csv": folder / "sensitivity.csv", "svg": folder / "sensitivity.svg"}
    _write_rows(paths["csv"], ("group", "kept", "loss", "accuracy", "recovery"), found)
    with replacing(paths["svg"]) as temporary:
        temporary.write_text(_picture(found), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def write_additivity(rows: Iterable[Joint], rank_correlation: float | None, folder: Path) -> dict[str, str]:
    """Write ``additivity.csv`` and ``additivity.svg`` and return their paths as ``additivity_csv`` and ``…_svg``.

    ``rows`` are (loss increase expected of the sum over groups, the measured one, the policy), in nats.

    Raises:
        BadInputError: a folder that cannot be written.
    """
    found = list(rows)
    make_folder(folder)
    paths = {"additivity_csv": folder / "additivity.csv", "additivity_svg": folder / "additivity.svg"}
    lines = [(expected, measured, policy.to_json()) for expected, measured, policy in found]
    _write_rows(paths["additivity_csv"], ("expected_increase", "measured_increase", "policy"), lines)
    with replacing(paths["additivity_svg"]) as temporary:
        temporary.write_text(_scatter(found, rank_correlation), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def _write_rows(path: Path, head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(head)
        writer.writerows(rows)


def _picture(rows: list[Row]) -> str:
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for group, kept, _, accuracy, recovery in rows:
        groups.setdefault(group, {}).setdefault(recovery, []).append((kept, accuracy))
    lines = math.ceil(len(groups) / _COLUMNS)
    with drawing(_PANEL[0] * _COLUMNS, _PANEL[1] * lines + 0.7) as (figure, first):
        first.remove()
        panels = figure.subplots(lines, _COLUMNS, sharex=True, sharey=True, squeeze=False)
        _fill(figure, [axes for line in panels for axes in line], groups)
        return standalone_svg(figure, "sensitivity")


def _fill(figure: Figure, panels: list[Axes], groups: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    for axes, (name, lines) in zip(panels, groups.items(), strict=False):
        channels = max(kept for points in lines.values() for kept, _ in points)
        for recovery, points in reversed(lines.items()):
            share, accuracy = zip(*((kept / channels, 100 * value) for kept, value in sorted(points)), strict=True)
            colour, dash, marker = _STYLES[recovery]
            axes.plot(share, accuracy, dash, color=colour, linewidth=1.6, marker=marker, markersize=3, label=recovery)
        title = name if len(name) <= 22 else "…" + name[-21:]
        axes.set_title(f"{title} ({channels})", fontsize=8.5, color=INK, loc="left")
        axes.set_xlim(0, 1.04)
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.supxlabel("Share of the group's channels kept, all other groups whole", fontsize=9, color=MUTED)
    figure.supylabel("Accuracy on search split (%)", fontsize=9, color=MUTED)


def _scatter(rows: list[Joint], rank_correlation: float | None) -> str:
    with drawing(4.6, 3.8) as (figure, axes):
        nats = np.array([row[:2] for row in rows])
        expected, measured = nats[np.isfinite(nats).all(axis=1)].clip(min=_LEAST_NATS).T
        axes.loglog(expected, measured, "o", color=ACCENT, markersize=4)
        ends = np.quantile([*expected, *measured, _LEAST_NATS], (0.0, 1.0))
        axes.loglog(ends, ends, "-", color=LINE, linewidth=1.4, zorder=1)
        words = "" if rank_correlation is None else f", rank correlation {rank_correlation:.2f}"
        axes.set_title(f"{len(rows)} random policies{words}", fontsize=9, color=INK, loc="left")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Sum of single groups' loss increases (nats)")
        axes.set_ylabel("Measured loss increase (nats)")
        return standalone_svg(figure, "additivity")
