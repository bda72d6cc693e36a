"""One rehearsal of all that follows a search, on a pruned copy: before anything is trained or searched.

A step of the fine-tuning, the export, the delivered file in its runtime and the metric may each fail by what a user's
network, data or task does. None of it depends on which policy is found. So each is done once, on one batch, with the
largest uniform policy within the budget; where that prunes nothing, with half of every group.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import IterableDataset, Subset

from amcsearch.config import Config
from amcsearch.core import BadInputError, DivergedError, NetworkSpec, PolicySpace, PruningPolicy, UserCode
from amcsearch.costs import macs
from amcsearch.graph import duplicate, remove
from amcsearch.jobs.device import Device
from amcsearch.jobs.finetuning import check_trainable, one_step, steps_that_diverge
from amcsearch.jobs.network_check import not_finite, onnx_settings
from amcsearch.jobs.runtimes import runtime_of
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload, trained
from amcsearch.runtime import FileModule, OnnxRuntime, Runtime, compare, converted, exported, signature_of
from amcsearch.training import SPLITS, DataSplits, Held, Samples, batches_of, evaluate, length, source_of

__all__ = ["half_of", "pruned_policy", "rehearse"]

SAMPLES: Final = 32
TRAINED: Final = 8  # in the step of fine-tuning: whether it runs does not depend on the batch, and its cost does
STEPS: Final = 10  # that show whether the fine-tuning diverges …
FEWEST_STEPS: Final = 4
MOST_MACS: Final = 2_000_000_000  # … of forward passes: some tenths of a second of a core
HALF: Final = 0.5

_CURES: Final = {
    "removing channels": "look at the forward of the network: it may hold a number of channels as a constant",
    "a run in torch": "look at the forward of the network: it may hold a number of channels as a constant",
    "a step of fine-tuning": "mend the forward in training mode or the data, or set recovery.finetune: null",
    "the export to ONNX": "make its forward traceable, also once channels are gone",
    "a run in ONNX Runtime": "choose another device.export.opset or device.dtype, or avoid the operator",
    "the export for device.runtime": "avoid what it cannot hold, or set device.runtime: onnxruntime",
    "a run in device.runtime": "avoid the operator, or set device.runtime: onnxruntime",
    "the metric of the delivered file": "look at the task and at the targets of the search split",
}


def rehearse(config: Config, workload: Workload, device: Device, given: InMemory = CONFIGURED) -> tuple[str, ...]:
    """Remove channels, train one step, export, run and score a copy of the network; nothing is kept of it.

    Returns:
        What of it does not run where ``device.runtime`` and ``device.provider`` say, and a fine-tuning that diverges.

    Raises:
        BadInputError: a step fails; names it, the reason and the cure.
    """
    if config.model.pretrain is not None:
        check_trainable(workload.model, "model.pretrain")
    policy, example = pruned_policy(workload, device), workload.example
    with _step("removing channels"):
        pruned = remove(workload.model, workload.trace, _first_units(workload, policy))
    with _step("a step of fine-tuning"):
        few = _few_samples(config, workload)
        one_step(config, few, duplicate(pruned), given)
    broken = _not_finite(pruned, few)
    problem = broken or _diverging(config, few, pruned, given)
    with _step("the export to ONNX"):
        signature = signature_of(pruned, example)
        content = exported(pruned, example, onnx_settings(config))
    with _step("a run in ONNX Runtime"):
        target, runtime = config.device, runtime_of(config)
        model = converted(content, target.dtype, [example])
        in_onnx = runtime if runtime.is_onnx_runtime else OnnxRuntime(target.threads)
        file = FileModule(in_onnx.load(model), signature)
        example.through(file)
    if runtime is not in_onnx:
        file = _in_runtime(config, runtime, pruned, workload)
    with _step("the metric of the delivered file", broken):
        evaluate(file, batches_of(few.splits.search), few.task)
    elsewhere = None if file.elsewhere is None else f"device.provider: {file.elsewhere}"
    return tuple(text for text in (problem, elsewhere) if text is not None)


def _not_finite(pruned: nn.Module, few: Workload) -> str | None:
    """Say that a pruned copy gives NaN or infinity: a training of it diverges, whatever the targets are."""
    with _step("a run in torch"):
        problem = not_finite(pruned, batches_of(few.splits.search), "search")
    return problem and f"a pruned copy of {type(pruned).__name__} gives {problem}; a policy that does is not delivered"


def _diverging(config: Config, few: Workload, pruned: nn.Module, given: InMemory) -> str | None:
    """Say that the fine-tuning diverges within a few steps, where the weights are trained and steps cost little."""
    work = sum(map(macs, few.trace.network.layers)) * length(few.splits.train, "train")
    steps = min(STEPS, MOST_MACS // max(1, work))
    if config.model.pretrain is not None or steps < FEWEST_STEPS:
        return None
    return steps_that_diverge(config, few, pruned, steps, given)


def _in_runtime(config: Config, runtime: Runtime, pruned: nn.Module, workload: Workload) -> FileModule:
    """Export a network for a runtime that is not ONNX Runtime, run it there, and compare all outputs with torch's."""
    example = workload.example
    with _step("the export for device.runtime"):
        content = runtime.exported(pruned, example, onnx_settings(config))
    with _step("a run in device.runtime"):
        file = FileModule(runtime.load(content), signature_of(pruned, example))
        problem = compare(pruned, file, [example], labels=workload.task.is_argmax).problem
        if problem is not None:
            raise BadInputError(f"beside torch, {runtime.name} {problem}")
    return file


def _few_samples(config: Config, workload: Workload) -> Workload:
    """Return the workload with one batch of training data and some samples of every other split, its targets set."""
    finetune, few = config.recovery.finetune, {}
    sizes = dict.fromkeys(SPLITS, SAMPLES) | {"train": min(TRAINED, finetune.batch_size) if finetune else TRAINED}
    sizes["test"] = 1  # nothing is judged on it here
    for name, size in sizes.items():
        split = getattr(workload.splits, name)
        few[name] = _first_samples(split, min(size, length(split, name)), name)
    return trained(config, replace(workload, splits=DataSplits(**few)), is_trained=True)


def _first_samples(split: Samples, count: int, name: str) -> Samples:
    if isinstance(source_of(split, []).dataset, IterableDataset):
        return Held(next(iter(batches_of(split, count, name))))
    first: Samples = Subset(split, range(count))
    return first


def pruned_policy(workload: Workload, device: Device) -> PruningPolicy:
    """Return the largest uniform policy within the budget; where that prunes nothing, half of every group."""
    network = workload.trace.network
    policy = network.policy(device.feasible.largest_uniform())
    if policy != network.dense:
        return policy
    return half_of(network, device.space)


def half_of(network: NetworkSpec, space: PolicySpace) -> PruningPolicy:
    """Return the policy of a space that is nearest to half of every group."""
    return network.policy(space.nearest(np.full(len(network.groups), HALF)))


def _first_units(workload: Workload, policy: PruningPolicy) -> dict[str, NDArray[np.int64]]:
    """The first units of every group stay: which of them do decides nothing here."""
    trace = workload.trace
    kept = {group.name: policy[group.name] // group.unit for group in trace.network.groups}
    return {name: np.sort(trace.units[name][:count].ravel()) for name, count in kept.items()}


@contextmanager
def _step(step: str, cure: str | None = None) -> Iterator[None]:
    try:
        with UserCode("the network"):
            yield
    except DivergedError:  # one step from weights that may be random says nothing of a training
        return
    except BadInputError as error:
        problem = f"rehearsal on a pruned copy, before the search: {step} fails: {error}; {cure or _CURES[step]}"
        raise BadInputError(problem) from error
