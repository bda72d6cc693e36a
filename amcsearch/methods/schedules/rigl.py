"""RigL: train a sparse network from the first step on, and move connections to where the gradient is largest.

Every ``interval`` steps, in each layer: drop the k lowest scores of the weights in use; grow the k largest |dL/dW'| of
all entries that are not kept, so that a weight just dropped may return; grown weights start at 0.

    k_l = int(f(t) * nnz_l),  f(t) = alpha/2 * (1 + cos(pi * t / T_end)),  no change from T_end on

The densities of layers are ERK's or uniform (``layer_densities``).
Evci et al., Rigging the Lottery, 2020 (arXiv 1911.11134). The optimiser leaves out the steps that move connections.
Departures: T_end is a share of the training; the first masks are the criterion's best (its ``random`` is the paper's);
ties break by index, not by noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from amcsearch.core import BadInputError
from amcsearch.methods.layer_densities import erk_densities, uniform_densities
from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan, share
from amcsearch.methods.weight_choice import apportion, keep_by_count, keep_top

__all__ = ["RigL", "drop_share"]


def drop_share(step: int, end: int, alpha: float) -> float:
    """Share f(t) of the weights in use that move at a step: alpha at 0, 0 from ``end`` on."""
    return 0.0 if step >= end else 0.5 * alpha * (1.0 + math.cos(math.pi * step / end))


@dataclass(frozen=True)
class RigL(MaskSchedule):
    """Move connections every ``interval`` steps until the share ``end_at`` of the training.

    Raises:
        BadInputError: shares that are no shares, or an interval below 1.
    """

    distribution: Literal["erk", "uniform"] = "erk"
    alpha: float = 0.3
    interval: int = 100
    end_at: float = 0.75

    def __post_init__(self) -> None:
        share("rigl: alpha", self.alpha)
        share("rigl: end_at", self.end_at)
        if self.interval < 1:
            raise BadInputError(f"rigl: interval = {self.interval}, must be at least 1")

    def begin(self, moment: Moment) -> Masks:
        """Return the first masks: the densities of the distribution, whole weights that add up."""
        shapes = {name: tuple(weight.shape) for name, weight in moment.weights.items()}
        densities = (erk_densities if self.distribution == "erk" else uniform_densities)(shapes, moment.plan.sparsity)
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        return keep_by_count(moment.scores(), apportion(densities, sizes, moment.plan.n_keep))

    def skips(self, step: int, plan: Plan) -> bool:
        """As ``MaskSchedule.skips``: where connections move."""
        return step % self.interval == 0 and drop_share(step, self._end(plan), self.alpha) > 0.0

    def masks(self, moment: Moment) -> Masks | None:
        """As ``MaskSchedule.masks``."""
        if not self.skips(moment.step, moment.plan):
            return None
        moved = drop_share(moment.step, self._end(moment.plan), self.alpha)
        scores, masks = moment.scores(), {}
        for name, mask in moment.masks.items():
            count = int(mask.sum())
            k = int(moved * count)
            kept = keep_top(torch.where(mask, scores[name].double(), -torch.inf), count - k)
            growth = torch.where(kept, -torch.inf, moment.gradients[name].abs().double())
            masks[name] = kept | keep_top(growth, k)
        return masks

    def _end(self, plan: Plan) -> int:
        return round(self.end_at * plan.steps)
