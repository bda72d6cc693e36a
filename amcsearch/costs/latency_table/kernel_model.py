"""From what was measured of layers to the time of any layer: its kernels, and a surface for each.

Which kernels a layer becomes is looked up by its signature, or by that of the nearest map size of the same operator.
What one of them takes is the surface of that kernel in layers of the same signature. Where it was timed in few of them
the surface of its relatives is corrected by these, and where it was timed in none the relatives speak alone, with more
doubt the more distant they are (``families``). Relatives are all that was measured on the device, other networks too.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency_table.lowering import Lowering
from amcsearch.costs.latency_table.signature import Signature, sibling, signature
from amcsearch.costs.latency_table.surface import AnySurface, CorrectedSurface, Surface
from amcsearch.costs.latency_table.terms import Fit, Point
from amcsearch.costs.latency_table.tiling import Tiling, refined_tiling

__all__ = ["BLOCKED", "KernelModel", "KernelTime", "Observation", "families"]

BLOCKED: Final = "nchwc."  # prefix of the kernels that work on whole blocks of channels
Array = NDArray[np.float64]
_STRANGER: Final = 1.0  # octaves of doubt added with each step to a more distant family
_ENOUGH_POINTS: Final = 12  # a layer of fewer asks its relatives too
_TILING_POINTS: Final = 8  # a surface of fewer says nothing about sets of blocks
_TILING_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class Observation:
    """A layer as the runtime ran it: kernel → (how many a layer, ms each); ms is None where nothing was timed.

    Both are means over ``places``, the layers of these shapes that were seen.
    """

    layer: LayerSpec
    kernels: Mapping[str, tuple[float, float | None]]
    places: int = 1


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Predicted time of one kernel of a layer, all its copies together, and how far from a measurement it lies."""

    kernel: str
    ms: float
    octaves: float


def _operator(kernel: str) -> str:
    """``ms.FusedConv+Relu`` → ``Conv``: what a kernel computes, wherever and whatever is fused to it."""
    return kernel.split("+")[0].rpartition(".")[2].removeprefix("Fused")


def families(layer: LayerSpec, kernel: str) -> Iterator[Hashable]:
    """Ever larger sets of measurements that a kernel of a layer belongs to, the nearest relatives first.

    The kernel in layers of this signature; in layers of this kind; any kernel of its operator in these, and in all
    layers; any kernel of layers of this kind; and all there are.
    """
    kind = (layer.kind, layer.is_depthwise)
    yield signature(layer), kernel
    yield kind, kernel
    yield kind, _operator(kernel), "any variety"
    yield _operator(kernel)
    yield kind
    yield None


def _alike(layer: LayerSpec) -> list[LayerSpec]:
    """A depthwise convolution pruned to one channel looks like an ordinary one: also try it with two channels."""
    one = layer.kind is LayerKind.CONV and (layer.in_channels, layer.out_channels) == (1, 1)
    return [layer, *([replace(layer, in_channels=2, out_channels=2, conv_groups=2)] if one else [])]


class KernelModel:
    """Times of layers from observations.

    Args:
        observations: what was seen, at least one.
        block: channels in a block of the runtime's layout, 0 if it has none.
        noise: see ``Surface``.
        everything: a model of all networks, which knows more relatives.
    """

    def __init__(
        self,
        observations: Iterable[Observation],
        block: int,
        noise: float = 0.0,
        everything: "KernelModel | None" = None,
    ) -> None:
        self._everything = everything
        seen: dict[Signature, list[tuple[LayerSpec, Mapping[str, float], int]]] = defaultdict(list)
        self._timed: dict[tuple[Signature, str], list[Point]] = defaultdict(list)
        for one in observations:
            key = signature(one.layer)
            counts = {kernel: count for kernel, (count, _) in one.kernels.items()}
            seen[key].append((one.layer, counts, one.places))
            for kernel, (count, ms) in one.kernels.items():
                if ms is not None:
                    self._timed[key, kernel].append((one.layer, ms, one.places * count))
        known: dict[Signature, Lowering] = {} if everything is None else everything._lowerings
        self._lowerings: dict[Signature, Lowering] = known | {
            key: Lowering(layers, block, known.get(key)) for key, layers in seen.items()
        }
        self._noise = noise
        self._tiling = self._fitted(Tiling(max(block, 1)))
        self._surfaces: dict[tuple[Hashable, Tiling], Surface] = {}
        self._asked: dict[tuple[Signature, str], tuple[AnySurface | None, float]] = {}

    def times(self, layer: LayerSpec) -> tuple[KernelTime, ...] | None:
        """Kernels of a layer with their times; None if nothing like it was ever seen."""
        for like in _alike(layer):
            known = self._known(signature(like))
            if known is not None:
                kernels = self._lowerings[known].kernels(like)
                return tuple(self._time(like, kernel, count) for kernel, count in kernels.items() if count)
        return None

    def times_at(self, layer: LayerSpec, widths: NDArray[np.int64]) -> dict[str, tuple[Array, Array]] | None:
        """As ``times`` at widths (in, out), (L, 2), that keep the layer's signature: kernel → (ms (L,), how many (L,)).

        Both are 0 where the layer does not become the kernel.
        """
        known = self._known(signature(layer))
        if known is None:
            return None
        found = {}
        for kernel, count in self._lowerings[known].counts(widths).items():
            at, ms = np.flatnonzero(count), np.zeros(len(widths))
            surface, _ = self._surface(layer, kernel)
            if surface is not None:
                ms[at] = surface.predict_widths(layer, widths[at]) * count[at]
            found[kernel] = (ms, count)
        return found

    def octaves_at(self, layer: LayerSpec, widths: NDArray[np.int64]) -> dict[str, Array]:
        """Distances from what was measured, (L,), of every kernel of ``times_at``."""
        known = self._known(signature(layer))
        found = {}
        for kernel in self._lowerings[known].counts(widths) if known is not None else ():
            surface, doubt = self._surface(layer, kernel)
            found[kernel] = doubt + (np.zeros(len(widths)) if surface is None else surface.octaves(layer, widths))
        return found

    def knows(self, layer: LayerSpec) -> bool:
        """Whether the layer's signature itself was measured, in whatever network."""
        return any(signature(like) in self._lowerings for like in _alike(layer))

    def _known(self, wanted: Signature) -> Signature | None:
        return wanted if wanted in self._lowerings else sibling(wanted, list(self._lowerings))

    def _fitted(self, tiling: Tiling) -> Tiling:
        """The tiling that the blocked convolutions among the points agree on."""
        convolutions = [
            points
            for (_, kernel), points in self._timed.items()
            if kernel.startswith(f"{BLOCKED}Conv") and len(points) >= _TILING_POINTS and not points[0][0].is_depthwise
        ]
        for _ in range(_TILING_ROUNDS if tiling.block > 1 else 0):
            works = [Fit(points, tiling).set_work() for points in convolutions]
            tiling = refined_tiling(tiling, [work for work in works if work is not None])
        return tiling

    def _surface(self, layer: LayerSpec, kernel: str) -> tuple[AnySurface | None, float]:
        """The surface of a kernel, and the octaves of doubt where it is that of relatives."""
        key = (signature(layer), kernel)
        if key not in self._asked:
            self._asked[key] = self._made_surface(layer, kernel)
        return self._asked[key]

    def _made_surface(self, layer: LayerSpec, kernel: str) -> tuple[AnySurface | None, float]:
        own = self._timed.get((signature(layer), kernel), [])
        tiling, everything = self._tiling_of(kernel), self._everything
        if len(own) < _ENOUGH_POINTS:
            related, doubt = (
                everything._surface(layer, kernel) if everything else self._related(layer, kernel, len(own))
            )
            if not own:
                return related, doubt
            if related is not None:
                return CorrectedSurface(own, related, tiling, self._noise), 0.0
        return Surface(own, tiling, self._noise), 0.0

    def _related(self, layer: LayerSpec, kernel: str, own: int) -> tuple[AnySurface | None, float]:
        """The surface of the nearest relatives with more than ``own`` points, and the doubt for their distance."""
        tiling = self._tiling_of(kernel)
        for steps, family in enumerate(families(layer, kernel)):
            points = self._relatives.get(family, [])
            if len(points) > own:
                if (family, tiling) not in self._surfaces:
                    self._surfaces[family, tiling] = Surface(points, tiling, self._noise)
                return self._surfaces[family, tiling], steps * _STRANGER
        return None, 0.0

    def _tiling_of(self, kernel: str) -> Tiling:
        return self._tiling if kernel.startswith(BLOCKED) else Tiling()

    @cached_property
    def _relatives(self) -> Mapping[Hashable, list[Point]]:
        """Everything that was timed, by family."""
        found: dict[Hashable, list[Point]] = defaultdict(list)
        for (_, kernel), points in self._timed.items():
            for family in families(points[0][0], kernel):
                found[family] += points
        return found

    def _time(self, layer: LayerSpec, kernel: str, count: float) -> KernelTime:
        surface, doubt = self._surface(layer, kernel)
        if surface is None:
            return KernelTime(kernel, 0.0, doubt)
        widths = np.array([[layer.in_channels, layer.out_channels]])
        ms, octaves = surface.predict_widths(layer, widths), surface.octaves(layer, widths)
        return KernelTime(kernel, count * float(ms[0]), doubt + float(octaves[0]))
