"""Pruning to a cost: the first rung of the ladder within it, grown to within one step of a single group.

A ladder is a sequence of nested policies from dense to the narrowest, as the configured allocation orders the groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy import int64
from numpy.typing import NDArray

from amcsearch.config import Config, read_device
from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.jobs.setup import Job
from amcsearch.methods import comparable
from amcsearch.search import LADDERS, CostOf, reach

__all__ = ["Proposal", "cost_of", "ladder_of", "priced_as", "priced_target", "reach_target", "weight_bits"]


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


BITS_PER_BYTE = 8.0
FLOAT_BITS = 32  # of a weight where no device profile says otherwise


def reach_target(job: Job) -> Proposal:
    """Find the policy of ``prune.target``, which stands as the only budget of the job.

    Raises:
        BadInputError: as ``ladder_of``.
    """
    prune, space, feasible = job.config.prune, job.device.space, job.device.feasible
    assert prune.target is not None
    (name, asked), *_ = prune.target.items()
    (priced, limit), *_ = feasible.budget.limits.items()
    _, unit = priced_as(job.config, str(name))
    cost = cost_of(job, priced)
    ladder = ladder_of(job, cost)
    found = reach(ladder, space, cost, limit, feasible.repair(ladder[-1]))
    goal = {
        "kind": "target",
        "cost": name,
        "asked": asked,
        "allocation": prune.allocation,
        "limit": limit * unit,
        "dense": job.device.dense[priced] * unit,
        "achieved": found.value * unit,
        "smallest_step": None if found.smallest_step is None else found.smallest_step * unit,
        "rungs": len(ladder),
        "rung": found.rung,
        "rung_value": found.rung_value * unit,
        "moves": found.moves,
    }
    return Proposal(job.workload.trace.network.policy(found.kept), "target", 1, goal)


def priced_target(config: Config) -> tuple[str, str | float]:
    """Name and limit of the cost of ``prune.target`` as a grid prices it."""
    assert config.prune.target is not None
    (name, asked), *_ = config.prune.target.items()
    priced, unit = priced_as(config, str(name))
    return priced, asked if isinstance(asked, str) else asked / unit


def priced_as(config: Config, name: str) -> tuple[str, float]:
    """Return the cost that a grid prices, and how much of ``name`` one of it is: bytes are parameters of some bits."""
    return ("params", weight_bits(config) / BITS_PER_BYTE) if name == "bytes" else (name, 1.0)


def weight_bits(config: Config) -> int:
    """Return the bits of a stored weight on the configured device."""
    if config.device.profile is None:
        return FLOAT_BITS
    profile = read_device(config.device.profile)
    return profile.weight_bits or profile.word_bits
