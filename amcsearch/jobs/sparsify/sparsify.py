"""Sparsification: price the target, train with a gate or a mask schedule, cut exactly, fine-tune.

Nothing is timed. Where ``device.location`` is another device, its kit holds the dense and the fine-tuned network.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields, replace

from torch import nn

from amcsearch.config import Config, label
from amcsearch.core import BadInputError, Cost, Limit
from amcsearch.graph import duplicate
from amcsearch.jobs.delivered_files import NetworkFiles, check_files, judge_stored, save_network
from amcsearch.jobs.device import Device, PricedLimit, further_costs, load_device, priced
from amcsearch.jobs.finetuning import Finetuned, check_trainings, fine_tune, recalibrate
from amcsearch.jobs.identity import begin_workload, end_workload
from amcsearch.jobs.machine_table import machine_table
from amcsearch.jobs.measuring import DELIVERED, awaited_device, renew_kit
from amcsearch.jobs.network_check import check_export, onnx_settings
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.result import SparsifyResult
from amcsearch.jobs.sparsify.sparse_target import UnitTarget, WeightTarget
from amcsearch.jobs.sparsify.sparse_training import Sparse, fixed, make_method, sparse_training
from amcsearch.jobs.user_training import training_folder
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload
from amcsearch.measure import KitPlan
from amcsearch.methods import GATES, GateMethod, MaskSchedule, sparse_weights
from amcsearch.reporting import render
from amcsearch.runs import (
    HERE,
    Density,
    LimitVerdict,
    RunFolder,
    SparseBlock,
    SparsifySummary,
    SparsityTarget,
    Verdict,
    verify_commands,
)
from amcsearch.runtime import signature_of
from amcsearch.training import StateFile, bake, batches_of, evaluate, save_tensors

__all__ = ["sparsify"]


def sparsify(config: Config, run: RunFolder, observer: Observer, given: InMemory = CONFIGURED) -> SparsifyResult:
    """Do the job; both trainings go on where a killed run left them.

    Raises:
        BadInputError: an unknown method or parameter, or as the rooms it passes through.
        DeliveryError: a delivered file is not what was judged; all else is written.
        InfeasibleBudgetError: no network of the device's grid meets the target.
    """
    phases = Phases(observer, run.append_log)
    asked = config.sparsify.limit
    config = config.model_copy(update={"search": config.search.model_copy(update={"vanish": False})})
    method = make_method(config)  # what cannot be made is refused before anything is trained
    further_costs(config)
    check_trainings(config, given, sparsifies=True)
    with phases("target", "Pricing the target"):
        workload, identity = begin_workload(config, given, run, observer)
        device = _device(config, workload, _limits(config, method), given, observer, run)
        limit = None if asked is None else priced(asked, device.dense, device.weight_bits)
        target = _target(config, workload, device, method, limit)
        if config.device.location != HERE:  # what a kit cannot hold is refused before anything is trained
            check_export(config, workload.model, workload.probes, workload.example, workload.task)
    with phases("network", "Loading or training the network"):
        workload, _ = end_workload(config, workload, identity, run, observer)
    with phases("sparsify", f"Training with {label(config.sparsify.method)}"):
        sparse = _sparse(config, workload, method, target, run, observer)
    with phases("finetune", "Fine-tuning what is left"):
        tuned, training = _tuned(config, workload, sparse, run, observer, given)
    with phases("verify", "Writing the network and reading the test split"):
        save_tensors(sparse.masks, run.masks_safetensors)
        run.write_text(run.densities_csv, _csv(_densities(sparse)))
        run.write_policy(sparse.policy)
        save_network(tuned, workload.example, run, onnx_settings(config), observer.warn)
        signature = signature_of(tuned, workload.example)
        test = batches_of(workload.splits.test, name="test")
        files = judge_stored(run, config, given, tuned, test, workload.task, signature)
        summary = _summary(config, workload, device, _reached(config, limit, target, sparse), sparse, tuned)
        for text in renew_kit(run, _kit(config, workload, sparse, tuned)):
            observer.warn(text)
    verdict = Verdict.of([_judged(summary, run)], files)
    warnings = (*summary.warnings, *verdict.texts, *sparse.notes, *training.notes)
    judged = replace(summary, training=training.training, warnings=warnings, verdict=verdict)
    run.write_summary(replace(judged, files=tuple(files), seconds=dict(phases.seconds)))
    run.write_report(render(run))
    check_files(run, files)
    return SparsifyResult(run, lambda: tuned)


def _sparse(
    config: Config,
    workload: Workload,
    method: GateMethod | MaskSchedule,
    target: UnitTarget | WeightTarget,
    run: RunFolder,
    observer: Observer,
) -> Sparse:
    """Return the network that the method trains and cuts, with its batch norms recalibrated."""
    name, epochs = label(config.sparsify.method), max(1, config.sparsify.training.epochs)

    def progress(epoch: int, loss: float) -> None:
        observer.progress(epoch / epochs, f"of {name}, epoch {epoch}: loss {loss:.4f}")

    store = StateFile(run.training_state)
    sparse = sparse_training(config, workload, method, target, store, progress, observer.warn)
    recalibrate(config, workload, sparse.model)
    return sparse


def _device(
    config: Config, workload: Workload, limits: Sequence[Limit], given: InMemory, observer: Observer, run: RunFolder
) -> Device:
    machine = machine_table(config, workload, limits, given, observer, run)
    return load_device(config, workload, limits, given, machine=machine)


def _tuned(
    config: Config, workload: Workload, sparse: Sparse, run: RunFolder, observer: Observer, given: InMemory
) -> tuple[nn.Module, Finetuned]:
    """Return a copy of the sparse network that was trained on under its masks, and what that came to."""
    tuned, store = duplicate(sparse.model), StateFile(run.finetuning_state)
    hook = fixed(tuned, sparse.masks) if sparse.granularity == "weights" else None
    finetune, folder = config.recovery.finetune, training_folder(run, config, given)
    training = fine_tune(config, finetune, workload, tuned, observer, hook, store, given=given, folder=folder)
    if sparse.granularity == "weights":
        bake(tuned, sparse.masks)  # which a training of the user's own does not know
    return tuned, training


def _kit(config: Config, workload: Workload, sparse: Sparse, tuned: nn.Module) -> KitPlan | None:
    """Return what a device that is not here measures; None where this machine would.

    Weights are made up on the device, zeros among them: a dense tensor takes as long whatever it holds.
    """
    if config.device.location == HERE:
        return None
    files = NetworkFiles(config, workload)
    policies = {DELIVERED: sparse.policy} if sparse.granularity == "channels" else {}
    return files.kit_plan({DELIVERED: files.file(tuned)}, policies)


def _judged(summary: SparsifySummary, run: RunFolder) -> LimitVerdict:
    again = None if summary.device is None else f"measure it on the device: {verify_commands(run.path)[0]}"
    return summary.target.judged(summary.total, again)


def _limits(config: Config, method: GateMethod | MaskSchedule) -> tuple[Limit, ...]:
    """Return the limits on networks of fewer channels: the target, where it is a cost and channels are to meet it."""
    limit = config.sparsify.limit
    return () if limit is None or not _closes_channels(config, method) else (limit,)


def _target(
    config: Config,
    workload: Workload,
    device: Device,
    method: GateMethod | MaskSchedule,
    limit: PricedLimit | None,
) -> UnitTarget | WeightTarget:
    """Return what the training has to reach; ``limit`` is None where the target is a sparsity.

    Raises:
        BadInputError: as the targets, or a cost of single weights that a schedule is to meet.
    """
    section = config.sparsify
    goal = 1.0 - float(section.target["sparsity"]) if limit is None else limit.value / limit.dense
    if _closes_channels(config, method):
        return UnitTarget(workload.trace, device, None if limit is None else limit.cost, goal)
    shapes = {name: tuple(weight.shape) for name, weight in sparse_weights(workload.model, workload.trace).items()}
    cost, storage = None if limit is None else limit.asked.cost, section.storage
    target = WeightTarget(workload.trace, device.space, shapes, cost, goal, storage, device.weight_bits)
    if cost is not None and isinstance(method, MaskSchedule):
        raise BadInputError(
            f"sparsify.target.{cost}: the schedule {section.method!r} counts single weights; give "
            f"sparsify.target {{sparsity: 0.8}}, sparsify.granularity channels, or a gate as sparsify.method "
            f"({', '.join(GATES)})"
        )
    return target


def _closes_channels(config: Config, method: GateMethod | MaskSchedule) -> bool:
    granularity = config.sparsify.granularity
    if isinstance(method, MaskSchedule):
        return granularity == "channels"
    gated = "channels" if method.granularity == "units" else "weights"
    if granularity not in (None, gated):
        raise BadInputError(
            f"sparsify.granularity = {granularity!r}, but {config.sparsify.method!r} is a gate on {gated}; "
            "leave it out, or name another method"
        )
    return gated == "channels"


def _densities(sparse: Sparse) -> tuple[Density, ...]:
    """One row a tensor or group: how much of it is in use."""
    return tuple(
        Density(name, int(mask.sum()), mask.numel(), float(mask.double().mean())) for name, mask in sparse.masks.items()
    )


def _csv(rows: Sequence[Density]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in fields(Density)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_json() for row in rows)
    return text.getvalue()


def _reached(
    config: Config, limit: PricedLimit | None, target: UnitTarget | WeightTarget, sparse: Sparse
) -> SparsityTarget:
    """What was asked for and achieved: as shares of dense, and of a cost also in its own unit."""
    if limit is None:
        return SparsityTarget("sparsity", config.sparsify.target["sparsity"], target.goal, sparse.kept)
    name, dense = limit.asked.cost, limit.dense * limit.unit
    return SparsityTarget(
        name,
        limit.asked.written,
        target.goal,
        sparse.kept,
        limit=target.goal * dense,
        dense=dense,
        achieved=sparse.kept * dense,
        storage=str(target.storage) if isinstance(target, WeightTarget) and name == "bytes" else None,
    )


def _summary(
    config: Config,
    workload: Workload,
    device: Device,
    reached: SparsityTarget,
    sparse: Sparse,
    tuned: nn.Module,
) -> SparsifySummary:
    cost = device.grid.cost(sparse.policy) if sparse.granularity == "channels" else Cost()
    kept = sum(int(mask.sum()) for mask in sparse.masks.values())
    total = sum(mask.numel() for mask in sparse.masks.values())
    return SparsifySummary(
        dense=_block(workload, workload.model, device.dense),
        sparse=_block(workload, sparse.model, cost),
        finetuned=_block(workload, tuned, cost),
        method=label(config.sparsify.method),
        granularity=sparse.granularity,
        target=reached,
        sparsity=1.0 - kept / total,
        kept=kept,
        total=total,
        densities=_densities(sparse),
        policy=sparse.policy,
        channel_multiple=device.channel_multiple,
        warnings=(*workload.warnings, *device.warnings),
        seed=config.seed,
        seconds={},
        device=None if config.device.location == HERE else awaited_device(config, device.table),
        metric=workload.task.metric,
    )


def _block(workload: Workload, model: nn.Module, cost: Cost) -> SparseBlock:
    """Evaluate a network on the test split."""
    loss, metric = evaluate(model, batches_of(workload.splits.test, name="test"), workload.task)
    return SparseBlock(metric, loss, sum(int((p != 0).sum()) for p in model.parameters()), cost)
