"""The job of a run: everything a search needs, assembled from its configuration and what is in memory.

The configured criterion or selector says which channels go, and the reconstruction how what reads them is refitted.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from amcsearch.config import Config, FinetuneConfig, check_contract, choose, label, make
from amcsearch.core import BadInputError, Evaluation, Limit, PruningPolicy, settings_kept
from amcsearch.evaluation import Evaluator, judge_recalibration
from amcsearch.graph import duplicate
from amcsearch.jobs.device import Device, further_costs, load_device
from amcsearch.jobs.finetuning import check_trainings
from amcsearch.jobs.identity import begin_workload, end_workload
from amcsearch.jobs.network_check import chance_warning, check_export
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.rehearsal import pruned_policy, rehearse
from amcsearch.jobs.task import make_task
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload, judged_batches
from amcsearch.methods import (
    CRITERIA,
    REDUCTIONS,
    REFITS,
    SELECTORS,
    Calibration,
    Criterion,
    LayerInputs,
    Ranking,
    RemovalErrors,
    Selector,
    UnitScores,
    gather_inputs,
    problem_of,
    rank,
    score_units,
    select,
    unaliased,
    vanishes,
)
from amcsearch.recovery import Means, Reconstruction, SequentialReconstruction, means_for
from amcsearch.runs import RunFolder
from amcsearch.training import Task, fingerprint

__all__ = [
    "Choice",
    "Job",
    "Prepared",
    "assemble",
    "check_named",
    "choice_of",
    "choose_channels",
    "evaluator_of",
    "judged",
    "make_criterion",
    "make_evaluator",
    "name_of_choice",
    "prepare",
    "reranked",
    "settled",
]

_RECONSTRUCTIONS: Final = dict.fromkeys(("auto", *REFITS, "sequential"))


@dataclass(frozen=True)
class Choice:
    """The order of every group's units, and what is done to the readers of what leaves: a refit, or folded means.

    ``scores`` are a criterion's; a selector orders the units of each group by themselves and has none. ``errors`` are
    those of every kept count, where the selector knows them. ``ordering_s`` is the wall time of a selector's ordering,
    which does not grow with the samples.
    """

    ranking: Ranking
    reconstruction: Reconstruction | SequentialReconstruction | None
    means: Means | None
    scores: UnitScores | None = None
    errors: RemovalErrors | None = None
    ordering_s: float = 0.0


def name_of_choice(config: Config) -> str:
    """Name what chooses channels: the selector, or the criterion where there is none."""
    return label(config.selection.selector or config.selection.criterion)


def make_criterion(name: str, params: Mapping[str, Any], keys: tuple[str, str]) -> Criterion:
    """Make the criterion that the configuration names at ``keys``, by its own name or an alias.

    Raises:
        BadInputError: as ``config.make``, or a reduction that does not exist.
    """
    criterion = make(CRITERIA, *unaliased(name, params), keys, Criterion)
    _check_reduction(criterion, f"{keys[0]} = {name!r}")
    return criterion


def _check_reduction(criterion: Criterion, where: str) -> None:
    if criterion.reduction not in REDUCTIONS:
        raise BadInputError(f"{where}: reduction = {criterion.reduction!r}, must be one of {', '.join(REDUCTIONS)}")
    if not isinstance(criterion.needs, frozenset | set):
        raise BadInputError(f"{where}: needs = {criterion.needs!r}, must be a frozenset of what it looks at")


def _criterion(config: Config) -> Criterion:
    keys = ("selection.criterion", "selection.params")
    return make_criterion(config.selection.criterion, config.selection.params, keys)


def _selector(config: Config, name: str) -> Selector:
    keys = ("selection.selector", "selection.params")
    selector = make(SELECTORS, name, config.selection.params, keys, Selector)
    _check_refit(selector, f"{keys[0]} = {name!r}")
    return selector


def _check_refit(selector: Selector, where: str) -> None:
    if selector.refit not in REFITS:
        raise BadInputError(f"{where}: refit = {selector.refit!r}, must be one of {', '.join(REFITS)}")


def _check_labels(selector: Selector, task: Task, where: str) -> None:
    if selector.labels and not task.is_argmax:
        raise BadInputError(
            f"{where} compares channels by class, and the task {type(task).__name__} has none; choose another, "
            "such as lasso or obc, or a criterion"
        )


def check_named(config: Config, given: InMemory = CONFIGURED) -> None:
    """Make what chooses channels and the configured costs, and throw them away: before minutes of training.

    Raises:
        BadInputError: what a key names cannot be imported or made, or lacks something of its contract; a criterion of
            gradients that are 0; an unknown reconstruction; or as ``check_trainings``.
    """
    name, task = config.selection.selector, make_task(config, given.task)
    if given.criterion is not None:
        check_contract(given.criterion, Criterion, "criterion")
        _check_reduction(given.criterion, "criterion")
    if given.selector is not None:
        check_contract(given.selector, Selector, "selector")
        _check_refit(given.selector, "selector")
        _check_labels(given.selector, task, "selector")
    criterion = given.criterion
    if given.criterion is None and given.selector is None:
        if name is None:
            criterion = _criterion(config)
        else:
            _check_labels(_selector(config, name), task, f"selection.selector = {name!r}")
    if criterion is not None:
        _check_says_something(config, criterion)
    check_trainings(config, given)
    choose(_RECONSTRUCTIONS, config.recovery.reconstruction, "recovery.reconstruction")
    further_costs(config)


def choose_channels(config: Config, calibration: Calibration, given: InMemory) -> Choice:
    """Rank the units of every group on calibration data, and prepare the refit of every policy where one is asked for.

    Raises:
        BadInputError: an unknown criterion, selector or parameter, or a network that the selector cannot judge.
    """
    model, trace, selector = calibration.model, calibration.trace, config.selection.selector
    if given.selector is not None:
        return _by_selector(config, calibration, given.selector)
    if selector is not None and given.criterion is None:
        return _by_selector(config, calibration, _selector(config, selector))
    criterion = given.criterion or _criterion(config)
    scores = score_units(model, trace, {"": criterion}, calibration.batches, calibration.loss_fn)[""]
    ranking = rank(scores)
    if config.recovery.reconstruction in ("auto", "none"):
        means = means_for(criterion, model, trace, calibration.batches, calibration.loss_fn)
        return Choice(ranking, None, means, scores)
    layer_inputs = gather_inputs(model, trace, calibration.batches)
    return Choice(ranking, _reconstruction(config.recovery.reconstruction, calibration, layer_inputs), None, scores)


def _check_says_something(config: Config, criterion: Criterion) -> None:
    if config.data.targets == "dense" and criterion.needs and all(map(vanishes, criterion.needs)):
        raise BadInputError(
            f"selection.criterion = {config.selection.criterion!r} looks at the gradient of the loss, which is 0 where "
            "the targets are the dense network's own outputs (data.targets: dense); choose true_fisher or obd (second "
            "derivatives), wanda_channels or activation_variance (what is read), or a selector such as obc"
        )


def _by_selector(config: Config, calibration: Calibration, selector: Selector) -> Choice:
    problem = problem_of(calibration, labels=selector.labels)
    begun = time.perf_counter()
    selection = select(problem, selector)
    ordering_s = time.perf_counter() - begun
    refit = selector.refit if config.recovery.reconstruction == "auto" else config.recovery.reconstruction
    reconstruction = None if refit == "none" else _reconstruction(refit, calibration, selection.inputs)
    return Choice(selection.orders, reconstruction, None, errors=selection.errors, ordering_s=ordering_s)


def _reconstruction(
    refit: str, calibration: Calibration, layer_inputs: Mapping[str, LayerInputs]
) -> Reconstruction | SequentialReconstruction:
    model, trace = calibration.model, calibration.trace
    if refit == "sequential":
        return SequentialReconstruction(model, trace, layer_inputs, calibration.batches)
    return Reconstruction(model, trace, layer_inputs.values(), refit)


@dataclass(frozen=True)
class Job:
    """All that a search needs: ``dense`` is what the proxy measures of the dense network.

    ``workload`` is the dense one. After a round of pruning ``evaluator`` and ``scores`` are those of the smaller one,
    and the device's space is what that leaves to choose. ``scores`` of the units are None where a selector chooses
    channels; ``errors`` of every kept count are None where it does not know them. ``fingerprint`` identifies all that
    decides a result. ``finetune`` is the training after removal: the configured one, or a round's share of it.
    """

    config: Config
    workload: Workload
    device: Device
    evaluator: Evaluator
    dense: Evaluation
    scores: UnitScores | None
    given: InMemory
    fingerprint: str
    finetune: FinetuneConfig | None
    errors: RemovalErrors | None = None


Check = Callable[[Workload, Device], None]
"""Refuses what does not fit a network on a device, before the network is trained."""


def assemble(
    config: Config,
    limits: Sequence[Limit],
    phases: Phases,
    given: InMemory = CONFIGURED,
    *,
    run: RunFolder | None = None,
    check: Check | None = None,
    strict: bool = False,
) -> Job:
    """Price the network on the device, load or train it, rank its channels and evaluate it unpruned.

    Limits that cannot be met, networks that cannot be delivered as they are judged, what ``check`` refuses, and another
    network or other data than the run's end the job before anything is trained.

    Raises:
        BadInputError: as ``prepare`` and ``judged``.
        InfeasibleBudgetError: no policy meets the limits.
    """
    return judged(prepare(config, limits, phases, given, run=run, check=check, strict=strict), phases)


@dataclass(frozen=True)
class Prepared:
    """A network that is priced and trained, whose channels are not ranked yet; ``fingerprint`` as of ``Job``."""

    config: Config
    workload: Workload
    device: Device
    given: InMemory
    fingerprint: str


def prepare(
    config: Config,
    limits: Sequence[Limit],
    phases: Phases,
    given: InMemory = CONFIGURED,
    *,
    run: RunFolder | None = None,
    check: Check | None = None,
    strict: bool = False,
    load: Callable[[Workload], Device] | None = None,
) -> Prepared:
    """Do the first steps of ``assemble``: price the network on the device, and load or train it.

    ``load`` makes the device, in place of the configuration.

    Raises:
        BadInputError: as ``check_named``, ``begin_workload``, ``load_device``, ``check_export``, ``rehearse`` and
            ``end_workload``.
        InfeasibleBudgetError: no policy meets the limits.
    """
    check_named(config, given)
    with phases("costs", "Pricing the network on the device"):
        workload, identity = begin_workload(config, given, run, phases.observer)
        device = load_device(config, workload, limits, given, strict=strict) if load is None else load(workload)
        for text in device.warnings:
            phases.observer.warn(text)
        if check is not None:
            check(workload, device)
        check_export(config, workload.model, workload.probes, workload.example, workload.task)
        rehearse(config, workload, device, given)
    with phases("network", "Loading or training the network"):
        workload, identity = end_workload(config, workload, identity, run, phases.observer)
        if config.model.pretrain is not None:
            check_export(config, workload.model, workload.probes, workload.example, workload.task)
    return Prepared(config, workload, device, given, fingerprint(identity))


def judged(prepared: Prepared, phases: Phases) -> Job:
    """Do the last steps of ``assemble``: rank the channels and evaluate the network unpruned.

    Raises:
        BadInputError: as ``make_evaluator``, or a dense loss that is not finite.
    """
    config, workload, given = prepared.config, prepared.workload, prepared.given
    with phases("ranking", f"Ranking channels by {name_of_choice(config)}"):
        choice = choice_of(config, workload, given)
        evaluator, warnings = settled(
            config, evaluator_of(config, workload, choice), pruned_policy(workload, prepared.device)
        )
        dense = evaluator.evaluate(workload.trace.network.dense)
    if not math.isfinite(dense.loss):
        raise BadInputError(
            f"the dense network's loss on the search split is {dense.loss}, must be finite; "
            "look at model.checkpoint, model.pretrain and the data"
        )
    guesses = chance_warning(workload.model, workload.splits, dense, workload.task)
    warnings = warnings if guesses is None else (*warnings, guesses)
    for text in warnings:
        phases.observer.warn(text)
    device = replace(prepared.device, warnings=(*prepared.device.warnings, *warnings))
    finetune, scores, errors = config.recovery.finetune, choice.scores, choice.errors
    return Job(config, workload, device, evaluator, dense, scores, given, prepared.fingerprint, finetune, errors)


def reranked(job: Job, workload: Workload) -> Job:
    """Return the job with the channels of another network ranked and evaluated in place of the dense one's.

    Raises:
        BadInputError: as ``make_evaluator``.
    """
    choice = choice_of(job.config, workload, job.given)
    evaluator = evaluator_of(job.config, workload, choice)
    if not job.evaluator.recalibrates:
        evaluator = evaluator.without_recalibration()
    return replace(job, evaluator=evaluator, scores=choice.scores, errors=choice.errors)


def settled(config: Config, evaluator: Evaluator, policy: PruningPolicy) -> tuple[Evaluator, tuple[str, ...]]:
    """Decide what ``recovery.bn_recalibration: auto`` means, once for the job; say so where recalibration does harm.

    Raises:
        BadInputError: as ``judge_recalibration``.
    """
    asked, metric = config.recovery.bn_recalibration, evaluator.task.metric
    judged = judge_recalibration(evaluator, policy) if asked else None
    if judged is None or judged.pruned is None or not judged.is_harmful:
        return evaluator, ()
    (kept, anew), (pruned_kept, pruned_anew) = (map(metric.text, pair) for pair in (judged.dense, judged.pruned))
    changes = (
        f"with statistics of the calibration split the dense network's {metric.word} goes from {kept} to {anew}, a "
        f"pruned one's from {pruned_kept} to {pruned_anew} ({judged.samples} samples of the search split)"
    )
    cure = "give calibration data like those that the network was trained on"
    if asked == "auto":
        told = f"batch norms keep their statistics: {changes}; to recalibrate them, {cure}"
        return evaluator.without_recalibration(), (told,)
    return evaluator, (f"recovery.bn_recalibration = true does harm: {changes}; set it to auto or false, or {cure}",)


def make_evaluator(config: Config, workload: Workload, given: InMemory = CONFIGURED) -> Evaluator:
    """Rank the channels by the configured criterion or selector and return the accuracy proxy.

    Raises:
        BadInputError: as ``choose_channels``.
    """
    return evaluator_of(config, workload, choice_of(config, workload, given))


def choice_of(config: Config, workload: Workload, given: InMemory) -> Choice:
    """Rank the channels of a workload as ``choose_channels`` does."""
    batches, model = judged_batches(config, workload, "calibration"), workload.model
    if torch.device(config.evaluation.torch_device).type != "cpu":
        model = duplicate(model).to(config.evaluation.torch_device)
    calibration = Calibration(model, workload.trace, batches, workload.task)
    with settings_kept(name_of_choice(config)):
        return choose_channels(config, calibration, given)


def evaluator_of(config: Config, workload: Workload, choice: Choice) -> Evaluator:
    """Return the proxy of a choice; where ``recovery.bn_recalibration`` is ``auto``, it recalibrates."""
    return Evaluator(
        workload.model,
        workload.trace,
        choice.ranking,
        judged_batches(config, workload, "calibration") if config.recovery.bn_recalibration else None,
        judged_batches(config, workload, "search"),
        reconstruction=choice.reconstruction,
        torch_device=config.evaluation.torch_device,
        means=choice.means,
        task=workload.task,
    )
