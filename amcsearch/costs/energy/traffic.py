"""Words that cross the edge of a memory under three loop orders, and the best of their tilings; vectorised over widths.

C and M input and output channels of one group, P output positions, R weights of a window; a tile holds Tc and Tm
channels and one spatial cut, nc = ⌈C/Tc⌉, nm = ⌈M/Tm⌉, ns spatial tiles; I the inputs fetched over all spatial tiles,
halo included, |W| = C·M·R, |O| = M·P:

    output-stationary    nm·I + ns·|W| + |O|
    weight-stationary    nm·I + |W| + (2·nc − 1)·|O|
    input-stationary     I + ns·|W| + (2·nc − 1)·|O|

A tile's inputs, weights and outputs share the memory. Where partial sums stay until they are whole (output-stationary)
one input channel at a time is enough, or in a small memory one weight of its window, and then each product reads its
input anew; elsewhere Tc decides how often partial sums leave and return. The orders are those of Chen, Emer and Sze,
Eyeriss, ISCA 2016; that weights which stay let a tile slide into the next without fetching the halo again is ours (I
is then ``streamed``, not ``fetched``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.costs.energy.nest import LoopNest, SpatialTiles

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "WEIGHTS",
    "Edge",
    "input_stationary",
    "least_traffic",
    "output_stationary",
    "weigh",
    "weight_stationary",
]

Array = NDArray[np.float64]
# rows of every array of words by tensor
WEIGHTS: Final = 0
INPUTS: Final = 1
OUTPUTS: Final = 2
_CHANNEL_CUTS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
_CHUNK: Final = 1 << 17  # elements of (widths, cuts) worked on at once: they stay in the cache


@dataclass(frozen=True)
class Edge:
    """The edge of one memory: what fits inside, and what a word weighs there and in crossing.

    ``capacity`` in bytes, (L,); ``held`` and ``moved``, (3, L): bytes of a word of weights, inputs and outputs inside
    the memory, and in crossing its edge (compressed, perhaps; 0 for a map that never leaves).
    """

    capacity: Array
    held: Array
    moved: Array

    def at(self, chosen: NDArray[np.generic] | slice) -> "Edge":
        """Return the edge of some of the L widths."""
        return Edge(self.capacity[chosen], self.held[:, chosen], self.moved[:, chosen])


def weigh(words: Array, moved: Array) -> Array:
    """Bytes (L,) of words (3, L) that weigh ``moved``, (3, L)."""
    total: Array = np.einsum("tl,tl->l", words, moved)
    return total


def output_stationary(nm: Array, ns: Array, inputs: Array, weights: Array, outputs: Array) -> tuple[Array, ...]:
    """Words of weights, inputs and outputs when partial sums stay until they are whole."""
    return np.broadcast_arrays(ns * weights, nm * inputs, outputs)


def weight_stationary(nm: Array, nc: Array, inputs: Array, weights: Array, outputs: Array) -> tuple[Array, ...]:
    """Words of weights, inputs and outputs when weights stay until they have met every position."""
    return np.broadcast_arrays(weights, nm * inputs, (2 * nc - 1) * outputs)


def input_stationary(ns: Array, nc: Array, inputs: Array, weights: Array, outputs: Array) -> tuple[Array, ...]:
    """Words of weights, inputs and outputs when inputs stay until they have met every filter."""
    return np.broadcast_arrays(ns * weights, inputs, (2 * nc - 1) * outputs)


def least_traffic(nest: LoopNest, c: Array, m: Array, edge: Edge) -> Array:
    """Words of one group over the edge, best order and tiling: (3, L) for widths ``c`` and ``m``, each (L,)."""
    tiles = nest.tiles()
    found = np.empty((3, len(c)))
    step = max(1, _CHUNK // len(tiles.count))
    for start in range(0, len(c), step):
        part = slice(start, start + step)
        found[:, part] = _search(_Widths(nest, tiles, c[part], m[part], edge.at(part)))
    return found


_Candidate = tuple[tuple[Array, ...], NDArray[np.bool_]]  # words by tensor, and whether the tile fits, each (L, K)


class _Widths:
    """One chunk of widths, arrays (L, 1), against K spatial cuts."""

    def __init__(self, nest: LoopNest, tiles: SpatialTiles, c: Array, m: Array, edge: Edge) -> None:
        self.nest, self.tiles, self.edge = nest, tiles, edge
        self.c, self.m = c[:, None], m[:, None]
        self.weights, self.outputs = self.c * self.m * nest.window, self.m * nest.positions

    def at(self, chosen: NDArray[np.bool_]) -> "_Widths":
        return _Widths(self.nest, self.tiles, self.c[chosen, 0], self.m[chosen, 0], self.edge.at(chosen))

    def walked(self) -> Array:
        """Words without any reuse but of the partial sum: what three words of memory can do."""
        products = self.c * self.m * float(self.nest.products)
        return np.stack([products[:, 0], products[:, 0], self.outputs[:, 0]])

    def outputs_stay(self) -> _Candidate:
        w, i, o = self.edge.held[:, :, None]
        tm = self._room(self.tiles.reads * i, self.nest.window * w + self.tiles.positions * o)
        nm = np.ceil(self.m / np.clip(tm, 1, self.m))
        inputs = self.c * self.tiles.fetched
        return output_stationary(nm, self.tiles.count, inputs, self.weights, self.outputs), tm >= 1

    def inputs_stay(self) -> _Candidate:
        w, i, o = self.edge.held[:, :, None]
        tc = self._room(self.tiles.positions * o, self.nest.window * w + self.tiles.reads * i)
        nc = np.ceil(self.c / np.clip(tc, 1, self.c))
        inputs = self.c * self.tiles.fetched
        return input_stationary(self.tiles.count, nc, inputs, self.weights, self.outputs), tc >= 1

    def weights_stay(self, cuts: int) -> _Candidate:
        """With the input channels in ``cuts`` parts."""
        w, i, o = self.edge.held[:, :, None]
        tc = np.ceil(self.c / cuts)
        tm = self._room(tc * self.tiles.reads * i, tc * self.nest.window * w + self.tiles.positions * o)
        nm, nc = np.ceil(self.m / np.clip(tm, 1, self.m)), np.ceil(self.c / tc)
        inputs = self.c * self.tiles.streamed
        return weight_stationary(nm, nc, inputs, self.weights, self.outputs), tm >= 1

    def outputs_stay_alone(self) -> _Candidate:
        """Partial sums stay, and one weight of the window after another passes: each product reads its input anew."""
        w, i, o = self.edge.held[:, :, None]
        tm = self._room(self.tiles.positions * i, w + self.tiles.positions * o)
        nm = np.ceil(self.m / np.clip(tm, 1, self.m))
        inputs = self.c * float(self.nest.products)
        return output_stationary(nm, self.tiles.count, inputs, self.weights, self.outputs), tm >= 1

    def at_least(self, inputs: float, outputs: float) -> Array:
        """Bytes, (L,), when a channel's inputs and all outputs move so many words or times, and weights once."""
        words = np.stack([self.weights[:, 0], self.c[:, 0] * inputs, outputs * self.outputs[:, 0]])
        return weigh(words, self.edge.moved)

    def _room(self, fixed: Array, per_channel: Array) -> Array:
        """Channels of a tile that fit beside what is fixed: (L, K)."""
        return np.floor(np.maximum(self.edge.capacity[:, None] - fixed, 0.0) / per_channel)


def _search(widths: _Widths) -> Array:
    words = widths.walked()
    cost = weigh(words, widths.edge.moved)

    def offer(candidate: Callable[[_Widths], _Candidate], where: NDArray[np.bool_]) -> None:
        if where.any():
            some = widths.at(where)
            words[:, where], cost[where] = _better(some.edge.moved, words[:, where], cost[where], candidate(some))

    for candidate in (_Widths.outputs_stay, _Widths.inputs_stay, partial(_Widths.weights_stay, cuts=1)):
        offer(candidate, np.ones_like(cost, dtype=np.bool_))
    # the rest is tried only where it could gain
    offer(_Widths.outputs_stay_alone, widths.at_least(float(widths.nest.products), 1) < cost)
    for cuts in _CHANNEL_CUTS:
        least = widths.at_least(float(widths.tiles.streamed.min()), 2 * cuts - 1)
        offer(partial(_Widths.weights_stay, cuts=cuts), (least < cost) & (widths.c[:, 0] > cuts / 2))
    return words


def _better(moved: Array, words: Array, cost: Array, candidate: _Candidate) -> tuple[Array, Array]:
    """Take each width's best cut where it beats what is known: words (3, L) and their bytes (L,)."""
    parts, fits = candidate
    bytes_ = parts[0] * moved[0, :, None] + parts[1] * moved[1, :, None] + parts[2] * moved[2, :, None]
    bytes_ = np.where(fits, bytes_, np.inf)
    best = bytes_.argmin(axis=1)
    rows = np.arange(len(best))
    gains = bytes_[rows, best] < cost
    taken = np.stack([part[rows, best] for part in parts])
    return np.where(gains, taken, words), np.where(gains, bytes_[rows, best], cost)
