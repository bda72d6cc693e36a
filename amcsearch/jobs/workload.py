"""A trained network with its data and its channel groups: from a configuration, or from objects in memory."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from amcsearch.config import Config, RecipeConfig, call_factory, import_named, named_digests
from amcsearch.core import BadInputError, DivergedError, UserCode, counted
from amcsearch.costs import DeviceProfile, LatencyTable
from amcsearch.evaluation import check_torch_device, default_batch_size
from amcsearch.graph import Batch, Batches, Trace, duplicate, fold_weights, trace
from amcsearch.jobs.data import made_data, prepared_data
from amcsearch.jobs.network_check import check_network, check_parameters
from amcsearch.jobs.task import check_task, make_task, output_of, training_task
from amcsearch.methods import Criterion, Selector
from amcsearch.runs import expanded
from amcsearch.search import Agent
from amcsearch.training import (
    CLASS_IDS,
    DataSplits,
    Progress,
    SplitRecord,
    Task,
    TrainingRecipe,
    all_targets,
    batches_of,
    load_checkpoint,
    pretrained,
    seeded,
    with_dense_targets,
)

__all__ = [
    "CONFIGURED",
    "PLAN_SAMPLES",
    "InMemory",
    "TracedNetwork",
    "Workload",
    "cache_folder",
    "copied",
    "dense_network",
    "diverging",
    "judged_batches",
    "load_network",
    "load_workload",
    "made_by_factory",
    "make_workload",
    "trained",
    "training_recipe",
]

LARGEST_BATCH: Final = 2**31  # bytes
CHECKED: Final = 16  # samples whose outputs and targets the task is tried on
PLAN_SAMPLES: Final = 8  # of each split that is not in memory, for a plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InMemory:
    """Objects that a caller hands over, in place of what a configuration names; None where the configuration counts.

    Args:
        model: the trained network; it is copied and stays as it is.
        data: see ``training.as_datasets``.
        example: one input with batch dimension (1, …), where no data is needed: to price or to time a network.
        table: the target's latency table.
        profile: the target's device profile.
        agent: proposes policies, in place of ``search.agent``.
        criterion: ranks channels, in place of ``selection.criterion``.
        selector: chooses channels, in place of ``selection.selector``.
        task: how outputs are judged, in place of ``task``.
        finetune: trains the pruned network, in place of ``recovery.finetune.factory``.
    """

    model: nn.Module | None = None
    data: object = None
    example: Tensor | None = None
    table: LatencyTable | None = None
    profile: DeviceProfile | None = None
    agent: Agent | None = None
    criterion: Criterion | None = None
    selector: Selector | None = None
    task: Task | None = None
    finetune: Callable[..., nn.Module] | None = None


CONFIGURED: Final = InMemory()
"""All of it as configured."""


@dataclass(frozen=True)
class TracedNetwork:
    """A network with its channel groups; ``example`` is one batch of the device's size, without targets."""

    model: nn.Module
    example: Batch
    trace: Trace


@dataclass(frozen=True)
class Workload(TracedNetwork):
    """A network with its data, its task and its channel groups.

    ``records`` describe the data for a run's identity, ``samples`` count those of each split, and ``warnings`` say what
    is doubtful about them. In a workload for a plan the splits hold fewer samples than that. ``probes`` are those on
    which a file is compared with the network before anything is trained.
    """

    splits: DataSplits
    probes: Batch
    records: Mapping[str, SplitRecord]
    samples: Mapping[str, int]
    warnings: tuple[str, ...] = ()
    task: Task = CLASS_IDS


def judged_batches(config: Config, workload: Workload, split: str) -> Batches:
    """Return the samples of a split in the batches of a forward pass: as configured, or as a CPU likes.

    Raises:
        BadInputError: as ``batches_of``.
    """
    batches = batches_of(getattr(workload.splits, split), name=split)
    return batches.batched(config.evaluation.batch_size or default_batch_size(batches))


def cache_folder() -> Path:
    """Where trained reference networks are kept: ``AMCSEARCH_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("AMCSEARCH_CACHE")
    return expanded(chosen) if chosen else expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "amcsearch"


def training_recipe(config: RecipeConfig) -> TrainingRecipe:
    """Return the training loop's recipe for a section of the configuration, in which batch norms follow the batches."""
    names = type(config).model_fields.keys() & {field.name for field in fields(TrainingRecipe)}
    return TrainingRecipe(**{name: getattr(config, name) for name in names - {"batch_norm"}})  # which may be auto


def load_workload(
    config: Config, given: InMemory = CONFIGURED, *, train: bool = True, progress: Progress | None = None
) -> Workload:
    """Make the network with its data, and train it if the configuration says so.

    ``train`` false leaves the weights as the factory made them, and reads a few samples of data that is not in memory:
    enough to plan, not to search.

    Raises:
        BadInputError: as ``make_workload`` and ``trained``.
    """
    workload = make_workload(config, given, limit=None if train else PLAN_SAMPLES)
    return trained(config, workload, progress) if train else _with_targets(config, workload)


def trained(
    config: Config, workload: Workload, progress: Progress | None = None, *, is_trained: bool = False
) -> Workload:
    """Return a workload of ``make_workload`` as searches need it: its network trained, in place, and its targets set.

    ``is_trained`` says that the network has its trained weights already.

    Raises:
        BadInputError: a diverging training, a cache that cannot be written, or as ``check_network``.
    """
    if config.model.pretrain is not None and not is_trained:
        _pretrain(config, workload, progress)
        workload.model.eval()
        check_network(config, workload.model, workload.splits, workload.probes)
    return _with_targets(config, workload)


def _with_targets(config: Config, workload: Workload) -> Workload:
    """Put the dense network's outputs in place of the targets where the configuration asks for it."""
    if config.data.targets == "given":
        return workload
    splits = with_dense_targets(workload.splits, workload.model, workload.task, memory_mib=config.data.memory_mib)
    targets = all_targets(batches_of(splits.calibration, name="calibration"))
    return replace(workload, splits=splits, task=workload.task.fitted(targets))


def make_workload(config: Config, given: InMemory = CONFIGURED, *, limit: int | None = None) -> Workload:
    """Make the network or load its checkpoint, cut the data splits, and trace its channel groups; train nothing.

    Channel groups and costs follow from shapes alone, so they are known, and limits are judged, before any training.
    With a ``limit`` no more samples are read of a split that is not in memory.

    Raises:
        BadInputError: a torch device that is not there, a factory that raises or returns something else, data of
            another shape, a checkpoint that does not fit, a network with nothing to prune, or as ``check_network``.
    """
    check_torch_device(config.evaluation.torch_device)
    with seeded(config.seed):
        made = made_data(config, given.data)
    model = dense_network(config, given)
    made_with, task = dict(model.named_parameters()), make_task(config, given.task)
    is_named = config.task is not None or given.task is not None
    data = prepared_data(config, made, model, task, is_named=is_named, limit=limit)
    check_parameters(config, model, made_with)
    if config.model.checkpoint is not None:
        load_checkpoint(model, Path(config.model.checkpoint))
        model.eval()
    check_network(config, model, data.splits, data.probes)
    doubt = None
    if config.data.targets == "given":
        batches = batches_of(data.splits.calibration, CHECKED, "calibration")
        batch = next(iter(batches))
        output = output_of(config, model, batch)
        check_task(config, given.task, task, output, batch.targets)
        doubt = task.doubt(output)
        task = task.fitted(all_targets(batches))
    folded = _folded(model, data.sample)
    network = _traced(config, model, data.sample)
    return Workload(
        network.model,
        network.example,
        network.trace,
        data.splits,
        data.probes,
        data.records,
        data.samples,
        (*data.warnings, *folded, *([] if doubt is None else [f"model: {doubt}"])),
        task,
    )


def load_network(config: Config, given: InMemory = CONFIGURED) -> TracedNetwork:
    """Make the network without training it and trace its channel groups: enough to price and to time it.

    Raises:
        BadInputError: as ``make_workload``.
    """
    if given.example is not None:
        model, sample = dense_network(config, given), Batch.of(given.example[:1])
        _folded(model, sample)
        return _traced(config, model, sample)
    return make_workload(config, given, limit=PLAN_SAMPLES)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a module on the CPU, in eval mode.

    Raises:
        BadInputError: it is no module, has no weights, or cannot be copied.
    """
    _check_filled(model, "model")
    with UserCode(f"model: {type(model).__name__} cannot be copied; make it work with copy.deepcopy, which"):
        return _with_values(_unwrapped(duplicate(model)), "model").cpu().eval()


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside ``torch.compile`` and data parallelism, in place.

    Every policy is a network of other shapes: compiled, each would be compiled anew, for minutes.
    """
    while _is_compiled(model) or isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.get_submodule("_orig_mod" if _is_compiled(model) else "module")
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
        for name, child in list(module._modules.items()):
            if child is not None and _is_compiled(child):
                module._modules[name] = child.get_submodule("_orig_mod")
    return model


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch._dynamo.") and "_orig_mod" in module._modules


def _with_values(model: nn.Module, key: str) -> nn.Module:
    """Return a module whose tensors can be trained, a copy of one of inference mode; raises as ``_check_filled``."""
    _check_filled(model, key)
    return duplicate(model) if any(t.is_inference() for t in (*model.parameters(), *model.buffers())) else model


def _check_filled(model: object, key: str) -> None:
    """Refuse what is no module, and tensors that hold no values: those of lazy modules and of the meta device."""
    if not isinstance(model, nn.Module):
        raise BadInputError(f"{key} is a {type(model).__name__}, expected a torch.nn.Module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise BadInputError(f"{key}: {name} of {type(model).__name__} is lazy; run it on a sample first")
        if tensor.is_meta:
            raise BadInputError(f"{key}: {name} of {type(model).__name__} is on the device meta; make it on the CPU")


def made_by_factory(config: Config) -> nn.Module:
    """Return the network of ``model.factory`` in eval mode; its random weights follow from ``seed``.

    Raises:
        BadInputError: no factory, or one that raises or returns something else.
    """
    if config.model.factory is None:
        raise BadInputError(
            "model.factory is null: the network was handed over in Python; name a factory, or hand a model over again"
        )
    with seeded(config.seed):
        model = call_factory(config.model.factory, config.model.kwargs, "model.factory")
    if not isinstance(model, nn.Module):
        raise BadInputError(
            f"model.factory: {config.model.factory} returned a {type(model).__name__}, expected a torch.nn.Module"
        )
    with UserCode(f"model.factory: {config.model.factory}: preparing its {type(model).__name__}"):
        return _with_values(_unwrapped(model), "model.factory").cpu().eval()


def dense_network(config: Config, given: InMemory) -> nn.Module:
    """Return the dense network with the weights of its factory, or a copy of the one in memory; in eval mode.

    Raises:
        BadInputError: as ``made_by_factory`` and ``copied``, tensors that are not float32, or a state beside tensors.
    """
    model = made_by_factory(config) if given.model is None else copied(given.model)
    key = "model" if given.model is not None else "model.factory"
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_quantized:
            raise BadInputError(
                f"{key}: the state of {type(model).__name__} holds {name}, which is no tensor of real numbers; give "
                "the network before it is quantised (device.dtype: int8 quantises the pruned one), and keep what "
                "get_extra_state returns in buffers"
            )
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32:
            raise BadInputError(
                f"{key}: {name} of {type(model).__name__} is {tensor.dtype}, expected torch.float32; give model.float()"
            )
    return model


def _traced(config: Config, model: nn.Module, sample: Batch) -> TracedNetwork:
    """Trace a network with one sample."""
    sample = replace(sample, targets=None)
    traced = trace(model, sample)
    for skipped in traced.skipped:
        _log.info("not pruned: %s: %s", skipped.name, skipped.reason)
    if not traced.network.groups:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in traced.skipped[:3])
        raise BadInputError(f"model.factory: nothing in {type(model).__name__} can be pruned ({reasons})")
    size = sum(tensor.numel() * tensor.element_size() for tensor in sample.inputs.values())
    if size * config.device.batch > LARGEST_BATCH:
        raise BadInputError(
            f"device.batch = {config.device.batch} of inputs of {size:,} bytes, must be at most "
            f"{LARGEST_BATCH // size:,}: a batch and its outputs are held in memory"
        )
    return TracedNetwork(model, sample.chosen([0] * config.device.batch), traced)


def _folded(model: nn.Module, sample: Batch) -> tuple[str, ...]:
    """Fold computed weights into plain ones, in place, and say of which layers."""
    layers = fold_weights(model, sample)
    if not layers:
        return ()
    names = ", ".join(layers[:3]) + (", …" if len(layers) > 3 else "")
    return (
        f"the weight norm, spectral norm or other computed weight of {counted(len(layers), 'layer')} ({names}) was "
        "folded into plain weights, which can be pruned; training goes on without it",
    )


def _pretrain(config: Config, workload: Workload, progress: Progress | None) -> None:
    assert config.model.pretrain is not None
    model, recipe, digests = workload.model, config.model.pretrain, named_digests(config)
    made_by: list[object] = [config.model.factory, config.model.kwargs, config.data.factory, config.data.kwargs]
    if config.task is not None:
        code = {key: digest for key, digest in digests.items() if key.startswith("task.")}
        made_by += [config.task.model_dump(mode="json"), code]
    if recipe.augmentation is not None:
        made_by.append(digests["model.pretrain.augmentation"])
    with diverging("model.pretrain"):
        pretrained(
            model,
            workload.splits.train,
            training_recipe(recipe),
            key=json.dumps(made_by, sort_keys=True),
            seed=config.seed,
            cache_dir=cache_folder(),
            torch_device=config.evaluation.torch_device,
            progress=progress,
            task=training_task(config, workload.task),
            augmentation=import_named(recipe.augmentation),
        )
    model.cpu()


@contextmanager
def diverging(section: str) -> Iterator[None]:
    """Put the section of the configuration that trains before the message of a training that diverges."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"{section}: {error}") from error
