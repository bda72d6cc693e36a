"""Evaluations and trials, as they are stored and reported."""

from dataclasses import dataclass
from enum import StrEnum

from amcsearch.core.cost import Cost
from amcsearch.core.metric import ACCURACY, Metric
from amcsearch.core.policy import PruningPolicy

__all__ = ["Evaluation", "Incumbent", "Trial", "TrialState"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the proxy measured on the search split.

    ``metric`` is the task's metric in its own unit (accuracy as a share, a squared error), ``loss`` the task's mean
    loss, ``seconds`` the wall time spent. ``change_low`` and ``change_high``, where they were asked for, are the lower
    and the upper confidence bound of how much better the metric is than the dense network's (``Metric.gain``).

    An evaluation that stopped early has ``stopped_after``, the samples it looked at. Its ``metric`` is then an estimate
    for all samples, ``metric_bound`` the best value that was still possible, and ``loss`` the mean over those samples.
    """

    metric: float
    loss: float
    seconds: float
    change_low: float | None = None
    change_high: float | None = None
    stopped_after: int | None = None
    metric_bound: float | None = None


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best policy so far, and the metric that another policy must do better than to take its place.

    ``to_beat`` differs from the incumbent's own metric where a reward also counts costs.
    """

    policy: PruningPolicy
    to_beat: float


class TrialState(StrEnum):
    """``complete`` counts for the search, ``probe`` only informs it, ``failed`` gave no finite loss.

    The evaluation of a ``stopped`` one ended early: the policy cannot be the best. Agents learn from its estimate.
    """

    COMPLETE = "complete"
    STOPPED = "stopped"
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

    @property
    def is_informative(self) -> bool:
        """Whether the reward says what the policy is worth: by all samples, or as an estimate from some of them."""
        return self.state in (TrialState.COMPLETE, TrialState.STOPPED)
