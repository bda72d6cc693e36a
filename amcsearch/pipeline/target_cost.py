"""Prune to a cost: the first rung of the ladder within it, grown to within one step of a single group."""

from amcsearch.config import Config, read_device
from amcsearch.pipeline.job import Job
from amcsearch.pipeline.proposal import Proposal, cost_of, ladder_of
from amcsearch.search.targeting import reach

__all__ = ["priced_target", "reach_target"]

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
    unit = weight_bits(job.config) / 8.0 if name == "bytes" else 1.0
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
    return Proposal(job.network.trace.network.policy(found.kept), "target", 1, goal)


def priced_target(config: Config) -> tuple[str, str | float]:
    """Name and limit of the target's cost as a grid prices it: stored bytes are parameters of so many bits."""
    assert config.prune.target is not None
    (name, asked), *_ = config.prune.target.items()
    if name != "bytes":
        return str(name), asked
    return "params", asked if isinstance(asked, str) else asked * 8.0 / weight_bits(config)


def weight_bits(config: Config) -> int:
    if config.device.profile is None:
        return FLOAT_BITS
    profile = read_device(config.device.profile)
    return profile.weight_bits or profile.word_bits
