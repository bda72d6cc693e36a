"""What was seen of layers on a device, and whose relatives they are."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from amcsearch.core import LayerSpec
from amcsearch.costs.latency_table.points import Points
from amcsearch.costs.latency_table.signature import Signature, signature

__all__ = ["Observation", "Timed", "families", "points_of", "retimed"]


@dataclass(frozen=True, slots=True)
class Observation:
    """A layer as the runtime ran it: kernel → (how many a layer, ms each); ms is None where nothing was timed.

    Both are means over ``places``, the layers of these shapes that were seen.
    """

    layer: LayerSpec
    kernels: Mapping[str, tuple[float, float | None]]
    places: int = 1


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


Timed = Mapping[tuple[Signature, str], tuple[LayerSpec, Points]]  # of each kernel; one of the layers


def points_of(observations: Iterable[Observation], keys: Iterable[Signature]) -> Timed:
    """What was timed of each kernel in layers of each signature, which is given for every observation."""
    timed: dict[tuple[Signature, str], list[tuple[LayerSpec, float, float]]] = defaultdict(list)
    for key, one in zip(keys, observations, strict=True):
        for kernel, (count, ms) in one.kernels.items():
            if ms is not None:
                timed[key, kernel].append((one.layer, ms, one.places * count))
    return {key: (found[0][0], Points.of(found)) for key, found in timed.items()}


def retimed(timed: Timed, observations: Iterable[Observation], keys: Iterable[Signature]) -> Timed:
    """``points_of`` observations that differ from those before in their times alone."""
    found: dict[tuple[Signature, str], list[float]] = defaultdict(list)
    for key, one in zip(keys, observations, strict=True):
        for kernel, (_, ms) in one.kernels.items():
            if ms is not None:
                found[key, kernel].append(ms)
    return {key: (layer, replace(points, ms=np.array(found[key]))) for key, (layer, points) in timed.items()}
