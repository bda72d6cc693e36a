"""Leave out widths that the device makes no use of: slower than a wider choice, and narrower.

A choice of a group is dominated if some wider choice is no slower with all other groups whole, and with them at half,
and with them at their smallest. No policy needs it: the wider one keeps more channels in no more time. (What holds in
these three settings need not hold in all; a staircase of the runtime's blocks does.)
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace
from amcsearch.costs.grid import CostGrid

__all__ = ["without_dominated"]


def without_dominated(space: PolicySpace, grid: CostGrid, cost: str = "latency_ms") -> PolicySpace:
    """The space without dominated choices; the dense width of every group stays.

    Args:
        space: kept counts each group may choose from.
        grid: prices policies; without ``cost`` among its names the space comes back as it is.
        cost: which cost a narrower width must lower.
    """
    if cost not in grid.names:
        return space
    settings = np.array([space.dense, space.nearest(np.full(len(space.groups), 0.5)), space.floor])
    kept = tuple(_useful(space, grid, cost, settings, g) for g in range(len(space.groups)))
    return replace(space, choices=kept)


def _useful(space: PolicySpace, grid: CostGrid, cost: str, settings: NDArray[np.int64], g: int) -> NDArray[np.int64]:
    choices = space.choices[g]
    rows = np.repeat(settings, len(choices), axis=0)  # (3 · choices, G)
    rows[:, g] = np.tile(choices, len(settings))
    price = grid.price(rows)[cost].reshape(len(settings), len(choices))
    # dominated[w]: one wider choice is no slower in every setting
    no_slower = (price[:, None, :] <= price[:, :, None]).all(axis=0)  # [narrow, wide]
    dominated = np.triu(no_slower, k=1).any(axis=1)
    return choices[~dominated]
