"""Ladders: nested policies from dense to the narrowest, so that one number says how much is pruned.

    global    grid steps of all groups in the order of their scores; the number is a threshold
    uniform   one pruning ratio for all groups, rounded to each group's grid
    per_cost  the step that gives up the least importance for what it saves, at the widths reached by then

``per_cost`` is the greedy form of what HALP solves (Shen et al. 2021, arXiv 2110.10811): the saving of a step depends
on the neighbours' widths of the moment, and a step may skip widths that save nothing. Rows are kept counts; each row
is nowhere wider than the one before, and somewhere narrower.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import PolicySpace
from amcsearch.methods.global_ranking import removal_steps
from amcsearch.methods.ranking import UnitScores

__all__ = ["LADDERS", "CostOf", "global_ladder", "per_cost_ladder", "uniform_ladder"]

CostOf = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Cost (P,) of kept counts (P, G)."""

_REACH: Final = 16  # grid steps of one group that a rung of ``per_cost`` may take at once


def global_ladder(space: PolicySpace, scores: UnitScores) -> NDArray[np.int64]:
    """Return kept counts (R, G): one grid step of one group a rung, lowest mean score first.

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


def uniform_ladder(space: PolicySpace) -> NDArray[np.int64]:
    """Return the distinct kept counts (R, G) of one ratio for all groups: every ratio is one of the rungs."""
    turns = [1.0 - (c[1:] + c[:-1]) / (2.0 * c[-1]) for c in space.choices]  # where a group's nearest choice changes
    ends = np.unique(np.concatenate([[0.0, 1.0], *turns]))
    rows = np.array([space.nearest(np.full(len(space.choices), ratio)) for ratio in (ends[1:] + ends[:-1]) / 2.0])
    return np.array(list(dict.fromkeys(map(tuple, rows.tolist()))), dtype=np.int64).reshape(-1, len(space.choices))


def per_cost_ladder(space: PolicySpace, scores: UnitScores, cost: CostOf) -> NDArray[np.int64]:
    """Return kept counts (R, G) from dense until no step of a single group saves anything any more.

    Args:
        space: kept counts each group may choose from.
        scores: as in ``global_ladder``, at least 0 (lower ones count as 0).
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


LADDERS: Final[Mapping[str, Callable[[PolicySpace, UnitScores, CostOf], NDArray[np.int64]]]] = {
    "global": lambda space, scores, cost: global_ladder(space, scores),  # noqa: ARG005 (one signature for all)
    "uniform": lambda space, scores, cost: uniform_ladder(space),  # noqa: ARG005 (as above)
    "per_cost": per_cost_ladder,
}
