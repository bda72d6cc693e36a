"""Evaluations that stop early: once a policy cannot beat the best one so far, with a stated confidence.

Where the metric is a mean over samples, the incumbent's value y_i of every sample is known. After n of N samples, in
shuffled order, the policy's values x_i differ from them by d_i = x_i - y_i, with mean d. Then

    estimate of the metric on all samples   y + d,   y the mean of all y_i
    best that is still possible             y + d + h·sqrt(1 - n/N),   and never above (x_1 + … + x_n + N - n) / N

for a metric that is better when higher; h is the half width of a one-sided interval for the mean of d_i: Tango's where
values are right or wrong (see ``bounds``), else the normal one. The root is the correction for drawing from a finite
population without replacement (Cochran 1977, Sampling Techniques, section 2.6). The second bound is certain, for shares
alone. There is a look after each batch but the last, so each has (1 - confidence) / looks as its level (Bonferroni).

The confidence is that of one policy: of those that would beat the incumbent, at most a share of 1 - confidence stops.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amcsearch.core import BadInputError, Evaluation, Incumbent, Metric, PruningPolicy
from amcsearch.evaluation.bounds import tango_low
from amcsearch.graph import Batch, Batches
from amcsearch.training import Task, evaluate

__all__ = ["Judge", "attainable"]

Array = NDArray[np.float64]
_FEWEST: Final = 32  # samples, before which no interval is trusted
_KEPT: Final = 64  # policies whose values are kept: the incumbent is among the last ones that did not stop
_TOLERANCE: Final = 1e-6  # of the metric, between its meter and the mean over samples


def attainable(values: Array, reference: Array, confidence: float, metric: Metric) -> tuple[float, float]:
    """Return the estimate of a metric on all samples, and the best value that is still possible.

    Args:
        values: of the samples so far, (n,).
        reference: the incumbent's of all samples, (N,), in the same order.
        confidence: one-sided, of this look alone.
        metric: its unit and direction.
    """
    sign, left = metric.gain(1.0, 0.0), len(reference) - len(values)
    gains = sign * (values - reference[: len(values)])
    width = _half_width(gains, confidence, outcomes=metric.is_share)
    estimate = sign * reference.mean() + gains.mean()
    best = estimate + width * math.sqrt(left / len(reference))
    if metric.is_share:
        worst = min(metric.gain(metric.worst, 0.0), (sign * values).min())  # a cosine may be negative
        ends = (worst, 1.0) if metric.higher_is_better else (worst, 0.0)
        least, most = ((sign * values.sum() + left * end) / len(reference) for end in ends)
        best, estimate = min(best, most), min(max(estimate, least), most)
    return float(sign * estimate), float(sign * best)


def _half_width(gains: Array, confidence: float, *, outcomes: bool) -> float:
    """How far the mean of ``gains`` may lie above that of those that were seen, before the finite correction."""
    if outcomes and np.isin(gains, (-1.0, 0.0, 1.0)).all():
        low = tango_low(int((gains < 0).sum()), int((gains > 0).sum()), len(gains), confidence)
        return float(-low - gains.mean())
    return float(NormalDist().inv_cdf(confidence) * gains.std(ddof=1) / math.sqrt(len(gains)))


class Judge:
    """Judges networks on the search split in shuffled order, and stops where a policy cannot beat the incumbent.

    ``confidence`` is one-sided, over all looks at one policy.

    Raises:
        BadInputError: the metric is no mean over samples: says why.
    """

    def __init__(self, model: nn.Module, search: Batches, task: Task, confidence: float) -> None:
        order = np.random.default_rng(0).permutation(search.samples)
        self.batches, self.task, self.confidence = search.chosen(order.tolist()), task, confidence
        self._values: OrderedDict[PruningPolicy, Array] = OrderedDict()
        evaluation, values = self._judged(model, None, math.nan)
        if values is None:
            raise BadInputError(f"{task.metric.word} is no mean over samples, so no bound tells when to stop")
        mean = float(values[~np.isnan(values)].mean())
        if not abs(mean - evaluation.metric) <= _TOLERANCE * max(1.0, abs(mean)):
            raise BadInputError(
                f"{task.metric.word} is {evaluation.metric:.6g} and its mean over samples {mean:.6g}, as where samples "
                "have more or fewer targets, so no bound tells when to stop"
            )

    def evaluate(
        self, policy: PruningPolicy, incumbent: Incumbent | None, pruned: Callable[[PruningPolicy], nn.Module]
    ) -> Evaluation:
        """Return the policy's evaluation, of all samples or until it cannot beat the incumbent; without its seconds."""
        reference = None if incumbent is None else self._reference(incumbent.policy, pruned)
        evaluation, values = self._judged(
            pruned(policy), reference, math.nan if incumbent is None else incumbent.to_beat
        )
        if evaluation.stopped_after is None and values is not None:
            self._keep(policy, values)
        return evaluation

    def _reference(self, policy: PruningPolicy, pruned: Callable[[PruningPolicy], nn.Module]) -> Array:
        """The incumbent's values of all samples; evaluated again where another process had evaluated it."""
        if policy not in self._values:
            _, values = self._judged(pruned(policy), None, math.nan)
            assert values is not None
            self._keep(policy, values)
        self._values.move_to_end(policy)
        return self._values[policy]

    def _keep(self, policy: PruningPolicy, values: Array) -> None:
        self._values[policy] = values
        while len(self._values) > _KEPT:
            self._values.popitem(last=False)

    def _judged(self, model: nn.Module, reference: Array | None, to_beat: float) -> tuple[Evaluation, Array | None]:
        """The evaluation of a network, and the value of every sample, NaN of one without a target."""
        looks = _Looks(self.task, self.batches, reference, to_beat, self.confidence)
        loss, metric = evaluate(model, self.batches, self.task, looks)
        if looks.stopped is None:
            return Evaluation(metric, loss, math.nan), looks.values
        estimate, best = looks.stopped
        return Evaluation(estimate, loss, math.nan, stopped_after=looks.samples, metric_bound=best), None


class _Looks:
    """Collects the values of samples, batch by batch; true where the policy cannot beat the incumbent any more."""

    def __init__(
        self, task: Task, batches: Batches, reference: Array | None, to_beat: float, confidence: float
    ) -> None:
        looks = max(1, math.ceil(batches.samples / batches.batch_size) - 1)
        self.samples = 0
        self.stopped: tuple[float, float] | None = None
        self._task, self._reference, self._to_beat = task, reference, to_beat
        self._total, self._confidence = batches.samples, 1.0 - (1.0 - confidence) / looks
        self._parts: list[Array] | None = []

    @property
    def values(self) -> Array | None:
        """The values so far; None where the metric is no mean over samples."""
        return None if self._parts is None else np.concatenate(self._parts)

    def __call__(self, output: Any, batch: Batch) -> bool:
        self.samples += batch.size
        if self._parts is None:
            return False
        values = self._task.sample_values(output, batch.targets)
        if values is None:
            self._parts = None
            return False
        self._parts.append(values.double().cpu().numpy())
        return self._reference is not None and self._is_beaten(self._reference)

    def _is_beaten(self, reference: Array) -> bool:
        """Whether the incumbent, of the values ``reference``, is out of reach."""
        if self.samples == self._total or self.values is None:
            return False
        known = ~np.isnan(reference)
        values = self.values[known[: self.samples]]
        if len(values) < _FEWEST or not np.isfinite(values).all():
            return False
        metric = self._task.metric
        estimate, best = attainable(values, reference[known], self._confidence, metric)
        if metric.gain(best, self._to_beat) <= 0.0:
            self.stopped = estimate, best
        return self.stopped is not None
