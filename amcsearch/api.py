"""The verbs as functions: objects in, typed results out. The command line calls exactly these.

Each takes a network and data in memory, which count more, or ``config``: a configuration file, or a ``Config``.
``settings`` sets any key by its dotted name, such as ``{"search.agent_params": {"sigma": 0.4}}``.
"""

import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amcsearch import jobs
from amcsearch.config import Config
from amcsearch.core import BadInputError, PruningPolicy, guarded_job
from amcsearch.jobs import (
    CallersObserver,
    Observer,
    SearchResult,
    Settings,
    given_path,
    given_policy,
    in_folder,
    make_request,
)
from amcsearch.reporting import ProgressBar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from amcsearch.costs import DeviceProfile, LatencyTable
    from amcsearch.methods import Criterion, Selector
    from amcsearch.search import Agent, LayerwiseEnv
    from amcsearch.training import Task

__all__ = ["energy", "load", "make_env", "measure_latency_table", "prune", "search", "sensitivity", "sparsify"]

Limits = Mapping[str, str | float]


@guarded_job(signal.SIGINT)
def search(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    config: Config | Path | str | None = None,
    budget: Limits | None = None,
    table: "LatencyTable | Path | str | None" = None,
    profile: "DeviceProfile | Path | str | None" = None,
    agent: "Agent | str | None" = None,
    criterion: "Criterion | str | None" = None,
    selector: "Selector | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
    finetune: "jobs.UserTraining | str | None" = None,
    trials: int | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    workers: int = 1,
    storage: str | None = None,
    strict: bool = False,
    observer: Observer | None = None,
) -> SearchResult:
    """Search how much to prune in every group within a budget, and return the smaller network.

    Args:
        model: the trained network; it is copied and stays as it is.
        data: a dataset of (input, target), a loader of one, a pair of tensors (N, …), or a mapping of ``train``,
            ``calibration``, ``search`` and ``test`` to these; missing splits are cut from train.
        config: a configuration file, or a ``Config``.
        budget: cost name → ``"0.5x"`` (half of the dense network's) or an absolute number; all of them must hold. None
            takes the configuration's, which is half of the MACs where it names none; ``{}`` is an error.
        table: the target's latency table, or its folder or name; needed for ``latency_ms``.
        profile: the target's device profile, or its file or name; needed for ``energy_mj``.
        agent: proposes policies: a name of ``amcsearch list agents``, an import spec, or an object.
        criterion: ranks channels: likewise, of ``amcsearch list criteria``.
        selector: chooses channels in place of the criterion: likewise.
        task: judges outputs: likewise, or a mapping of ``name`` and ``params``.
        finetune: a training of your own: a function of a ``TrainingRequest`` that returns the network, or its spec.
        trials: evaluations of the agent.
        seed: of everything that is random.
        settings: further keys of the configuration, by dotted name.
        folder: run folder; None works in a temporary one (``result.save`` keeps it).
        resume: go on with the run in ``folder``, or begin one there.
        workers: evaluations side by side, in processes.
        storage: Optuna storage URL; None keeps the study in the run folder.
        strict: refuse a latency table made on other hardware.
        observer: sees progress; None draws a bar on stderr.

    Raises:
        BadInputError: an input that cannot be used; names the value, the bound and the cure.
        InfeasibleBudgetError: no policy meets the budget.
    """
    named = {
        "budget": budget,
        "search.agent": agent,
        "selection.criterion": criterion,
        "selection.selector": selector,
        "task": task,
        "recovery.finetune.factory": finetune,
        "search.trials": trials,
        "seed": seed,
        "device.table": table,
        "device.profile": profile,
    }
    request, given = make_request(config, settings, named, model, data)
    job = partial(jobs.search, workers=workers, storage=storage, strict=strict)
    return in_folder(request, folder, resume, lambda run: job(request, run, _watcher(observer), given), anew=True)


@guarded_job(signal.SIGINT)
def prune(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    config: Config | Path | str | None = None,
    policy: Mapping[str, int] | Path | str | None = None,
    target: Limits | None = None,
    keep_accuracy: float | None = None,
    table: "LatencyTable | Path | str | None" = None,
    profile: "DeviceProfile | Path | str | None" = None,
    criterion: "Criterion | str | None" = None,
    selector: "Selector | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
    finetune: "jobs.UserTraining | str | None" = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> SearchResult:
    """Prune without a search: by a known policy, to a cost, or as far as accuracy is kept; return the smaller network.

    Args:
        model: as for ``search``.
        data: as for ``search``.
        config: as for ``search``.
        policy: channels kept, by name of the group, or the ``policy.json`` of a run.
        target: one cost and its limit, such as ``{"macs": "0.5x"}``.
        keep_accuracy: how much of the metric may be lost: percentage points of accuracy and shares, else its unit.
        table: as for ``search``.
        profile: as for ``search``.
        criterion: as for ``search``.
        selector: as for ``search``.
        task: as for ``search``.
        finetune: as for ``search``.
        seed: as for ``search``.
        settings: as for ``search``; section ``prune`` has the allocation and the rounds.
        folder: as for ``search``.
        resume: as for ``search``.
        observer: as for ``search``.

    Raises:
        BadInputError: no goal, or more than one; or as ``search``.
        InfeasibleBudgetError: no policy meets the target.
    """
    named = {
        "prune.policy": dict(PruningPolicy(policy)) if isinstance(policy, Mapping) else policy,
        "prune.target": target,
        "prune.keep_accuracy": keep_accuracy,
        "selection.criterion": criterion,
        "selection.selector": selector,
        "task": task,
        "recovery.finetune.factory": finetune,
        "seed": seed,
        "device.table": table,
        "device.profile": profile,
    }
    request, given = make_request(config, settings, named, model, data)
    anew = request.prune.rounds == 1  # the training of a round decides what the next one cuts
    return in_folder(
        request, folder, resume, lambda run: jobs.prune(request, run, _watcher(observer), given), anew=anew
    )


@guarded_job(signal.SIGINT)
def sparsify(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    config: Config | Path | str | None = None,
    method: str | None = None,
    target: Limits | None = None,
    table: "LatencyTable | Path | str | None" = None,
    profile: "DeviceProfile | Path | str | None" = None,
    finetune: "jobs.UserTraining | str | None" = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> jobs.SparsifyResult:
    """Prune while the network trains, by a gate or a mask schedule; return the sparse network.

    Args:
        model: as for ``search``.
        data: as for ``search``.
        config: as for ``search``.
        method: a name of ``amcsearch list gates`` or ``schedules``, or an import spec.
        target: ``{"sparsity": 0.8}``, or one cost and its limit. None takes the configuration's, or half of the
            weights.
        table: as for ``search``.
        profile: as for ``search``.
        finetune: as for ``search``.
        seed: as for ``search``.
        settings: as for ``search``; section ``sparsify`` has the method's parameters and the training.
        folder: as for ``search``.
        resume: as for ``search``.
        observer: as for ``search``.

    Raises:
        BadInputError: as ``search``.
        InfeasibleBudgetError: no network meets the target.
    """
    named = {
        "sparsify.method": method,
        "sparsify.target": target,
        "recovery.finetune.factory": finetune,
        "seed": seed,
        "device.table": table,
        "device.profile": profile,
    }
    request, given = make_request(config, settings, named, model, data)
    return in_folder(request, folder, resume, lambda run: jobs.sparsify(request, run, _watcher(observer), given))


@guarded_job(signal.SIGINT)
def measure_latency_table(
    model: "nn.Module | None" = None,
    example: "Tensor | None" = None,
    *,
    config: Config | Path | str | None = None,
    name: str | None = None,
    known: "LatencyTable | None" = None,
    variants: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    observer: Observer | None = None,
) -> "LatencyTable":
    """Measure a network and pruned variants of it on this machine, and return its latency table.

    Args:
        model: the network; its weights need no training. It is copied.
        example: one input with batch dimension, (1, …); of several the first counts.
        config: as for ``search``.
        name: of the network in the table.
        known: this machine's table that is there already; it is extended. Not with ``folder``.
        variants: networks to measure; None measures as many as are needed.
        minutes: bound of the measuring.
        seed: of the variants.
        settings: as for ``search``; section ``device`` has threads, batch and data type.
        folder: of the table, begun or extended there; it keeps what is measured. None keeps nothing if interrupted.
        resume: go on with what an interrupted measuring left in ``folder``, or begin one there.
        observer: as for ``search``.

    Raises:
        BadInputError: a network that cannot be exported, ``known`` of another device or setting, or a ``folder`` that
            cannot be used or holds measurements without ``resume``.
    """
    request, given = make_request(config, settings, {"name": name, "seed": seed}, model, example=example)
    watcher, path = _watcher(observer), given_path(folder)
    if path is None:
        return jobs.measure_table(request, watcher, given, variants=variants, known=known, minutes=minutes)
    if known is not None:
        raise BadInputError("known and folder are both given; a folder extends its own table: leave one out")
    return jobs.measure_into(path, request, watcher, given, variants=variants, minutes=minutes, resume=resume)


@guarded_job(signal.SIGINT)
def energy(
    model: "nn.Module | None" = None,
    example: "Tensor | None" = None,
    *,
    config: Config | Path | str | None = None,
    profile: "DeviceProfile | Path | str | None" = None,
    table: "LatencyTable | Path | str | None" = None,
    policy: Mapping[str, int] | Path | str | None = None,
    densities: Path | str | None = None,
    storage: str = "bitmap",
    measure: bool = False,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    observer: Observer | None = None,
) -> jobs.EnergyReport:
    """Predict the energy of every layer on a device, dense beside pruned and sparse; ``.layers`` is a table of it.

    Args:
        model: as for ``measure_latency_table``.
        example: as for ``measure_latency_table``.
        config: as for ``search``.
        profile: as for ``search``; needed here.
        table: as for ``search``; needed for static power.
        policy: as for ``prune``; shown as ``pruned``.
        densities: ``densities.csv`` of a ``sparsify`` run, shown as ``sparse``.
        storage: of sparse weights in DRAM: ``dense``, ``bitmap``, ``csr`` or ``run_length``.
        measure: also measure on this machine, if it has a counter of energy.
        seed: as for ``search``.
        settings: as for ``search``; section ``device`` has the batch.
        folder: where to write the table and a picture; None writes nothing.
        observer: as for ``search``.

    Raises:
        BadInputError: no profile, a policy or densities that do not fit, no counter to measure with; or as ``search``.
    """
    named = {"device.profile": profile, "device.table": table, "seed": seed}
    request, given = make_request(config, settings, named, model, example=example)
    path, watcher = given_path(folder), _watcher(observer)
    kept, used = given_policy(policy), given_path(densities)
    return jobs.energy_report(
        *(request, path, watcher, given), policy=kept, densities=used, storage=storage, measure=measure
    )


@guarded_job(signal.SIGINT)
def sensitivity(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    config: Config | Path | str | None = None,
    criterion: "Criterion | str | None" = None,
    selector: "Selector | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
    points: int = 5,
    joint: int = 50,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    observer: Observer | None = None,
) -> jobs.Sensitivity:
    """Prune one group at a time and return loss and accuracy at every width; ``.curves`` is a table of them.

    Args:
        model: as for ``search``.
        data: as for ``search``.
        config: as for ``search``.
        criterion: as for ``search``.
        selector: as for ``search``.
        task: as for ``search``.
        points: widths of each group.
        joint: random policies whose loss is held against the sum over their groups.
        seed: as for ``search``.
        settings: as for ``search``.
        folder: where to write tables and pictures; None writes nothing.
        observer: as for ``search``.

    Raises:
        BadInputError: fewer than 2 points; or as ``search``.
    """
    named = {"selection.criterion": criterion, "selection.selector": selector, "task": task, "seed": seed}
    request, given = make_request(config, settings, named, model, data)
    return jobs.sensitivity(request, given_path(folder), _watcher(observer), given, points=points, joint=joint)


@guarded_job(signal.SIGINT)
def make_env(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    config: Config | Path | str | None = None,
    budget: Limits | None = None,
    table: "LatencyTable | Path | str | None" = None,
    profile: "DeviceProfile | Path | str | None" = None,
    criterion: "Criterion | str | None" = None,
    selector: "Selector | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
    seed: int | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> "LayerwiseEnv":
    """Return the search as a gymnasium environment, for any library that learns by reinforcement.

    The arguments mean what they mean for ``search``; ``search.reward`` in ``settings`` has the reward. ``prune`` takes
    the policy in ``info["policy"]`` of an episode's last step.

    Raises:
        BadInputError, InfeasibleBudgetError: as ``search``.
    """
    named = {
        "budget": budget,
        "selection.criterion": criterion,
        "selection.selector": selector,
        "task": task,
        "seed": seed,
        "device.table": table,
        "device.profile": profile,
    }
    request, given = make_request(config, settings, named, model, data)
    return jobs.make_env(request, _watcher(observer), given)


load = guarded_job(signal.SIGINT)(jobs.load)


def _watcher(observer: Observer | None) -> Observer:
    return ProgressBar() if observer is None else CallersObserver(observer)
