"""Widths that no search should propose: on the device they are no faster than a wider choice of the same group.

Latency is a staircase, and an off-grid width may fall back to a slower kernel: there more channels take less time.
Choice w of group g is dominated by a wider choice w' of g if, with the other groups held at each of three contexts,

    latency(w', context) <= latency(w, context)        context: all channels, half of them, the fewest

for one and the same w' in all three. Three contexts, for a layer's latency depends on the width of its neighbour.
"""

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace
from amcsearch.costs.grid import CostGrid

__all__ = ["without_dominated"]

LATENCY = "latency_ms"


def without_dominated(space: PolicySpace, grid: CostGrid) -> PolicySpace:
    """Return the space without choices that a wider choice of the same group dominates; all channels always stay.

    Every choice left out is dominated by one that stays. A space whose latency nothing predicts comes back as it is.

    Raises:
        BadInputError: a layer the latency model cannot price.
    """
    if LATENCY not in grid.names or not space.groups:
        return space
    contexts = np.stack([space.dense, space.nearest(np.full(len(space.groups), 0.5)), space.floor])  # (3, G)
    kept = (choices[_stays(_latencies(g, contexts, space, grid))] for g, choices in enumerate(space.choices))
    return PolicySpace(space.groups, tuple(kept))


def _latencies(g: int, contexts: NDArray[np.int64], space: PolicySpace, grid: CostGrid) -> NDArray[np.float64]:
    """Latency in ms of every choice of group ``g`` in every context: (choices, contexts)."""
    choices = space.choices[g]
    rows = np.tile(contexts, (len(choices), 1))
    rows[:, g] = np.repeat(choices, len(contexts))
    return grid.price(rows)[LATENCY].reshape(len(choices), len(contexts))


def _stays(latency_ms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (N, contexts) no later row dominates: (N,). Dominance is transitive, so kept rows suffice to ask."""
    stays = np.zeros(len(latency_ms), dtype=np.bool_)
    for i in range(len(latency_ms) - 1, -1, -1):
        stays[i] = not (latency_ms[stays] <= latency_ms[i]).all(axis=1).any()
    return stays
