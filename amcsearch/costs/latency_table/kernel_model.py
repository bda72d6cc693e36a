"""From what was measured of layers to the time of any layer: its kernels, and a surface for each.

A layer is looked up by its signature. One whose map size was never measured borrows the nearest size of the same
operator, in proportion to the positions it computes. One whose kernels were seen in a graph but never timed borrows the
same kernel of the nearest signature likewise.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency_table.lowering import Lowering
from amcsearch.costs.latency_table.signature import Signature, positions, sibling, signature
from amcsearch.costs.latency_table.surface import Surface

__all__ = ["BLOCKED", "KernelModel", "KernelTime", "Observation"]

BLOCKED: Final = "nchwc."  # prefix of the kernels that work on whole blocks of channels
Array = NDArray[np.float64]
_BORROWED: Final = 2.0  # octaves of doubt added to a latency taken from another map size


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


def _alike(layer: LayerSpec) -> list[LayerSpec]:
    """A depthwise convolution pruned to one channel looks like an ordinary one: also try it with two channels."""
    one = layer.kind is LayerKind.CONV and (layer.in_channels, layer.out_channels) == (1, 1)
    return [layer, *([replace(layer, in_channels=2, out_channels=2, conv_groups=2)] if one else [])]


class KernelModel:
    """Times of layers from observations.

    Args:
        observations: what was seen, at least one.
        block: channels in a block of the runtime's layout, 0 if it has none.
        smoothing: see ``Surface``.
    """

    def __init__(self, observations: Iterable[Observation], block: int, smoothing: float = 0.0) -> None:
        seen: dict[Signature, list[tuple[LayerSpec, Mapping[str, float], int]]] = defaultdict(list)
        timed: dict[tuple[Signature, str], list[tuple[LayerSpec, float, float]]] = defaultdict(list)
        for one in observations:
            key = signature(one.layer)
            counts = {kernel: count for kernel, (count, _) in one.kernels.items()}
            seen[key].append((one.layer, counts, one.places))
            for kernel, (count, ms) in one.kernels.items():
                if ms is not None:
                    timed[key, kernel].append((one.layer, ms, one.places * count))
        self._lowerings = {key: Lowering(layers, block) for key, layers in seen.items()}
        self._surfaces = {
            (key, kernel): Surface(points, block if kernel.startswith(BLOCKED) else 0, smoothing)
            for (key, kernel), points in timed.items()
        }

    def times(self, layer: LayerSpec) -> tuple[KernelTime, ...] | None:
        """Kernels of a layer with their times; None if nothing like it was ever seen."""
        for like in _alike(layer):
            known = self._known(signature(like))
            if known is not None:
                kernels = self._lowerings[known].kernels(like)
                return tuple(self._time(known, like, kernel, count) for kernel, count in kernels.items() if count)
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
            source, scale, _ = self._source(known, signature(layer), kernel)
            if source is not None:
                ms[at] = self._surfaces[source, kernel].predict_widths(layer, widths[at])[0] * count[at] * scale
            found[kernel] = (ms, count)
        return found

    def knows(self, layer: LayerSpec) -> bool:
        """Whether the layer's signature itself was measured."""
        return any(signature(like) in self._lowerings for like in _alike(layer))

    def _known(self, wanted: Signature) -> Signature | None:
        return wanted if wanted in self._lowerings else sibling(wanted, list(self._lowerings))

    def _source(self, known: Signature, wanted: Signature, kernel: str) -> tuple[Signature | None, float, float]:
        """Where a kernel was timed, by what its time is to be multiplied, and the octaves of doubt this adds."""
        source: Signature | None = known
        if (known, kernel) not in self._surfaces:
            source = sibling(known, [key for key, name in self._surfaces if name == kernel])
        if source is None:
            return None, 0.0, 2.0 * _BORROWED
        if source == wanted:
            return source, 1.0, 0.0
        return source, positions(wanted) / positions(source), _BORROWED

    def _time(self, known: Signature, layer: LayerSpec, kernel: str, count: float) -> KernelTime:
        source, scale, doubt = self._source(known, signature(layer), kernel)
        if source is None:
            return KernelTime(kernel, 0.0, doubt)
        ms, octaves = self._surfaces[source, kernel].predict(layer)
        return KernelTime(kernel, count * ms * scale, octaves + doubt)
