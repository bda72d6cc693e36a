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
    cuts = _Cuts.of(nest, c, m, edge)
    words = np.empty((3, len(c)))
    step = max(1, _CHUNK // len(cuts.largest.count))
    for start in range(0, len(c), step):
        part = slice(start, start + step)
        words[:, part] = _search(_Widths(nest, cuts, c[part], m[part], edge.at(part)))
    return words


@dataclass(frozen=True)
class _Room:
    """Channels of a tile that fit into a memory, by what stays; capacity and held bytes broadcast against (K,) cuts."""

    window: int
    capacity: Array
    weights: Array
    inputs: Array
    outputs: Array

    def outputs_stay(self, tiles: SpatialTiles) -> Array:
        """Filters, when one input channel at a time passes."""
        return self._fit(tiles.reads * self.inputs, self.window * self.weights + tiles.positions * self.outputs)

    def outputs_stay_alone(self, tiles: SpatialTiles) -> Array:
        """Filters, when one weight of the window at a time passes."""
        return self._fit(tiles.positions * self.inputs, self.weights + tiles.positions * self.outputs)

    def inputs_stay(self, tiles: SpatialTiles) -> Array:
        """Input channels, when one filter at a time passes."""
        return self._fit(tiles.positions * self.outputs, self.window * self.weights + tiles.reads * self.inputs)

    def weights_stay(self, tiles: SpatialTiles, tc: Array) -> Array:
        """Filters of ``tc`` input channels."""
        per_filter = tc * self.window * self.weights + tiles.positions * self.outputs
        return self._fit(tc * tiles.reads * self.inputs, per_filter)

    def _fit(self, fixed: Array, per_channel: Array) -> Array:
        return np.floor(np.maximum(self.capacity - fixed, 0.0) / per_channel)


@dataclass(frozen=True)
class _Cuts:
    """The spatial cuts worth trying under each order: those that another beats at every width are left out."""

    outputs_stay: SpatialTiles
    outputs_stay_alone: SpatialTiles
    inputs_stay: SpatialTiles
    weights_stay: SpatialTiles

    @classmethod
    def of(cls, nest: LoopNest, c: Array, m: Array, edge: Edge) -> "_Cuts":
        """Where all widths see the same memory, a cut counts by the channels that fit beside it, at most all."""
        tiles = nest.tiles()
        memory = np.concatenate([edge.capacity[None], edge.held])  # (4, L)
        rooms: tuple[tuple[Array, ...], ...] = ((tiles.reads, tiles.positions),) * 3  # a small tile leaves room
        if len(c) and np.all(memory == memory[:, :1]):
            room = _Room(nest.window, *memory[:, 0])
            fitting = room.outputs_stay(tiles), room.outputs_stay_alone(tiles), room.inputs_stay(tiles)
            rooms = tuple(
                (-np.minimum(fits, most),) for fits, most in zip(fitting, (m.max(), m.max(), c.max()), strict=True)
            )
        return cls(
            tiles.unbeaten(tiles.fetched, tiles.count, *rooms[0]),
            tiles.unbeaten(tiles.count, *rooms[1]),
            tiles.unbeaten(tiles.fetched, tiles.count, *rooms[2]),
            tiles.unbeaten(tiles.streamed, tiles.reads, tiles.positions),
        )

    @property
    def largest(self) -> SpatialTiles:
        """The longest of the lists."""
        lists = self.outputs_stay, self.outputs_stay_alone, self.inputs_stay, self.weights_stay
        return max(lists, key=lambda tiles: len(tiles.count))


_Candidate = tuple[tuple[Array, ...], NDArray[np.bool_]]  # words by tensor, and whether the tile fits, each (L, K)


class _Widths:
    """One chunk of widths, arrays (L, 1), against K spatial cuts."""

    def __init__(self, nest: LoopNest, cuts: _Cuts, c: Array, m: Array, edge: Edge) -> None:
        self.nest, self.cuts, self.edge = nest, cuts, edge
        self.c, self.m = c[:, None], m[:, None]
        self.weights, self.outputs = self.c * self.m * nest.window, self.m * nest.positions
        self.room = _Room(nest.window, edge.capacity[:, None], *edge.held[:, :, None])

    def at(self, chosen: NDArray[np.bool_]) -> "_Widths":
        return _Widths(self.nest, self.cuts, self.c[chosen, 0], self.m[chosen, 0], self.edge.at(chosen))

    def walked(self) -> Array:
        """Words without any reuse but of the partial sum: what three words of memory can do."""
        products = self.c * self.m * float(self.nest.products)
        return np.stack([products[:, 0], products[:, 0], self.outputs[:, 0]])

    def outputs_stay(self) -> _Candidate:
        tiles = self.cuts.outputs_stay
        tm = self.room.outputs_stay(tiles)
        nm = np.ceil(self.m / np.clip(tm, 1, self.m))
        return output_stationary(nm, tiles.count, self.c * tiles.fetched, self.weights, self.outputs), tm >= 1

    def outputs_stay_alone(self) -> _Candidate:
        """Partial sums stay, and one weight of the window after another passes: each product reads its input anew."""
        tiles = self.cuts.outputs_stay_alone
        tm = self.room.outputs_stay_alone(tiles)
        nm = np.ceil(self.m / np.clip(tm, 1, self.m))
        inputs = self.c * float(self.nest.products)
        return output_stationary(nm, tiles.count, inputs, self.weights, self.outputs), tm >= 1

    def inputs_stay(self) -> _Candidate:
        tiles = self.cuts.inputs_stay
        tc = self.room.inputs_stay(tiles)
        nc = np.ceil(self.c / np.clip(tc, 1, self.c))
        return input_stationary(tiles.count, nc, self.c * tiles.fetched, self.weights, self.outputs), tc >= 1

    def weights_stay(self, parts: int) -> _Candidate:
        """With the input channels in so many parts."""
        tiles, tc = self.cuts.weights_stay, np.ceil(self.c / parts)
        tm = self.room.weights_stay(tiles, tc)
        nm, nc = np.ceil(self.m / np.clip(tm, 1, self.m)), np.ceil(self.c / tc)
        return weight_stationary(nm, nc, self.c * tiles.streamed, self.weights, self.outputs), tm >= 1

    def at_least(self, inputs: float, outputs: float) -> Array:
        """Bytes, (L,), when a channel's inputs and all outputs move so many words or times, and weights once."""
        words = np.stack([self.weights[:, 0], self.c[:, 0] * inputs, outputs * self.outputs[:, 0]])
        return weigh(words, self.edge.moved)


def _search(widths: _Widths) -> Array:
    words = widths.walked()
    cost = weigh(words, widths.edge.moved)
    streamed = float(widths.cuts.weights_stay.streamed.min())

    def offer(candidate: Callable[[_Widths], _Candidate], where: NDArray[np.bool_]) -> None:
        if where.any():
            some = widths if where.all() else widths.at(where)
            words[:, where], cost[where] = _better(some.edge.moved, words[:, where], cost[where], candidate(some))

    # each is tried only where it could gain
    once = widths.at_least(streamed, 1)
    for candidate in (partial(_Widths.weights_stay, parts=1), _Widths.outputs_stay, _Widths.inputs_stay):
        offer(candidate, once < cost)
    offer(_Widths.outputs_stay_alone, widths.at_least(float(widths.nest.products), 1) < cost)
    for parts in _CHANNEL_CUTS:
        could_gain = widths.at_least(streamed, 2 * parts - 1) < cost
        if not could_gain.any():  # nor could more parts, which move more
            break
        offer(partial(_Widths.weights_stay, parts=parts), could_gain & (widths.c[:, 0] > parts / 2))
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
