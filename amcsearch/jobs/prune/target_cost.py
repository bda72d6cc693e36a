"""Pruning to a cost: the first rung of the ladder within it, grown to within one step of a single group.

A ladder is a sequence of nested policies from dense to the narrowest, as the configured allocation orders the groups.
"""

from dataclasses import dataclass

from numpy import int64
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.jobs.setup import Job
from amcsearch.methods import comparable
from amcsearch.runs import Goal, TargetGoal
from amcsearch.search import LADDERS, CostOf, reach

__all__ = ["Proposal", "cost_of", "ladder_of", "reach_target"]


@dataclass(frozen=True)
class Proposal:
    """A policy, who proposed it after how many evaluations, and ``goal``: what was asked and achieved."""

    policy: PruningPolicy
    agent: str
    evaluations: int
    goal: Goal
    notes: tuple[str, ...] = ()


def ladder_of(job: Job, cost: CostOf) -> NDArray[int64]:
    """Return the nested policies (R, G) of the configured allocation, from dense to the narrowest.

    Raises:
        BadInputError: scores that the normaliser cannot take, or an allocation that compares scores where a selector
            gives none.
    """
    prune = job.config.prune
    if job.scores is None and prune.allocation != "uniform":
        raise BadInputError(
            f"prune.allocation = {prune.allocation!r} compares scores between groups, and selection.selector = "
            f"{job.config.selection.selector!r} has none; choose uniform, or a criterion in place of the selector"
        )
    scores = {} if job.scores is None else comparable(job.scores, job.workload.trace, prune.normaliser)
    return LADDERS[prune.allocation](job.device.space, scores, cost)


def cost_of(job: Job, name: str) -> CostOf:
    """Return what prices kept counts (P, G) by one cost."""
    return lambda kept: job.device.grid.price(kept)[name]


def reach_target(job: Job) -> Proposal:
    """Find the policy of ``prune.target``, the only limit of the job; what is reached is the budget, all or part of it.

    Raises:
        BadInputError: as ``ladder_of``.
    """
    (target,), space, feasible = job.device.limits, job.device.space, job.device.feasible
    limit, unit = feasible.budget.limits[target.cost], target.unit
    cost = cost_of(job, target.cost)
    ladder = ladder_of(job, cost)
    reached = reach(ladder, space, cost, limit, feasible.repair(ladder[-1]))
    goal = TargetGoal(
        cost=target.asked.cost,
        asked=target.asked.written,
        allocation=job.config.prune.allocation,
        limit=limit * unit,
        dense=target.dense * unit,
        achieved=reached.value * unit,
        smallest_step=None if reached.smallest_step is None else reached.smallest_step * unit,
        rungs=len(ladder),
        rung=reached.rung,
        rung_value=reached.rung_value * unit,
        moves=reached.moves,
    )
    return Proposal(job.workload.trace.network.policy(reached.kept), "target", 1, goal)
