"""Reach a target while training: multipliers that climb as long as the constraint is missed.

    penalty = l1 * (c - t) + l2 * (c - t)^2,   l1 += rate * (c - t),   l2 += rate * (c - t)^2

c is the expected share of the cost that is left, t the share asked for; the weights descend, the multipliers ascend.
Wang et al., Structured Pruning of Large Language Models, 2020 (arXiv 1910.04732), as in CoFi: Xia et al. 2022
(arXiv 2204.00408). t falls linearly from 1 to its end during the warm-up. Where c is not differentiable, the multiplier
is the weight of a method's own penalty:  mu = mu_0 * exp(l1 + DAMPING * (c - t)), within exp(-LIMIT … LIMIT).
Departure: l2 begins at DAMPING, not at 0: a multiplier alone integrates, and swings about its target.
"""

import math
from dataclasses import dataclass
from typing import Final

from torch import Tensor

__all__ = ["DAMPING", "LIMIT", "Lagrangian", "target_at"]

LIMIT: Final = 8.0
DAMPING: Final = 10.0


def target_at(progress: float, target: float, warmup: float) -> float:
    """Share of the cost asked for when ``progress`` of the training is over."""
    return target if progress >= warmup else 1.0 + (target - 1.0) * progress / warmup


@dataclass
class Lagrangian:
    """Multipliers of one constraint."""

    rate: float
    linear: float = 0.0
    square: float = DAMPING

    def penalty(self, share: Tensor, target: float) -> Tensor:
        """Return what joins the loss, a scalar, differentiable in ``share``."""
        gap = share - target
        return self.linear * gap + self.square * gap.square()

    def strength(self, share: float, target: float) -> float:
        """Return what a method's own penalty is multiplied by."""
        return math.exp(min(max(self.linear + DAMPING * (share - target), -LIMIT), LIMIT))

    def ascend(self, share: float, target: float) -> None:
        """Climb; ``linear`` stays within what ``strength`` can use."""
        gap = share - target
        self.linear = min(max(self.linear + self.rate * gap, -LIMIT), LIMIT)
        self.square += self.rate * gap * gap
