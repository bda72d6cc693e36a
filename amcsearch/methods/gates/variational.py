"""Sparse variational dropout: learn the noise of every weight, and remove the weights that bear much of it.

    q(w) = N(mu, sigma^2),  log_a = log sigma^2 - log mu^2 in [-8, 8],  layer output ~ N(x mu, x^2 sigma^2)
    -KL ~ k1 * sigmoid(k2 + k3 * log_a) - 1/2 * log(1 + 1/a) - k1,   k = 0.63576, 1.87320, 1.48695
    penalty = w(t) * KL / samples beside the MEAN loss;   a weight is off at log_a > 3

Molchanov et al., Variational Dropout Sparsifies Deep Neural Networks, 2017 (arXiv 1701.05369). The noise is added to
the outputs (local reparametrisation), with 1e-8 inside the square root. w(t) is 0 at first and rises linearly to 1, by
shares of the training. Gates sit on single weights; what is worth keeping is -log_a. Departure: the penalty moves the
noise alone. Its slope by mu is about 1/mu, which the authors' Adam tames; under the network's plain descent, and times
a multiplier, it throws small weights about and the network is lost (benchmarks/methods/all_methods.md).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amcsearch.core import BadInputError
from amcsearch.graph import Trace
from amcsearch.methods.gate import Gate, GateMethod
from amcsearch.methods.weights import layer_of, sparse_weights

__all__ = ["VariationalDropout", "log_alpha", "negative_kl", "output_noise"]

K1: Final = 0.63576
K2: Final = 1.87320
K3: Final = 1.48695
OFF: Final = 3.0


def log_alpha(weight: Tensor, log_variance: Tensor) -> Tensor:
    """log sigma^2 - log mu^2 within [-8, 8], shape of the weight."""
    return (log_variance - torch.log(weight.square() + 1e-16)).clamp(-8.0, 8.0)


def negative_kl(log_a: Tensor) -> Tensor:
    """-KL of each weight from the log-uniform prior, nats; within 0.0094 of the exact value."""
    return K1 * torch.sigmoid(K2 + K3 * log_a) - 0.5 * torch.log1p(torch.exp(-log_a)) - K1


def output_noise(layer: nn.Module, inputs: Tensor, variance: Tensor) -> Tensor:
    """One draw of the noise of a layer's outputs, whose weights have this variance; shape of the outputs."""
    replaced = {"weight": variance}
    if getattr(layer, "bias", None) is not None:
        replaced["bias"] = torch.zeros_like(layer.bias)  # type: ignore[arg-type]
    spread = functional_call(layer, replaced, (inputs.square(),))
    return torch.sqrt(spread + 1e-8) * torch.randn_like(spread)


@dataclass(frozen=True)
class VariationalDropout(GateMethod):
    """Variational dropout: learned noise on single weights, trained by Adam.

    Raises:
        BadInputError: shares that are no shares or not in order, or as ``GateMethod``.
    """

    granularity: ClassVar[Literal["weights"]] = "weights"
    learning_rate: float = 0.1
    log_variance: float = -10.0
    kl_from: float = 0.025
    kl_to: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.kl_from <= self.kl_to <= 1.0:
            raise BadInputError(
                f"variational_dropout: kl_from = {self.kl_from}, kl_to = {self.kl_to}: shares of the training, in order"
            )

    def attach(self, model: nn.Module, trace: Trace, samples: int) -> Gate:
        """As ``GateMethod.attach``."""
        return _VariationalGate(sparse_weights(model, trace), self, samples)


class _VariationalGate(Gate):
    drive: ClassVar[Literal["strength"]] = "strength"

    def __init__(self, weights: dict[str, nn.Parameter], method: VariationalDropout, samples: int) -> None:
        super().__init__()
        self._weights, self._method, self._samples, self._kl_weight = weights, method, samples, 0.0
        self.log_variance = nn.ParameterList(torch.full_like(w.data, method.log_variance) for w in weights.values())

    def begin_step(self, progress: float) -> None:
        start, end = self._method.kl_from, self._method.kl_to
        self._kl_weight = 1.0 if progress >= end else max(0.0, progress - start) / max(end - start, 1e-12)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._weights)

    @contextmanager
    def noise(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, log_variance in zip(self._weights, self.log_variance, strict=True):
                layer = model.get_submodule(layer_of(name))
                stack.callback(layer.register_forward_hook(_adding_noise(log_variance)).remove)
            yield

    def penalty(self) -> Tensor:
        pairs = zip(self._weights.values(), self.log_variance, strict=True)
        divergence = torch.stack([-negative_kl(log_alpha(w.detach(), v)).sum() for w, v in pairs]).sum()
        return self._kl_weight * divergence / self._samples

    def density(self) -> dict[str, Tensor]:
        return {name: (a.detach() <= OFF).double().mean() for name, a in self._log_alpha().items()}

    def scores(self) -> dict[str, Tensor]:
        pairs = zip(self._weights.items(), self.log_variance, strict=True)  # not clipped: clipping would tie
        return {n: torch.log(w.detach().double().square() + 1e-30) - v.detach().double() for (n, w), v in pairs}

    def final(self) -> dict[str, Tensor]:
        return {name: self._weights[name] * (a <= OFF) for name, a in self._log_alpha().items()}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self._method.learning_rate)

    def _log_alpha(self) -> dict[str, Tensor]:
        pairs = zip(self._weights.items(), self.log_variance, strict=True)
        return {name: log_alpha(weight, log_variance) for (name, weight), log_variance in pairs}


def _adding_noise(log_variance: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    """Return a forward hook that adds noise once, not again in the call that sizes it."""
    busy = False

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal busy
        if busy:
            return output
        busy = True
        try:
            return output + output_noise(module, inputs[0], torch.exp(log_variance))
        finally:
            busy = False

    return hook
