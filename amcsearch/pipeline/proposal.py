"""What ``prune`` proposes, and the ladder of policies that it looks on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy import int64
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.methods.global_ranking import comparable
from amcsearch.pipeline.job import Job
from amcsearch.search.ladder import LADDERS, CostOf

__all__ = ["Proposal", "cost_of", "ladder_of"]


@dataclass(frozen=True)
class Proposal:
    """A policy, who proposed it after how many evaluations, and ``goal``: what was asked and achieved, as values."""

    policy: PruningPolicy
    agent: str
    evaluations: int
    goal: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def ladder_of(job: Job, cost: CostOf) -> NDArray[int64]:
    """Return the nested policies (R, G) of the configured allocation, from dense to the narrowest.

    Raises:
        BadInputError: an unknown normaliser, or an allocation that compares scores where a selector gives none.
    """
    prune = job.config.prune
    if job.scores is None and prune.allocation != "uniform":
        raise BadInputError(
            f"prune.allocation = {prune.allocation!r} compares scores between groups, and selection.selector = "
            f"{job.config.selection.selector!r} has none; choose uniform, or a criterion in place of the selector"
        )
    scores = {} if job.scores is None else comparable(job.scores, job.network.trace, prune.normaliser)
    return LADDERS[prune.allocation](job.device.space, scores, cost)


def cost_of(job: Job, name: str) -> CostOf:
    """Return what prices kept counts (P, G) by one cost."""
    return lambda kept: job.device.grid.price(kept)[name]
