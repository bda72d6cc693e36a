"""The files of the delivered network: written, read back from the disk, and held to the network in memory.

Every format is judged on the whole test split: ``pruned.onnx`` by its metric in ONNX Runtime and its difference from
torch, likewise the file of another ``device.runtime`` in that one, ``pruned.safetensors`` in a fresh network that is
cut to the policy, and ``pruned.pt2`` as ``torch.export`` loads it. The bounds are those of ``runtime.comparison``:
0.001 of the outputs' scale, and 1 % of the predictions.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from amcsearch.config import Config
from amcsearch.core import BadInputError, DeliveryError, PruningPolicy, UserCode
from amcsearch.graph import Batch, Batches, as_batch, branch_lines
from amcsearch.jobs.example_file import write_example
from amcsearch.jobs.loading import with_stored_weights
from amcsearch.jobs.measuring import FLOAT32, verify_plan
from amcsearch.jobs.network_check import onnx_settings
from amcsearch.jobs.runtimes import runtime_of
from amcsearch.jobs.workload import InMemory, Workload, dense_network
from amcsearch.measure import KitPlan
from amcsearch.runs import DeliveredFile, RunFolder
from amcsearch.runtime import (
    Agreement,
    Compared,
    FileModule,
    OnnxSettings,
    Runtime,
    Signature,
    compare,
    converted,
    program_module,
    signature_of,
    torch_program,
)
from amcsearch.training import Task, batches_of, evaluate, save_state

__all__ = ["NetworkFiles", "check_files", "judge_network", "judge_stored", "save_network"]

_CURES: Final = {
    ".onnx": "the exporter follows one side of a branch: write it with torch.where, and make nothing depend on being "
    "exported",
    ".pt2": "make forward a function of its input, its parameters and its buffers alone, also while it is exported",
    ".safetensors": "keep all that forward computes with in parameters and buffers, and make the factory give the same "
    "network at every call",
}
_OTHER_CURE: Final = "look at what device.runtime computes otherwise, or set device.runtime=onnxruntime"


class NetworkFiles:
    """Networks of one workload as files of ``device.runtime``; the dense one is exported once."""

    def __init__(self, config: Config, workload: Workload) -> None:
        self.config, self.workload = config, workload

    @cached_property
    def runtime(self) -> Runtime:
        """What ``device.runtime`` names."""
        return runtime_of(self.config)

    @cached_property
    def dense(self) -> bytes:
        """The dense network in float32."""
        return self.in_float32(self.workload.model)

    @cached_property
    def dense_delivered(self) -> bytes:
        """The dense network in the data type that the device computes in."""
        return self.in_device_type(self.dense)

    def in_float32(self, model: nn.Module) -> bytes:
        """Return a network as a file of the device's batch, an ONNX file as ``device.export`` says."""
        return self.runtime.exported(model, self.workload.example, onnx_settings(self.config))

    def in_device_type(self, model: bytes) -> bytes:
        """Return a model in the data type that the device computes in, calibrated on the calibration split."""
        calibration = batches_of(self.workload.splits.calibration, name="calibration")
        return converted(model, self.config.device.dtype, calibration)

    def file(self, model: nn.Module) -> bytes:
        """Return a network as it would be delivered."""
        return self.in_device_type(self.in_float32(model))

    def kit_plan(self, models: Mapping[str, bytes], policies: Mapping[str, PruningPolicy]) -> KitPlan:
        """Return what a device that is not here measures: files by name, as delivered, beside the dense network.

        ``policies`` of the pruned ones come back in the result.
        """
        further = {} if self.config.device.dtype == "float32" else {FLOAT32: self.dense}
        return verify_plan(self.config, self.dense_delivered, {**models, **further}, self.workload.example, policies)


def save_network(
    model: nn.Module, example: Batch | Tensor, run: RunFolder, settings: OnnxSettings, warn: Callable[[str], None]
) -> None:
    """Write weights, one sample with its outputs, and the self-contained program: what ``load`` makes the network from.

    A network that ``torch.export`` cannot follow has no program: ``warn`` is told, and the log of the run says why.

    Raises:
        BadInputError: a folder that cannot be written.
    """
    save_state(model, run.pruned_safetensors)
    write_example(run.example_safetensors, model, example)
    try:
        batch = as_batch(example)
        free = settings.axes_of_inputs(batch, signature_of(model, batch).inputs)
        program = torch_program(model, batch, free)
    except BadInputError as error:
        run.append_log({"program": None, "reason": str(error)})
        lines = ", ".join(branch_lines(model, batch))
        branches = (
            f"; forward branches by what the input holds at {lines}, and"
            if lines
            else "; where forward branches by what the input holds,"
        )
        warn(
            f"{run.pruned_pt2.name} is not written: torch.export cannot follow the network (log.jsonl says why)"
            f"{branches} the ONNX file has only the side that the example takes; write such a branch with torch.where"
        )
        return
    with run.replacing(run.pruned_pt2) as path:
        path.write_bytes(program)


def judge_network(
    path: Path,
    runtime: Runtime,
    tuned: nn.Module,
    in_float32: bytes,
    test: Batches,
    task: Task,
    signature: Signature,
    *,
    quantised: bool = False,
) -> tuple[DeliveredFile, float]:
    """Score a file on the test split in its runtime; return how far it agrees with torch, and its metric.

    The difference is that of the float32 export, before anything is quantised; the metric, and whether outputs are
    finite, is the file's own. It is NaN where the runtime cannot run the file.
    """
    has_labels = task.is_argmax
    try:
        with UserCode(path.name):
            compared = Compared(tuned, FileModule(runtime.load(path), signature), labels=has_labels)
            _, metric = evaluate(compared, test, task)
            agreement = compared.agreement()
            if not quantised:
                return _described(path.name, agreement, agreement.problem), metric
            exact = FileModule(runtime.load(in_float32), signature)
            in_torch = compare(tuned, exact, test, labels=has_labels)
    except BadInputError as error:
        return _unusable(path.name, error), math.nan
    return _described(path.name, in_torch, agreement.problem if agreement.not_finite else in_torch.problem), metric


def judge_stored(
    run: RunFolder, config: Config, given: InMemory, tuned: nn.Module, test: Batches, task: Task, signature: Signature
) -> list[DeliveredFile]:
    """Load ``pruned.safetensors`` and, where there is one, ``pruned.pt2`` again, and compare the outputs with torch's.

    The weights go into a fresh network of the factory, or a copy of the one in memory, which the policy cuts: policy
    and masks have to be in the folder.
    """
    loaders: dict[Path, Callable[[], nn.Module]] = {
        run.pruned_safetensors: lambda: with_stored_weights(run, dense_network(config, given)),
        run.pruned_pt2: lambda: program_module(run.pruned_pt2, signature),
    }
    files = []
    for path, load in loaders.items():
        if not path.is_file():
            continue
        try:
            with UserCode(path.name):
                agreement = compare(tuned, load(), test, labels=task.is_argmax)
        except BadInputError as error:
            files.append(_unusable(path.name, error))
        else:
            files.append(_described(path.name, agreement, agreement.problem))
    return files


def check_files(run: RunFolder, files: Iterable[DeliveredFile]) -> None:
    """Refuse files that are not what was judged; they stay where they are.

    Raises:
        DeliveryError: a file is beyond its bound.
    """
    for file in files:
        if file.problem is not None:
            cure = _CURES.get(Path(file.name).suffix, _OTHER_CURE)
            raise DeliveryError(
                f"{file.name} is not the network that was judged: on the test split it {file.problem}; {cure}; "
                f"{run.path} keeps the file, the policy and the report"
            )


def _described(name: str, agreement: Agreement, problem: str | None) -> DeliveredFile:
    numbers = (agreement.max_abs, agreement.relative, agreement.changed, agreement.predictions)
    return DeliveredFile(name, agreement.samples, *numbers, problem)


def _unusable(name: str, error: BadInputError) -> DeliveredFile:
    return DeliveredFile(name, 0, math.nan, math.nan, 0, 0, f"cannot be run: {' '.join(str(error).split())}")
