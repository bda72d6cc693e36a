"""Dynamic network surgery: prune, and splice back what grows again; pruned weights go on learning.

    T = 0 if |W| < a,   unchanged if a <= |W| < b,   1 if |W| >= b
    a = 0.9 * max(mu + c * sigma, 0),  b = 1.1 * max(mu + c * sigma, 0)

mu and sigma are the mean and deviation of a layer's non-zero |W|, taken once, before training. Masks change with
probability (1 + gamma * t)^(-power) at step t, and no more from the share ``stop_at`` of the training on. Every weight
learns by dL/d(W*T), also where T = 0: that is what makes splicing possible.

Guo et al., Dynamic Network Surgery, 2016 (arXiv 1608.04493). Departures: any criterion's scores may stand for |W|; mu
and sigma leave biases out; ``c_rate`` null solves c from the target; and at ``stop_at`` the masks become exact: the
target's count of the largest |W| / (mu + c * sigma).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, share
from amcsearch.methods.weight_choice import keep_overall

__all__ = ["DynamicSurgery", "hysteresis", "update_probability"]


def hysteresis(scores: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """New mask: off below 0.9 threshold, on from 1.1 threshold, unchanged between; shape of the scores."""
    return (mask | (scores >= 1.1 * threshold)) & (scores >= 0.9 * threshold)


def update_probability(step: int, gamma: float, power: float) -> float:
    """Chance that masks change at a step."""
    return float((1.0 + gamma * step) ** -power)


@dataclass(frozen=True)
class DynamicSurgery(MaskSchedule):
    """Prune and splice by two thresholds; ``c_rate`` null takes the threshold from the target.

    Raises:
        BadInputError: a share that is none, or a gamma or power below 0.
    """

    c_rate: float | None = None
    gamma: float = 0.001
    power: float = 1.0
    stop_at: float = 0.75
    seed: int = 0
    keeps_pruned: ClassVar[bool] = True
    dense_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        share("dynamic_surgery: stop_at", self.stop_at)
        if min(self.gamma, self.power) < 0.0:
            raise BadInputError(f"dynamic_surgery: gamma = {self.gamma}, power = {self.power}: both must be at least 0")

    def begin(self, moment: Moment) -> None:
        """Measure the thresholds."""
        scores = moment.scores()
        moments = {name: _mean_and_deviation(value) for name, value in scores.items()}
        c = self._c_for(scores, moments, moment) if self.c_rate is None else self.c_rate
        for name, (mean, deviation) in moments.items():
            moment.memory[name] = torch.tensor(max(mean + c * deviation, 0.0), dtype=torch.float64)

    def masks(self, moment: Moment) -> Masks | None:
        """As ``MaskSchedule.masks``."""
        stop = round(self.stop_at * (moment.plan.steps - 1))
        if moment.step > stop:
            return None
        if moment.step == stop:
            ratios = {name: value.double() / moment.memory[name] for name, value in moment.scores().items()}
            return keep_overall({n: torch.nan_to_num(r, nan=0.0) for n, r in ratios.items()}, moment.plan.n_keep)
        draw = torch.rand((), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + moment.step))
        if float(draw) >= update_probability(moment.step, self.gamma, self.power):
            return None
        scores = moment.scores()
        return {name: hysteresis(scores[name], mask, float(moment.memory[name])) for name, mask in moment.masks.items()}

    def _c_for(self, scores: Mapping[str, Tensor], moments: Mapping[str, tuple[float, float]], moment: Moment) -> float:
        """Return the c at which the target's share of weights lies below the lower threshold."""
        c_of_weights = [(scores[name].double().flatten() / 0.9 - m) / max(s, 1e-12) for name, (m, s) in moments.items()]
        ordered = torch.cat(c_of_weights).sort().values
        removed = moment.plan.count - moment.plan.n_keep
        return -math.inf if removed == 0 else float(ordered[min(removed, len(ordered) - 1)])


def _mean_and_deviation(scores: Tensor) -> tuple[float, float]:
    used = scores[scores != 0].double()
    if not len(used):
        return 0.0, 0.0
    return float(used.mean()), float(used.std(correction=0))
