"""Movement: score a weight by how far it moves away from zero while the network is trained.

    S = -sum over steps of G * W,  G = dL/dW' at the masked weight;  score of a unit = sum over what reads it

Sanh, Wolf & Rush 2020 (arXiv 2005.07683). As a criterion it takes its scores from a short training of a copy on the
calibration samples; a training that masks by scores as it goes uses the same rule, ``short_training.accumulated``.
Departures: plain gradient descent in eval mode; no mask by default (``keep`` 1), since what will be kept is not known
yet. Signs matter: no absolute value, low means on the way to zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from amcsearch.methods.needs import Need, ShortTraining
from amcsearch.methods.statistics import Statistics

__all__ = ["Movement"]


@dataclass(frozen=True)
class Movement:
    """Movement: minus the accumulated product of gradient and weight over a short training of a copy."""

    steps: int = 32
    learning_rate: float = 0.001
    keep: float = 1.0
    reduction: ClassVar[str] = "consumers_sum"

    def __post_init__(self) -> None:
        _ = self._need  # refuses bad values at construction

    @property
    def needs(self) -> frozenset[Need]:
        """A short training."""
        return frozenset({self._need})

    @property
    def _need(self) -> ShortTraining:
        return ShortTraining(self.steps, self.learning_rate, self.keep)

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return S with its sign, shape of the weight."""
        return statistics.by_need[self._need]
