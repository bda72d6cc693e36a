"""From a chosen policy to a proven model: fine-tuning, export, parity, measured latency, the test split.

Prediction is never the last word: the best policies are measured on the device, and one of them is chosen.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amcsearch.core import BadInputError, PruningPolicy, Trial, TrialState
from amcsearch.jobs.finetuning import fine_tune
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.setup import Job
from amcsearch.runs import RunFolder
from amcsearch.runtime import (
    OnnxModule,
    PairedLatency,
    converted,
    exported,
    max_abs_difference,
    measure_many,
    measure_paired,
)
from amcsearch.training import evaluate, save_state, stacked

__all__ = [
    "Finalist",
    "Measure",
    "Outcome",
    "choose",
    "finetune",
    "latency_overshoot",
    "measure_finalists",
    "measurer",
    "verify",
]

ROUNDS: Final = 4

Measure = Callable[[Sequence[PruningPolicy]], Sequence[PairedLatency]]
"""Measures policies beside the dense network, all in the same interleaved rounds."""


@dataclass(frozen=True)
class Finalist:
    """A trial with its measured latency; ``overshoot`` is its share of the limit (0: no limit), see there."""

    trial: Trial
    latency: PairedLatency
    overshoot: float


def latency_overshoot(limit: str | float | None, latency: PairedLatency) -> float:
    """Measured latency as a share of the budget's entry: ``"0.5x"`` of dense, or absolute ms; 0 without an entry.

    The upper end of the 95 % interval counts: what is within the limit here should be so when measured again.
    """
    if limit is None:
        return 0.0
    if isinstance(limit, str) and limit.endswith("x"):
        return latency.ratio_high / float(limit[:-1])
    return latency.pruned_high / float(limit)


def measure_finalists(
    trials: Iterable[Trial], count: int, limit: str | float | None, limit_ms: float | None, measure: Measure
) -> list[Finalist]:
    """Measure the best trials, and go on to cheaper ones until one is within the latency limit as measured.

    Each round takes the ``count`` best trials by reward whose predicted latency, corrected by what the rounds before
    taught (median of measured over predicted), is within the limit. A predictor that is wrong by a constant factor so
    costs one more round, not the budget.

    Args:
        trials: of the search; only complete ones count.
        count: finalists of one round.
        limit: the budget's latency entry as written, None without one.
        limit_ms: the same in predicted ms.
        measure: measures policies beside the dense network.

    Raises:
        BadInputError: no complete trial.
    """
    ranked = sorted((t for t in trials if t.state is TrialState.COMPLETE), key=lambda t: (-t.reward, t.number))
    if not ranked:
        raise BadInputError("no policy was evaluated with a finite loss; look at trials.csv, or raise search.trials")
    finalists: list[Finalist] = []
    for _ in range(ROUNDS):
        chosen = _next(ranked, finalists, count, limit_ms)
        if not chosen:
            break
        for trial, latency in zip(chosen, measure([t.policy for t in chosen]), strict=True):
            finalists.append(Finalist(trial, latency, latency_overshoot(limit, latency)))
        if any(finalist.overshoot <= 1.0 for finalist in finalists):
            break
    return finalists


def choose(finalists: Sequence[Finalist]) -> Finalist:
    """Return the best reward among those within the limit as measured, or the smallest overshoot if none is."""
    within = [finalist for finalist in finalists if finalist.overshoot <= 1.0]
    if within:
        return max(within, key=lambda finalist: finalist.trial.reward)
    return min(finalists, key=lambda finalist: finalist.overshoot)


def _next(ranked: Sequence[Trial], measured: Sequence[Finalist], count: int, limit_ms: float | None) -> list[Trial]:
    done = {finalist.trial.policy for finalist in measured}
    left = list({trial.policy: trial for trial in reversed(ranked) if trial.policy not in done}.values())[::-1]
    if limit_ms is None or not measured:
        return left[:count]
    predicted: NDArray[np.float64] = np.array([f.trial.cost["latency_ms"] / limit_ms for f in measured])
    correction = float(np.median(np.array([f.overshoot for f in measured]) / predicted))
    within = [trial for trial in left if trial.cost["latency_ms"] / limit_ms * correction <= 1.0]
    return (within or sorted(left, key=lambda trial: trial.cost["latency_ms"]))[:count]


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
