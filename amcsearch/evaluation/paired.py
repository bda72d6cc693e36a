"""Paired evaluation: a pruned network beside the dense one on the same samples, with a lower bound of what is gained.

A gain is how much better the metric is than the dense network's, whichever direction it has; a loss is negative.
``bounds`` says how it is bounded, by what the task's metric is.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, Evaluation, PruningPolicy
from amcsearch.evaluation.bounds import change_low, jackknife_low
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.evaluation.sensitivity import spread
from amcsearch.graph import Batch, Batches, evaluating
from amcsearch.training import Task, evaluate

__all__ = [
    "PairedEvaluator",
    "Recalibration",
    "judge_recalibration",
    "left_out",
    "sample_values",
]

Array = NDArray[np.float64]
_GROUPS: Final = 10
_JUDGING: Final = 128  # samples that tell a recalibration that does harm
_CONFIDENCE: Final = 0.99


class PairedEvaluator:
    """Evaluates policies as ``evaluator`` does, on some ``rows`` (n,) of its search split, paired with dense.

    ``is_mean`` says that the metric is a mean over samples.

    Raises:
        BadInputError: no rows, or a single one where the metric is no mean over samples.
    """

    def __init__(self, evaluator: Evaluator, rows: NDArray[np.int64], confidence: float) -> None:
        if not len(rows):
            raise BadInputError("paired evaluation: 0 samples, at least 1 is needed; raise data.splits.search")
        self.samples, self.confidence = len(rows), confidence
        self._evaluator, self._task = evaluator, evaluator.task
        self._batches = evaluator.search.chosen(rows.tolist())
        self._dense = sample_values(evaluator.model, self._batches, self._task)
        self.is_mean = self._dense is not None
        if self._dense is None:
            self._dense = left_out(evaluator.model, self._batches, self._task)

    @property
    def dense_metric(self) -> float:
        """Metric of the dense network on these rows; the mean over samples where it is one."""
        assert self._dense is not None
        return float(self._dense.mean() if self.is_mean else self._dense[0])

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        """As ``Evaluator.evaluate``, with one-sided bounds of the gain over the dense network, one for each side.

        A mean over samples is that here also where sequences have more or fewer targets.

        Raises:
            BadInputError: the policy does not fit the network.
        """
        start, metric = time.perf_counter(), self._task.metric
        assert self._dense is not None
        pruned = self._evaluator.pruned(policy)
        loss, _ = evaluate(pruned, self._batches, self._task)
        sign = metric.gain(1.0, 0.0)
        if self.is_mean:
            values = sample_values(pruned, self._batches, self._task)
            assert values is not None
            gains = sign * (values - self._dense)
            low, high = (
                side * change_low(side * gains, self.confidence, outcomes=metric.is_share) for side in (1.0, -1.0)
            )
            return Evaluation(float(values.mean()), loss, time.perf_counter() - start, low, high)
        values = left_out(pruned, self._batches, self._task)
        gains = sign * (values - self._dense)
        low, high = (side * jackknife_low(side * gains, self.confidence) for side in (1.0, -1.0))
        return Evaluation(float(values[0]), loss, time.perf_counter() - start, low, high)


@dataclass(frozen=True)
class Recalibration:
    """What new statistics of batch norms do: the metric (without, with them) of the dense and of a pruned network.

    ``samples`` are those that were judged. ``pruned`` is None where the dense network loses nothing beyond noise.
    """

    dense: tuple[float, float]
    pruned: tuple[float, float] | None
    samples: int
    is_harmful: bool


def judge_recalibration(evaluator: Evaluator, policy: PruningPolicy) -> Recalibration | None:
    """Compare the evaluator with itself without recalibration, on some samples of the search split.

    It is harmful where the dense network's metric is worse beyond noise and that of ``policy`` is worse too: what is
    lost of the dense network can be less than what is regained of a pruned one. None where nothing is recalibrated, or
    where a single sample says nothing.

    Raises:
        BadInputError: the policy does not fit the network.
    """
    samples = min(evaluator.search.samples, _JUDGING)
    if not evaluator.recalibrates or samples < 2:
        return None
    rows = spread(np.arange(evaluator.search.samples), samples)
    paired, metric = PairedEvaluator(evaluator, rows, _CONFIDENCE), evaluator.task.metric
    recalibrated = paired.evaluate(evaluator.trace.network.dense)
    dense, highest = (paired.dense_metric, recalibrated.metric), recalibrated.change_high
    if highest is not None and highest >= 0.0:
        return Recalibration(dense, None, samples, is_harmful=False)
    batches = evaluator.search.chosen(rows.tolist())
    kept, anew = (
        evaluate(each.pruned(policy), batches, evaluator.task)[1]
        for each in (evaluator.without_recalibration(), evaluator)
    )
    return Recalibration(dense, (kept, anew), samples, is_harmful=not metric.gain(anew, kept) >= 0.0)


def _outputs(model: nn.Module, batches: Batches) -> Iterator[tuple[object, Batch]]:
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            yield batch.through(model), batch


def sample_values(model: nn.Module, batches: Batches, task: Task) -> Array | None:
    """The metric of every sample that has a target, (n,): 0 or 1 where each has one label.

    None where the metric is no mean over samples.
    """
    values: list[Tensor] = []
    for output, batch in _outputs(model, batches):
        of_batch = task.sample_values(output, batch.targets)
        if of_batch is None:
            return None
        values.append(of_batch[~of_batch.isnan()].double().cpu())
    return np.asarray(torch.cat(values))


def left_out(model: nn.Module, batches: Batches, task: Task) -> Array:
    """The metric on all samples, and on all without one group of them at a time: (1 + G,).

    Raises:
        BadInputError: a single sample.
    """
    groups = min(_GROUPS, batches.samples)
    if groups < 2:
        raise BadInputError(
            f"{task.metric.word} is no mean over samples, so its bound needs at least 2 samples; "
            "raise data.splits.search"
        )
    meters = [task.meter() for _ in range(1 + groups)]
    order = np.random.default_rng(0).permutation(batches.samples)
    for number, rows in enumerate(np.array_split(order, groups), 1):
        for output, batch in _outputs(model, batches.chosen(np.sort(rows).tolist())):  # streams have one order
            for g, meter in enumerate(meters):
                if g != number:
                    meter.update(output, batch.targets)
    return np.array([meter.value() for meter in meters])
