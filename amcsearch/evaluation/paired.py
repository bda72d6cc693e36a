"""Paired evaluation: a pruned network beside the dense one on the same samples, with a lower bound of what is gained.

A GAIN is how much better the metric is than the dense network's, whichever direction it has; a loss is negative. Three
cases, by what the task's metric is:

RIGHT OR WRONG. Only predictions that change count: w became right, l became wrong. With one target a sample the bound
is Tango's (1998, Statistics in Medicine 17:891): the lowest difference d that the score test

    z(d) = (w - l - n·d) / sqrt(n·(2q + d - d²)),   q the likeliest share of losses if the difference is d

does not reject. Unlike a bootstrap's, this bound stays below zero where no prediction changed: then it is -z²/(n + z²),
because n samples can show no more.

A MEAN OVER SAMPLES (shares of sequences, squared errors): a bootstrap over samples, because positions of one sample are
not independent.

NO MEAN OVER SAMPLES (mIoU, F1, R², perplexity): a jackknife that leaves out one of G groups of samples at a time.
With d_g the gain without group g and d the gain on all,

    low = d - t·sqrt((G - 1)/G · sum_g (d_g - mean d_g)²),   t the quantile of Student's t with G - 1 degrees of freedom

(Shao & Tu 1995, The Jackknife and Bootstrap, section 2.3). It asks for nothing but the metric itself.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, Evaluation, PruningPolicy
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import Batch, Batches, evaluating
from amcsearch.training import Task, evaluate

__all__ = [
    "PairedEvaluator",
    "Recalibration",
    "change_low",
    "jackknife_low",
    "judge_recalibration",
    "left_out",
    "sample_values",
    "tango_low",
]

Array = NDArray[np.float64]
_BOOTSTRAPS: Final = 2000
_HALVINGS: Final = 60
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
    rows = np.linspace(0, evaluator.search.samples - 1, samples).round().astype(np.int64)
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


def jackknife_low(gains: Array, confidence: float) -> float:
    """One-sided lower bound of the first of ``gains`` (1 + G,), by those without one group at a time, the others."""
    from scipy.stats import t  # a second of imports that few runs need

    whole, without = gains[0], gains[1:]
    groups = len(without)
    deviation = np.sqrt((groups - 1) / groups * np.square(without - without.mean()).sum())
    return float(whole - t.ppf(confidence, groups - 1) * deviation)


def change_low(differences: Array, confidence: float, *, outcomes: bool = True) -> float:
    """One-sided lower confidence bound of the mean of paired differences (n,).

    ``outcomes`` says that values are shares: where all are 0 or 1 the bound is Tango's.
    """
    if outcomes and np.isin(differences, (-1.0, 0.0, 1.0)).all():
        return tango_low(int((differences > 0).sum()), int((differences < 0).sum()), len(differences), confidence)
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(_BOOTSTRAPS)]
    return float(np.quantile(means, 1.0 - confidence))


def tango_low(won: int, lost: int, samples: int, confidence: float) -> float:
    """Tango's one-sided lower bound of (won - lost) / samples, by bisection: z(d) falls as d rises."""
    z = NormalDist().inv_cdf(confidence)
    low, high = -1.0, (won - lost) / samples
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _score(won, lost, samples, middle) > z else (low, middle)
    return low


def _score(won: int, lost: int, samples: int, difference: float) -> float:
    """z(d); the share q of losses maximises the likelihood: a root of 2n·q² + b·q - l·d·(1 - d) = 0."""
    b = -won - lost + (2 * samples - won + lost) * difference
    c = -lost * difference * (1.0 - difference)
    share = ((b * b - 8.0 * samples * c) ** 0.5 - b) / (4.0 * samples)
    variance = samples * (2.0 * share + difference * (1.0 - difference))
    return float((won - lost - samples * difference) / max(variance, 1e-300) ** 0.5)
