"""The job of a run: everything a search needs, assembled from its configuration and what is in memory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from amcsearch.config import EVALUATES, Config, FinetuneConfig, config_hash, dump, evaluation_hash
from amcsearch.core import BadInputError, Evaluation, Limit, PolicySpace, PruningPolicy, settings_kept
from amcsearch.evaluation import Evaluator, errors_at_outputs, judge_recalibration
from amcsearch.graph import duplicate
from amcsearch.jobs.device import Device, load_device, policy_space
from amcsearch.jobs.identity import begin_identity, end_workload, new_workload
from amcsearch.jobs.machine_table import machine_table
from amcsearch.jobs.network_check import chance_warning, check_export
from amcsearch.jobs.observer import Phases, tell_network
from amcsearch.jobs.rehearsal import pruned_policy, rehearse
from amcsearch.jobs.selection import Choice, check_named, choose_channels, name_of_choice, with_selection
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload, judged_batches
from amcsearch.methods import Calibration, RemovalErrors, UnitScores
from amcsearch.runs import RunFolder
from amcsearch.training import Identity, fingerprint

__all__ = [
    "Job",
    "Prepared",
    "assemble",
    "choice_of",
    "error_space",
    "evaluator_of",
    "judged",
    "make_evaluator",
    "prepare",
    "reranked",
    "settled",
]


@dataclass(frozen=True)
class Job:
    """All that a search needs: ``dense`` is what the proxy measures of the dense network.

    ``selection`` is the line of ``with_selection``. ``workload`` is the dense one. After a round of pruning
    ``evaluator`` and ``scores`` are those of the smaller one, and the device's space is what that leaves to choose.
    ``scores`` of the units are None where a selector chooses channels; ``errors`` of every kept count, as they reach
    the outputs, are None where it does not know them. ``fingerprint`` identifies all that decides a result,
    ``evaluates`` what decides an evaluation alone, whatever the budget, the device and the agent. ``finetune`` is the
    training after removal: the configured one, or a round's share of it.
    """

    config: Config
    workload: Workload
    device: Device
    evaluator: Evaluator
    dense: Evaluation
    selection: str
    scores: UnitScores | None
    given: InMemory
    fingerprint: str
    evaluates: str
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
    """A network that is priced and trained, whose channels are not ranked yet; the last three are as of ``Job``."""

    config: Config
    workload: Workload
    device: Device
    given: InMemory
    fingerprint: str
    selection: str
    evaluates: str


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
        BadInputError: as ``check_named``, ``new_workload``, ``begin_identity``, ``load_device``, ``check_export``,
            ``rehearse`` and ``end_workload``.
        InfeasibleBudgetError: no policy meets the limits.
    """
    check_named(config, given)
    with phases("costs", "Pricing the network on the device"):
        workload = new_workload(config, given, phases.observer)
        config, identity, selection = _begun(config, workload, given, run)
        if load is None:
            machine = machine_table(config, workload, limits, given, phases.observer, run)
            device = load_device(config, workload, limits, given, strict=strict, machine=machine)
        else:
            device = load(workload)
        for text in device.warnings:
            phases.observer.warn(text)
        if check is not None:
            check(workload, device)
        check_export(config, workload.model, workload.probes, workload.example, workload.task)
        for text in rehearse(config, workload, device, given):
            phases.observer.warn(text)
    with phases("network", "Loading or training the network"):
        workload, identity = end_workload(config, workload, identity, run, phases.observer)
        if config.model.pretrain is not None:
            check_export(config, workload.model, workload.probes, workload.example, workload.task)
    return Prepared(config, workload, device, given, fingerprint(identity), selection, _evaluates(config, identity))


def _evaluates(config: Config, identity: Identity) -> str:
    """Return a digest of what decides an evaluation: of the identity, without the budget, the device and the agent."""
    decides = {key for key in identity.named if key.partition(".")[0] in EVALUATES} - {"recovery.finetune.factory"}
    named = {key: identity.named[key] for key in decides}
    return fingerprint(replace(identity, settings=evaluation_hash(config), named=named))


def judged(prepared: Prepared, phases: Phases) -> Job:
    """Do the last steps of ``assemble``: rank the channels and evaluate the network unpruned.

    Raises:
        BadInputError: as ``make_evaluator``, or a dense loss that is not finite.
    """
    config, workload, given = prepared.config, prepared.workload, prepared.given
    with phases("ranking", f"Ranking channels by {prepared.selection}"):
        choice = choice_of(config, workload, given)
        evaluator, warnings = settled(
            config, evaluator_of(config, workload, choice), pruned_policy(workload, prepared.device)
        )
        dense = evaluator.evaluate(workload.trace.network.dense)
        _check_finite(dense, workload)
        errors = _errors_of(config, workload, choice, evaluator)
    if evaluator.calibration is None:  # what was found for auto holds for the fine-tuning too
        recovery = config.recovery.model_copy(update={"bn_recalibration": False})
        config = config.model_copy(update={"recovery": recovery})
    guesses = chance_warning(workload.model, workload.splits, dense, workload.task)
    warnings = warnings if guesses is None else (*warnings, guesses)
    for text in warnings:
        phases.observer.warn(text)
    device = replace(prepared.device, warnings=(*prepared.device.warnings, *warnings))
    tell_network(phases.observer, workload.trace.network.dense, device.dense, device.feasible.budget.limits)
    finetune, scores = config.recovery.finetune, choice.scores
    prints = (prepared.fingerprint, f"{prepared.evaluates}-{'recalibrated' if evaluator.recalibrates else 'plain'}")
    return Job(config, workload, device, evaluator, dense, prepared.selection, scores, given, *prints, finetune, errors)


def _check_finite(dense: Evaluation, workload: Workload) -> None:
    if not math.isfinite(dense.loss):
        raise BadInputError(
            f"the dense network's loss on the search split is {dense.loss}, must be finite; "
            "look at model.checkpoint, model.pretrain and the data"
        )
    if math.isnan(dense.metric):
        raise BadInputError(
            f"the dense network's {workload.task.metric.word} on the search split is NaN, must be a number; look at "
            "the task's metric and the targets"
        )


def _begun(config: Config, workload: Workload, given: InMemory, run: RunFolder | None) -> tuple[Config, Identity, str]:
    """Choose what the configuration leaves open, and write that where the run belongs to this network and data."""
    is_open = config.selection.is_open
    config, selection = with_selection(config, workload, given, run)
    identity = begin_identity(config, workload, given, run)
    if is_open and run is not None:
        run.complete_config(dump(config), config_hash(config), selection)
    return config, identity, selection


def reranked(job: Job, workload: Workload) -> Job:
    """Return the job with the channels of another network ranked and evaluated in place of the dense one's.

    Raises:
        BadInputError: as ``make_evaluator``.
    """
    choice = choice_of(job.config, workload, job.given)
    evaluator = evaluator_of(job.config, workload, choice)
    if not job.evaluator.recalibrates:
        evaluator = evaluator.without_recalibration()
    errors = _errors_of(job.config, workload, choice, evaluator)
    return replace(job, evaluator=evaluator, scores=choice.scores, errors=errors)


def _errors_of(config: Config, workload: Workload, choice: Choice, evaluator: Evaluator) -> RemovalErrors | None:
    """The errors of every kept count as they reach the outputs, whatever the device; None where none are known."""
    if choice.errors is None:
        return None
    calibration = judged_batches(config, workload, "calibration")
    return errors_at_outputs(evaluator, calibration, error_space(config, workload), choice.errors)


def error_space(config: Config, workload: Workload) -> PolicySpace:
    """Return the policies among which errors are measured: the same for every device."""
    return policy_space(config, workload.trace.network, 1)


def settled(config: Config, evaluator: Evaluator, policy: PruningPolicy) -> tuple[Evaluator, tuple[str, ...]]:
    """Decide what ``recovery.bn_recalibration: auto`` means, once for the job; say so where recalibration does harm.

    Raises:
        BadInputError: as ``judge_recalibration``.
    """
    setting, metric = config.recovery.bn_recalibration, evaluator.task.metric
    judged = judge_recalibration(evaluator, policy) if setting else None
    if judged is None or judged.pruned is None or not judged.is_harmful:
        return evaluator, ()
    (kept, anew), (pruned_kept, pruned_anew) = (map(metric.text, pair) for pair in (judged.dense, judged.pruned))
    changes = (
        f"with statistics of the calibration split the dense network's {metric.word} goes from {kept} to {anew}, a "
        f"pruned one's from {pruned_kept} to {pruned_anew} ({judged.samples} samples of the search split)"
    )
    cure = "give calibration data like those that the network was trained on"
    if setting == "auto":
        note = f"batch norms keep their statistics: {changes}; to recalibrate them, {cure}"
        return evaluator.without_recalibration(), (note,)
    return evaluator, (f"recovery.bn_recalibration = true does harm: {changes}; set it to auto or false, or {cure}",)


def make_evaluator(config: Config, workload: Workload, given: InMemory = CONFIGURED) -> Evaluator:
    """Rank the channels by the configured criterion or selector and return the accuracy proxy.

    Raises:
        BadInputError: as ``choose_channels``.
    """
    config, _ = with_selection(config, workload, given)
    return evaluator_of(config, workload, choice_of(config, workload, given))


def choice_of(config: Config, workload: Workload, given: InMemory, *, planned: bool = False) -> Choice:
    """Rank the channels of a workload as ``choose_channels`` does."""
    batches, model = judged_batches(config, workload, "calibration"), workload.model
    if torch.device(config.evaluation.torch_device).type != "cpu":
        model = duplicate(model).to(config.evaluation.torch_device)
    calibration = Calibration(model, workload.trace, batches, workload.task)
    with settings_kept(name_of_choice(config)):
        return choose_channels(config, calibration, given, planned=planned)


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
