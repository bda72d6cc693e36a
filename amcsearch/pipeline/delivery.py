"""From a chosen policy to a proven model: fine-tuning, export, parity, measured latency, the test split."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from amcsearch.core import PruningPolicy
from amcsearch.pipeline.finalists import Finalist, Measure
from amcsearch.pipeline.job import Job
from amcsearch.pipeline.observer import Observer
from amcsearch.pipeline.recovery import fine_tune
from amcsearch.runs import RunFolder
from amcsearch.runtime.onnx_export import exported, max_abs_difference
from amcsearch.runtime.onnx_module import OnnxModule
from amcsearch.runtime.quantisation import converted
from amcsearch.runtime.verify import PairedLatency, measure_many, measure_paired
from amcsearch.training.checkpoint import save_state
from amcsearch.training.data import stacked
from amcsearch.training.loop import evaluate

__all__ = ["Outcome", "finetune", "measurer", "verify"]

PARITY_BATCHES: Final = 64


@dataclass(frozen=True)
class Outcome:
    """The verified result: test accuracy by network, parity with ONNX Runtime, latency beside the dense network.

    ``accuracy`` is torch's, in float32; ``delivered`` that of the ONNX models in the device's data type, empty where
    that is float32 too; parity is that of the float32 export, before anything is quantised.
    """

    chosen: Finalist
    accuracy: dict[str, float]
    delivered: dict[str, float]
    onnx_max_abs_diff: float
    latency: PairedLatency


def _delivered(job: Job, models: Sequence[bytes]) -> list[bytes]:
    """Exported models in the data type the device computes in, calibrated on the calibration split."""
    inputs = stacked(job.network.splits.calibration)[0].numpy()
    return [converted(model, job.config.device.dtype, inputs) for model in models]


def measurer(job: Job) -> Measure:
    """Return a function that measures policies beside the dense network, all in the same interleaved rounds.

    All of them as they would be delivered: in the device's data type.
    """
    network = job.network

    def measure(policies: Sequence[PruningPolicy]) -> list[PairedLatency]:
        modules = [network.model, *map(job.evaluator.pruned, policies)]
        dense, *pruned = _delivered(job, [exported(module, network.example) for module in modules])
        device, seed = job.config.device, job.config.seed
        inputs = network.example.numpy()
        return measure_many(dense, pruned, inputs, threads=device.threads, rounds=device.rounds, seed=seed)

    return measure


def finetune(job: Job, pruned: nn.Module, observer: Observer) -> nn.Module:
    """Return a copy of the pruned network, trained by the configured recipe with the dense network as its teacher.

    Raises:
        BadInputError: the training diverges.
    """
    return fine_tune(job.config, job.network, copy.deepcopy(pruned), observer)


def verify(job: Job, run: RunFolder, pruned: nn.Module, tuned: nn.Module, chosen: Finalist) -> Outcome:
    """Export, compare with torch, measure beside dense, and read the test split for the first and only time.

    Raises:
        BadInputError: a model that cannot be exported, or a folder that cannot be written.
    """
    network, device = job.network, job.config.device
    save_state(tuned, run.pruned_safetensors)
    exports = {name: exported(m, network.example) for name, m in (("dense", network.model), ("finetuned", tuned))}
    onnx = dict(zip(exports, _delivered(job, list(exports.values())), strict=True))
    with run.replacing(run.pruned_onnx) as path:
        path.write_bytes(onnx["finetuned"])
    inputs, targets = stacked(network.splits.test)
    batches = min(PARITY_BATCHES, len(inputs) // device.batch)
    compared = inputs[: batches * device.batch] if batches else network.example
    latency = measure_paired(
        onnx["dense"],
        run.pruned_onnx,
        network.example.numpy(),
        threads=device.threads,
        rounds=device.rounds,
        seed=job.config.seed,
    )
    modules = {"dense": network.model, "pruned": pruned, "finetuned": tuned}
    accuracy = {name: evaluate(module, inputs, targets)[1] for name, module in modules.items()}
    judged = {} if device.dtype == "float32" else onnx  # a float32 model is held to torch by parity
    delivered = {name: evaluate(OnnxModule(model), inputs, targets)[1] for name, model in judged.items()}
    return Outcome(chosen, accuracy, delivered, max_abs_difference(tuned, exports["finetuned"], compared), latency)
