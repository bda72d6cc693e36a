"""Taylor expansion of the loss: how much the loss moves, to first order, when a unit is closed.

Put a gate a = 1 on a unit. Then dL/da = sum over the unit's slice of w * dL/dw, and closing the gate changes the loss
by about -dL/da. Signs must survive until that sum; only then comes the square or the absolute value.

    gate           mean over minibatches of (sum w*g)^2, over everything that reads the unit (the default)
    bn             the same at the producers' last stage: (gamma*dL/dgamma + beta*dL/dbeta)^2 where a batch norm
                   follows, else the producer's own weight and bias
    joint          |sum w*g| with the gradient of the whole calibration set
    parameterwise  sum |w*g| with the same gradient: never below joint, and blind to what cancels
    per_sample     mean over samples of (sum w*g)^2: does not vanish at a minimum; twice the empirical Fisher score
    act2017        mean over samples of |sum w*g|; the 2017 paper divides it by the layer's L2 norm (``global_ranking``)

Molchanov et al. 2017 (arXiv 1611.06440) and 2019 (arXiv 1906.10771). Departures: the gate sits on what consumers read,
which is the removal itself also through GELU or ReLU6, where a gate after the producer's batch norm is not; and always
in eval mode, since under train-mode batch norm the joint score of a bias-free convolution is exactly 0. Minibatch
squares depend on the batch size: fix it when comparing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from amcsearch.methods.needs import Need, SampleGates, Statistic
from amcsearch.methods.statistics import Statistics

__all__ = ["Taylor", "TaylorActivation", "TaylorBn", "TaylorJoint", "TaylorParameterwise", "TaylorPerSample"]


@dataclass(frozen=True)
class Taylor:
    """Taylor ``gate``: mean over minibatches of the squared derivative by the gate."""

    needs: ClassVar[frozenset[Need]] = frozenset({Statistic.MINIBATCH_GRADIENT})
    reduction: ClassVar[str] = "consumers_squared"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return w * dL/dw with its sign, shape of the weight."""
        return {name: statistics.weights[name] * gradient for name, gradient in statistics.gradients.items()}


@dataclass(frozen=True)
class TaylorBn(Taylor):
    """Taylor ``bn``: the gate right after the producers' last stage."""

    reduction: ClassVar[str] = "last_stages_squared"


@dataclass(frozen=True)
class TaylorJoint(Taylor):
    """Taylor ``joint``: one gradient of the whole set, absolute value of the sum."""

    needs: ClassVar[frozenset[Need]] = frozenset({Statistic.SET_GRADIENT})
    reduction: ClassVar[str] = "consumers_absolute"


@dataclass(frozen=True)
class TaylorParameterwise(Taylor):
    """Taylor ``parameterwise``: one gradient of the whole set, sum of absolute terms."""

    needs: ClassVar[frozenset[Need]] = frozenset({Statistic.SET_GRADIENT})
    reduction: ClassVar[str] = "consumers_sum"

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return |w * dL/dw|, shape of the weight."""
        return {name: term.abs() for name, term in super().saliency(statistics).items()}


@dataclass(frozen=True)
class TaylorPerSample(Taylor):
    """Taylor ``per_sample``: mean over samples of the squared derivative by the gate."""

    needs: ClassVar[frozenset[Need]] = frozenset({SampleGates()})

    def saliency(self, statistics: Statistics) -> Mapping[str, Tensor]:
        """Return each sample's derivative by the gate, spread over the readers, (N, *weight)."""
        return statistics.found[SampleGates()]


@dataclass(frozen=True)
class TaylorActivation(TaylorPerSample):
    """Taylor ``act2017``: mean over samples of the absolute derivative by the gate."""

    reduction: ClassVar[str] = "consumers_absolute"
