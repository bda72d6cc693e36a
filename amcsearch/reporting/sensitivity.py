"""Sensitivity curves as a CSV and one picture of small multiples."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amcsearch.core import BadInputError
from amcsearch.reporting.drawing import ACCENT, INK, MUTED, drawing, standalone_svg
from amcsearch.runs import make_folder, replacing

__all__ = ["write_curves"]

_COLUMNS: Final = 4
_PANEL: Final = (1.9, 1.35)  # inches


def write_curves(rows: Iterable[tuple[str, int, float, float]], folder: Path) -> dict[str, str]:
    """Write ``sensitivity.csv`` and ``sensitivity.svg`` to ``folder`` and return their paths as ``csv`` and ``svg``.

    ``rows`` are (group, kept channels, loss in nats, accuracy as a share), each group's ending with all its channels.

    Raises:
        BadInputError: no rows, or a folder that cannot be written.
    """
    found = list(rows)
    if not found:
        raise BadInputError("sensitivity found no channel group to prune; look at the layers named as skipped")
    make_folder(folder)
    paths = {"csv": folder / "sensitivity.csv", "svg": folder / "sensitivity.svg"}
    with replacing(paths["csv"]) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("group", "kept", "loss", "accuracy"))
        writer.writerows(found)
    with replacing(paths["svg"]) as temporary:
        temporary.write_text(_picture(found), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def _picture(rows: list[tuple[str, int, float, float]]) -> str:
    groups: dict[str, list[tuple[int, float]]] = {}
    for group, kept, _, accuracy in rows:
        groups.setdefault(group, []).append((kept, accuracy))
    lines = math.ceil(len(groups) / _COLUMNS)
    with drawing(_PANEL[0] * _COLUMNS, _PANEL[1] * lines + 0.5) as (figure, first):
        first.remove()
        panels = figure.subplots(lines, _COLUMNS, sharex=True, sharey=True, squeeze=False)
        _fill(figure, [axes for line in panels for axes in line], groups)
        return standalone_svg(figure, "sensitivity")


def _fill(figure: Figure, panels: list[Axes], groups: dict[str, list[tuple[int, float]]]) -> None:
    for axes, (name, points) in zip(panels, groups.items(), strict=False):
        channels = max(kept for kept, _ in points)
        share, accuracy = zip(*((kept / channels, 100 * value) for kept, value in sorted(points)), strict=True)
        axes.plot(share, accuracy, color=ACCENT, linewidth=1.6, marker="o", markersize=3)
        title = name if len(name) <= 22 else "…" + name[-21:]
        axes.set_title(f"{title} ({channels})", fontsize=8.5, color=INK, loc="left")
        axes.set_xlim(0, 1.04)
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.supxlabel("Share of the group's channels kept, all other groups whole", fontsize=9, color=MUTED)
    figure.supylabel("Accuracy on search split (%)", fontsize=9, color=MUTED)
