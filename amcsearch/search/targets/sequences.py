"""Sequences of nested policies, from dense to the narrowest, and how to choose a level of one.

A sequence holds kept counts (R, G). Each level is nowhere wider than the one before and somewhere narrower, so one
number, the level, says how much is pruned. ``SEQUENCES`` makes them:

    global    grid steps of all groups in the order of their scores; the number is a threshold
    uniform   one pruning ratio for all groups, rounded to each group's grid
    per_cost  the step that removes the least importance for the cost it saves, at the widths reached by then

``per_cost`` is the greedy form of what HALP solves (Shen et al. 2021, arXiv 2110.10811): the saving of a step depends
on the neighbours' widths of the moment, and a step may skip widths that save nothing.

``reach`` meets a cost: the first level within the limit, then single groups grow while they fit. Cost is multiplicative
in coupled widths, so a share of channels is not a share of a cost: the cost of each shrunken network itself is compared
with the limit. A grid prices all levels at once, so the level is looked up, not bisected; that is right also where a
latency staircase makes a narrower level cost more.

``accepted_levels`` and ``last_verified`` prune as far as accuracy demonstrably stays:

1. Bisection finds the last accepted level. A few levels beyond the first rejected one are tried as well, because
   accuracy is not exactly monotone.
2. The accepted levels, and a few below the lowest of them, are tested on other samples, from the least to the most
   pruned, until the first fails. Such a fixed sequence keeps the chance of choosing a level that breaks the promise at
   the level of ONE test (Angelopoulos et al. 2021, Learn then Test, arXiv 2110.01052). The opposite order would not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace
from amcsearch.methods import UnitScores, removal_steps

__all__ = [
    "SEQUENCES",
    "CostOf",
    "Reached",
    "accepted_levels",
    "calls_at_most",
    "global_sequence",
    "last_verified",
    "per_cost_sequence",
    "reach",
    "safest_first",
    "uniform_sequence",
    "wider_by_one",
]


def accepted_levels(levels: int, accept: Callable[[int], bool], scan: int = 0) -> list[int]:
    """Return the accepted ones of all levels that were asked for, ascending; level 0, the dense network, always is.

    Bisection asks at most ceil(log2(levels)) times and finds the last accepted level where acceptance is monotone; then
    ``scan`` levels beyond are asked for, 2, 3, 5, 9, … above it. No level is asked for twice.
    """
    is_accepted = {0: True}
    low, high = 0, levels  # accepted, rejected; level ``levels`` does not exist
    while high - low > 1:
        middle = (low + high) // 2
        is_accepted[middle] = accept(middle)
        low, high = (middle, high) if is_accepted[middle] else (low, middle)
    for bolder in (low + 1 + 2**k for k in range(scan)):
        if bolder < levels and bolder not in is_accepted:
            is_accepted[bolder] = accept(bolder)
    return sorted(level for level, accepted in is_accepted.items() if accepted)


def calls_at_most(levels: int, scan: int) -> int:
    """Most levels that ``accepted_levels`` asks for."""
    return math.ceil(math.log2(max(levels, 1))) + scan


def safest_first(accepted: Sequence[int]) -> list[int]:
    """Return the levels to verify, ascending: the accepted ones, and a half, a quarter, … of the lowest above 0."""
    below, lowest = [], next((level for level in accepted if level), 0)
    while lowest > 1:
        lowest //= 2
        below.append(lowest)
    return sorted({0, *below, *accepted})


def last_verified(candidates: Sequence[int], verify: Callable[[int], bool]) -> int:
    """Test ``candidates`` in order and return the last before the first that fails; the first always holds."""
    last = candidates[0]
    for candidate in candidates[1:]:
        if not verify(candidate):
            break
        last = candidate
    return last


CostOf = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Cost (P,) of kept counts (P, G)."""

_REACH: Final = 16  # grid steps of one group that a level of ``per_cost`` may take at once


def global_sequence(space: PolicySpace, scores: UnitScores) -> NDArray[np.int64]:
    """Return kept counts (R, G): one grid step of one group a level, lowest mean score first.

    Args:
        space: kept counts each group may choose from.
        scores: importance of each unit, on one scale for all groups (``global_ranking.comparable``).
    """
    rows = [space.dense]
    for _, g, low in removal_steps(scores, space):
        row = rows[-1].copy()
        row[g] = low
        rows.append(row)
    return np.stack(rows)


def uniform_sequence(space: PolicySpace) -> NDArray[np.int64]:
    """Return the distinct kept counts (R, G) of one ratio for all groups: every ratio is one of the levels."""
    turns = [1.0 - (c[1:] + c[:-1]) / (2.0 * c[-1]) for c in space.choices]  # where a group's nearest choice changes
    ends = np.unique(np.concatenate([[0.0, 1.0], *turns]))
    rows = np.array([space.nearest(np.full(len(space.choices), ratio)) for ratio in (ends[1:] + ends[:-1]) / 2.0])
    return np.array(list(dict.fromkeys(map(tuple, rows.tolist()))), dtype=np.int64).reshape(-1, len(space.choices))


def per_cost_sequence(space: PolicySpace, scores: UnitScores, cost: CostOf) -> NDArray[np.int64]:
    """Return kept counts (R, G) from dense until no step of a single group saves anything any more.

    Args:
        space: kept counts each group may choose from.
        scores: as in ``global_sequence``, at least 0 (lower ones count as 0).
        cost: what is to be saved.
    """
    given_up = [
        _importance_given_up(scores[group.name], c) for group, c in zip(space.groups, space.choices, strict=True)
    ]
    at = np.array([len(choices) - 1 for choices in space.choices], dtype=np.int64)
    rows = [space.dense]
    while moves := [(g, i) for g in range(len(at)) for i in range(max(0, at[g] - _REACH), at[g])]:
        candidates = np.repeat(rows[-1][None, :], len(moves), axis=0)
        candidates[np.arange(len(moves)), [g for g, _ in moves]] = [space.choices[g][i] for g, i in moves]
        priced = cost(np.concatenate([rows[-1][None, :], candidates]))
        saved = priced[0] - priced[1:]
        lost = np.array([given_up[g][i] - given_up[g][at[g]] for g, i in moves])
        worth = np.divide(lost, saved, out=np.full(len(moves), np.inf), where=saved > 0.0)
        best = int(np.argmin(worth))
        if not np.isfinite(worth[best]):
            break
        at[moves[best][0]] = moves[best][1]
        rows.append(candidates[best])
    return np.stack(rows)


def _importance_given_up(scores: NDArray[np.float64], choices: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the scores of the units that each choice removes, shape of ``choices``."""
    lowest_first = np.concatenate([[0.0], np.cumsum(np.sort(np.maximum(scores, 0.0)))])
    unit = choices[-1] // len(scores)
    return np.asarray(lowest_first[(choices[-1] - choices) // unit])


SEQUENCES: Final[Mapping[str, Callable[[PolicySpace, UnitScores, CostOf], NDArray[np.int64]]]] = {
    "global": lambda space, scores, cost: global_sequence(space, scores),  # noqa: ARG005 (one signature for all)
    "uniform": lambda space, scores, cost: uniform_sequence(space),  # noqa: ARG005 (as above)
    "per_cost": per_cost_sequence,
}


_TOLERANCE: Final = 1e-9  # relative, as in the budget


@dataclass(frozen=True)
class Reached:
    """A policy within a limit, that no grid step of a single group is left under.

    ``kept`` (G,) costs ``value``; the level it grew from cost ``level_value``, ``moves`` grid steps before;
    ``smallest_step`` is the least that one more step of any group would add (None where all are whole).
    """

    kept: NDArray[np.int64]
    value: float
    level: int
    level_value: float
    moves: int
    smallest_step: float | None


def reach(
    sequence: NDArray[np.int64], space: PolicySpace, cost: CostOf, limit: float, fallback: NDArray[np.int64]
) -> Reached:
    """Find the first level of ``sequence`` (R, G) within ``limit`` and grow it to within one step of a single group.

    ``fallback`` (G,), a policy within the limit, is taken where no level is. Each move grows the group whose step costs
    most among those that still fit.
    """
    limit *= 1.0 + _TOLERANCE
    within = cost(sequence) <= limit
    level = int(np.argmax(within)) if within.any() else len(sequence) - 1
    kept = sequence[level] if within.any() else fallback
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
    return Reached(kept, value, level, start, moves, smallest)


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
