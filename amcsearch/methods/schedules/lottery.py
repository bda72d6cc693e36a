"""Lottery tickets with late rewinding: train, prune, go back to an early network, train again.

    train to the end T of a round; remove ceil(rate * remaining) of the weights by score; give the survivors the
    weights W_k they had at step k; replay steps k … T; repeat until the target is reached

Frankle & Carbin, The Lottery Ticket Hypothesis, 2019 (arXiv 1803.03635: k = 0); Frankle et al., Stabilizing the Lottery
Ticket Hypothesis, 2019 (arXiv 1903.01611: k after 0.1 % to 7 % of a round). The whole network goes back, with its
batch-norm statistics (those after the forward pass of step k) and the learning rate's step; momentum starts afresh. All
rounds share one training budget, so that a ticket is compared with other schedules at equal cost: a round is a little
longer than steps / (rounds + 1). The step on which the network goes back trains nothing.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from amcsearch.core import BadInputError
from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan
from amcsearch.methods.schedules.rounds import nested

__all__ = ["Lottery", "round_lengths", "ticket_counts"]


def ticket_counts(count: int, n_keep: int, rate: float) -> list[int]:
    """Weights left after each round: ceil(rate * remaining) go, in the last round as many as the target leaves."""
    counts = []
    while count > n_keep:
        count = max(n_keep, count - math.ceil(rate * count))
        counts.append(count)
    return counts


@dataclass(frozen=True)
class Lottery(MaskSchedule):
    """Remove ``rate`` of the remaining weights a round and rewind to the share ``rewind_to`` of a round.

    Raises:
        BadInputError: a rate outside (0, 1), or a share outside [0, 1).
    """

    rate: float = 0.2
    rewind_to: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.rate < 1.0 or not 0.0 <= self.rewind_to < 1.0:
            raise BadInputError(
                f"lottery: rate = {self.rate} must be in (0, 1), rewind_to = {self.rewind_to} in [0, 1)"
            )

    def masks(self, moment: Moment) -> Masks | None:
        """As ``MaskSchedule.masks``."""
        if not self.rewinds(moment.step, moment.plan):
            return None
        number, _ = self._place(moment.step, moment.plan)
        counts = ticket_counts(moment.plan.count, moment.plan.n_keep, self.rate)
        return nested(moment, counts[number - 1])

    def remembers(self, step: int, plan: Plan) -> bool:
        """As ``MaskSchedule.remembers``: at step k of the first round."""
        return step == round_lengths(plan, self)[1]

    def rewinds(self, step: int, plan: Plan) -> bool:
        """As ``MaskSchedule.rewinds``: at the end of each round but the last."""
        number, place = self._place(step, plan)
        return number > 0 and place == round_lengths(plan, self)[1] - 1

    def skips(self, step: int, plan: Plan) -> bool:
        """As ``MaskSchedule.skips``: where the network goes back."""
        return self.rewinds(step, plan)

    def clock(self, step: int, plan: Plan) -> int:
        """As ``MaskSchedule.clock``: the place in the round, stretched to the whole training."""
        length, _ = round_lengths(plan, self)
        return min(max(self._place(step, plan)[1], 0), length - 1) * plan.steps // length

    def _place(self, step: int, plan: Plan) -> tuple[int, int]:
        """Return the round from 0, and the step within it; k - 1 where the network goes back."""
        length, k = round_lengths(plan, self)
        if step < length:
            return 0, step
        rounds = len(ticket_counts(plan.count, plan.n_keep, self.rate))
        number = min((step - length) // (length - k + 1), rounds - 1)
        return number + 1, k - 1 + step - length - number * (length - k + 1)


@lru_cache
def round_lengths(plan: Plan, lottery: Lottery) -> tuple[int, int]:
    """Return steps T of a round, and the step k gone back to: the largest T that fits.

    Raises:
        BadInputError: the training is too short for its rounds.
    """
    rounds = len(ticket_counts(plan.count, plan.n_keep, lottery.rate))
    for length in range(plan.steps, 0, -1):
        k = math.floor(lottery.rewind_to * length)
        if length + rounds * (length - k + 1) <= plan.steps:
            return length, k
    raise BadInputError(
        f"lottery: {rounds + 1} rounds in {plan.steps} training steps; raise the epochs, the rate or the density"
    )
