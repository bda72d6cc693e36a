"""The edges of a device's memories for one layer: what is free inside, which maps stay there, what a word weighs.

A map no larger than a memory's ``map_share`` stays there between the layer that writes it and the one that reads it,
and neither moves it further out; this is decided by its size alone, so that writer and reader agree. Compressed tensors
are small in DRAM and whole inside the chip.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.costs.device import MemoryLevel
from amcsearch.costs.energy.steps import step_words
from amcsearch.costs.energy.storage import DENSE, Sparsity, stored_bits
from amcsearch.costs.energy.traffic import INPUTS, OUTPUTS, WEIGHTS, Edge
from amcsearch.costs.energy.work import Widths, least_words, map_words

__all__ = ["BITS_PER_BYTE", "edges_of", "step_bytes"]

Array = NDArray[np.float64]
BITS_PER_BYTE: Final = 8


def edges_of(
    memories: Sequence[MemoryLevel], bits: tuple[int, int], widths: Widths, sparsity: Sparsity = DENSE
) -> list[Edge]:
    """Edges of every memory but DRAM, innermost first; ``bits`` of a weight and of an activation."""
    words = np.array(bits)[[0, 1, 1], None] / BITS_PER_BYTE  # bytes of a weight, an input, an output
    maps = np.stack(map_words(widths)) * words[INPUTS]  # (2, L) bytes
    edges = []
    for memory in memories[:-1]:
        capacity = float(memory.capacity_bytes or 0)
        leaves = maps > memory.map_share * capacity
        free = capacity - np.where(leaves, 0.0, maps).sum(axis=0)
        held = np.concatenate([np.broadcast_to(words[:1], free[None].shape), words[INPUTS:] * leaves])
        edges.append(Edge(free, held, held))
    outermost = edges[-1]
    edges[-1] = Edge(outermost.capacity, outermost.held, outermost.held * _stored(bits, widths, sparsity))
    return edges


def step_bytes(
    memories: Sequence[MemoryLevel], bits: tuple[int, int], widths: Widths, sparsity: Sparsity = DENSE
) -> list[Array]:
    """Bytes that the layer's steps read and write over each of these edges, (2, L); in DRAM coded as its outputs."""
    map_bytes = bits[1] / BITS_PER_BYTE
    limits = [memory.map_share * (memory.capacity_bytes or 0) / map_bytes for memory in memories[:-1]]
    found = [step_words(widths, limit) * map_bytes for limit in limits]
    found[-1] *= _stored(bits, widths, sparsity)[OUTPUTS]
    return found


def _stored(bits: tuple[int, int], widths: Widths, sparsity: Sparsity) -> Array:
    """Share of its dense size that each tensor takes in DRAM, (3, L)."""
    if sparsity == DENSE:
        return np.ones((3, len(widths.in_channels)))
    least = least_words(widths)
    rows = widths.out_channels, least[INPUTS] / widths.layer.in_size[1], least[OUTPUTS] / widths.layer.out_size[1]
    densities = sparsity.weights, sparsity.inputs, sparsity.outputs
    formats = sparsity.weight_format, sparsity.map_format, sparsity.map_format
    shares = []
    for tensor in (WEIGHTS, INPUTS, OUTPUTS):
        word = bits[min(tensor, 1)]
        numbers = np.maximum(least[tensor], 1.0)
        lines = np.clip(rows[tensor], 1.0, numbers)
        stored = stored_bits(formats[tensor], densities[tensor], lines, numbers / lines, word)
        shares.append(stored / (numbers * word))
    return np.stack(shares)
