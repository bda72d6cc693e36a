"""Operations without weights after a layer: which of them the runtime fuses, and what the others move.

Fused as ONNX Runtime's CPU provider fuses, seen in the optimised graphs behind the shipped latency tables:

    convolution   activation, addition (of a shortcut's map, which is still read)
    linear        activation

The first operation that is not fused is a kernel of its own, and so are those after it: each reads its maps and writes
its result. A map that a memory keeps between layers does not leave it here either.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec, MapOp, MapStep
from amcsearch.costs.energy.work import Widths

__all__ = ["step_maps", "step_words"]

Array = NDArray[np.float64]
_FUSED: Final[Mapping[LayerKind, frozenset[MapOp]]] = {
    LayerKind.CONV: frozenset({MapOp.ACTIVATION, MapOp.ADD}),
    LayerKind.LINEAR: frozenset({MapOp.ACTIVATION}),
}


def step_maps(layer: LayerSpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions a channel of every map that is read, and of every map that is written, for the layer's steps."""
    return _maps(layer.kind, layer.steps)


@lru_cache(maxsize=4096)
def _maps(kind: LayerKind, steps: tuple[MapStep, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    reads: list[int] = []
    writes: list[int] = []
    fused = True
    for step in steps:
        fused = fused and step.op in _FUSED.get(kind, ())
        reads += step.reads[1:] if fused else step.reads
        writes += [] if fused else [step.writes]
    return tuple(reads), tuple(writes)


def step_words(widths: Widths, kept: float = 0.0) -> Array:
    """Words that the steps read and write, (2, L), without the maps of at most ``kept`` words: they stay."""
    channels = widths.batch * widths.out_channels
    found = np.zeros((2, len(channels)))
    for row, maps in zip(found, step_maps(widths.layer), strict=True):
        for positions in maps:
            row += np.where(positions * channels > kept, positions * channels, 0.0)
    return found
