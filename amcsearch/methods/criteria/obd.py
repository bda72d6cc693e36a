"""Optimal Brain Damage: the increase of the loss to second order, with the Hessian's diagonal.

    weights   1/2 H_ii w_i^2; a unit sums its weights, without cross terms
              weights_gauss_newton  squared gradients under labels the model draws, one backward pass a sample: without
                                    the network's own second derivatives (the default)
              weights               Hutchinson's estimate by random signs on the weights
    channels  1/2 v' H v, v = the weights that read the channel: the block of the Hessian, as the second derivative by
              one gate on all that reads it
              exact                 by one product of the Hessian and a vector for each unit and minibatch
              gates                 Hutchinson's estimate of all blocks at once by random signs on the gates
              gauss_newton          half the mean over samples of the squared derivative by the gate, under labels the
                                    model draws: the numbers of ``fisher`` with ``labels: model``

``first_order`` adds -g*w, for a network that is not at a minimum. LeCun, Denker & Solla 1989, "Optimal Brain Damage".
Departures: their recursion for the diagonal, which leaves out the same second derivatives, is replaced by squared
gradients; curvature below 0 keeps its sign, since counting it as 0 would only tie those units; the number of probes is
fixed, so that a score does not depend on when it stopped.

Why this default: it is the paper's score, for single weights as well as for channels, in seconds. ``exact`` agrees best
with the measured increase of the loss (rank correlation 0.72 on ResNet-20, the default 0.53, ``gauss_newton`` 0.59,
eight random signs 0.27), but took 196 s where the default took 4.6 s, and its time grows with the number of channels
(benchmarks/methods/all_methods.md). The variance of random signs is the sum of the squares of a row off the diagonal,
so that as many probes are needed as units share their effect on the loss, and then ``exact`` costs no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.needs import Curvature, Need, SampleGates, SquaredGradients, Statistic
from amcsearch.methods.statistics import Statistics

__all__ = ["OptimalBrainDamage"]


@dataclass(frozen=True)
class OptimalBrainDamage:
    """Optimal Brain Damage: half the curvature times the square; ``probes`` are random signs a minibatch.

    Raises:
        BadInputError: ``first_order`` with ``gauss_newton``, whose samples come one by one.
    """

    method: Literal["weights_gauss_newton", "weights", "exact", "gates", "gauss_newton"] = "weights_gauss_newton"
    probes: int = 8
    seed: int = 0
    first_order: bool = False

    def __post_init__(self) -> None:
        if self.first_order and self.method == "gauss_newton":
            raise BadInputError(
                "obd: first_order = true with method = 'gauss_newton', which looks at single samples; choose exact, "
                "gates, weights or weights_gauss_newton"
            )

    @property
    def needs(self) -> frozenset[Need]:
        """Curvature, and the gradient where it counts."""
        return frozenset({self._need, *([Statistic.SET_GRADIENT] if self.first_order else [])})

    @property
    def reduction(self) -> str:
        """A sample's derivatives are added, then squared; curvatures are added."""
        return "consumers_half_squared" if self.method == "gauss_newton" else "consumers_sum"

    @property
    def _need(self) -> Curvature | SampleGates | SquaredGradients:
        if self.method == "gauss_newton":
            return SampleGates("model", self.seed)
        if self.method == "weights_gauss_newton":
            return SquaredGradients("model", self.seed)
        if self.method == "exact":
            return Curvature("gates", 0)
        return Curvature(self.method, self.probes, self.seed)

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return half the curvature by the gate, spread over the readers, or 1/2 H w^2; with -g*w on request.

        By ``gauss_newton`` each sample's derivative by the gate, spread over the readers, (N, *weight).
        """
        weights, curvature = statistics.weights, statistics.by_need[self._need]
        if self.method == "gauss_newton":
            return curvature
        is_gate = self.method in ("gates", "exact")
        half = {name: 0.5 * h * (1.0 if is_gate else weights[name].square()) for name, h in curvature.items()}
        if not self.first_order:
            return half
        return {name: value - statistics.gradients[name] * weights[name] for name, value in half.items()}
