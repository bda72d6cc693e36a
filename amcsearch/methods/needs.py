"""Statistics that a criterion may ask the calibration pass for, beyond the weights, which are always there.

A need is a value: equal needs of several criteria are gathered once. Each comes with one kind of draw, what its numbers
were averaged over.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal

from amcsearch.core import BadInputError

__all__ = [
    "Curvature",
    "Draw",
    "Labels",
    "Need",
    "SampleGates",
    "ShortTraining",
    "SquaredGradients",
    "Statistic",
    "vanishes",
]

Labels = Literal["data", "model"]
"""Whose labels the loss looks at: the data's, or labels drawn from what the model itself predicts."""


class Draw(StrEnum):
    """What one set of statistics was averaged over; ``SAMPLE`` draws hold many samples, each apart."""

    SET = "set"
    MINIBATCH = "minibatch"
    SAMPLE = "sample"


class Statistic(StrEnum):
    """Needs without parameters: gradients of the mean loss, and moments of what layers read."""

    SET_GRADIENT = "set_gradient"
    MINIBATCH_GRADIENT = "minibatch_gradient"
    INPUT_MOMENTS = "input_moments"
    PATCH_PRODUCTS = "patch_products"

    @property
    def draw(self) -> Draw:
        """The draw this statistic comes with."""
        return Draw.MINIBATCH if self is Statistic.MINIBATCH_GRADIENT else Draw.SET


@dataclass(frozen=True)
class SampleGates:
    """For every sample n and channel c the derivative of the sample's loss by a gate on what each layer reads.

    s_nc = sum over positions of A_nc * dL_n/dA_nc. ``seed`` draws the labels where they are the model's own.
    """

    labels: Labels = "data"
    seed: int = 0
    draw: ClassVar[Draw] = Draw.SAMPLE


@dataclass(frozen=True)
class SquaredGradients:
    """For every weight the mean over samples of its squared gradient: one backward pass a sample."""

    labels: Labels = "data"
    seed: int = 0
    draw: ClassVar[Draw] = Draw.SET


@dataclass(frozen=True)
class Curvature:
    """Second derivatives of the mean loss: by one gate a unit on all that reads it, or by every single weight.

    ``probes`` random sign vectors a minibatch estimate the diagonal; 0 takes one product a unit and is exact (gates
    only). ``seed`` draws the signs.

    Raises:
        BadInputError: a negative number of probes, or none for single weights.
    """

    by: Literal["gates", "weights"] = "gates"
    probes: int = 8
    seed: int = 0
    draw: ClassVar[Draw] = Draw.SET

    def __post_init__(self) -> None:
        if self.probes < (self.by == "weights"):
            raise BadInputError(f"probes = {self.probes} by {self.by}, must be at least {int(self.by == 'weights')}")


@dataclass(frozen=True)
class ShortTraining:
    """Movement scores of ``steps`` steps of plain gradient descent on a copy, its weights masked by their scores.

    ``keep`` is the share of each tensor that is still on at the end of the cubic schedule; 1 masks nothing.

    Raises:
        BadInputError: fewer than one step, a rate that is not above 0, or a share outside (0, 1].
    """

    steps: int = 32
    learning_rate: float = 0.001
    keep: float = 1.0
    draw: ClassVar[Draw] = Draw.SET

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.learning_rate > 0.0 or not 0.0 < self.keep <= 1.0:
            raise BadInputError(
                f"short training: steps = {self.steps} must be at least 1, learning_rate = {self.learning_rate} above "
                f"0, keep = {self.keep} in (0, 1]"
            )


Need = Statistic | SampleGates | SquaredGradients | Curvature | ShortTraining


def vanishes(need: Need) -> bool:
    """Whether a need is 0 where every sample's loss is at its least: gradients at the data's own labels.

    So it is where a network is to keep its own outputs. A short training that masks nothing never leaves that place.
    """
    if isinstance(need, SampleGates | SquaredGradients):
        return need.labels == "data"
    if isinstance(need, ShortTraining):
        return need.keep == 1.0
    return need in (Statistic.SET_GRADIENT, Statistic.MINIBATCH_GRADIENT)
