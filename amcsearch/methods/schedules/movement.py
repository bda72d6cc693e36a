"""Movement pruning: keep the weights that move away from zero while the network is fine-tuned.

    M = Top_v(S) in each matrix,   S <- S - eta * G * W,   G = dL/d(W * M),   S = 0 at first

G is the gradient at the MASKED weight, so that scores of weights out of use go on changing and these can return
(straight-through). The product is inside the sum over steps: weights change. Weights out of use keep their value.

    v(t) = v_f + (1 - v_f) * (1 - p)^3,  p from 0 at the end of the warm-up to 1 at the beginning of the cool-down

Sanh et al., Movement Pruning, 2020 (arXiv 2005.07683). The scores are the schedule's own: the criterion is not
asked. At v_f the counts of the matrices are rounded together, so that the target is exact to one weight.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan, share
from amcsearch.methods.schedules.gradual import cubic_sparsity, progress_between
from amcsearch.methods.short_training import accumulated
from amcsearch.methods.weight_choice import apportion, keep_by_count, keep_top

__all__ = ["MovementTopV", "top_v"]


def top_v(scores: Tensor, v: float) -> Tensor:
    """Mask of the floor(v * n) largest scores."""
    return keep_top(scores, math.floor(v * scores.numel() + 1e-9))


@dataclass(frozen=True)
class MovementTopV(MaskSchedule):
    """Keep the top ``v`` of the scores, v falling from 1 between warm-up and cool-down (shares of the training).

    Raises:
        BadInputError: shares that overlap, or a learning rate that is not above 0.
    """

    learning_rate: float = 0.01
    warmup: float = 0.1
    cooldown: float = 0.3
    keeps_pruned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        share("movement: warmup", self.warmup)
        share("movement: cooldown", self.cooldown, high=1.0 - self.warmup)
        if not self.learning_rate > 0.0:
            raise BadInputError(f"movement: learning_rate = {self.learning_rate}, must be above 0")

    def kept_at(self, step: int, plan: Plan) -> float:
        """Share v of the weights in use at one step."""
        start, end = self.warmup * (plan.steps - 1), (1.0 - self.cooldown) * (plan.steps - 1)
        return 1.0 - cubic_sparsity(progress_between(step, start, end), 0.0, plan.sparsity)

    def ranks(self, moment: Moment) -> dict[str, Tensor]:
        """As ``MaskSchedule.ranks``: the movement so far, 0 before the first step."""
        return {name: moment.memory.get(name, torch.zeros_like(weight)) for name, weight in moment.weights.items()}

    def masks(self, moment: Moment) -> Masks:
        """As ``MaskSchedule.masks``."""
        before = self.ranks(moment)
        for name, weight in moment.weights.items():
            moment.memory[name] = accumulated(before[name], weight, moment.gradients[name], self.learning_rate)
        scores = self.ranks(moment)
        v = self.kept_at(moment.step, moment.plan)
        if v > 1.0 - moment.plan.sparsity:
            return {name: top_v(value, v) for name, value in scores.items()}
        sizes = {name: value.numel() for name, value in scores.items()}
        return keep_by_count(scores, apportion(dict.fromkeys(sizes, v), sizes, moment.plan.n_keep))
