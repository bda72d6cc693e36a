"""Rounds: prune part of the way, train what is left, rank its channels anew, prune on; the last round meets the target.

After round i of r the cost is what ``round_sparsities`` leaves of the dense network's, s being the share that the limit
takes away; the last round is one-shot pruning of the network as trained by then. Kept counts are nested, for a round
chooses among what the one before left. The rounds share the epochs of one-shot pruning and each replays its learning
rates; the teacher, where there is one, stays the dense network.

Han et al., Learning both Weights and Connections, 2015 (arXiv 1506.02626); Torch-Pruning's ``iterative_steps`` are the
linear shape in channels. Here every round is a cost, and is reached as exactly as the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amcsearch.config import Config, FinetuneConfig
from amcsearch.core import BadInputError, NetworkSpec, PolicySpace
from amcsearch.graph import Kept, remove, renumbered
from amcsearch.jobs.device import Device
from amcsearch.jobs.finetuning import fine_tune, finetuning_recipe
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.prune.target_cost import Proposal, reach_target
from amcsearch.jobs.setup import Job, reranked
from amcsearch.jobs.user_training import training_folder
from amcsearch.methods import keep, round_sparsities
from amcsearch.runs import RoundSummary, RunFolder, TargetGoal
from amcsearch.search import Budget, FeasibleSet
from amcsearch.training import StateFile, evaluate

__all__ = ["earlier_rounds", "round_limits", "shares_of_training", "with_rounds"]


def shares_of_training(config: Config) -> list[FinetuneConfig | None]:
    """Return the training of each round: equal shares of ``recovery.finetune.epochs``, the rest to the last.

    Raises:
        BadInputError: fewer epochs than rounds, or as ``finetuning_recipe`` of a round.
    """
    rounds, recipe = config.prune.rounds, config.recovery.finetune
    if rounds == 1:
        return [recipe]
    if recipe is None or recipe.epochs < rounds:
        raise BadInputError(
            f"recovery.finetune.epochs = {recipe.epochs if recipe else 0}, must be at least prune.rounds = {rounds}, "
            "for every round trains; raise the epochs, or lower prune.rounds"
        )
    share, remainder = divmod(recipe.epochs, rounds)
    epochs = [*[share] * (rounds - 1), share + remainder]
    shares = [recipe.model_copy(update={"epochs": count}) for count in epochs]
    finetuning_recipe(config, shares[-1])  # of the longest
    return list(shares)


def round_limits(dense: float, limit: float, rounds: int, shape: str) -> list[float]:
    """Return the most that each round may cost, in the unit of ``dense`` and ``limit``; the last is ``limit``."""
    sparsities = round_sparsities(1.0 - limit / dense, rounds, shape)
    return [*(dense * (1.0 - sparsity) for sparsity in sparsities[:-1]), limit]


def earlier_rounds(job: Job, run: RunFolder, phases: Phases) -> tuple[Job, list[RoundSummary]]:
    """Do every round but the last; return the job of the last, and a description of each of those done.

    What the run folder already holds of a round is taken up again, so a killed run resumes.

    Raises:
        BadInputError: as ``shares_of_training`` and ``reach_target``.
        InfeasibleBudgetError: what a round left cannot meet the target (possible on a latency staircase).
    """
    *earlier, last = shares_of_training(job.config)
    if not earlier:
        return job, []
    prune, (target,) = job.config.prune, job.device.limits
    limits = round_limits(target.dense, target.value, prune.rounds, prune.round_shape)
    done = []
    for i, finetune in enumerate(earlier):
        share = f"{limits[i] / target.dense:.3f}x of dense {target.cost}"
        text = f"Round {i + 1} of {prune.rounds}: pruning to {share}, and training"
        with phases(f"round_{i + 1}", text):
            file = StateFile(run.round_state(i + 1))
            budget = Budget({target.cost: limits[i]})
            folder = training_folder(run, job.config, job.given) / f"round_{i + 1}"
            job, summary = _round(replace(job, finetune=finetune), budget, file, folder, phases.observer)
        done.append(summary)
    return replace(job, finetune=last), done


def with_rounds(
    proposal: Proposal, earlier: Sequence[RoundSummary], job: Job, networks: tuple[nn.Module, nn.Module]
) -> Proposal:
    """Add ``rounds`` to the goal where there were earlier ones: those, and the last.

    ``networks`` are the last round's, as pruned and fine-tuned. Costs are in the unit of the target; the metric is
    that on the search split.
    """
    if not earlier:
        return proposal
    pruned, tuned = networks
    goal = _target_of(proposal)
    last = RoundSummary(goal.limit, goal.achieved, _metric(job, pruned), _metric(job, tuned))
    return replace(proposal, goal=replace(goal, rounds=(*earlier, last)))


def _round(job: Job, budget: Budget, file: StateFile, folder: Path, observer: Observer) -> tuple[Job, RoundSummary]:
    """Cut and train, and return the job of what is left with a description of the round."""
    stored = file.load()
    if stored is None:
        model, cut = _cut(job, budget)
    else:  # the weights are among the training's state
        model, cut = _stored_cut(job, file, stored)
    store = _TrainingOfCut(file, cut)
    tuned = fine_tune(
        job.config, job.finetune, job.workload, model, observer, store=store, given=job.given, folder=folder
    )
    workload = replace(job.workload, model=model, trace=renumbered(job.evaluator.trace, _kept(cut)))
    done = RoundSummary(**cut["described"], metric_finetuned=_metric(job, model))
    device = _narrowed(job.device, workload.trace.network)
    warnings = tuple(dict.fromkeys((*device.warnings, *tuned.notes)))  # every round may diverge
    return reranked(replace(job, device=replace(device, warnings=warnings)), workload), done


def _stored_cut(job: Job, file: StateFile, stored: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that a round began from, as its file says, and what the file says of it."""
    try:
        cut: dict[str, Any] = stored["cut"]
        RoundSummary(**cut["described"], metric_finetuned=0.0)
        return remove(job.evaluator.model, job.evaluator.trace, _kept(cut)), cut
    except Exception as error:  # a damaged file may hold anything
        raise BadInputError(f"cannot go on from {file.path}: it holds no round ({error!r}); delete it") from error


def _cut(job: Job, budget: Budget) -> tuple[nn.Module, dict[str, Any]]:
    """Return what the budget leaves of the network, and as tensors and plain values which channels those are."""
    device, evaluator = job.device, job.evaluator
    feasible = FeasibleSet(device.space, device.grid, budget)
    proposal = reach_target(replace(job, device=replace(device, feasible=feasible)))
    model, goal = evaluator.pruned(proposal.policy), _target_of(proposal)
    kept = keep(evaluator.trace, evaluator.ranking, proposal.policy)
    tensors = {name: torch.from_numpy(channels) for name, channels in kept.items()}
    described = {"limit": goal.limit, "achieved": goal.achieved, "metric_pruned": _metric(job, model)}
    return model, {"kept": tensors, "described": described}


def _kept(cut: Mapping[str, Any]) -> Kept:
    return {name: channels.numpy() for name, channels in cut["kept"].items()}


def _target_of(proposal: Proposal) -> TargetGoal:
    """Return the goal of a proposal of ``reach_target``: the configuration allows rounds for no other."""
    assert isinstance(proposal.goal, TargetGoal)
    return proposal.goal


def _metric(job: Job, model: nn.Module) -> float:
    """Metric of a network on the search split, as it is: neither refitted nor recalibrated here."""
    evaluator = job.evaluator
    return evaluate(model, evaluator.search, evaluator.task)[1]


def _narrowed(device: Device, network: NetworkSpec) -> Device:
    """The device with the choices that a smaller network has left; the budget is as it was."""
    choices = zip(network.groups, device.space.choices, strict=True)
    space = PolicySpace(network.groups, tuple(counts[counts <= group.channels] for group, counts in choices))
    return replace(device, space=space, feasible=FeasibleSet(space, device.grid, device.feasible.budget))


class _TrainingOfCut:
    """A ``StateStore`` that keeps beside the training's state the cut it began from."""

    def __init__(self, file: StateFile, cut: dict[str, Any]) -> None:
        self.file, self.cut = file, cut

    def load(self) -> dict[str, Any] | None:
        stored = self.file.load()
        return None if stored is None else stored.get("training", {})

    def save(self, state: dict[str, Any]) -> None:
        self.file.save({"cut": self.cut, "training": state})
