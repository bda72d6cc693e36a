"""Evaluations and trials, as they are stored and reported."""

from dataclasses import dataclass
from enum import StrEnum

from amcsearch.core.cost import Cost
from amcsearch.core.metric import ACCURACY, Metric
from amcsearch.core.policy import PruningPolicy

__all__ = ["Evaluation", "Trial", "TrialState"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the proxy measured on the search split.

    ``metric`` is the task's metric in its own unit (accuracy as a share, a squared error), ``loss`` the task's mean
    loss, ``seconds`` the wall time spent. ``change_low`` and ``change_high``, where they were asked for, are the lower
    and the upper confidence bound of how much better the metric is than the dense network's (``Metric.gain``).
    """

    metric: float
    loss: float
    seconds: float
    change_low: float | None = None
    change_high: float | None = None


class TrialState(StrEnum):
    """``complete`` counts for the search, ``probe`` only informs it, ``failed`` gave no finite loss."""

    COMPLETE = "complete"
    PROBE = "probe"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy with its evaluation, its predicted cost and the reward the search saw.

    ``judged_by`` is the metric of the evaluation.
    """

    number: int
    agent: str
    seed: int
    state: TrialState
    policy: PruningPolicy
    evaluation: Evaluation
    cost: Cost
    reward: float
    judged_by: Metric = ACCURACY
