"""Finalists and the delivered model: export, measured latency, metric of the file on the test split.

Prediction is never the last word: the best policies are measured on the device. Those within the limit are fine-tuned
for a few epochs, and the best of them on the search split is chosen.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amcsearch.core import (
    BadInputError,
    Evaluation,
    Limit,
    PruningPolicy,
    Trial,
    TrialState,
    at_worst,
)
from amcsearch.jobs.delivered_files import NetworkFiles, judge_network, judge_stored
from amcsearch.jobs.measuring import PairedRun, awaited_device, is_awaited, measure_paired
from amcsearch.jobs.network_check import onnx_settings
from amcsearch.jobs.setup import Job
from amcsearch.measure import KitPlan
from amcsearch.runs import DeliveredFile, MeasuringDevice, RunFolder
from amcsearch.runtime import (
    ONNX_SUFFIX,
    FileModule,
    OnnxRuntime,
    PairedLatency,
    exported,
    signature_of,
)
from amcsearch.training import batches_of, evaluate

__all__ = [
    "Exports",
    "Finalist",
    "Measure",
    "Outcome",
    "choose",
    "finalist_name",
    "latency_overshoot",
    "measure_finalists",
    "measured_overshoot",
    "verify",
]

ROUNDS: Final = 4
CHEAPER: Final = (0.9, 0.8, 0.65)  # shares of a latency limit, for a prediction that flatters by a constant factor
TOLERANCE: Final = 1e-9  # the same cost summed in another order is still the same cost

Measure = Callable[[Sequence[PruningPolicy]], Sequence[PairedLatency]]
"""Measures policies beside the dense network, all in the same interleaved rounds."""


def finalist_name(trial: int) -> str:
    """Name a finalist in the plan of a measurement, by the number of its trial."""
    return f"trial-{trial}"


@dataclass(frozen=True)
class Finalist:
    """A trial with its measured latency; ``overshoot`` is its share of the limit (0: no limit), see there.

    Where the measurement decides nothing, or is still to come (``latency`` is None), it is the predicted share; a later
    ``round`` counts where no finalist of an earlier one is within the limit. ``trained`` is its evaluation in the data
    type of the device after a short fine-tuning of ``trained_epochs``, which may be 0, and ``trained_reward`` what that
    is worth; None where there was none.
    """

    trial: Trial
    latency: PairedLatency | None
    overshoot: float
    trained: Evaluation | None = None
    trained_reward: float | None = None
    trained_epochs: int | None = None
    round: int = 1

    @property
    def name(self) -> str:
        """Its name in the plan of a measurement."""
        return finalist_name(self.trial.number)

    @property
    def standing(self) -> tuple[bool, int, float]:
        """A key that is larger of a better finalist: one that was trained for longer, then one of more worth."""
        return self.worth > -math.inf, self.trained_epochs or 0, self.worth

    @property
    def worth(self) -> float:
        """The reward after the short fine-tuning, or that of the trial; minus infinity where it is no number."""
        return at_worst(self.trial.reward if self.trained_reward is None else self.trained_reward, -math.inf)


def latency_overshoot(limit: Limit | None, latency: PairedLatency) -> float:
    """Measured latency as a share of its limit, which is a share of dense as measured or absolute ms; 0 without one.

    The upper end of the 95 % interval counts: what is within the limit here should be so when measured again.
    """
    if limit is None:
        return 0.0
    return (latency.ratio_high if limit.of_dense else latency.pruned_high) / limit.value


def measure_finalists(
    trials: Iterable[Trial], count: int, limit: Limit | None, limit_ms: float | None, measure: Measure | None
) -> list[Finalist]:
    """Measure the best trials, and go on to cheaper ones until one is within the latency limit as measured.

    Each round takes the ``count`` best trials by reward whose predicted latency, corrected by what the rounds before
    taught (median of measured over predicted), is within the limit. A predictor that is wrong by a constant factor so
    costs one more round, not the budget. A measurement in doubt teaches nothing: the prediction stands. A device that
    is absent measures once: its second round has the best trials within some shares of the limit.

    Args:
        trials: of the search; only complete ones count.
        count: finalists of one round.
        limit: on latency, None without one.
        limit_ms: the same in predicted ms.
        measure: measures policies beside the dense network; None where that is done later.

    Raises:
        BadInputError: no complete trial.
    """
    complete = (trial for trial in trials if trial.state is TrialState.COMPLETE)
    ranked = sorted(complete, key=lambda trial: (at_worst(-trial.reward), trial.number))
    if not ranked:
        raise BadInputError(
            "no policy was evaluated with a finite loss: the network gives NaN or infinity once channels are removed; "
            "guard the operation that does, raise the budget, or take another agent (trials.csv has what each found)"
        )
    if measure is None:
        return _awaited(ranked, count, limit_ms)
    finalists: list[Finalist] = []
    for _ in range(ROUNDS):
        chosen = _next(ranked, finalists, count, limit_ms)
        if not chosen:
            break
        for trial, latency in zip(chosen, measure([t.policy for t in chosen]), strict=True):
            finalists.append(Finalist(trial, latency, measured_overshoot(trial, limit, limit_ms, latency)))
        if any(finalist.overshoot <= 1.0 for finalist in finalists):
            break
    return finalists


def _awaited(ranked: Sequence[Trial], count: int, limit_ms: float | None) -> list[Finalist]:
    """Finalists that a device measures once: the best, and where latency is limited cheaper ones for a second round."""
    chosen = _next(ranked, [], count, limit_ms)
    finalists = [Finalist(trial, None, _predicted_share(trial, limit_ms)) for trial in chosen]
    for share in CHEAPER if limit_ms is not None else ():
        known = {finalist.trial.policy for finalist in finalists}
        fitting = (
            trial for trial in ranked if trial.policy not in known and _predicted_share(trial, limit_ms) <= share
        )
        finalists += [Finalist(trial, None, _predicted_share(trial, limit_ms), round=2) for trial in islice(fitting, 1)]
    return finalists


def _predicted_share(trial: Trial, limit_ms: float | None) -> float:
    """Predicted latency as a share of its limit; 0 where either is not known."""
    predicted = trial.cost.latency_ms
    if limit_ms is None or predicted is None:
        return 0.0
    share = predicted / limit_ms
    return min(share, 1.0) if share < 1.0 + TOLERANCE else share


def measured_overshoot(trial: Trial, limit: Limit | None, limit_ms: float | None, latency: PairedLatency) -> float:
    """The share of the limit as measured; as predicted where a busy host left the measurement in doubt."""
    predicted = trial.cost.latency_ms
    if latency.doubt is None or limit_ms is None or predicted is None:
        return latency_overshoot(limit, latency)
    return predicted / limit_ms


def choose(finalists: Sequence[Finalist]) -> Finalist:
    """Return the best among those within the limit as measured, or that of the smallest overshoot if none is.

    Those of the first round that has any within the limit count, by ``standing``.
    """
    within = [finalist for finalist in finalists if finalist.overshoot <= 1.0]
    if within:
        first = min(finalist.round for finalist in within)
        return max((finalist for finalist in within if finalist.round == first), key=lambda finalist: finalist.standing)
    return min(finalists, key=lambda finalist: at_worst(finalist.overshoot))


def _next(ranked: Sequence[Trial], measured: Sequence[Finalist], count: int, limit_ms: float | None) -> list[Trial]:
    done = {finalist.trial.policy for finalist in measured}
    left = list({trial.policy: trial for trial in reversed(ranked) if trial.policy not in done}.values())[::-1]
    if limit_ms is None or not measured:
        return left[:count]
    predicted: NDArray[np.float64] = np.array([f.trial.cost["latency_ms"] / limit_ms for f in measured])
    correction = float(np.median(np.array([f.overshoot for f in measured]) / predicted))
    within = [trial for trial in left if trial.cost["latency_ms"] / limit_ms * correction <= 1.0]
    return (within or sorted(left, key=lambda trial: at_worst(trial.cost["latency_ms"])))[:count]


@dataclass(frozen=True)
class Outcome:
    """The verified result: test metric by network, what the delivered files are worth, latency beside dense.

    ``metric`` is torch's, in float32; ``delivered`` that of the files of the runtime: of the dense network only where
    the device computes in another data type, of the fine-tuned one as the file was read back from the disk. ``files``
    say how far each delivered file agrees with torch, ``pruned.onnx`` first. ``in_float32`` is the dense network in
    float32 beside the dense one, where the device computes in another data type. Both latencies are None where
    ``device`` has not measured them yet.
    """

    chosen: Finalist
    metric: dict[str, float]
    delivered: dict[str, float]
    files: tuple[DeliveredFile, ...]
    latency: PairedLatency | None
    device: MeasuringDevice
    in_float32: PairedLatency | None = None


class Exports(NetworkFiles):
    """Networks of one job as files of its runtime, each cut, refitted and exported once; the dense one among them.

    A finalist that is chosen is not cut again for delivery: ``pruned`` gives the network that was measured.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job.config, job.workload)
        self.job = job
        self._pruned: dict[PruningPolicy, nn.Module] = {}
        self._files: dict[PruningPolicy, bytes] = {}

    def pruned(self, policy: PruningPolicy) -> nn.Module:
        """Return the network of a policy as the job's evaluator cuts and refits it; not to be changed."""
        if policy not in self._pruned:
            self._pruned[policy] = self.job.evaluator.pruned(policy)
        return self._pruned[policy]

    def cut(self, policies: Iterable[PruningPolicy]) -> Job:
        """Cut the networks of policies now; no other is cut after that.

        Returns:
            The job without the statistics of the refit. They are freed once nobody holds the job as it was, so what
            is trained after that has their memory.
        """
        for policy in policies:
            self.pruned(policy)
        self.job = replace(self.job, evaluator=self.job.evaluator.closed())
        return self.job

    @property
    def measure(self) -> Measure | None:
        """Measures policies as they would be delivered; None where a device that is not here does so later."""
        return None if is_awaited(self.job.config) else self._measured

    def _measured(self, policies: Sequence[PruningPolicy]) -> Sequence[PairedLatency]:
        return self.measure_models([self.delivered(policy) for policy in policies]).latencies

    def measure_models(self, models: Sequence[Path | bytes]) -> PairedRun:
        """Measure models beside the dense one, all in the same interleaved rounds."""
        job, decides = self.job, self.job.device.limit("latency_ms") is not None
        return measure_paired(job.config, self.dense_delivered, models, job.workload.example, decides=decides)

    def delivered(self, policy: PruningPolicy) -> bytes:
        """Return the network of a policy as it would be delivered, before fine-tuning."""
        if policy not in self._files:
            self._files[policy] = self.file(self.pruned(policy))
        return self._files[policy]

    def as_delivered(self, model: nn.Module) -> nn.Module:
        """Return what computes as the delivered file of a network would: itself in float32, its file otherwise.

        A network that ``pruned`` returned is not written again where it was measured.
        """
        if self.job.config.device.dtype == "float32":
            return model
        policy = next((policy for policy, pruned in self._pruned.items() if pruned is model), None)
        file = self.file(model) if policy is None else self.delivered(policy)
        return FileModule(self.runtime.load(file), signature_of(model, self.job.workload.example))

    def plan(self, finalists: Sequence[Finalist]) -> KitPlan:
        """Return what a device that is not here measures: the finalists beside the dense network."""
        policies = {finalist.name: finalist.trial.policy for finalist in finalists}
        return self.kit_plan({name: self.delivered(policy) for name, policy in policies.items()}, policies)


def verify(job: Job, run: RunFolder, exports: Exports, tuned: nn.Module, chosen: Finalist) -> Outcome:
    """Export, measure beside dense, read the files back, and read the test split for the first and only time.

    The run folder has the policy already.

    Raises:
        BadInputError: a model that cannot be exported, or a folder that cannot be written.
    """
    workload, device = job.workload, job.config.device
    in_float32, delivered_file = exports.in_float32(tuned), run.delivered(exports.runtime.suffix)
    with run.replacing(delivered_file) as path:
        path.write_bytes(exports.in_device_type(in_float32))
    quantised, signature = device.dtype != "float32", signature_of(tuned, workload.example)
    latencies: Sequence[PairedLatency] = ()
    measuring = awaited_device(job.config, job.device.table)
    if not is_awaited(job.config):
        made = exports.measure_models([delivered_file, *([exports.dense] if quantised else [])])
        latencies, measuring = made.latencies, made.device
    latency, in_float32_latency = (*latencies, None, None)[:2]
    batches = batches_of(workload.splits.test, name="test")
    modules = {"dense": workload.model, "pruned": exports.pruned(chosen.trial.policy), "finetuned": tuned}
    task = workload.task
    metric = {name: evaluate(module, batches, task)[1] for name, module in modules.items()}
    file, in_file = judge_network(
        *(delivered_file, exports.runtime, tuned, in_float32, batches, task, signature), quantised=quantised
    )
    judged = [file]
    if delivered_file.suffix != ONNX_SUFFIX:
        in_onnx = exported(tuned, workload.example, onnx_settings(job.config))
        with run.replacing(run.pruned_onnx) as path:
            path.write_bytes(in_onnx)
        onnx_file = (run.pruned_onnx, OnnxRuntime(device.threads), tuned, in_onnx)
        judged.insert(0, judge_network(*onnx_file, batches, task, signature)[0])
    delivered = {"finetuned": in_file}
    if quantised:
        dense = FileModule(exports.runtime.load(exports.dense_delivered), signature)
        delivered["dense"] = evaluate(dense, batches, task)[1]
    files = (*judged, *judge_stored(run, job.config, job.given, tuned, batches, task, signature))
    return Outcome(chosen, metric, delivered, files, latency, measuring, in_float32_latency)
