"""The contract of mask schedules, and what a schedule is told of the training."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.weight_choice import n_kept

__all__ = ["Granularity", "MaskSchedule", "Masks", "Moment", "Plan", "share"]

Granularity = Literal["weights", "channels"]
"""What is masked: single weights, or whole units (channels, heads)."""
Masks = Mapping[str, Tensor]
"""Tensor name → bool, shape of the weight: true where the weight is in use."""


@dataclass(frozen=True)
class Plan:
    """A training of ``steps`` optimiser steps over ``count`` weights, ``sparsity`` of which are to go.

    Raises:
        BadInputError: no steps, or a sparsity outside [0, 1).
    """

    steps: int
    count: int
    sparsity: float

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInputError(f"sparsify: {self.steps} training steps, must be at least 1; raise the epochs")
        if not 0.0 <= self.sparsity < 1.0:
            raise BadInputError(f"sparsify: sparsity = {self.sparsity}, must be in [0, 1)")

    @property
    def n_keep(self) -> int:
        """Weights in use at the end."""
        return n_kept(self.count, self.sparsity)


@dataclass(frozen=True)
class Moment:
    """A training between the backward pass and the optimiser of one step.

    ``weights`` are the network's own, ``gradients`` those of the loss by the masked weights W * M (so a weight that is
    masked has one too), all by tensor name. ``scores`` asks the criterion now. What a schedule remembers goes into
    ``memory``, as tensors; it travels with the training.
    """

    step: int
    plan: Plan
    weights: Mapping[str, Tensor]
    masks: Masks
    gradients: Mapping[str, Tensor]
    scores: Callable[[], Mapping[str, Tensor]]
    memory: dict[str, Tensor]


class MaskSchedule(ABC):
    """Which weights are in use at a step of a training.

    Promise: a schedule is a function of the moment alone (its own fields never change); the masks it leaves at the last
    step keep exactly ``plan.n_keep`` weights, whatever the criterion. A schedule that rounds within every row may miss
    that number by its rounding, and says so in its docstring.
    """

    keeps_pruned: ClassVar[bool] = False
    """Whether weights out of use keep their value (else they are 0 until they are used again)."""
    dense_gradient: ClassVar[bool] = False
    """Whether weights out of use are trained, by the gradient they would have in use."""

    def check_target(self, sparsity: float | None, granularity: Granularity) -> None:
        """Refuse a target that the schedule cannot meet, before anything is trained; ``sparsity`` None: a cost.

        Raises:
            BadInputError: it cannot; any target can be met unless a schedule says otherwise.
        """
        del sparsity, granularity

    def begin(self, moment: Moment) -> Masks | None:
        """Return the masks before the first step; None uses everything."""
        del moment
        return None

    @abstractmethod
    def masks(self, moment: Moment) -> Masks | None:
        """Return the masks from this moment on; None leaves them as they are."""

    def ranks(self, moment: Moment) -> Mapping[str, Tensor]:
        """Return what the schedule keeps by, largest first, shapes of the weights: the criterion's scores."""
        return moment.scores()

    def skips(self, step: int, plan: Plan) -> bool:
        """Whether the optimiser leaves out this step."""
        del step, plan
        return False

    def clock(self, step: int, plan: Plan) -> int:
        """Return the step whose learning rate this step has."""
        del plan
        return step

    def remembers(self, step: int, plan: Plan) -> bool:
        """Whether the network is stored now, before the optimiser steps, to be rewound to."""
        del step, plan
        return False

    def rewinds(self, step: int, plan: Plan) -> bool:
        """Whether the network goes back to what was stored, with new masks and a fresh optimiser."""
        del step, plan
        return False


def share(name: str, value: float, low: float = 0.0, high: float = 1.0) -> None:
    """Check a share of something.

    Raises:
        BadInputError: it lies outside [low, high].
    """
    if not low <= value <= high:
        raise BadInputError(f"{name} = {value}, must be from {low:g} to {high:g}")
