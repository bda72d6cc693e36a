"""L0 regularisation by hard concrete gates: zeros in training, and a differentiable count of what is open.

    s = sigmoid((log u - log(1 - u) + log_a) / beta),  z = clip(s * (zeta - gamma) + gamma, 0, 1),  u uniform
    P(z != 0) = sigmoid(log_a - beta * log(-gamma / zeta))
    test: z = clip(sigmoid(log_a) * (zeta - gamma) + gamma, 0, 1), without beta

Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018 (arXiv 1712.01312). One gate a unit,
shared by all that is coupled. Penalty: the sum of P times the parameters a unit removes, as a share of all of them. A
gate whose test value is 0 is still open with P = 0.31 or less in training, so the two counts differ. Departure: gates
open with 1 - ``drop_rate`` = 0.9, for a trained network is to be pruned, not one at its beginning.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Trace
from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.unit_slices import UnitSlices

__all__ = [
    "BETA",
    "GAMMA",
    "ZETA",
    "HardConcrete",
    "evaluated_gate",
    "hard_concrete",
    "open_probability",
    "weighted_share",
]

BETA: Final = 2.0 / 3.0
GAMMA: Final = -0.1
ZETA: Final = 1.1
EPSILON: Final = 1e-6


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Gates of uniform noise ``u`` in (0, 1); all of one shape."""
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z != 0), shape of ``log_alpha``."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def evaluated_gate(log_alpha: Tensor) -> Tensor:
    """Gate to evaluate by, shape of ``log_alpha``."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def weighted_share(probabilities: Mapping[str, Tensor], slices: UnitSlices) -> Tensor:
    """Share of the removable parameters that is expected to stay, a scalar."""
    kept = torch.stack([p.sum() * slices.sizes[name] for name, p in probabilities.items()]).sum()
    return kept / sum(count * slices.sizes[name] for name, count in slices.counts.items())


@dataclass(frozen=True)
class HardConcrete(GateMethod):
    """L0: hard concrete gates on channels and heads, trained by Adam.

    Raises:
        BadInputError: a drop rate outside (0, 1), or as ``GateMethod``.
    """

    granularity: ClassVar[Literal["units"]] = "units"
    drop_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.drop_rate < 1.0:
            raise BadInputError(f"hard_concrete: drop_rate = {self.drop_rate}, must be in (0, 1)")

    def attach(self, model: nn.Module, trace: Trace, samples: int) -> Gate:
        """As ``GateMethod.attach``."""
        del samples
        return _HardConcreteGate(UnitSlices(model, trace), self)


class _HardConcreteGate(Gate):
    drive: ClassVar[Literal["expected"]] = "expected"

    def __init__(self, slices: UnitSlices, method: HardConcrete) -> None:
        super().__init__()
        self._slices, self._method = slices, method
        start = math.log((1.0 - method.drop_rate) / method.drop_rate)
        self.log_alpha = nn.ParameterList(
            start + 0.01 * torch.randn(count, device=slices.device) for count in slices.counts.values()
        )

    def tensors(self) -> dict[str, Tensor]:
        noise = {name: torch.rand_like(a) * (1.0 - 2.0 * EPSILON) + EPSILON for name, a in self._named().items()}
        return self._slices.scaled({name: hard_concrete(a, noise[name]) for name, a in self._named().items()})

    def penalty(self) -> Tensor:
        return weighted_share(self.density(), self._slices)

    def density(self) -> dict[str, Tensor]:
        return {name: open_probability(a) for name, a in self._named().items()}

    def scores(self) -> dict[str, Tensor]:
        return {name: a.detach() for name, a in self._named().items()}

    def final(self) -> dict[str, Tensor]:
        return self._slices.scaled({name: evaluated_gate(a) for name, a in self._named().items()})

    def end_step(self) -> None:
        for a in self.log_alpha:
            a.data.clamp_(math.log(0.01), math.log(100.0))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self._method.learning_rate)

    def _named(self) -> dict[str, Tensor]:
        return dict(zip(self._slices.counts, self.log_alpha, strict=True))
