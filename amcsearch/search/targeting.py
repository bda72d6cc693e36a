"""Reach a cost exactly: the first rung of a ladder within the limit, then single groups grow while they fit.

Cost is multiplicative in coupled widths, so that a share of channels is not a share of any cost: what is compared with
the limit is the cost of the shrunken network itself. A grid prices every rung at once by indexing, so the rung is
looked up: what bisection finds where the cost falls rung by rung, and right also where a latency staircase does not.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace
from amcsearch.search.ladder import CostOf

__all__ = ["Reached", "reach", "wider_by_one"]

_TOLERANCE: Final = 1e-9  # relative, as in the budget


@dataclass(frozen=True)
class Reached:
    """A policy within a limit, that no grid step of a single group is left under.

    ``kept`` (G,) costs ``value``; the rung it grew from cost ``rung_value``, ``moves`` grid steps before;
    ``smallest_step`` is the least that one more step of any group would add (None where all are whole).
    """

    kept: NDArray[np.int64]
    value: float
    rung: int
    rung_value: float
    moves: int
    smallest_step: float | None


def reach(
    ladder: NDArray[np.int64], space: PolicySpace, cost: CostOf, limit: float, fallback: NDArray[np.int64]
) -> Reached:
    """Find the first rung of ``ladder`` (R, G) within ``limit`` and grow it to within one step of a single group.

    ``fallback`` (G,), a policy within the limit, is taken where no rung is. Each move grows the group whose step costs
    most among those that still fit.
    """
    limit *= 1.0 + _TOLERANCE
    within = cost(ladder) <= limit
    rung = int(np.argmax(within)) if within.any() else len(ladder) - 1
    kept = ladder[rung] if within.any() else fallback
    start = float(cost(kept[None, :])[0])
    moves = 0
    while True:
        wider = wider_by_one(kept, space)
        prices = cost(wider)
        fits = prices <= limit
        if not fits.any():
            break
        kept, moves = wider[int(np.argmax(np.where(fits, prices, -np.inf)))], moves + 1
    value = float(cost(kept[None, :])[0])
    smallest = float(prices.min()) - value if len(prices) else None
    return Reached(kept, value, rung, start, moves, smallest)


def wider_by_one(kept: NDArray[np.int64], space: PolicySpace) -> NDArray[np.int64]:
    """Return the policies (W, G) that differ from ``kept`` (G,) by one grid step of one group, upwards."""
    rows = []
    for g, choices in enumerate(space.choices):
        above = choices[choices > kept[g]]
        if len(above):
            row = kept.copy()
            row[g] = above[0]
            rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, len(kept))
