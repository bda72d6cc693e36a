"""STR: every layer learns the threshold below which its weights are zero.

    S(W, s) = sign(W) * relu(|W| - sigmoid(s)),   one s a layer
    dL/ds = -sigmoid'(s) * sum dL/dS * sign(W) * 1[|W| > sigmoid(s)]

Weight decay on s, lambda * s, pulls s from s_init << 0 towards 0 and so raises the threshold: without it nothing is
pruned. Kusupati et al., Soft Threshold Weight Reparameterization, 2020 (arXiv 2002.03231). Here the decay is a penalty,
lambda * s^2 / 2 by plain gradient descent, which is the same, so that a target can raise and lower lambda. A run of n
steps takes s from s_init to s by (1 - rate * lambda)^n: choose s_init for short runs by it. What is worth keeping is
|W| / sigmoid(s): the layers' thresholds, moved together, cut to any target.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Trace
from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.weights import sparse_weights

__all__ = ["SoftThreshold", "soft_threshold"]


def soft_threshold(weight: Tensor, threshold: Tensor) -> Tensor:
    """sign(W) * relu(|W| - threshold), shape of the weight."""
    return torch.sign(weight) * torch.relu(weight.abs() - threshold)


@dataclass(frozen=True)
class SoftThreshold(GateMethod):
    """STR: a learned threshold a layer, on single weights, driven by weight decay on its logit.

    Raises:
        BadInputError: a logit that is not below 0, or a weight decay below 0, or as ``GateMethod``.
    """

    granularity: ClassVar[Literal["weights"]] = "weights"
    s_init: float = -8.0
    weight_decay: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.s_init < 0.0 or not self.weight_decay >= 0.0:
            raise BadInputError(
                f"soft_threshold: s_init = {self.s_init} must be below 0, weight_decay = {self.weight_decay} at least 0"
            )

    def attach(self, model: nn.Module, trace: Trace, samples: int) -> Gate:
        """As ``GateMethod.attach``."""
        del samples
        return _SoftThresholdGate(sparse_weights(model, trace), self)


class _SoftThresholdGate(Gate):
    drive: ClassVar[Literal["strength"]] = "strength"

    def __init__(self, weights: dict[str, nn.Parameter], method: SoftThreshold) -> None:
        super().__init__()
        self._weights, self._method = weights, method
        place = next(iter(weights.values())).device
        self.s = nn.Parameter(torch.full((len(weights),), method.s_init, device=place))

    def tensors(self) -> dict[str, Tensor]:
        thresholds = torch.sigmoid(self.s)
        return {name: soft_threshold(w, thresholds[i]) for i, (name, w) in enumerate(self._weights.items())}

    def penalty(self) -> Tensor:
        return 0.5 * self._method.weight_decay * self.s.square().sum()

    def density(self) -> dict[str, Tensor]:
        thresholds = torch.sigmoid(self.s.detach())
        return {
            name: (w.detach().abs() > thresholds[i]).double().mean()
            for i, (name, w) in enumerate(self._weights.items())
        }

    def scores(self) -> dict[str, Tensor]:
        thresholds = torch.sigmoid(self.s.detach().double())
        return {name: w.detach().double().abs() / thresholds[i] for i, (name, w) in enumerate(self._weights.items())}

    def final(self) -> dict[str, Tensor]:
        return self.tensors()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self._method.learning_rate)
