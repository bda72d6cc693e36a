"""What each kind of layer computes and moves, at many widths at once: one small function a kind and a question.

- products: multiply-accumulates.
- least: words that must move whatever the memory: every weight, every input looked at and every output, once.
- moved: words over the edge of a memory of a given size, under the best order and tiling known here.

Batch norms are folded into the layer before them and move nothing (one that follows an addition is not, and is not
counted); what operations without weights move is in ``steps``. Layer and group norms read and write their map, and read
it twice where the part that shares a mean does not fit. Attention keeps a block of queries (or of keys and values) and
streams the rest, so that the scores never leave; with blocks of Bq queries, or Bk keys, of head width d it moves

    queries stay    Tq·d + ⌈Tq/Bq⌉·2·Tk·d + Tq·d,                 2·Bq·d + 2·d + Bq words held
    keys stay       ⌈Tk/Bk⌉·Tq·d + 2·Tk·d + (2·⌈Tk/Bk⌉ − 1)·Tq·d,  2·Bk·d + 2·d + Bk words held

for each head (FlashAttention: Dao et al., 2022, arXiv 2205.14135). Embeddings read only the rows looked up. A weight
used under two names is fetched twice.

Operations without weights after a layer: which of them the runtime fuses, and what the others move.

Fused as ONNX Runtime's CPU provider fuses, seen in the optimised graphs behind the shipped latency tables:

    convolution   activation, addition (of a shortcut's map, which is still read)
    linear        activation

The first operation that is not fused is a kernel of its own, and so are those after it: each reads its maps and writes
its result. A map that a memory keeps between layers does not leave it here either.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec, MapOp, MapStep
from amcsearch.costs.compute import macs_at, params_at
from amcsearch.costs.energy.nest import LoopNest
from amcsearch.costs.energy.traffic import INPUTS, OUTPUTS, Edge, least_traffic, weigh

__all__ = ["Widths", "least_words", "map_words", "moved_words", "products", "step_maps", "step_words"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Widths:
    """One layer at L widths, for a batch: ``in_channels`` and ``out_channels`` are (L,)."""

    layer: LayerSpec
    batch: int
    in_channels: Array
    out_channels: Array

    @cached_property
    def groups(self) -> Array:
        """Groups of channels, (L,): depthwise filters and heads go with the channels."""
        whole = np.full(len(self.in_channels), float(self.layer.conv_groups))
        follows = self.layer.is_depthwise or self.layer.kind is LayerKind.ATTENTION
        if self.layer.is_product:
            shares = self.in_channels / self.layer.in_channels, self.out_channels / self.layer.out_channels
            return whole * np.maximum(*shares)
        return whole * self.in_channels // self.layer.in_channels if follows else whole

    @cached_property
    def nest(self) -> LoopNest:
        """Loops of a convolution or linear layer."""
        return LoopNest.of(self.layer, self.batch)

    @property
    def queries(self) -> int:
        """Output positions of one sample."""
        return prod(self.layer.out_size)

    @property
    def keys(self) -> int:
        """Input positions of one sample."""
        return prod(self.layer.in_size)

    def words(self, weights: Array | float, inputs: Array | float, outputs: Array | float) -> Array:
        """Stack words by tensor: (3, L)."""
        return np.stack([np.broadcast_to(part, self.in_channels.shape) for part in (weights, inputs, outputs)])


def products(widths: Widths) -> Array:
    """Multiply-accumulates, (L,)."""
    return widths.batch * macs_at(widths.layer, widths.in_channels, widths.out_channels)


def least_words(widths: Widths) -> Array:
    """Words of weights, inputs and outputs that must move: (3, L)."""
    return _LEAST[widths.layer.kind](widths)


def moved_words(widths: Widths, edge: Edge) -> Array:
    """Words of weights, inputs and outputs that cross an edge: (3, L)."""
    return _MOVED[widths.layer.kind](widths, edge)


def map_words(widths: Widths) -> tuple[Array, Array]:
    """Words of the whole map that a layer reads, and of the one it writes, each (L,)."""
    reads = 0 if widths.layer.kind in (LayerKind.EMBEDDING, LayerKind.PARAMETER) else widths.keys
    return widths.batch * reads * widths.in_channels, widths.batch * widths.queries * widths.out_channels


def _nest_least(widths: Widths) -> Array:
    nest = widths.nest
    weights = widths.in_channels * widths.out_channels / widths.groups * nest.window
    bias = widths.out_channels * widths.layer.has_bias
    return widths.words(weights + bias, widths.in_channels * nest.touched, widths.out_channels * nest.positions)


def _nest_moved(widths: Widths, edge: Edge) -> Array:
    groups = widths.groups
    words = least_traffic(widths.nest, widths.in_channels / groups, widths.out_channels / groups, edge) * groups
    words[0] += widths.out_channels * widths.layer.has_bias
    return words


def _attention_least(widths: Widths) -> Array:
    read = widths.queries + 2 * widths.keys
    return widths.batch * widths.words(0.0, read * widths.in_channels, widths.queries * widths.out_channels)


def _attention_moved(widths: Widths, edge: Edge) -> Array:
    width = widths.out_channels
    head = width / widths.groups
    words = edge.capacity / np.maximum(np.maximum(edge.held[INPUTS], edge.held[OUTPUTS]), 1e-300)
    block = np.floor((words - 2 * head) / (2 * head + 1))
    query_blocks = np.ceil(widths.queries / np.clip(block, 1, widths.queries))
    key_blocks = np.ceil(widths.keys / np.clip(block, 1, widths.keys))
    queries = widths.words(0.0, (widths.queries + 2 * query_blocks * widths.keys) * width, widths.queries * width)
    partial = (2 * key_blocks - 1) * widths.queries
    keys = widths.words(0.0, (key_blocks * widths.queries + 2 * widths.keys) * width, partial * width)
    pairs = 2.0 * widths.queries * widths.keys
    walked = widths.words(0.0, 2 * pairs * width, 2 * pairs * width)  # scores leave and return
    moved_words = np.where(weigh(queries, edge.moved) <= weigh(keys, edge.moved), queries, keys)
    return widths.batch * np.where(block >= 1, moved_words, walked)


def _norm_least(widths: Widths) -> Array:
    return widths.words(params_at(widths.layer, widths.in_channels, widths.out_channels), *map_words(widths))


def _norm_moved(widths: Widths, edge: Edge, shared: Array) -> Array:
    """``shared``: words that share one mean, (L,)."""
    words = _norm_least(widths)
    words[INPUTS] *= np.where(shared * edge.held[INPUTS] <= edge.capacity, 1, 2)
    return words


def _layer_norm_moved(widths: Widths, edge: Edge) -> Array:
    return _norm_moved(widths, edge, widths.in_channels)


def _group_norm_moved(widths: Widths, edge: Edge) -> Array:
    return _norm_moved(widths, edge, widths.in_channels / widths.groups * widths.keys)


def _rows_least(widths: Widths) -> Array:
    looked_up = widths.batch * widths.queries * widths.out_channels
    return widths.words(looked_up, 0.0, looked_up)


def _parameter_least(widths: Widths) -> Array:
    return widths.words(widths.in_channels * widths.out_channels, 0.0, 0.0)


def _fused(widths: Widths) -> Array:
    return widths.words(0.0, 0.0, 0.0)


def _once(least: Callable[[Widths], Array]) -> Callable[[Widths, Edge], Array]:
    """A layer that moves the least whatever the memory."""
    return lambda widths, edge: least(widths)  # noqa: ARG005 (one signature for the whole table)


_LEAST: Final[Mapping[LayerKind, Callable[[Widths], Array]]] = {
    LayerKind.CONV: _nest_least,
    LayerKind.LINEAR: _nest_least,
    LayerKind.ATTENTION: _attention_least,
    LayerKind.BATCH_NORM: _fused,
    LayerKind.LAYER_NORM: _norm_least,
    LayerKind.GROUP_NORM: _norm_least,
    LayerKind.EMBEDDING: _rows_least,
    LayerKind.PARAMETER: _parameter_least,
}

_MOVED: Final[Mapping[LayerKind, Callable[[Widths, Edge], Array]]] = {
    LayerKind.CONV: _nest_moved,
    LayerKind.LINEAR: _nest_moved,
    LayerKind.ATTENTION: _attention_moved,
    LayerKind.BATCH_NORM: _once(_fused),
    LayerKind.LAYER_NORM: _layer_norm_moved,
    LayerKind.GROUP_NORM: _group_norm_moved,
    LayerKind.EMBEDDING: _once(_rows_least),
    LayerKind.PARAMETER: _once(_parameter_least),
}


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
    words = np.zeros((2, len(channels)))
    for row, maps in zip(words, step_maps(widths.layer), strict=True):
        for positions in maps:
            row += np.where(positions * channels > kept, positions * channels, 0.0)
    return words
