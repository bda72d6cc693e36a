"""Evaluations and trials, as they are stored and reported."""

from dataclasses import dataclass
from enum import StrEnum

from amcsearch.core.cost import Cost
from amcsearch.core.policy import PruningPolicy

__all__ = ["Evaluation", "Trial", "TrialState"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the accuracy proxy measured on the search split.

    ``accuracy`` is a share in [0, 1], ``loss`` the mean cross-entropy in nats, ``seconds`` the wall time spent. Where
    outputs are matched with vectors, ``accuracy`` is the mean cosine, in [-1, 1], and ``loss`` 1 minus it.
    ``change_low``, where it was asked for, is the lower confidence bound of accuracy minus the dense network's.
    """

    accuracy: float
    loss: float
    seconds: float
    change_low: float | None = None


class TrialState(StrEnum):
    """``complete`` counts for the search, ``probe`` only informs it, ``failed`` gave no finite loss."""

    COMPLETE = "complete"
    PROBE = "probe"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trial:
    """A policy with its evaluation, its predicted cost and the reward the search saw."""

    number: int
    agent: str
    seed: int
    state: TrialState
    policy: PruningPolicy
    evaluation: Evaluation
    cost: Cost
    reward: float
