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
from amcsearch.runtime.onnx_export import export, exported, max_abs_difference
from amcsearch.runtime.verify import PairedLatency, measure_many, measure_paired
from amcsearch.training.checkpoint import save_state
from amcsearch.training.data import stacked
from amcsearch.training.loop import evaluate

__all__ = ["Outcome", "finetune", "measurer", "verify"]

PARITY_BATCHES: Final = 64


@dataclass(frozen=True)
class Outcome:
    """The verified result: test accuracy by network, parity with ONNX Runtime, latency beside the dense network."""

    chosen: Finalist
    accuracy: dict[str, float]
    onnx_max_abs_diff: float
    latency: PairedLatency


def measurer(job: Job) -> Measure:
    """Return a function that measures policies beside the dense network, all in the same interleaved rounds."""
    network = job.network

    def measure(policies: Sequence[PruningPolicy]) -> list[PairedLatency]:
        dense = exported(network.model, network.example)
        pruned = [exported(job.evaluator.pruned(policy), network.example) for policy in policies]
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
    network, config = job.network, job.config
    save_state(tuned, run.pruned_safetensors)
    with run.replacing(run.pruned_onnx) as path:
        export(tuned, network.example, path)
    inputs, targets = stacked(network.splits.test)
    batches = min(PARITY_BATCHES, len(inputs) // config.device.batch)
    compared = inputs[: batches * config.device.batch] if batches else network.example
    latency = measure_paired(
        exported(network.model, network.example),
        run.pruned_onnx,
        network.example.numpy(),
        threads=config.device.threads,
        rounds=config.device.rounds,
        seed=config.seed,
    )
    modules = {"dense": network.model, "pruned": pruned, "finetuned": tuned}
    accuracy = {name: evaluate(module, inputs, targets)[1] for name, module in modules.items()}
    return Outcome(chosen, accuracy, max_abs_difference(tuned, run.pruned_onnx, compared), latency)
