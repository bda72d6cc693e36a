"""What was measured of layers and their kernels: one observation a layer, the points of one kernel as arrays.

Also where points lie as the kernel computes them (``coordinates``), and whose relatives they are (``families``).
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency.kernels.signature import Signature, positions, signature
from amcsearch.costs.latency.kernels.tiling import Tiling

__all__ = [
    "BLOCKED",
    "REORDER",
    "Groups",
    "Observation",
    "Points",
    "Timed",
    "computed_by",
    "coordinates",
    "families",
    "moved",
    "points_of",
    "retimed",
    "sizes",
]

BLOCKED: Final = "nchwc."  # prefix of the kernels that work on whole blocks of channels
REORDER: Final = f"{BLOCKED}Reorder"  # and of those that move a map to and from whole blocks

Array = NDArray[np.float64]


def sizes(layer: LayerSpec) -> Array:
    """What matters of a layer besides its widths, (1, 5); layers of one signature share it.

    Output positions, taps an output reads of each channel, input positions, whether channels are mixed, and whether
    both widths move together.
    """
    mixes = layer.kind in (LayerKind.CONV, LayerKind.LINEAR) and not layer.is_depthwise
    taps = layer.kernel[0] * layer.kernel[1] / (layer.conv_groups if mixes else 1)
    inputs = layer.in_size[0] * layer.in_size[1]
    return np.array([[positions(layer), taps, inputs, mixes, layer.is_depthwise]], dtype=np.float64)


def moved(layer: LayerSpec) -> LayerSpec:
    """The map that a layer writes, as a layer: all that a reorder behind it depends on."""
    width, size = layer.out_channels, layer.out_size
    return LayerSpec("", LayerKind.PARAMETER, width, width, in_size=size, out_size=size)


def computed_by(kernel: str, layer: LayerSpec) -> LayerSpec:
    """What a kernel of a layer works on: the layer itself, or of a reorder the map that it moves."""
    return moved(layer) if kernel.startswith(REORDER) else layer


def coordinates(size: Array, widths: NDArray[np.int64], tiling: Tiling) -> Array:
    """Where layers lie, (L, 4): both widths as computed, output positions, taps.

    ``size`` are ``sizes``, of L layers or of one at L widths (in, out), (L, 2).
    """
    computed = tiling.computed(widths, np.broadcast_to(size[:, 4] > 0.0, len(widths)))
    return np.concatenate([computed, np.broadcast_to(size[:, :2], (len(widths), 2))], axis=1)


@dataclass(frozen=True)
class Groups:
    """Points that a kernel cannot tell apart: the group of each, (N,), the first of each, (D,), its place, (D, 4)."""

    of_point: NDArray[np.int64]
    first: NDArray[np.int64]
    coordinates: Array


@dataclass(frozen=True)
class Points:
    """N measurements: ``sizes`` (N, 5), widths (in, out), (N, 2), ms, and how many each stands for, (N,)."""

    sizes: Array
    widths: NDArray[np.int64]
    ms: Array
    counts: Array

    @classmethod
    def of(cls, measured: Sequence[tuple[LayerSpec, float, float]]) -> "Points":
        """Of layers of one signature, at least one, with ms and how many measurements each stands for."""
        widths = np.array([(layer.in_channels, layer.out_channels) for layer, _, _ in measured], dtype=np.int64)
        ms, counts = np.array([(ms, n) for _, ms, n in measured], dtype=np.float64).T
        return cls(np.repeat(sizes(measured[0][0]), len(widths), axis=0), widths, ms, counts)

    @classmethod
    def joined(cls, parts: Sequence["Points"]) -> "Points":
        """All of several."""
        arrays = zip(*((part.sizes, part.widths, part.ms, part.counts) for part in parts), strict=True)
        return cls(*map(np.concatenate, arrays))

    def __len__(self) -> int:
        return len(self.ms)

    def groups(self, tiling: Tiling) -> Groups:
        """Which points a kernel cannot tell apart."""
        index: dict[tuple[float, ...], int] = {}
        at = coordinates(self.sizes, self.widths, tiling).tolist()
        of_point = [index.setdefault(tuple(place), len(index)) for place in at]
        return Groups(np.array(of_point), np.unique(of_point, return_index=True)[1], np.array(list(index)))

    def averaged(self, groups: Groups) -> "Points":
        """One point for each of D groups."""
        counts = np.bincount(groups.of_point, self.counts).astype(np.float64)
        ms = np.bincount(groups.of_point, self.counts * self.ms) / counts
        return Points(self.sizes[groups.first], self.widths[groups.first], ms, counts)


@dataclass(frozen=True, slots=True)
class Observation:
    """A layer as the runtime ran it: kernel → (how many a layer, ms each); ms is None where nothing was timed.

    Both are means over ``n_layers``, the layers of these shapes that were seen.
    """

    layer: LayerSpec
    kernels: Mapping[str, tuple[float, float | None]]
    n_layers: int = 1


def _operator(kernel: str) -> str:
    """``ms.FusedConv+Relu`` → ``Conv``: what a kernel computes, wherever and whatever is fused to it."""
    return kernel.split("+")[0].rpartition(".")[2].removeprefix("Fused")


def families(layer: LayerSpec, kernel: str) -> Iterator[Hashable]:
    """Ever larger sets of measurements that a kernel of a layer belongs to, the nearest relatives first.

    The kernel in layers of this signature; of a reorder, behind layers that write maps of this size; the kernel in
    layers of this kind; any kernel of its operator in these, and in all layers; any kernel of layers of this kind; and
    all there are.
    """
    kind = (layer.kind, layer.is_depthwise)
    yield signature(layer), kernel
    if kernel.startswith(REORDER):
        yield signature(moved(layer)), kernel
    yield kind, kernel
    yield kind, _operator(kernel), "any variety"
    yield _operator(kernel)
    yield kind
    yield None


Timed = Mapping[tuple[Signature, str], tuple[LayerSpec, Points]]  # of each kernel; one of the layers


def points_of(observations: Iterable[Observation], keys: Iterable[Signature]) -> Timed:
    """What was timed of each kernel in layers of each signature, which is given for every observation."""
    timed: dict[tuple[Signature, str], list[tuple[LayerSpec, float, float]]] = defaultdict(list)
    for key, observation in zip(keys, observations, strict=True):
        for kernel, (count, ms) in observation.kernels.items():
            if ms is not None:
                timed[key, kernel].append((observation.layer, ms, observation.n_layers * count))
    return {key: (measured[0][0], _points(key[1], measured)) for key, measured in timed.items()}


def _points(kernel: str, measured: Sequence[tuple[LayerSpec, float, float]]) -> Points:
    return Points.of([(computed_by(kernel, layer), ms, n) for layer, ms, n in measured])


def retimed(timed: Timed, observations: Iterable[Observation], keys: Iterable[Signature]) -> Timed:
    """``points_of`` observations that differ from those before in their times alone."""
    each_ms: dict[tuple[Signature, str], list[float]] = defaultdict(list)
    for key, observation in zip(keys, observations, strict=True):
        for kernel, (_, ms) in observation.kernels.items():
            if ms is not None:
                each_ms[key, kernel].append(ms)
    return {key: (layer, replace(points, ms=np.array(each_ms[key]))) for key, (layer, points) in timed.items()}
