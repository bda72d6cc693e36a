"""Measurements of one kernel as arrays, and where they lie as the kernel computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency_table.signature import positions
from amcsearch.costs.latency_table.tiling import Tiling

__all__ = ["Groups", "Points", "places", "sizes"]

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


def places(own: Array, widths: NDArray[np.int64], tiling: Tiling) -> Array:
    """Where layers lie, (L, 4): both widths as computed, output positions, taps.

    ``own`` are ``sizes``, of L layers or of one at L widths (in, out), (L, 2).
    """
    computed = tiling.computed(widths, np.broadcast_to(own[:, 4] > 0.0, len(widths)))
    return np.concatenate([computed, np.broadcast_to(own[:, :2], (len(widths), 2))], axis=1)


@dataclass(frozen=True)
class Groups:
    """Points that a kernel cannot tell apart: the group of each, (N,), the first of each, (D,), its place, (D, 4)."""

    own: NDArray[np.int64]
    first: NDArray[np.int64]
    places: Array


@dataclass(frozen=True)
class Points:
    """N measurements: ``sizes`` (N, 5), widths (in, out), (N, 2), ms, and how many each stands for, (N,)."""

    sizes: Array
    widths: NDArray[np.int64]
    ms: Array
    times: Array

    @classmethod
    def of(cls, measured: Sequence[tuple[LayerSpec, float, float]]) -> "Points":
        """Of layers of one signature, at least one, with ms and how many measurements each stands for."""
        widths = np.array([(layer.in_channels, layer.out_channels) for layer, _, _ in measured], dtype=np.int64)
        ms, times = np.array([(ms, n) for _, ms, n in measured], dtype=np.float64).T
        return cls(np.repeat(sizes(measured[0][0]), len(widths), axis=0), widths, ms, times)

    @classmethod
    def joined(cls, parts: Sequence["Points"]) -> "Points":
        """All of several."""
        arrays = zip(*((part.sizes, part.widths, part.ms, part.times) for part in parts), strict=True)
        return cls(*map(np.concatenate, arrays))

    def __len__(self) -> int:
        return len(self.ms)

    def groups(self, tiling: Tiling) -> Groups:
        """Which points a kernel cannot tell apart."""
        index: dict[tuple[float, ...], int] = {}
        own = [index.setdefault(tuple(place), len(index)) for place in places(self.sizes, self.widths, tiling).tolist()]
        return Groups(np.array(own), np.unique(own, return_index=True)[1], np.array(list(index)))

    def averaged(self, groups: Groups) -> "Points":
        """One point for each of D groups."""
        times = np.bincount(groups.own, self.times).astype(np.float64)
        ms = np.bincount(groups.own, self.times * self.ms) / times
        return Points(self.sizes[groups.first], self.widths[groups.first], ms, times)
