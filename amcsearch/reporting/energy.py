"""Energy layer by layer as a CSV and one picture: stacked bars of what it is spent on, dense above the others."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from amcsearch.core import BadInputError
from amcsearch.costs.energy import LayerEnergy
from amcsearch.reporting.drawing import ACCENT, INK, MUTED, SURFACE, drawing, standalone_svg
from amcsearch.runs import make_folder, replacing

if TYPE_CHECKING:
    from _csv import Writer as CsvWriter

__all__ = ["write_energy"]

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
    make_folder(folder)
    paths = {"csv": folder / "energy.csv", "svg": folder / "energy.svg"}
    with replacing(paths["csv"]) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        _write_rows(csv.writer(stream), networks)
    with replacing(paths["svg"]) as temporary:
        temporary.write_text(_picture(networks, device), encoding="utf-8")
    return {name: str(path) for name, path in paths.items()}


def _write_rows(writer: "CsvWriter", networks: Mapping[str, Sequence[LayerEnergy]]) -> None:
    parts = [f"{part.replace(' ', '_').lower()}_mj" for part in _COLOURS]
    writer.writerow(["network", "layer", "macs", "energy_mj", *parts, "memory", "bytes", "least_bytes"])
    for network, layers in networks.items():
        for layer in layers:
            energies = [f"{value:.6g}" for value in (layer.total_mj, *layer.parts_mj.values())]
            for memory in layer.traffic:
                moved = [memory.memory, f"{memory.total_bytes:.0f}", f"{memory.least_bytes:.0f}"]
                writer.writerow([network, layer.name, f"{layer.macs:.0f}", *energies, *moved])


def _picture(networks: Mapping[str, Sequence[LayerEnergy]], device: str) -> str:
    shown = [i for i, layers in enumerate(zip(*networks.values(), strict=True)) if any(x.total_mj for x in layers)]
    names = [_short(networks["dense"][i].name) for i in shown]
    height = 0.155 * len(shown) * max(len(networks), 1.4) + 1.3
    with drawing(8.2, height) as (figure, axes):
        for number, (network, layers) in enumerate(networks.items()):
            kept = _FADED if len(networks) > 1 and network == "dense" else 1.0
            _bars(axes, [layers[i] for i in shown], number, len(networks), kept)
        axes.set_yticks(range(len(shown)), names)
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


def _bars(axes: Axes, layers: Sequence[LayerEnergy], number: int, count: int, kept: float) -> None:
    thickness = 0.8 / count
    places = [row + (number - (count - 1) / 2) * thickness for row in range(len(layers))]
    left = [0.0] * len(layers)
    for part, colour in _COLOURS.items():
        widths = [layer.parts_mj[part] for layer in layers]
        if any(widths):
            # mixed with the background, not transparent: the grid would show through
            mixed = [kept * own + (1 - kept) * back for own, back in zip(to_rgb(colour), to_rgb(SURFACE), strict=True)]
            axes.barh(places, widths, 0.92 * thickness, left=left, color=mixed, linewidth=0)
            left = [start + width for start, width in zip(left, widths, strict=True)]


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else "…" + name[-_LABEL_LENGTH + 1 :]
