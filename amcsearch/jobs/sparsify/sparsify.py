"""Sparsification: price the target, train with a gate or a mask schedule, cut exactly, fine-tune."""

import copy
import csv
import io
from dataclasses import replace
from typing import Any

from torch import nn

from amcsearch.config import Config, label
from amcsearch.core import BadInputError, Cost
from amcsearch.jobs.delivery import save_network
from amcsearch.jobs.device import Device, further_costs, load_device
from amcsearch.jobs.finetuning import fine_tune, finetuning_recipe, recalibrate
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.prune.target_cost import priced_as, weight_bits
from amcsearch.jobs.result import SparsifyResult
from amcsearch.jobs.sparsify.sparse_target import UnitTarget, WeightTarget
from amcsearch.jobs.sparsify.sparse_training import Sparse, fixed, make_method, sparse_training
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload, load_workload
from amcsearch.methods import GateMethod, MaskSchedule, sparse_weights
from amcsearch.runs import RunFolder
from amcsearch.search import Budget, FeasibleSet, resolve_budget
from amcsearch.training import StateFile, evaluate, save_tensors, stacked

__all__ = ["sparsify"]


def sparsify(config: Config, run: RunFolder, observer: Observer, given: InMemory = CONFIGURED) -> SparsifyResult:
    """Do the job; both trainings go on where a killed run left them.

    Raises:
        BadInputError: an unknown method or parameter, or as the rooms it passes through.
        InfeasibleBudgetError: no network of the device's grid meets the target.
    """
    phases = Phases(observer, run.append_log)
    section = config.sparsify
    method = make_method(config)  # what cannot be made is refused before anything is trained
    further_costs(config)
    finetuning_recipe(config)
    with phases("network", "Loading or training the network"):
        workload = load_workload(config, given, progress=observer.epoch)
    with phases("target", "Pricing the target"):
        device = _device(config, workload, given)
        target = _target(config, workload, device, method)
    with phases("sparsify", f"Training with {label(section.method)}"):
        epochs = max(1, section.training.epochs)

        def progress(epoch: int, loss: float) -> None:
            observer.progress(epoch / epochs, f"of {label(section.method)}, epoch {epoch}: loss {loss:.4f}")

        sparse = sparse_training(config, workload, target, StateFile(run.training_state), progress)
        recalibrate(config, workload, sparse.model)
    with phases("finetune", "Fine-tuning what is left"):
        tuned = copy.deepcopy(sparse.model)
        hook = fixed(tuned, sparse.masks) if sparse.granularity == "weights" else None
        fine_tune(config, workload, tuned, observer, hook, StateFile(run.finetuning_state))
    with phases("verify", "Reading the test split"):
        models = {"dense": workload.model, "sparse": sparse.model, "finetuned": tuned}
        summary = _summary(config, workload, device, target, sparse, models, phases.seconds)
    save_network(tuned, workload.example, run)
    save_tensors(sparse.masks, run.masks_safetensors)
    run.write_text(run.densities_csv, _csv(_densities(sparse)))
    run.write_policy(sparse.policy)
    run.write_summary(summary)
    return SparsifyResult(run, lambda: tuned)


def _device(config: Config, workload: Workload, given: InMemory) -> Device:
    """Price on the configured device; the budget of a search is not this verb's."""
    return load_device(config.model_copy(update={"budget": {"macs": "1x"}}), workload, given)


def _target(
    config: Config, workload: Workload, device: Device, method: GateMethod | MaskSchedule
) -> UnitTarget | WeightTarget:
    goal, (asked, *_) = _goal(config, device), config.sparsify.target
    cost = None if asked == "sparsity" else str(asked)
    if _closes_channels(config, method):
        if cost is not None:
            cost, _ = priced_as(config, cost)
            budget = Budget({cost: goal * device.dense[cost]})
            device = replace(device, feasible=FeasibleSet(device.space, device.grid, budget))
        return UnitTarget(workload.trace, device, cost, goal)
    shapes = {name: tuple(weight.shape) for name, weight in sparse_weights(workload.model, workload.trace).items()}
    return WeightTarget(workload.trace, device.space, shapes, cost, goal, config.sparsify.storage, weight_bits(config))


def _goal(config: Config, device: Device) -> float:
    """Share that the target leaves, of units or weights, or of the dense network's cost."""
    (name, asked), *_ = config.sparsify.target.items()
    if name == "sparsity":
        return 1.0 - float(asked)
    priced, unit = priced_as(config, str(name))
    dense = Cost({cost: value * unit for cost, value in device.dense.items()})
    try:
        return resolve_budget({priced: asked}, dense).limits[priced] / dense[priced]
    except BadInputError as error:
        told = str(error).replace(f"budget.{priced}", f"sparsify.target.{name}")
        raise BadInputError(told.replace(f"network's {priced}", f"network's {name}")) from error


def _closes_channels(config: Config, method: GateMethod | MaskSchedule) -> bool:
    granularity = config.sparsify.granularity
    if isinstance(method, MaskSchedule):
        return granularity == "channels"
    own = "channels" if method.granularity == "units" else "weights"
    if granularity not in (None, own):
        raise BadInputError(
            f"sparsify.granularity = {granularity!r}, but {config.sparsify.method!r} is a gate on {own}; leave it out, "
            "or name another method"
        )
    return own == "channels"


def _densities(sparse: Sparse) -> list[dict[str, Any]]:
    """One row a tensor or group: how much of it is in use."""
    return [
        {"name": name, "kept": int(mask.sum()), "total": mask.numel(), "density": float(mask.double().mean())}
        for name, mask in sparse.masks.items()
    ]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _reached(config: Config, device: Device, target: UnitTarget | WeightTarget, sparse: Sparse) -> dict[str, Any]:
    """What was asked for and achieved: as shares of dense, and of a cost also in its own unit."""
    (name, asked), *_ = config.sparsify.target.items()
    found: dict[str, Any] = {name: asked, "kept_asked": target.goal, "kept": sparse.kept}
    if target.cost is None:
        return found
    priced, unit = priced_as(config, str(name))
    dense = device.dense[priced] * unit
    found |= {"cost": name, "limit": target.goal * dense, "dense": dense, "achieved": sparse.kept * dense}
    return found | ({"storage": target.storage} if isinstance(target, WeightTarget) and name == "bytes" else {})


def _summary(
    config: Config,
    workload: Workload,
    device: Device,
    target: UnitTarget | WeightTarget,
    sparse: Sparse,
    models: dict[str, nn.Module],
    seconds: dict[str, float],
) -> dict[str, Any]:
    inputs, targets = stacked(workload.splits.test)
    blocks: dict[str, Any] = {}
    for name, model in models.items():
        loss, accuracy = evaluate(model, inputs, targets)
        params = sum(int((p != 0).sum()) for p in model.parameters())
        blocks[name] = {"accuracy": accuracy, "loss": loss, "nonzero_params": params}
    if sparse.granularity == "channels":
        for name in ("sparse", "finetuned"):
            blocks[name].update(device.grid.cost(sparse.policy))
    blocks["dense"].update(device.dense)
    kept = sum(int(mask.sum()) for mask in sparse.masks.values())
    total = sum(mask.numel() for mask in sparse.masks.values())
    return {
        **blocks,
        "method": label(config.sparsify.method),
        "granularity": sparse.granularity,
        "target": _reached(config, device, target, sparse),
        "sparsity": 1.0 - kept / total,
        "kept": kept,
        "total": total,
        "densities": _densities(sparse),
        "policy": dict(sparse.policy),
        "channel_multiple": device.channel_multiple,
        "warnings": list(device.warnings),
        "seed": config.seed,
        "seconds": {**seconds, "total": sum(seconds.values())},
    }
