"""Latency against width as a table predicts it: a picture a network, and every cliff as a row.

A cliff is a width at which a layer is more than 2 % slower than at some wider one: pruning to it costs accuracy
and time.
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs import LatencyModel, LatencyTable, keeps_signature, measured_layers, signature
from amcsearch.reporting.drawing import ACCENT, INK, LINE, MUTED, SECOND, drawing, standalone_svg
from amcsearch.runs import check_outputs, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LayerCurve", "layer_curves", "write_latency_curves"]

CLIFF: Final = 1.02  # times the latency of a wider layer
_WIDTHS_APART: Final = (LayerKind.CONV, LayerKind.LINEAR, LayerKind.EMBEDDING)
_COLUMNS: Final = 4
_PANELS: Final = 16  # the costliest layers; the CSV has all
_PANEL: Final = (2.4, 1.6)  # inches
_LABELS: Final = 4  # most grid lines of a panel that are all labelled
_LEAST_WIDTH: Final = 7.2  # inches, which the caption needs
_CAPTION: Final = (
    "Output channels kept (all inputs). Line: the channel grid. Orange: slower than some wider layer. Bar: measured"
)
_LONGEST_NAME: Final = 50  # characters of a file
_HEAD: Final = ("network", "layer", "in_channels", "out_channels", "ms", "wider", "wider_ms", "slower")


@dataclass(frozen=True)
class LayerCurve:
    """Predicted latency of one layer over its output widths, (W,) each, at the widest input that was measured.

    ``measured`` are the positions in ``widths`` that were measured with this input, ``cliffs`` those of cliffs. Both
    widths of a depthwise convolution, attention or layer norm move together.
    """

    layer: LayerSpec
    widths: NDArray[np.int64]
    ms: NDArray[np.float64]
    measured: NDArray[np.intp]

    @property
    def cliffs(self) -> NDArray[np.intp]:
        """Positions at which some wider layer is faster by more than 2 %."""
        least = np.minimum.accumulate(self.ms[::-1])[::-1]
        return np.flatnonzero(self.ms > CLIFF * least)

    @property
    def title(self) -> str:
        """The layer in a few words; /2 is a stride of 2."""
        size = "x".join(map(str, self.layer.in_size))
        if self.layer.kind is not LayerKind.CONV:
            return f"{self.layer.kind.value.replace('_', ' ')} {self.layer.in_channels}→ on {size}"
        kernel = "x".join(map(str, self.layer.kernel))
        kind = f"{kernel} {'depthwise' if self.layer.is_depthwise else 'conv'}"
        stride = f" /{self.layer.stride[0]}" if self.layer.stride[0] > 1 else ""
        return f"{kind} {self.layer.in_channels}→{stride} on {size}"


def layer_curves(table: LatencyTable, model: LatencyModel) -> list[LayerCurve]:
    """Curves of every signature of a network whose outputs vary and cost time, the costliest first.

    Args:
        table: says what was measured.
        model: of one of its networks.
    """
    by_signature: dict[object, list[LayerSpec]] = {}
    timed = table.rows[table.rows["latency_ms"].notna()]
    for layer in measured_layers(timed, model.network) if len(timed) else []:
        by_signature.setdefault(signature(layer), []).append(layer)
    curves = []
    for layers in by_signature.values():
        if len({layer.out_channels for layer in layers}) == 1:
            continue
        widest = max(layers, key=lambda layer: (layer.in_channels, layer.out_channels))
        apart = widest.kind in _WIDTHS_APART and not widest.is_depthwise
        outs = {x.out_channels for x in layers if not apart or x.in_channels == widest.in_channels}
        widths = np.arange(1, widest.out_channels + 1)
        inputs = np.full_like(widths, widest.in_channels) if apart else widths
        possible = keeps_signature(widest, np.stack([inputs, widths], axis=1))
        inputs, widths = inputs[possible], widths[possible]
        ms = model.layer_costs(widest, inputs, widths)
        curves.append(LayerCurve(widest, widths, ms, np.flatnonzero(np.isin(widths, list(outs)))))
    return sorted((curve for curve in curves if curve.ms.any()), key=lambda curve: -float(curve.ms[-1]))


def write_latency_curves(table: LatencyTable, folder: Path) -> dict[str, Path]:
    """Draw every network of a table and list all cliffs; returns the files by what they are.

    Raises:
        BadInputError: a folder that cannot be written.
    """
    rows, files = folder / "cliffs.csv", _picture_files(folder, table.networks)
    check_outputs(rows, ",".join(_HEAD[:2]), files.values())
    pictures, cliffs = {}, []
    for name in table.networks:
        model = table.bind(name)
        curves = layer_curves(table, model)
        cliffs += [(name, *row) for curve in curves for row in _cliff_rows(curve)]
        if curves:
            pictures[name] = files[name]
            with replacing(pictures[name]) as temporary:
                temporary.write_text(_picture(name, model.channel_multiple, curves), encoding="utf-8")
    with replacing(rows) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(_HEAD)
        writer.writerows(cliffs)
    return {**pictures, "cliffs": rows}


def _picture_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """A file for each name, which may hold any character; names that look the same as a file are numbered."""
    files: dict[str, Path] = {}
    for name in names:
        plain = re.sub(r"[^\w.-]", "_", name)[:_LONGEST_NAME]
        path, number = folder / f"{plain}.svg", 2
        while path in files.values():
            path, number = folder / f"{plain}-{number}.svg", number + 1
        files[name] = path
    return files


def _cliff_rows(curve: LayerCurve) -> Iterator[tuple[str | int, ...]]:
    for at in curve.cliffs.tolist():
        wider = at + 1 + int(np.argmin(curve.ms[at + 1 :]))
        numbers = (f"{curve.ms[at]:.6f}", int(curve.widths[wider]), f"{curve.ms[wider]:.6f}")
        slower = f"{curve.ms[at] / curve.ms[wider] - 1.0:.3f}"
        yield curve.title, curve.layer.in_channels, int(curve.widths[at]), *numbers, slower


def _picture(name: str, multiple: int | None, curves: list[LayerCurve]) -> str:
    shown = curves[:_PANELS]
    columns = min(_COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    with drawing(max(_PANEL[0] * columns, _LEAST_WIDTH), _PANEL[1] * lines + 0.7) as (figure, first):
        first.remove()
        panels = [axes for line in figure.subplots(lines, columns, squeeze=False) for axes in line]
        for axes, curve in zip(panels, shown, strict=False):
            _fill(axes, curve, multiple or 1)
        for axes in panels[len(shown) :]:
            axes.remove()
        more = f", the {_PANELS} costliest of {len(curves)} layers" if len(curves) > _PANELS else ""
        figure.suptitle(f"{name}: multiples of {multiple or 1} are rewarded{more}", fontsize=10, color=INK)
        figure.supxlabel(_CAPTION, fontsize=9, color=MUTED)
        figure.supylabel("Predicted latency (ms)", fontsize=9, color=MUTED)
        return standalone_svg(figure, name)


def _fill(axes: "Axes", curve: LayerCurve, multiple: int) -> None:
    most = int(curve.widths[-1])
    step = multiple * max(1, math.ceil(most / multiple / 8))
    lines = list(range(step, most + 1, step))
    for width in lines:
        axes.axvline(width, color=LINE, linewidth=0.7, zorder=0)
    axes.set_xticks(lines if len(lines) <= _LABELS else lines[1::2])
    axes.set_xlim(0, 1.03 * most)
    axes.grid(visible=False, axis="x")
    cliffs, on_grid = curve.cliffs, curve.widths % multiple == 0
    axes.plot(curve.widths, curve.ms, color=MUTED, linestyle="", marker=".", markersize=1.5)
    axes.plot(curve.widths[cliffs], curve.ms[cliffs], color=SECOND, linestyle="", marker=".", markersize=2.5)
    axes.plot(curve.widths[on_grid], curve.ms[on_grid], color=ACCENT, linewidth=1.6, marker=".", markersize=3)
    at = curve.measured
    axes.plot(curve.widths[at], curve.ms[at], color=INK, linestyle="", marker="|", markersize=4)
    axes.set_title(curve.title, fontsize=7.5, color=INK, loc="left")
    axes.set_ylim(0, 1.1 * float(curve.ms.max()))
