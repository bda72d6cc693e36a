"""Auxiliary classifiers inside a network: a loss nearby for layers far from the output.

    head(y) = FC(mean over positions of ReLU((y - mean) / deviation)),  mean and deviation by channel over the data

on the output y of some layer, trained by its own loss with the network frozen: a convex problem, solved by full-batch
Adam from zero, so nothing is random. Zhuang et al., Discrimination-aware Channel Pruning, 2018 (arXiv 1810.11809); they
also fine-tune the network with the heads' losses, which a selector must not. With targets (N, T) every token is
classified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from amcsearch.graph.layout import channels_first
from amcsearch.graph.modes import evaluating
from amcsearch.methods.statistics import LossFunction

__all__ = ["Head", "head_loss", "train_heads"]

STEPS: Final = 60
LEARNING_RATE: Final = 0.05


@dataclass(frozen=True)
class Head:
    """A classifier on the output of ``layer``: ``mean`` and ``deviation`` (C,), ``weight`` (K, C), ``bias`` (K,)."""

    layer: str
    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        """Logits of the layer's output (N, C, H, W), (N, T, C) or (N, C): (N, K), or (N, T, K) for targets (N, T)."""
        return F.linear(_features(_tokens(output), self.mean, self.deviation, targets), self.weight, self.bias)


def train_heads(
    model: nn.Module, layers: Sequence[str], inputs: Tensor, targets: Tensor, loss_fn: LossFunction
) -> dict[str, Head]:
    """Train a head on the output of each layer, on inputs (N, …) and class ids (N,) or (N, T); the model is frozen."""
    classes = int(targets.max()) + 1
    with evaluating(model), torch.no_grad():
        outputs, _ = _run(model, layers, {}, inputs)
    return {layer: _train(layer, _tokens(outputs[layer]), targets, classes, loss_fn) for layer in layers}


def head_loss(
    model: nn.Module,
    head: Head | None,
    replaced: Mapping[str, Tensor],
    batch: tuple[Tensor, Tensor],
    loss_fn: LossFunction,
) -> Tensor:
    """Return the mean loss of a head, or the network's own without one, with some of its tensors ``replaced``.

    The network must be in eval mode; gradients flow to ``replaced``.
    """
    inputs, targets = batch
    outputs, last = _run(model, [head.layer] if head else [], replaced, inputs)
    return loss_fn(head(outputs[head.layer], targets) if head else last, targets)


def _run(
    model: nn.Module, layers: Sequence[str], replaced: Mapping[str, Tensor], inputs: Tensor
) -> tuple[dict[str, Tensor], Any]:
    """Outputs of some layers and of the network."""
    own = {name: channels_first(p.detach()) for name, p in model.named_parameters()}
    outputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(layer).register_forward_hook(lambda _, __, y, name=layer: outputs.__setitem__(name, y))
        for layer in layers
    ]
    try:
        last = functional_call(model, {**own, **replaced}, (channels_first(inputs),))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, last


def _tokens(output: Tensor) -> Tensor:
    """(N, positions, C)."""
    if output.ndim == 4:
        return output.flatten(2).mT
    return output.unsqueeze(1) if output.ndim == 2 else output


def _features(tokens: Tensor, mean: Tensor, deviation: Tensor, targets: Tensor) -> Tensor:
    features = F.relu((tokens - mean) / deviation)
    return features if targets.ndim > 1 and tokens.shape[1] == targets.shape[1] else features.mean(1)


def _train(layer: str, tokens: Tensor, targets: Tensor, classes: int, loss_fn: LossFunction) -> Head:
    rows = tokens.flatten(0, 1)
    mean, deviation = rows.mean(0), rows.std(0, correction=0).clamp_min(1e-6)
    features = _features(tokens, mean, deviation, targets)
    weight = torch.zeros(classes, features.shape[-1], dtype=features.dtype, device=features.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=features.dtype, device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            loss = loss_fn(F.linear(features, weight, bias), targets)
            weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
            optimizer.step()
    return Head(layer, mean, deviation, weight.detach(), bias.detach())
