"""The cheapest policies known: what an unfinished policy may still be completed with.

Costs need not grow with width (latency is a staircase: 12 channels can cost more than 16), so the smallest policy is
not always the cheapest. Starting points are the smallest choices, the smallest choices on coarser channel grids and
policies of one ratio everywhere; from the best of them coordinate descent goes on, for every cost alone and for the
worst overshoot of all limits together. The search is a heuristic: it finds cheap policies, it proves no lower bound.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace

__all__ = ["Price", "cheapest_policies", "overshoot"]

Price = Callable[[NDArray[np.int64]], Mapping[str, NDArray[np.float64]]]
Score = Callable[[NDArray[np.int64]], NDArray[np.float64]]

_GRIDS: Final = (2, 4, 8, 16, 32)
_UNIFORM: Final = 17  # policies of one ratio tried as starts
_MAX_SWEEPS: Final = 20
_SMALLEST, _COARSE = 16, 48  # choices of one group that descent tries: the smallest, and those on a coarse grid
_MEAN_WEIGHT: Final = 1e-3  # breaks ties of the worst overshoot, so that descent moves on a plateau


def overshoot(prices: Mapping[str, NDArray[np.float64]], limits: Mapping[str, float]) -> NDArray[np.float64]:
    """Worst cost as a share of its limit, (P,) from prices (P,); at most 1 is within every limit."""
    return np.asarray(np.max([prices[name] / limit for name, limit in limits.items()], axis=0))


def cheapest_policies(space: PolicySpace, price: Price, limits: Mapping[str, float]) -> NDArray[np.int64]:
    """Return distinct policies (A, G), the smallest choices first, then the cheapest found by every measure."""
    found = [space.floor]
    starts = _starts(space)
    for score in _scores(price, limits):
        best_start = starts[int(np.argmin(score(starts)))]
        found += [_descend(start, space, score) for start in np.unique([space.floor, best_start], axis=0)]
    rows, first = np.unique(np.array(found), axis=0, return_index=True)
    return rows[np.argsort(first)]


def _scores(price: Price, limits: Mapping[str, float]) -> list[Score]:
    """Every cost alone, then the worst overshoot."""

    def alone(name: str) -> Score:
        return lambda kept: price(kept)[name]

    def joint(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        prices = price(kept)
        mean = np.mean([prices[name] / limit for name, limit in limits.items()], axis=0)
        return np.asarray(overshoot(prices, limits) + _MEAN_WEIGHT * mean)

    return [*map(alone, limits), joint] if len(limits) > 1 else [alone(name) for name in limits]


def _starts(space: PolicySpace) -> NDArray[np.int64]:
    """Starting policies (S, G); the first is the smallest."""
    aligned = [[_first_multiple(choices, grid) for choices in space.choices] for grid in _GRIDS]
    uniform = [space.nearest(np.full(len(space.groups), r)) for r in np.linspace(0.0, 1.0, _UNIFORM)]
    return np.array([space.floor, *aligned, *uniform], dtype=np.int64)


def _first_multiple(choices: NDArray[np.int64], grid: int) -> int:
    on_grid = choices[choices % grid == 0]
    return int(on_grid[0] if len(on_grid) else choices[0])


def _thinned(choices: NDArray[np.int64]) -> NDArray[np.int64]:
    """A few dozen of the choices: the smallest, and those on the finest power-of-two grid that is coarse enough."""
    step = 1
    while np.count_nonzero(choices % step == 0) > _COARSE:
        step *= 2
    return np.union1d(choices[:_SMALLEST], choices[choices % step == 0])


def _descend(start: NDArray[np.int64], space: PolicySpace, score: Score) -> NDArray[np.int64]:
    """Move one group at a time to its cheapest choice until a whole sweep changes nothing; returns (G,)."""
    kept, best = start.copy(), float(score(start[None, :])[0])
    for _ in range(_MAX_SWEEPS):
        before = best
        for g, choices in enumerate(space.choices):
            thinned = _thinned(choices)
            rows = np.repeat(kept[None, :], len(thinned), axis=0)  # (C, G)
            rows[:, g] = thinned
            scores = score(rows)
            i = int(np.argmin(scores))
            if scores[i] < best * (1.0 - 1e-12):
                kept, best = rows[i], float(scores[i])
        if best == before:
            break
    return kept
