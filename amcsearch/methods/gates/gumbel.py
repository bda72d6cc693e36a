"""Gumbel-softmax channel gates: draw each unit in or out, with a probability that is learned.

    z = sigmoid((log_a + log u - log(1 - u)) / tau),  forward 1[z > 1/2], backward z (straight-through)
    P(z > 1/2) = sigmoid(log_a) for every tau;   test: 1[log_a > 0]
    tau(p) = max(tau_end, tau_begin * exp(-r * p)),  r so that tau_end is reached at 80 % of the training

Herrmann et al., Channel Selection Using Gumbel Softmax, 2020 (arXiv 1812.04180); Jang et al., Categorical
Reparameterization with Gumbel-Softmax, 2017 (arXiv 1611.01144). Two-class Gumbel-softmax is this with log_a the
difference of the logits. Penalty: the expected share of the removable parameters.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Trace
from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.gates.hard_concrete import weighted_share
from amcsearch.methods.unit_slices import UnitSlices

__all__ = ["GumbelSoftmax", "binary_concrete", "straight_through", "temperature_at"]

COOLED_AT: Final = 0.8
EPSILON: Final = 1e-6


def binary_concrete(log_alpha: Tensor, u: Tensor, temperature: float) -> Tensor:
    """Soft gates of uniform noise ``u`` in (0, 1); all of one shape."""
    return torch.sigmoid((log_alpha + torch.log(u) - torch.log1p(-u)) / temperature)


def straight_through(soft: Tensor) -> Tensor:
    """1[z > 1/2] with the gradient of z."""
    return (soft > 0.5).to(soft.dtype).detach() + soft - soft.detach()


def temperature_at(progress: float, begin: float, end: float) -> float:
    """Temperature when ``progress`` of the training is over."""
    return float(max(end, begin * (end / begin) ** (progress / COOLED_AT)))


@dataclass(frozen=True)
class GumbelSoftmax(GateMethod):
    """Gumbel-softmax: coins on channels and heads, open with 0.87 at first, trained by Adam.

    Raises:
        BadInputError: temperatures that are not above 0 and falling, or as ``GateMethod``.
    """

    granularity: ClassVar[Literal["units"]] = "units"
    open_logit: float = 1.9
    temperature_begin: float = 1.0
    temperature_end: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.temperature_end <= self.temperature_begin < math.inf:
            raise BadInputError(
                f"gumbel_softmax: temperatures from {self.temperature_begin} to {self.temperature_end}; "
                "both must be above 0, the second no higher than the first"
            )

    def attach(self, model: nn.Module, trace: Trace, samples: int) -> Gate:
        """As ``GateMethod.attach``."""
        del samples
        return _GumbelGate(UnitSlices(model, trace), self)


class _GumbelGate(Gate):
    drive: ClassVar[Literal["expected"]] = "expected"

    def __init__(self, slices: UnitSlices, method: GumbelSoftmax) -> None:
        super().__init__()
        self._slices, self._method, self._temperature = slices, method, method.temperature_begin
        self.log_alpha = nn.ParameterList(
            torch.full((count,), method.open_logit, device=slices.device) for count in slices.counts.values()
        )

    def begin_step(self, progress: float) -> None:
        self._temperature = temperature_at(progress, self._method.temperature_begin, self._method.temperature_end)

    def tensors(self) -> dict[str, Tensor]:
        gates = {}
        for name, a in self._named().items():
            u = torch.rand_like(a) * (1.0 - 2.0 * EPSILON) + EPSILON
            gates[name] = straight_through(binary_concrete(a, u, self._temperature))
        return self._slices.scaled(gates)

    def penalty(self) -> Tensor:
        return weighted_share(self.density(), self._slices)

    def density(self) -> dict[str, Tensor]:
        return {name: torch.sigmoid(a) for name, a in self._named().items()}

    def scores(self) -> dict[str, Tensor]:
        return {name: a.detach() for name, a in self._named().items()}

    def final(self) -> dict[str, Tensor]:
        return self._slices.scaled({name: (a > 0).to(a.dtype) for name, a in self._named().items()})

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self._method.learning_rate)

    def _named(self) -> dict[str, Tensor]:
        return dict(zip(self._slices.counts, self.log_alpha, strict=True))
