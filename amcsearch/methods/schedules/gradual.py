"""Gradual pruning: sparsity rises along a cubic while the network trains.

    s(t) = s_f + (s_i - s_f) * (1 - p)^3,   p = (t - t_0) / (t_1 - t_0) clamped to [0, 1]

Zhu & Gupta, To Prune, or Not to Prune, 2017 (arXiv 1710.01878). Pruned weights are 0, so they return only under a
criterion that does not look at their size. Departures: t_0 and t_1 are shares of the training, so that one setting
serves any length; weights are ranked over the whole network by default, ``scope: layer`` is the paper's.
"""

from dataclasses import dataclass
from typing import Literal

from amcsearch.core import BadInputError
from amcsearch.methods.mask_schedule import Masks, MaskSchedule, Moment, Plan, share
from amcsearch.methods.weight_choice import apportion, keep_by_count, keep_overall, n_kept

__all__ = ["Gradual", "cubic_sparsity", "progress_between"]


def progress_between(step: int, start: float, end: float) -> float:
    """How far a step is from ``start`` (0) to ``end`` (1)."""
    if step >= end:
        return 1.0
    return 0.0 if step <= start else (step - start) / (end - start)


def cubic_sparsity(progress: float, initial: float, final: float) -> float:
    """Sparsity at ``progress``, which is clamped to [0, 1]."""
    left = 1.0 - min(max(progress, 0.0), 1.0)
    return final + (initial - final) * left**3


@dataclass(frozen=True)
class Gradual(MaskSchedule):
    """Prune ``events`` times between the shares ``begin_at`` and ``end_at`` of the training, along a cubic.

    Raises:
        BadInputError: shares that are no shares or not in order, or no event.
    """

    initial: float = 0.0
    begin_at: float = 0.0
    end_at: float = 0.75
    events: int = 32
    scope: Literal["network", "layer"] = "network"

    def __post_init__(self) -> None:
        share("gradual: initial", self.initial)
        share("gradual: begin_at", self.begin_at)
        share("gradual: end_at", self.end_at, low=self.begin_at)
        if self.events < 1:
            raise BadInputError(f"gradual: events = {self.events}, must be at least 1")

    def sparsity_at(self, step: int, plan: Plan) -> float:
        """Sparsity asked for at one step."""
        progress = progress_between(step, *self._span(plan))
        return cubic_sparsity(progress, min(self.initial, plan.sparsity), plan.sparsity)

    def is_event(self, step: int, plan: Plan) -> bool:
        """Whether masks are taken anew at one step."""
        start, end = self._span(plan)
        at = {round(start + (end - start) * i / self.events) for i in range(self.events + 1)}
        return step in at

    def masks(self, moment: Moment) -> Masks | None:
        """As ``MaskSchedule.masks``."""
        if not self.is_event(moment.step, moment.plan):
            return None
        sparsity, scores = self.sparsity_at(moment.step, moment.plan), moment.scores()
        n_keep = max(n_kept(moment.plan.count, sparsity), moment.plan.n_keep)
        if self.scope == "network":
            return keep_overall(scores, n_keep)
        sizes = {name: values.numel() for name, values in scores.items()}
        return keep_by_count(scores, apportion(dict.fromkeys(sizes, 1.0 - sparsity), sizes, n_keep))

    def _span(self, plan: Plan) -> tuple[float, float]:
        return self.begin_at * (plan.steps - 1), self.end_at * (plan.steps - 1)
