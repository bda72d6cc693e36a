"""Prune without a search: by a known policy, to a cost, or as far as the accuracy of the dense network is kept."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from amcsearch.config import Config, choose
from amcsearch.core import BadInputError, Limit, Metric, PruningPolicy, Trial, TrialState
from amcsearch.jobs.delivery import Exports, measure_finalists
from amcsearch.jobs.device import Device
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.prune.kept_accuracy import check_tolerance, keep_accuracy, warn_of_few_samples
from amcsearch.jobs.prune.rounds import earlier_rounds, shares_of_training, with_rounds
from amcsearch.jobs.prune.target_cost import ALLOCATIONS, AUTO, Proposal, reach_target
from amcsearch.jobs.result import SearchResult, deliver
from amcsearch.jobs.setup import Job, assemble
from amcsearch.jobs.summary import Origin, describe_proposal
from amcsearch.jobs.task import make_task
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload
from amcsearch.methods import NORMALISERS, ROUND_SHAPES
from amcsearch.runs import PolicyGoal, RunFolder

__all__ = ["prune"]


def prune(config: Config, run: RunFolder, observer: Observer, given: InMemory = CONFIGURED) -> SearchResult:
    """Do what ``config.prune`` says: apply a policy, reach a cost, or keep the accuracy; then deliver as a search does.

    Raises:
        BadInputError: as ``search``, no goal, a policy that does not fit the network, or too few epochs for the rounds.
        InfeasibleBudgetError: no policy meets the target.
    """
    phases = Phases(observer, run.append_log)
    policy = _policy(config)
    if policy is not None and 0 in policy.values():
        config = config.model_copy(update={"search": config.search.model_copy(update={"vanish": True})})
    goal = _goal_of(config, make_task(config, given.task).metric)
    _check_rules(config)
    shares_of_training(config)  # too few epochs are refused before anything is trained
    job = assemble(config, _limits(config), phases, given, run=run, check=partial(_check, config, observer))
    job, rounds = earlier_rounds(job, run, phases)
    with phases("goal", goal):
        proposal = _propose(job, run, observer)
    if config.prune.keep_accuracy is not None and proposal.policy == job.workload.trace.network.dense:
        observer.warn("no smaller network was shown to keep the metric; the dense network is delivered as it is")
        job = _as_it_is(job)
    exports = Exports(job)
    with phases("finalists", "Evaluating and measuring the policy"):
        cost, evaluation = job.device.grid.cost(proposal.policy), job.evaluator.evaluate(proposal.policy)
        trial = Trial(0, proposal.agent, config.seed, TrialState.COMPLETE, proposal.policy, evaluation, cost, 0.0)
        if config.prune.keep_accuracy is None:  # which lists the trials of its own study
            run.write_trials([trial])
            run.write_pareto([trial])
        if not math.isfinite(evaluation.loss):
            raise BadInputError(
                f"the pruned network's loss on the search split is {evaluation.loss}: it gives NaN or infinity without "
                "these channels; prune less, or guard the operation that gives them"
            )
        finalists = measure_finalists([trial], 1, job.device.limit("latency_ms"), None, exports.measure)
        job = exports.cut([proposal.policy])

    def origin(pruned: nn.Module, tuned: nn.Module) -> Origin:
        return describe_proposal(with_rounds(proposal, rounds, job, (pruned, tuned)))

    return deliver(job, run, phases, finalists, exports, origin)


def _as_it_is(job: Job) -> Job:
    """The same job, but networks are delivered with the weights that they have: neither recovered nor trained."""
    recovery = job.config.recovery.model_copy(update={"finetune": None})
    config, given = job.config.model_copy(update={"recovery": recovery}), replace(job.given, finetune=None)
    return replace(job, config=config, given=given, finetune=None, evaluator=job.evaluator.bare())


def _goal_of(config: Config, metric: Metric) -> str:
    """Say in a sentence what is about to be done.

    Raises:
        BadInputError: there is no goal, or as ``check_tolerance``.
    """
    prune = config.prune
    if prune.policy is not None:
        return f"Reading {prune.policy}" if isinstance(prune.policy, str) else "Taking the policy that was given"
    if prune.limit is not None:
        begin = "Pruning" if prune.rounds == 1 else f"Round {prune.rounds} of {prune.rounds}: pruning"
        how = "" if prune.allocation == AUTO else f", {prune.allocation} allocation"
        return f"{begin} to {prune.limit.cost} = {prune.limit.written}{how}"
    if prune.keep_accuracy is not None:
        check_tolerance(prune.keep_accuracy, metric)
        turns = "falls" if metric.higher_is_better else "rises"
        return f"Pruning as far as {metric.word} {turns} by less than {prune.keep_accuracy:g} {metric.points}"
    raise BadInputError(
        "prune: no goal; give one of policy, target and keep_accuracy (--policy, --target, --keep-accuracy)"
    )


def _check_rules(config: Config) -> None:
    """Check the names of allocation, round shape and normaliser, before anything is loaded or trained."""
    choose(ALLOCATIONS, config.prune.allocation, "prune.allocation")
    choose(ROUND_SHAPES, config.prune.round_shape, "prune.round_shape")
    choose(NORMALISERS, config.prune.normaliser, "prune.normaliser")


def _limits(config: Config) -> tuple[Limit, ...]:
    """Return the limits on costs: the target, the search's budget beside a known policy, none to keep accuracy."""
    if config.prune.policy is not None:
        return config.limits
    return () if config.prune.limit is None else (config.prune.limit,)


def _propose(job: Job, run: RunFolder, observer: Observer) -> Proposal:
    """Find the policy of the configured goal.

    Raises:
        BadInputError: a policy file that cannot be read, or as ``reach_target`` and ``keep_accuracy``.
    """
    prune = job.config.prune
    policy = _policy(job.config)
    if policy is not None:
        return Proposal(policy, "given", 1, PolicyGoal())
    return reach_target(job) if prune.target is not None else keep_accuracy(job, run, observer)


def _policy(config: Config) -> PruningPolicy | None:
    """Return the policy that the configuration gives, or names by its file."""
    policy = config.prune.policy
    if isinstance(policy, str):
        return PruningPolicy.read(Path(policy))
    return None if policy is None else PruningPolicy(policy)


def _check(config: Config, observer: Observer, network: Workload, device: Device) -> None:
    """Refuse a given policy that does not fit the network, and warn of too few samples for a tolerance.

    Raises:
        BadInputError: as ``PruningPolicy.read`` and ``NetworkSpec.kept_array``.
    """
    del device
    policy = _policy(config)
    if policy is not None:
        network.trace.network.kept_array(policy)
    warn_of_few_samples(config, network, observer)
