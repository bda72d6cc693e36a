"""Optimal Brain Damage: the increase of the loss to second order, with the Hessian's diagonal.

    channels  1/2 v' H v, v = the weights that read the channel: exact block of the Hessian by one product a unit
              (``exact``), or Hutchinson's estimate of all blocks at once by random signs on the gates (``gates``)
    weights   1/2 H_ii w_i^2 by signs on the weights (``weights``), or by the Gauss-Newton matrix, as the squared
              gradients under labels the model draws (``gauss_newton``); a unit sums its weights, without cross terms

``first_order`` adds -g*w, for a network that is not at a minimum. LeCun, Denker & Solla 1989, "Optimal Brain Damage".
Departures: their recursion for the diagonal is replaced by Hessian-vector products; curvature below 0 keeps its sign,
since counting it as 0 would only tie those units; the number of probes is fixed, so that a score does not depend on
when it stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from amcsearch.methods.needs import Curvature, Need, SquaredGradients, Statistic
from amcsearch.methods.statistics import Statistics

__all__ = ["OptimalBrainDamage"]


@dataclass(frozen=True)
class OptimalBrainDamage:
    """Optimal Brain Damage: half the curvature times the square; ``probes`` are random signs a minibatch."""

    method: Literal["gates", "exact", "weights", "gauss_newton"] = "gates"
    probes: int = 8
    seed: int = 0
    first_order: bool = False
    reduction: ClassVar[str] = "consumers_sum"

    @property
    def needs(self) -> frozenset[Need]:
        """Curvature, and the gradient where it counts."""
        return frozenset({self._need, *([Statistic.SET_GRADIENT] if self.first_order else [])})

    @property
    def _need(self) -> Curvature | SquaredGradients:
        if self.method == "gauss_newton":
            return SquaredGradients("model", self.seed)
        if self.method == "exact":
            return Curvature("gates", 0)
        return Curvature(self.method, self.probes, self.seed)

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return half the curvature by the gate, spread over the readers, or 1/2 H w^2; with -g*w on request."""
        weights = statistics.weights
        is_gate = self.method in ("gates", "exact")
        found = statistics.found[self._need].items()
        half = {name: 0.5 * h * (1.0 if is_gate else weights[name].square()) for name, h in found}
        if not self.first_order:
            return half
        return {name: value - statistics.gradients[name] * weights[name] for name, value in half.items()}
