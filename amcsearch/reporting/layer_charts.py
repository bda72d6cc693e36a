"""Charts of layers and channel groups, each with its numbers as a CSV.

Energy is one picture of stacked bars, dense above the other networks. Sensitivity curves are small multiples, one a
group; a scatter shows the sum of the groups' losses against the loss of pruning them together.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from amcsearch.core import ACCURACY, BadInputError, Metric, PruningPolicy
from amcsearch.costs import LayerEnergy
from amcsearch.reporting.drawing import ACCENT, INK, LINE, MUTED, SECOND, SURFACE, drawing, standalone_svg
from amcsearch.reporting.words import axis_of, known
from amcsearch.runs import check_outputs, replacing

if TYPE_CHECKING:
    from _csv import Writer as CsvWriter

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_charts", "write_additivity", "write_curves", "write_energy"]

Row = tuple[str, int, float, float, str]
Joint = tuple[float, float, PruningPolicy]

_COLUMNS: Final = 4
_PANEL: Final = (1.9, 1.35)  # inches
_STYLES: Final = {"recovered": (ACCENT, "-", "o"), "bare": (SECOND, "--", "s")}
_LEAST_NATS: Final = 1e-4  # smaller and negative increases are drawn there


_BEGINNINGS: Final = {"sensitivity": "group,kept", "additivity": "expected_increase,", "energy": "network,layer"}


def check_charts(folder: Path | None, *names: str) -> None:
    """Refuse a folder in which charts cannot be written: before minutes of work.

    ``names`` are of ``sensitivity``, ``additivity`` and ``energy``. Without a folder nothing is written.

    Raises:
        BadInputError: the folder cannot be made, or holds files of these names that were not written here.
    """
    if folder is None:
        return
    for name in names:
        check_outputs(folder / f"{name}.csv", _BEGINNINGS[name], [folder / f"{name}.svg"])


def write_curves(rows: Iterable[Row], folder: Path, metric: Metric = ACCURACY) -> dict[str, str]:
    """Write ``sensitivity.csv`` and ``sensitivity.svg`` to ``folder`` and return their paths as ``csv`` and ``svg``.

    ``rows`` are (group, kept channels, loss, the metric in its unit, ``recovered`` or ``bare``), each group's
    ending with all its channels.

    Raises:
        BadInputError: no rows, or a folder that cannot be written.
    """
    points = list(rows)
    if not points:
        raise BadInputError("sensitivity found no channel group to prune; look at the layers named as skipped")
    check_charts(folder, "sensitivity")
    paths = {"csv": folder / "sensitivity.csv", "svg": folder / "sensitivity.svg"}
    _write_table(paths["csv"], ("group", "kept", "loss", metric.name, "recovery"), points)
    with replacing(paths["svg"]) as temporary:
        temporary.write_text(_curves_picture(points, metric), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def write_additivity(rows: Iterable[Joint], rank_correlation: float | None, folder: Path) -> dict[str, str]:
    """Write ``additivity.csv`` and ``additivity.svg`` and return their paths as ``additivity_csv`` and ``…_svg``.

    ``rows`` are (loss increase expected of the sum over groups, the measured one, the policy), in nats.

    Raises:
        BadInputError: a folder that cannot be written.
    """
    policies = list(rows)
    check_charts(folder, "additivity")
    paths = {"additivity_csv": folder / "additivity.csv", "additivity_svg": folder / "additivity.svg"}
    lines = [(expected, measured, policy.to_json()) for expected, measured, policy in policies]
    _write_table(paths["additivity_csv"], ("expected_increase", "measured_increase", "policy"), lines)
    with replacing(paths["additivity_svg"]) as temporary:
        temporary.write_text(_scatter(policies, rank_correlation), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def _write_table(path: Path, head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(head)
        writer.writerows(rows)


def _curves_picture(rows: list[Row], metric: Metric) -> str:
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for group, kept, _, value, recovery in rows:
        groups.setdefault(group, {}).setdefault(recovery, []).append((kept, value * metric.scale))
    lines = math.ceil(len(groups) / _COLUMNS)
    with drawing(_PANEL[0] * _COLUMNS, _PANEL[1] * lines + 0.7) as (figure, first):
        first.remove()
        panels = figure.subplots(lines, _COLUMNS, sharex=True, sharey=True, squeeze=False)
        _fill_panels(figure, [axes for line in panels for axes in line], groups)
        figure.supylabel(axis_of(metric), fontsize=9, color=MUTED)
        return standalone_svg(figure, "sensitivity")


def _fill_panels(figure: "Figure", panels: "list[Axes]", groups: dict[str, dict[str, list[tuple[int, float]]]]) -> None:
    for axes, (name, lines) in zip(panels, groups.items(), strict=False):
        channels = max(kept for points in lines.values() for kept, _ in points)
        for recovery, points in reversed(lines.items()):
            share, values = zip(*((kept / channels, value) for kept, value in sorted(points)), strict=True)
            colour, dash, marker = _STYLES[recovery]
            axes.plot(share, values, dash, color=colour, linewidth=1.6, marker=marker, markersize=3, label=recovery)
        title = name if len(name) <= 22 else "…" + name[-21:]
        axes.set_title(f"{title} ({channels})", fontsize=8.5, color=INK, loc="left")
        axes.set_xlim(0, 1.04)
    for axes in panels[len(groups) :]:
        axes.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.supxlabel("Share of the group's channels kept, all other groups whole", fontsize=9, color=MUTED)


def _scatter(rows: list[Joint], rank_correlation: float | None) -> str:
    from matplotlib.ticker import NullFormatter

    with drawing(4.6, 3.8) as (figure, axes):
        nats = np.array([row[:2] for row in rows])
        expected, measured = nats[np.isfinite(nats).all(axis=1)].clip(min=_LEAST_NATS).T
        axes.loglog(expected, measured, "o", color=ACCENT, markersize=4)
        ends = np.quantile([*expected, *measured, _LEAST_NATS], (0.0, 1.0))
        axes.loglog(ends, ends, "-", color=LINE, linewidth=1.4, zorder=1)
        correlation = known(rank_correlation)
        words = "" if correlation is None else f", rank correlation {correlation:.2f}"
        axes.set_title(f"{len(rows)} random policies{words}", fontsize=9, color=INK, loc="left")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Sum of single groups' loss increases (nats)")
        axes.set_ylabel("Measured loss increase (nats)")
        return standalone_svg(figure, "additivity")


_COLOURS: Final[Mapping[str, str]] = {
    "compute": "#009e73",
    "buffers": "#e69f00",
    "DRAM weights": ACCENT,
    "DRAM inputs": "#56b4e9",
    "DRAM outputs": "#cc79a7",
    "static": MUTED,
}
_FADED: Final = 0.45  # how much of its colour the dense network's bars keep beside others
_LABEL_LENGTH: Final = 34


def write_energy(networks: Mapping[str, Sequence[LayerEnergy]], device: str, folder: Path) -> dict[str, str]:
    """Write ``energy.csv`` and ``energy.svg`` to ``folder`` and return their paths as ``csv`` and ``svg``.

    ``networks`` holds the layers of ``dense`` and, where there are such, of ``pruned`` and ``sparse``: the same layers
    in the same order. ``device`` is named in the picture.

    Raises:
        BadInputError: no layer that costs anything, or a folder that cannot be written.
    """
    if not any(layer.total_mj for layers in networks.values() for layer in layers):
        raise BadInputError("no layer of this network costs energy; look at the device's constants")
    check_charts(folder, "energy")
    paths = {"csv": folder / "energy.csv", "svg": folder / "energy.svg"}
    with replacing(paths["csv"]) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        _write_energies(csv.writer(stream), networks)
    with replacing(paths["svg"]) as temporary:
        temporary.write_text(_energy_picture(networks, device), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def _write_energies(writer: "CsvWriter", networks: Mapping[str, Sequence[LayerEnergy]]) -> None:
    parts = [f"{part.replace(' ', '_').lower()}_mj" for part in _COLOURS]
    writer.writerow(["network", "layer", "macs", "energy_mj", *parts, "memory", "bytes", "least_bytes"])
    for network, layers in networks.items():
        for layer in layers:
            energies = [f"{value:.6g}" for value in (layer.total_mj, *layer.parts_mj.values())]
            for memory in layer.traffic:
                moved = [memory.memory, f"{memory.total_bytes:.0f}", f"{memory.least_bytes:.0f}"]
                writer.writerow([network, layer.name, f"{layer.macs:.0f}", *energies, *moved])


def _energy_picture(networks: Mapping[str, Sequence[LayerEnergy]], device: str) -> str:
    from matplotlib.patches import Patch

    named = {network: {layer.name: layer for layer in layers} for network, layers in networks.items()}
    order = [layer.name for layer in networks["dense"]]  # of a block that vanished, a smaller network has no layers
    shown = [name for name in order if any(layers[name].total_mj for layers in named.values() if name in layers)]
    height = 0.155 * len(shown) * max(len(networks), 1.4) + 1.3
    with drawing(8.2, height) as (figure, axes):
        for number, (network, layers_of) in enumerate(named.items()):
            kept = _FADED if len(networks) > 1 and network == "dense" else 1.0
            _bars(axes, [layers_of.get(name) for name in shown], number, len(networks), kept)
        axes.set_yticks(range(len(shown)), [_short(name) for name in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=7.5)
        axes.grid(axis="y", visible=False)
        beside = f": dense (faded) above {', then '.join(list(networks)[1:])}" if len(networks) > 1 else ""
        axes.set_xlabel(f"Predicted energy of a layer (mJ){beside}")
        used = [name for name in _COLOURS if any(layer.parts_mj[name] for x in networks.values() for layer in x)]
        legend = [Patch(color=_COLOURS[name], label=name) for name in used]
        axes.legend(handles=legend, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=len(used), borderaxespad=0.2)
        sums = {name: sum(layer.total_mj for layer in layers) for name, layers in networks.items()}
        figure.suptitle(
            f"{device}: " + ", ".join(f"{name} {total:.3g} mJ" for name, total in sums.items()), fontsize=9.5
        )
        return standalone_svg(figure, "energy")


def _bars(axes: "Axes", layers: Sequence[LayerEnergy | None], number: int, count: int, kept: float) -> None:
    from matplotlib.colors import to_rgb

    thickness = 0.8 / count
    heights = [row + (number - (count - 1) / 2) * thickness for row in range(len(layers))]
    left = [0.0] * len(layers)
    for part, colour in _COLOURS.items():
        widths = [0.0 if layer is None else layer.parts_mj[part] for layer in layers]
        if any(widths):
            # mixed with the background, not transparent: the grid would show through
            mixed = [
                kept * front + (1 - kept) * back for front, back in zip(to_rgb(colour), to_rgb(SURFACE), strict=True)
            ]
            axes.barh(heights, widths, 0.92 * thickness, left=left, color=mixed, linewidth=0)
            left = [start + width for start, width in zip(left, widths, strict=True)]


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else "…" + name[-_LABEL_LENGTH + 1 :]
