"""From what was measured of layers to the latency of any layer: its kernels, and a surface for each.

Which kernels a layer becomes is looked up by its signature, or by that of the nearest map size of the same operator.
What one of them takes is the surface of that kernel in layers of the same signature. Where it was timed in few of them
the surface of its relatives is corrected by these, and where it was timed in none the relatives speak alone, with more
doubt the more distant they are (``families``). Relatives are all that was measured on the device, other networks too.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency.cache import is_plain
from amcsearch.costs.latency.kernels.fit import Fit
from amcsearch.costs.latency.kernels.lowering import Lowering, WidthGrid
from amcsearch.costs.latency.kernels.points import (
    BLOCKED,
    REORDER,
    Groups,
    Observation,
    Points,
    Timed,
    computed_by,
    families,
    points_of,
    retimed,
)
from amcsearch.costs.latency.kernels.signature import Signature, nearest_known, signature
from amcsearch.costs.latency.kernels.surface import AnySurface, CorrectedSurface, MapSurface, Surface
from amcsearch.costs.latency.kernels.tiling import Tiling, refined_tiling

__all__ = ["BLOCKED", "WHOLE", "KernelLatency", "KernelModel"]

WHOLE: Final = "whole."  # of layers that whole runs alone speak of, in the blocks that the runs show
Array = NDArray[np.float64]
_DOUBT: Final = 1.0  # octaves of doubt added with each step to a more distant family
_ENOUGH_POINTS: Final = 12  # a layer of fewer asks its relatives too
_TILING_POINTS: Final = 8  # a surface of fewer says nothing about sets of blocks
_TILING_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class KernelLatency:
    """Predicted ms of one kernel of a layer, all its copies together, and how far from a measurement it lies."""

    kernel: str
    ms: float
    octaves: float


def _alike(layer: LayerSpec) -> list[LayerSpec]:
    """A depthwise convolution pruned to one channel looks like an ordinary one: also try it with two channels."""
    single = layer.kind is LayerKind.CONV and (layer.in_channels, layer.out_channels) == (1, 1)
    return [layer, *([replace(layer, in_channels=2, out_channels=2, conv_groups=2)] if single else [])]


class KernelModel:
    """Latencies of layers from observations.

    Args:
        observations: what was seen, at least one.
        block: channels in a block of the runtime's layout, 0 if it has none.
        noise: see ``Surface``.
        everything: a model of all networks, which knows more relatives.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        block: int,
        noise: float = 0.0,
        everything: "KernelModel | None" = None,
    ) -> None:
        self._block, self._noise, self._everything = block, noise, everything
        self._keys = [signature(observation.layer) for observation in observations]
        observed: dict[Signature, list[tuple[LayerSpec, Mapping[str, float], int]]] = defaultdict(list)
        for key, observation in zip(self._keys, observations, strict=True):
            counts = {kernel: count for kernel, (count, _) in observation.kernels.items()}
            observed[key].append((observation.layer, counts, observation.n_layers))
        known: dict[Signature, Lowering] = {} if everything is None else everything._lowerings
        self._lowerings: dict[Signature, Lowering] = known | {
            key: Lowering(layers, block, known.get(key)) for key, layers in observed.items()
        }
        self._groups: dict[Hashable, Groups] = {}  # of points, which depend on shapes alone
        self._learn(points_of(observations, self._keys))

    def _learn(self, timed: Timed) -> None:
        """Take these times in place of those before."""
        self._timed = timed
        self._relatives: dict[Hashable, list[Points]] = defaultdict(list)
        for (_, kernel), (layer, points) in self._timed.items():
            for family in families(layer, kernel):
                self._relatives[family].append(points)
        self._tiling = self._fitted(Tiling(max(self._block, 1)))
        self._fits: dict[Hashable, Fit] = {}
        self._forget()

    def _forget(self) -> None:
        self._surfaces: dict[tuple[Hashable, int], Surface] = {}
        self._asked: dict[tuple[Signature, str], tuple[AnySurface | None, float]] = {}

    def retimed(self, observations: Sequence[Observation]) -> "KernelModel":
        """A model of the same layers and kernels at other times, for which their kernels are not learnt again."""
        other = copy(self)
        other._learn(retimed(self._timed, observations, self._keys))
        return other

    def smoothed(self, noise: float) -> "KernelModel":
        """This model with another noise, for which nothing is fitted again."""
        other = copy(self)
        other._noise = noise
        other._forget()
        return other

    def latencies(self, layer: LayerSpec) -> tuple[KernelLatency, ...] | None:
        """Kernels of a layer with their latencies; None if nothing like it was ever seen."""
        for like in _alike(layer):
            known = self._known(like)
            if known is not None:
                kernels = self._lowerings[known].kernels(like)
                return tuple(self._latency(like, kernel, count) for kernel, count in kernels.items() if count)
        return None

    def latencies_at(self, layer: LayerSpec, widths: NDArray[np.int64]) -> dict[str, tuple[Array, Array]] | None:
        """As ``latencies`` at widths (in, out), (L, 2), that keep the signature: kernel → (ms, count), (L,) each.

        Both are 0 where the layer does not become the kernel.
        """
        known = self._known(layer)
        if known is None:
            return None
        latencies = {}
        for kernel, count in self._lowerings[known].counts(widths).items():
            at, ms = np.flatnonzero(count), np.zeros(len(widths))
            surface, _ = self._surface(layer, kernel)
            if surface is not None:
                ms[at] = surface.predict_widths(layer, widths[at]) * count[at]
            latencies[kernel] = (ms, count)
        return latencies

    def summed_at(self, layer: LayerSpec, widths: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]] | None:
        """``latencies_at`` of all kernels together, and whether one of them is plain: (ms (L,), (L,))."""
        known = self._known(layer)
        if known is None:
            return None
        if not layer.is_depthwise:
            grid = WidthGrid(layer, widths, self._lowerings[known])
            if grid.is_dense:
                return grid.summed(lambda layer, kernel: self._surface(layer, kernel)[0])
        ms, plain = np.zeros(len(widths)), np.zeros(len(widths), dtype=np.bool_)
        for kernel, (kernel_ms, count) in (self.latencies_at(layer, widths) or {}).items():
            ms += kernel_ms
            plain |= is_plain(kernel) & (count > 0)
        return ms, plain

    def octaves_at(self, layer: LayerSpec, widths: NDArray[np.int64]) -> dict[str, Array]:
        """Distances from what was measured, (L,), of every kernel of ``latencies_at``."""
        known = self._known(layer)
        octaves = {}
        for kernel in self._lowerings[known].counts(widths) if known is not None else ():
            surface, doubt = self._surface(layer, kernel)
            octaves[kernel] = doubt + (np.zeros(len(widths)) if surface is None else surface.octaves(layer, widths))
        return octaves

    def knows(self, layer: LayerSpec) -> bool:
        """Whether the layer's signature itself was measured, in whatever network."""
        return any(signature(like) in self._lowerings for like in _alike(layer))

    def _known(self, layer: LayerSpec) -> Signature | None:
        return nearest_known(layer, self._lowerings)

    def _fitted(self, tiling: Tiling) -> Tiling:
        """The tiling that the blocked convolutions among the points agree on."""
        convolutions = [
            (points, self._grouped(key, points, tiling))
            for key, (layer, points) in self._timed.items()
            if key[1].startswith(f"{BLOCKED}Conv") and len(points) >= _TILING_POINTS and not layer.is_depthwise
        ]
        for _ in range(_TILING_ROUNDS if tiling.block > 1 else 0):
            works = [Fit(points, tiling, groups).set_work() for points, groups in convolutions]
            tiling = refined_tiling(tiling, [work for work in works if work is not None])
        return tiling

    def _surface(self, layer: LayerSpec, kernel: str) -> tuple[AnySurface | None, float]:
        """The surface of a kernel, and the octaves of doubt where it is that of relatives."""
        key = (signature(layer), kernel)
        if key not in self._asked:
            surface, doubt = self._made_surface(layer, kernel)
            if surface is not None and kernel.startswith(REORDER):
                surface = MapSurface(surface)
            self._asked[key] = surface, doubt
        return self._asked[key]

    def _made_surface(self, layer: LayerSpec, kernel: str) -> tuple[AnySurface | None, float]:
        _, points = self._timed.get((signature(layer), kernel), (layer, None))
        tiling, everything, n_points = self._tiling_of(kernel), self._everything, 0 if points is None else len(points)
        if n_points < _ENOUGH_POINTS:
            related, doubt = (
                everything._surface(layer, kernel) if everything else self._related(layer, kernel, n_points)
            )
            if points is None:
                return related, doubt
            if related is not None:
                return CorrectedSurface(computed_by(kernel, layer), points, related, tiling, self._noise), 0.0
        assert points is not None
        return Surface(self._fit((signature(layer), kernel), points, tiling), self._noise), 0.0

    def _fit(self, key: Hashable, points: Points, tiling: Tiling) -> Fit:
        if key not in self._fits:
            self._fits[key] = Fit(points, tiling, self._grouped(key, points, tiling))
        return self._fits[key]

    def _grouped(self, key: Hashable, points: Points, tiling: Tiling) -> Groups:
        if key not in self._groups:
            self._groups[key] = points.groups(tiling)
        return self._groups[key]

    def _related(self, layer: LayerSpec, kernel: str, n_points: int) -> tuple[AnySurface | None, float]:
        """The surface of the nearest relatives with more than ``n_points``, and the doubt for their distance."""
        tiling = self._tiling_of(kernel)
        for steps, family in enumerate(families(layer, kernel)):
            parts = self._relatives.get(family, [])
            if sum(map(len, parts)) > n_points:
                key = (family, tiling.block)
                if key not in self._surfaces:
                    self._surfaces[key] = Surface(self._fit(key, Points.joined(parts), tiling), self._noise)
                return self._surfaces[key], steps * _DOUBT
        return None, 0.0

    def _tiling_of(self, kernel: str) -> Tiling:
        is_blocked = kernel.startswith((BLOCKED, WHOLE)) and not kernel.startswith(REORDER)
        return self._tiling if is_blocked else Tiling()

    def _latency(self, layer: LayerSpec, kernel: str, count: float) -> KernelLatency:
        surface, doubt = self._surface(layer, kernel)
        if surface is None:
            return KernelLatency(kernel, 0.0, doubt)
        widths = np.array([[layer.in_channels, layer.out_channels]])
        ms, octaves = surface.predict_widths(layer, widths), surface.octaves(layer, widths)
        return KernelLatency(kernel, count * float(ms[0]), doubt + float(octaves[0]))
