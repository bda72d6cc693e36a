"""Searching and pruning as functions: objects in, typed results out. The command line calls exactly these.

Each takes a network and data in memory, which count more, or ``config``: a configuration file, or a ``Config``.
``settings`` sets any key by its dotted name, such as ``{"search.agent_params": {"sigma": 0.4}}``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from amcsearch import jobs
from amcsearch.api.one_job import one_job
from amcsearch.config import Config
from amcsearch.core import PruningPolicy
from amcsearch.jobs import (
    Observer,
    SearchResult,
    Settings,
    extended,
    in_folder,
    make_request,
    watcher,
)

if TYPE_CHECKING:
    from torch import nn

    from amcsearch.costs import DeviceProfile, LatencyTable
    from amcsearch.methods import Criterion, Selector
    from amcsearch.runs import FrontResult
    from amcsearch.search import Agent, LayerwiseEnv
    from amcsearch.training import Task

__all__ = ["compare", "front", "load", "make_env", "prune", "search", "sparsify"]

Limits = Mapping[str, str | float]


@one_job()
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
    trials: int | str | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
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
        criterion: ranks channels: likewise, of ``amcsearch list criteria``. Without it and a selector, the network and
            the data choose (``result.summary.selection``).
        selector: chooses channels in place of the criterion: likewise.
        task: judges outputs: likewise, or a mapping of ``name`` and ``params``.
        finetune: a training of your own: a function of a ``TrainingRequest`` that returns the network, or its spec.
        trials: evaluations of the agent; ``"+200"`` adds so many to those of the run in ``folder``, with ``resume``.
        seed: of everything that is random.
        settings: further keys of the configuration, by dotted name.
        folder: run folder; None works in a temporary one (``result.save`` keeps it).
        resume: go on with the run in ``folder``, or begin one there.
        workers: evaluations side by side, in processes.
        scheduler: address of a Dask scheduler, ``tcp://HOST:8786``, whose workers evaluate in place of ``workers``.
        storage: Optuna storage URL, of a study that drivers may share; None keeps the study in the run folder.
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
        "search.trials": None if isinstance(trials, str) else trials,
        "seed": seed,
        "device.table": table,
        "device.profile": profile,
    }
    request, given = make_request(config, settings, named, model, data)
    request = extended(request, folder, resume, trials)
    job = partial(jobs.search, workers=workers, scheduler=scheduler, storage=storage, strict=strict)
    return in_folder(request, folder, resume, job, watcher(observer), given, anew=True)


@one_job()
def compare(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    agents: "Sequence[Agent | str]",
    seeds: Sequence[int] = (0, 1, 2),
    config: Config | Path | str | None = None,
    budget: Limits | None = None,
    table: "LatencyTable | Path | str | None" = None,
    profile: "DeviceProfile | Path | str | None" = None,
    criterion: "Criterion | str | None" = None,
    selector: "Selector | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
    trials: int | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    strict: bool = False,
    observer: Observer | None = None,
) -> jobs.Comparison:
    """Run several agents under several seeds on one network, and compare them at equal evaluations and equal seconds.

    Nothing is fine-tuned, measured or exported. The other arguments mean what they mean for ``search``.

    Args:
        model: as for ``search``.
        data: as for ``search``.
        agents: names of ``amcsearch list agents``, import specs, or objects; the first is the reference.
        seeds: of the agents; one search each.
        config: as for ``search``.
        budget: as for ``search``.
        table: as for ``search``.
        profile: as for ``search``.
        criterion: as for ``search``.
        selector: as for ``search``.
        task: as for ``search``.
        trials: evaluations of every agent under every seed.
        seed: of the network and the data.
        settings: as for ``search``.
        folder: as for ``search``; further agents and seeds join what is there by ``resume``.
        resume: as for ``search``.
        workers: as for ``search``.
        scheduler: as for ``search``.
        strict: as for ``search``.
        observer: as for ``search``.

    Raises:
        BadInputError: no agent or seed, or one twice; or as ``search``.
        InfeasibleBudgetError: no policy meets the budget.
    """
    named = {
        "budget": budget,
        "selection.criterion": criterion,
        "selection.selector": selector,
        "task": task,
        "search.trials": trials,
        "seed": seed,
        "device.table": table,
        "device.profile": profile,
    }
    request, given = make_request(config, settings, named, model, data)
    job = partial(jobs.compare, agents=agents, seeds=seeds, workers=workers, scheduler=scheduler, strict=strict)
    return in_folder(request, folder, resume, job, watcher(observer), given)


@one_job()
def front(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    devices: "Sequence[jobs.AskedDevice]" = (),
    evaluations: int = 12,
    config: Config | Path | str | None = None,
    criterion: "Criterion | str | None" = None,
    selector: "Selector | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
    seed: int | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    observer: Observer | None = None,
) -> "FrontResult":
    """Find the policies of least predicted error for every budget of every cost on several devices.

    ``result.within({"latency_ms": "0.4x"}, device)`` then gives the policy of a budget at once; ``FrontResult.open`` in
    any process. One set of error tables serves all devices. Nothing is fine-tuned, measured or exported. The other
    arguments mean what they mean for ``search``.

    Args:
        model: as for ``search``.
        data: as for ``search``.
        devices: device profiles and latency tables: names, files, folders or objects. A name that is both is one
            device with both, as is one that the configuration names. None of them: the configured device.
        evaluations: policies of the fronts that are evaluated, so that what their errors say of the metric is known.
        config: as for ``search``; its budget does not count.
        criterion: as for ``search``; a criterion knows no errors, so every group is probed at a few widths.
        selector: as for ``search``; ``obc`` knows the errors of all widths.
        task: as for ``search``.
        seed: of the network and the data.
        settings: as for ``search``.
        folder: as for ``search``; other devices and more evaluations join what is there by ``resume``.
        resume: as for ``search``.
        workers: as for ``search``.
        scheduler: as for ``search``.
        observer: as for ``search``.

    Raises:
        BadInputError: an unknown device or one twice, a device that cannot price the network; or as ``search``.
    """
    named = {"selection.criterion": criterion, "selection.selector": selector, "task": task, "seed": seed}
    request, given = make_request(config, settings, named, model, data)
    job = partial(jobs.front, devices=devices, evaluations=evaluations, workers=workers, scheduler=scheduler)
    return in_folder(request, folder, resume, job, watcher(observer), given)


@one_job()
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
    return in_folder(request, folder, resume, jobs.prune, watcher(observer), given, anew=anew)


@one_job()
def sparsify(
    model: "nn.Module | None" = None,
    data: object = None,
    *,
    config: Config | Path | str | None = None,
    method: str | None = None,
    target: Limits | None = None,
    table: "LatencyTable | Path | str | None" = None,
    profile: "DeviceProfile | Path | str | None" = None,
    task: "Task | Mapping[str, object] | str | None" = None,
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
        task: as for ``search``.
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
        "task": task,
        "recovery.finetune.factory": finetune,
        "seed": seed,
        "device.table": table,
        "device.profile": profile,
    }
    request, given = make_request(config, settings, named, model, data)
    return in_folder(request, folder, resume, jobs.sparsify, watcher(observer), given, anew=True)


@one_job()
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
    return jobs.make_env(request, watcher(observer), given)


load = one_job()(jobs.load)
