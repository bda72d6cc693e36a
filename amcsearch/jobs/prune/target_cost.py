"""Pruning to a cost: the first level of the sequence within it, grown to within one step of a single group.

A sequence holds policies from dense to the narrowest, as the configured allocation orders the groups.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy import int64
from numpy.typing import NDArray

from amcsearch.config import EXACT
from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.jobs.selection import name_of_choice
from amcsearch.jobs.setup import Job
from amcsearch.methods import UnitScores, comparable
from amcsearch.runs import Goal, TargetGoal
from amcsearch.search import SEQUENCES, Allocator, CostOf, reach, removal_errors

__all__ = ["ALLOCATIONS", "AUTO", "Proposal", "reach_target", "sequence_of"]

AUTO: Final = "auto"
ALLOCATIONS: Final = dict.fromkeys((AUTO, EXACT, *SEQUENCES))
"""Names that ``prune.allocation`` takes."""
_NORM: Final = 16


@dataclass(frozen=True)
class Proposal:
    """A policy, who proposed it after how many evaluations, and ``goal``: what was asked and achieved."""

    policy: PruningPolicy
    agent: str
    evaluations: int
    goal: Goal
    notes: tuple[str, ...] = ()


def sequence_of(job: Job, cost: str, exact_levels: int) -> tuple[str, NDArray[int64]]:
    """Return the allocation, and its policies (R, G) from dense to the narrowest.

    Those of the exact one are of least error for up to ``exact_levels`` budgets of ``cost``, and need not be nested;
    all others are.

    Raises:
        BadInputError: scores that the normaliser cannot take, or an allocation for which the selection has no scores or
            errors.
    """
    prune, space = job.config.prune, job.device.space
    name = _allocation(job)
    if name == EXACT:
        if job.errors is None:
            raise BadInputError(
                f"prune.allocation = {EXACT!r} needs the error of every kept count, which "
                f"{name_of_choice(job.config)} does not know; choose selection.selector = obc, or another allocation"
            )
        allocator = Allocator(job.device.feasible, axis=cost)
        try:
            return name, allocator.sequence(removal_errors(space, job.errors), exact_levels)
        except BadInputError:
            if prune.allocation != AUTO:
                raise
            name = "global"  # layers of so many groups have no exact solution
    return name, SEQUENCES[name](space, _scores(job, name), _stepwise(job, cost))


def _allocation(job: Job) -> str:
    """The configured allocation, or the best one that the selection has scores or errors for."""
    allocation = job.config.prune.allocation
    if allocation != AUTO:
        return allocation
    if job.errors is not None:
        return EXACT
    return "uniform" if job.scores is None else "global"


def _scores(job: Job, allocation: str) -> UnitScores:
    """Scores of the units on one scale for all groups: a criterion's, normalised, or what each adds to the errors.

    Raises:
        BadInputError: there are none, and the allocation compares them; or as ``comparable``.
    """
    if job.errors is not None:
        return {group: np.diff(errors[::-1]) for group, errors in job.errors.items()}
    if job.scores is not None:
        return comparable(job.scores, job.workload.trace, job.config.prune.normaliser)
    if allocation != "uniform":
        raise BadInputError(
            f"prune.allocation = {allocation!r} compares scores between groups, and selection.selector = "
            f"{job.config.selection.selector!r} has none; choose uniform, obc as the selector, or a criterion in its "
            "place"
        )
    return {}


def cost_of(job: Job, name: str) -> CostOf:
    """Return what prices kept counts (P, G) by one cost."""
    return lambda kept: job.device.grid.price(kept)[name]


def _stepwise(job: Job, name: str) -> CostOf:
    """Return what orders single steps by a cost: of a maximum, a norm that every large moment adds to.

    Where two moments are equally large, no step of a single group lowers their maximum.
    """
    moments = job.device.grid.peaks.get(name)
    if moments is None:
        return cost_of(job, name)
    largest = float(moments.of(job.device.space.dense[None, :]).max())
    return lambda kept: ((moments.of(kept) / largest) ** _NORM).sum(axis=1)


def reach_target(job: Job) -> Proposal:
    """Find the policy of ``prune.target``, the only limit of the job; what is reached is the budget, all or part of it.

    Raises:
        BadInputError: as ``sequence_of``.
    """
    (target,), space, feasible = job.device.limits, job.device.space, job.device.feasible
    limit, unit = feasible.budget.limits[target.cost], target.unit
    cost = cost_of(job, target.cost)
    allocation, sequence = sequence_of(job, target.cost, 1)
    reached = reach(sequence, space, cost, limit, feasible.repair(sequence[-1]))
    goal = TargetGoal(
        cost=target.asked.cost,
        asked=target.asked.written,
        allocation=allocation,
        limit=limit * unit,
        dense=target.dense * unit,
        achieved=reached.value * unit,
        smallest_step=None if reached.smallest_step is None else reached.smallest_step * unit,
        levels=len(sequence),
        level=reached.level,
        level_value=reached.level_value * unit,
        moves=reached.moves,
    )
    return Proposal(job.workload.trace.network.policy(reached.kept), "target", 1, goal)
