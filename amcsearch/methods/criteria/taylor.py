"""Taylor expansion of the loss: how much the loss moves, to first order, when a unit is closed.

Put a gate a = 1 on a unit. Then dL/da = sum over the unit's slice of w * dL/dw, and closing the gate changes the loss
by about -dL/da. Signs must survive until that sum; only then comes the square or the absolute value.

    gate           mean over minibatches of (sum w*g)^2, over everything that reads the unit (the default)
    bn             the same at the producers' last stage: (gamma*dL/dgamma + beta*dL/dbeta)^2 where a batch norm
                   follows, else the producer's own weight and bias
    joint          |sum w*g| with the gradient of the whole calibration set
    parameterwise  sum |w*g| with the same gradient: never below joint, and blind to what cancels
    per_sample     mean over samples of (sum w*g)^2: does not vanish at a minimum; twice the score of ``fisher``, hence
                   the same order
    act2017        mean over samples of |sum w*g|; the 2017 paper divides it by the layer's L2 norm (``global_ranking``)

Molchanov et al. 2017 (arXiv 1611.06440) and 2019 (arXiv 1906.10771). Departures: the gate sits on what consumers read,
which is the removal itself also through GELU or ReLU6, where a gate after the producer's batch norm is not; and always
in eval mode, since under train-mode batch norm the joint score of a bias-free convolution is exactly 0. Minibatch
squares depend on the batch size: fix it when comparing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from amcsearch.methods.needs import Need, SampleGates, Statistic
from amcsearch.methods.statistics import Statistics

__all__ = ["Taylor", "TaylorVariant"]

TaylorVariant = Literal["gate", "bn", "joint", "parameterwise", "per_sample", "act2017"]
_NEEDS_AND_REDUCTIONS: Final[Mapping[TaylorVariant, tuple[Need, str]]] = {
    "gate": (Statistic.MINIBATCH_GRADIENT, "consumers_squared"),
    "bn": (Statistic.MINIBATCH_GRADIENT, "last_stages_squared"),
    "joint": (Statistic.SET_GRADIENT, "consumers_absolute"),
    "parameterwise": (Statistic.SET_GRADIENT, "consumers_sum"),
    "per_sample": (SampleGates(), "consumers_squared"),
    "act2017": (SampleGates(), "consumers_absolute"),
}


@dataclass(frozen=True)
class Taylor:
    """Taylor: the squared or absolute derivative of the loss by a gate on the unit; ``variant`` says which."""

    variant: TaylorVariant = "gate"

    @property
    def needs(self) -> frozenset[Need]:
        """Gradients of minibatches or of the whole set, or gates of single samples."""
        return frozenset({_NEEDS_AND_REDUCTIONS[self.variant][0]})

    @property
    def reduction(self) -> str:
        """Members are added with their signs, then squared or made positive; ``parameterwise`` adds absolute terms."""
        return _NEEDS_AND_REDUCTIONS[self.variant][1]

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return w * dL/dw with its sign (its size by ``parameterwise``), shape of the weight.

        By ``per_sample`` and ``act2017`` each sample's derivative by the gate, spread over the readers, (N, *weight).
        """
        if self.variant in ("per_sample", "act2017"):
            return statistics.by_need[SampleGates()]
        terms = {name: statistics.weights[name] * gradient for name, gradient in statistics.gradients.items()}
        return {name: term.abs() for name, term in terms.items()} if self.variant == "parameterwise" else terms
