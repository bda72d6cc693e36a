"""Training with a gate or a mask schedule, and the exact cut to the target at its end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from amcsearch.config import Config, import_named, make
from amcsearch.core import PruningPolicy
from amcsearch.graph import duplicate, remove
from amcsearch.jobs.restarts import LossCheck, restarting
from amcsearch.jobs.selection import make_criterion
from amcsearch.jobs.sparsify.sparse_target import UnitTarget, WeightTarget
from amcsearch.jobs.workload import Workload, diverging, judged_batches, training_recipe
from amcsearch.methods import (
    GATES,
    SCHEDULES,
    Criterion,
    Gate,
    GateMethod,
    MaskSchedule,
    Plan,
    UnitSlices,
    comparable,
    layer_of,
    policy_from_densities,
    score_units,
    sparse_weights,
    weight_scores,
)
from amcsearch.training import (
    FixedMasks,
    GatedTraining,
    MaskedTraining,
    MaskedUnits,
    Progress,
    StateStore,
    TrainingHook,
    TrainingRecipe,
    bake,
    fit,
    length,
)

__all__ = ["Sparse", "fixed", "make_method", "sparse_training"]


@dataclass(frozen=True)
class Sparse:
    """The pruned network: really smaller where channels went, zeros in place where weights went.

    ``masks`` say what is in use, by group (n_units,) or by tensor (its shape); ``kept`` the share of the target's cost.
    ``notes`` say that the learning rate was too high.
    """

    model: nn.Module
    policy: PruningPolicy
    masks: Mapping[str, Tensor]
    kept: float
    granularity: str
    notes: tuple[str, ...] = ()


def make_method(config: Config) -> GateMethod | MaskSchedule:
    """Make the configured gate, or the schedule with the criterion that it ranks by.

    Raises:
        BadInputError: as ``config.make`` and ``make_criterion``, or a target that the schedule cannot meet.
    """
    section, keys = config.sparsify, ("sparsify.method", "sparsify.params")
    registry: Mapping[str, Callable[..., GateMethod | MaskSchedule]] = {**GATES, **SCHEDULES}
    method = make(registry, section.method, section.params, keys, (GateMethod, MaskSchedule))
    if isinstance(method, MaskSchedule):
        method.check_target(section.target.get("sparsity"), section.granularity or "weights")
        _criterion(config)
    return method


def _criterion(config: Config) -> Criterion:
    section, keys = config.sparsify, ("sparsify.criterion", "sparsify.criterion_params")
    return make_criterion(section.criterion, section.criterion_params, keys)


def sparse_training(
    config: Config,
    workload: Workload,
    method: GateMethod | MaskSchedule,
    target: UnitTarget | WeightTarget,
    store: StateStore,
    progress: Progress,
    warn: Callable[[str], None],
) -> Sparse:
    """Train a copy of the network by ``make_method(config)`` and meet the target; diverging, at lower learning rates.

    Raises:
        BadInputError: a training that diverges at every rate, or a target out of reach.
    """

    check = LossCheck(workload, workload.model)

    def attempt(recipe: TrainingRecipe, kept: StateStore | None) -> Sparse:
        return _trained(config, workload, method, target, recipe, kept, progress, partial(check, recipe=recipe))

    recipe = training_recipe(config.sparsify.training)
    with diverging("sparsify.training"):
        done = restarting("sparsify.training.learning_rate", recipe, store, warn, attempt, clips=False)
        if done.result is None:
            assert done.error is not None
            raise done.error
    return replace(done.result, notes=done.notes)


def _trained(
    config: Config,
    workload: Workload,
    method: GateMethod | MaskSchedule,
    target: UnitTarget | WeightTarget,
    recipe: TrainingRecipe,
    store: StateStore | None,
    progress: Progress,
    check: Callable[[nn.Module], None],
) -> Sparse:
    """Train a copy of the network by one recipe and meet the target."""
    model = duplicate(workload.model).to(config.evaluation.torch_device)
    samples = length(workload.splits.train, "train")
    steps = recipe.steps(samples) * recipe.epochs
    gate: Gate | None = None
    hook: GatedTraining | MaskedTraining
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(method, GateMethod):
            gate = method.attach(model, workload.trace, samples)
            hook = GatedTraining(gate, method, target.share, target.goal, max(steps, 1))
        else:
            hook = _masked(config, workload, model, target, steps, method)
    _train(config, workload, model, hook, recipe, store, progress, check)
    if isinstance(hook, MaskedTraining):
        return _sparse(workload, target, model, hook.masks)
    assert gate is not None
    scores = {name: score.cpu() for name, score in gate.scores().items()}
    with torch.no_grad():
        for name, tensor in gate.final().items():
            model.get_parameter(name).copy_(tensor)
    return _sparse(workload, target, model, target.cut(scores))


def _train(
    config: Config,
    workload: Workload,
    model: nn.Module,
    hook: TrainingHook,
    recipe: TrainingRecipe,
    store: StateStore | None,
    progress: Progress,
    check: Callable[[nn.Module], None],
) -> None:
    fit(
        model,
        workload.splits.train,
        recipe,
        seed=config.seed,
        torch_device=config.evaluation.torch_device,
        progress=progress,
        hook=hook,
        store=store,
        check=check,
        task=workload.task,
        augmentation=import_named(config.sparsify.training.augmentation),
    )


def fixed(model: nn.Module, masks: Mapping[str, Tensor]) -> TrainingHook:
    """Return the hook that trains on under known masks of weights."""
    weights = {name: model.get_parameter(name) for name in masks}
    moved = {name: mask.to(weights[name].device) for name, mask in masks.items()}
    return MaskedTraining(weights, FixedMasks(moved), Plan(1, sum(map(torch.numel, masks.values())), 0.0), dict)


def _masked(
    config: Config,
    workload: Workload,
    model: nn.Module,
    target: UnitTarget | WeightTarget,
    steps: int,
    schedule: MaskSchedule,
) -> MaskedTraining:
    criterion = _criterion(config)
    data = judged_batches(config, workload, "calibration"), workload.task
    if isinstance(target, UnitTarget):
        slices = UnitSlices(model, workload.trace)

        def unit_scores() -> dict[str, Tensor]:
            scores = comparable(score_units(model, workload.trace, {"": criterion}, *data)[""], workload.trace)
            return {name: torch.from_numpy(values).to(slices.device) for name, values in scores.items()}

        plan = _plan(target, steps, sum(slices.counts.values()), unit_scores)
        return MaskedUnits(slices, schedule, plan, unit_scores, target.finish)
    weights = sparse_weights(model, workload.trace)

    def scores() -> dict[str, Tensor]:
        return weight_scores(model, workload.trace, criterion, weights, *data)

    return MaskedTraining(weights, schedule, Plan(steps, target.count, 1.0 - target.goal), scores)


def _plan(target: UnitTarget, steps: int, count: int, scores: Callable[[], Mapping[str, Tensor]]) -> Plan:
    """Count the units that the target leaves; for a cost, those that a cut would leave by the scores at the start."""
    if target.cost is None:
        return Plan(steps, count, 1.0 - target.goal)
    n_keep = sum(int(mask.sum()) for mask in target.cut(scores()).values())
    return Plan(steps, count, 1.0 - n_keep / count)


def _sparse(
    workload: Workload, target: UnitTarget | WeightTarget, model: nn.Module, masks: Mapping[str, Tensor]
) -> Sparse:
    """Prune a trained network by masks that meet the target."""
    on_cpu = {name: mask.cpu() for name, mask in masks.items()}
    if isinstance(target, WeightTarget):
        bake(model.cpu(), on_cpu)
        densities = {layer_of(name): float(mask.double().mean()) for name, mask in on_cpu.items()}
        policy = policy_from_densities(workload.trace.network, target.space, densities)
        return Sparse(model.eval(), policy, on_cpu, target.measured(on_cpu), "weights")
    units = workload.trace.units
    kept = {name: np.sort(units[name][mask.numpy()].ravel()) for name, mask in on_cpu.items()}
    smaller = remove(model.cpu(), workload.trace, kept)
    return Sparse(smaller, target.policy(on_cpu), on_cpu, target.measured(on_cpu), "channels")
