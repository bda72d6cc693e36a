"""Iterative pruning: prune, train, prune again, within one training budget; one round is one-shot pruning.

Before part i = 1 … r of the training the sparsity becomes

    geometric  1 - (1 - s)^(i/r)       the same share of the REMAINING weights every round: 8 rounds of 20 % are 83 %
    linear     s * i / r
    cubic      s * (1 - (1 - i/r)^3)   most at first

Scores are taken anew each round and masks are nested. The last round is exact, so every shape ends at the same count.
Han et al., Learning both Weights and Connections, 2015 (arXiv 1506.02626); learning-rate rewinding replays the whole
learning-rate schedule each round: Renda et al., Comparing Rewinding and Fine-tuning, 2020 (arXiv 2003.02389).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan
from amcsearch.methods.schedules.gradual import cubic_sparsity
from amcsearch.methods.weight_choice import keep_overall, n_kept

__all__ = ["ROUND_SHAPES", "Iterative", "nested", "round_sparsities"]

ROUND_SHAPES: Final[Mapping[str, Callable[[float, float], float]]] = {
    "geometric": lambda x, s: 1.0 - (1.0 - s) ** x,
    "linear": lambda x, s: s * x,
    "cubic": lambda x, s: cubic_sparsity(x, 0.0, s),
}
"""Name → sparsity when the share x of the rounds is done, s being the last one's."""


def round_sparsities(sparsity: float, rounds: int, shape: str) -> list[float]:
    """Sparsity after each of ``rounds`` prunings by a row of ``ROUND_SHAPES``; the last is ``sparsity`` itself."""
    return [*(ROUND_SHAPES[shape](i / rounds, sparsity) for i in range(1, rounds)), sparsity]


def nested(moment: Moment, n_keep: int) -> dict[str, Tensor]:
    """Masks of the best ``n_keep`` weights among those in use."""
    scores = moment.scores()
    used = {name: torch.where(moment.masks[name], value.double(), -torch.inf) for name, value in scores.items()}
    return keep_overall(used, n_keep)


@dataclass(frozen=True)
class Iterative(MaskSchedule):
    """Prune before each of ``rounds`` equal parts of the training.

    ``learning_rate`` either runs on over the whole training, or is rewound: each part replays the whole schedule.

    Raises:
        BadInputError: no round, or an unknown shape.
    """

    rounds: int = 4
    shape: str = "geometric"
    learning_rate: Literal["running", "rewound"] = "rewound"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise BadInputError(f"iterative: rounds = {self.rounds}, must be at least 1")
        if self.shape not in ROUND_SHAPES:
            raise BadInputError(f"iterative: shape = {self.shape!r} is unknown; known: {', '.join(ROUND_SHAPES)}")

    def begin(self, moment: Moment) -> Masks:
        """Prune before the first step."""
        return self._prune(moment, 0)

    def masks(self, moment: Moment) -> Masks | None:
        """As ``MaskSchedule.masks``."""
        starts = self._starts(moment.plan)
        if moment.step == 0 or moment.step not in starts:
            return None
        return self._prune(moment, starts.index(moment.step))

    def clock(self, step: int, plan: Plan) -> int:
        """As ``MaskSchedule.clock``."""
        if self.learning_rate == "running":
            return step
        starts = [*self._starts(plan), plan.steps]
        first = max(i for i in range(self.rounds) if starts[i] <= step)
        return (step - starts[first]) * plan.steps // (starts[first + 1] - starts[first])

    def _starts(self, plan: Plan) -> list[int]:
        if plan.steps < self.rounds:
            raise BadInputError(f"iterative: {self.rounds} rounds in {plan.steps} training steps; raise the epochs")
        return [i * plan.steps // self.rounds for i in range(self.rounds)]

    def _prune(self, moment: Moment, i: int) -> Masks:
        sparsity = round_sparsities(moment.plan.sparsity, self.rounds, self.shape)[i]
        return nested(moment, n_kept(moment.plan.count, sparsity))
