"""What ``prune`` aims at: a known policy, a cost, or the accuracy of the dense network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amcsearch.config import Config
from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.prune.kept_accuracy import keep_accuracy
from amcsearch.jobs.prune.target_cost import Proposal, priced_target, reach_target
from amcsearch.jobs.setup import Job
from amcsearch.runs import RunFolder

__all__ = ["goal_of", "naming_the_target", "propose", "without_search_budget"]


def goal_of(config: Config) -> str:
    """Say in a sentence what is about to be done.

    Raises:
        BadInputError: there is no goal.
    """
    prune = config.prune
    if prune.policy is not None:
        return f"Reading {prune.policy}"
    if prune.target is not None:
        (name, asked), *_ = prune.target.items()
        begin = "Pruning" if prune.rounds == 1 else f"Round {prune.rounds} of {prune.rounds}: pruning"
        return f"{begin} to {name} = {asked}, {prune.allocation} allocation"
    if prune.keep_accuracy is not None:
        return f"Pruning as far as accuracy falls by less than {prune.keep_accuracy:g} points"
    raise BadInputError("prune: no goal; give one of --policy, --target and --keep-accuracy")


def without_search_budget(config: Config) -> Config:
    """Return the configuration with ``prune.target`` in place of the search's budget, where ``prune`` has a target.

    A known policy is still shown beside the search's budget, and the accuracy to keep is its own limit.
    """
    if config.prune.target is not None:
        name, asked = priced_target(config)
        return config.model_copy(update={"budget": {name: asked}})
    return config if config.prune.policy is not None else config.model_copy(update={"budget": {}})


@contextmanager
def naming_the_target(config: Config) -> Iterator[None]:
    """Let errors about the budget name ``prune.target``, which stands in its place."""
    try:
        yield
    except BadInputError as error:
        if config.prune.target is None:
            raise
        raise BadInputError(str(error).replace("budget.", "prune.target.")) from error


def propose(job: Job, run: RunFolder, observer: Observer) -> Proposal:
    """Find the policy of the configured goal.

    Raises:
        BadInputError: a policy file that cannot be read, or as ``reach_target`` and ``keep_accuracy``.
    """
    prune = job.config.prune
    if prune.policy is not None:
        return Proposal(PruningPolicy.read(Path(prune.policy)), "given", 1, {"kind": "policy"})
    return reach_target(job) if prune.target is not None else keep_accuracy(job, run, observer)
