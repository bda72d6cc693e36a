"""What chooses channels: as the configuration names it, or as the network and the data decide.

A criterion or selector says which channels go, and the reconstruction how what reads them is refitted.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from amcsearch.config import Config, check_contract, choose, label, make
from amcsearch.core import BadInputError
from amcsearch.jobs.device import further_costs
from amcsearch.jobs.finetuning import check_trainings
from amcsearch.jobs.request import as_begun
from amcsearch.jobs.runtimes import runtime_of
from amcsearch.jobs.task import make_task
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload
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
    unread_group,
    vanishes,
    why_too_large,
)
from amcsearch.recovery import Means, Reconstruction, SequentialReconstruction, means_for
from amcsearch.runs import RunFolder
from amcsearch.training import Task

__all__ = ["Choice", "check_named", "choose_channels", "make_criterion", "name_of_choice", "with_selection"]

LEAST_SAMPLES: Final = 4
"""Calibration samples for a refit by least squares: with fewer it is no better than a criterion."""
_RECONSTRUCTIONS: Final = dict.fromkeys(("auto", *REFITS, "sequential"))


@dataclass(frozen=True)
class Choice:
    """The order of every group's units, and what is done to the readers of what leaves: a refit, or folded means.

    ``scores`` are a criterion's; a selector orders the units of each group by themselves and has none. ``errors`` are
    those of every kept count, where the selector knows them. ``ordering_s`` is the wall time of a selector's ordering,
    which does not grow with the samples, and ``ordered`` the share of that work that was done: below 1 for a plan.
    """

    ranking: Ranking
    reconstruction: Reconstruction | SequentialReconstruction | None
    means: Means | None
    scores: UnitScores | None = None
    errors: RemovalErrors | None = None
    ordering_s: float = 0.0
    ordered: float = 1.0


def name_of_choice(config: Config) -> str:
    """Name what chooses channels: the selector, or the criterion where there is none."""
    return label(config.selection.selector or config.selection.criterion or "")


def with_selection(
    config: Config, workload: Workload, given: InMemory = CONFIGURED, run: RunFolder | None = None
) -> tuple[Config, str]:
    """Return the configuration with a selection, and a line that names it, with the reason where nobody chose it.

    As configured or in memory; else as the run has begun; else ``obc`` where it fits the network and the data, and a
    criterion where it does not.
    """
    if run is not None:
        config = as_begun(config, run.config_yaml)
    if not config.selection.is_open or given.selector is not None or given.criterion is not None:
        kept = None if run is None else run.read_config().selection
        return config, kept or name_of_choice(config)
    kind, name, why = _default_selection(config, workload)
    section = config.selection.model_copy(update={kind: name})
    return config.model_copy(update={"selection": section}), f"{name}, by default: {why}"


def _default_selection(config: Config, workload: Workload) -> tuple[str, str, str]:
    """Return the key, the name and the reason of what serves the network and the data: see docs/defaults.md."""
    model, trace, samples = workload.model, workload.trace, workload.samples["calibration"]
    group = unread_group(model, trace, workload.example)
    if group is not None:
        name = "taylor" if config.data.targets == "given" else "magnitude"
        return "criterion", name, f"not obc, because no convolution or linear layer reads group {group!r}"
    why = why_too_large(model, trace)
    if config.recovery.reconstruction == "none":
        why = "recovery.reconstruction is none"
    elif samples < LEAST_SAMPLES:
        why = f"there are {samples} calibration samples, and its refit needs {LEAST_SAMPLES}"
    if why is not None:
        return "criterion", "wanda_channels", f"not obc, because {why}"
    return "selector", "obc", "what reads removed channels is refitted by least squares"


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
    assert config.selection.criterion is not None
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
    """Make what chooses channels, the costs and the runtime, and throw them away: before minutes of training.

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
    if given.criterion is None and given.selector is None and not config.selection.is_open:
        if name is None:
            criterion = _criterion(config)
        else:
            _check_labels(_selector(config, name), task, f"selection.selector = {name!r}")
    if criterion is not None:
        _check_says_something(config, criterion)
    check_trainings(config, given)
    choose(_RECONSTRUCTIONS, config.recovery.reconstruction, "recovery.reconstruction")
    further_costs(config)
    runtime_of(config)


def choose_channels(config: Config, calibration: Calibration, given: InMemory, *, planned: bool = False) -> Choice:
    """Rank the units of every group on calibration data, and prepare the refit of every policy where one is asked for.

    ``planned`` spares a selector all groups but the one that takes most work: enough to know how long all take, and how
    long an evaluation does.

    Raises:
        BadInputError: an unknown criterion, selector or parameter, or a network that the selector cannot judge.
    """
    model, trace, selector = calibration.model, calibration.trace, config.selection.selector
    if given.selector is not None:
        return _by_selector(config, calibration, given.selector, planned)
    if selector is not None and given.criterion is None:
        return _by_selector(config, calibration, _selector(config, selector), planned)
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


def _by_selector(config: Config, calibration: Calibration, selector: Selector, planned: bool) -> Choice:
    problem = problem_of(calibration, labels=selector.labels)
    ordered, share = problem.largest() if planned else (problem, 1.0)
    begun = time.perf_counter()
    selection = select(ordered, selector)
    ordering_s = time.perf_counter() - begun
    orders = {group: np.arange(len(readers[0].columns)) for group, readers in problem.readers.items()}
    refit = selector.refit if config.recovery.reconstruction == "auto" else config.recovery.reconstruction
    reconstruction = None if refit == "none" else _reconstruction(refit, calibration, problem.inputs)
    ranking = {**orders, **selection.orders}
    return Choice(ranking, reconstruction, None, errors=selection.errors, ordering_s=ordering_s, ordered=share)


def _reconstruction(
    refit: str, calibration: Calibration, layer_inputs: Mapping[str, LayerInputs]
) -> Reconstruction | SequentialReconstruction:
    model, trace = calibration.model, calibration.trace
    if refit == "sequential":
        return SequentialReconstruction(model, trace, layer_inputs, calibration.batches)
    return Reconstruction(model, trace, layer_inputs.values(), refit)
