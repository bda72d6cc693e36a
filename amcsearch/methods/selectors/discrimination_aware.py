"""Discrimination-aware channel pruning: add the channels that the reconstruction AND a nearby classifier ask for most.

    L = mse_weight * E||y - y'||^2 / E||y||^2 + softmax_weight * loss of the next auxiliary head
    score_c = sum over filters o of |dL / dW'[o, c]|_F   at the weights W' so far, which are 0 in channels not yet
    chosen

Start from no channel, add the highest scores, refit the chosen ones, repeat. Heads sit at equal distances along the
layers that read channels (see ``auxiliary_heads``); past the last one the network's own loss counts.

Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, 2018 (arXiv 1810.11809): 3 heads, weights
1 and 1, one channel at a time. Departures: the chosen weights are refitted by least squares on the reconstruction
alone, in closed form (theirs: an epoch of SGD on both terms); the reconstruction's gradient comes from the Gram matrix,
2 (W' - W) G, and is relative, so that layers compare; channels are added in ``rounds`` equal parts; the head's gradient
is taken on the first ``samples`` of the calibration data; the network itself is not fine-tuned with the heads.

Auxiliary classifiers inside a network: a loss nearby for layers far from the output.

    head(y) = FC(mean over positions of ReLU((y - mean) / deviation)),  mean and deviation by channel over the data

on the output y of some layer, trained by its own loss with the network frozen: a convex problem, solved by full-batch
Adam from zero, so nothing is random. Zhuang et al., Discrimination-aware Channel Pruning, 2018 (arXiv 1810.11809); they
also fine-tune the network with the heads' losses, which a selector must not. With targets (N, T) every token is
classified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Tree, channels_first, evaluating
from amcsearch.methods.first_order import LossFunction, called
from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Calibration, Problem, Reader, Refitted, refitted

__all__ = ["DiscriminationAware", "Head", "head_loss", "train_heads"]

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


def train_heads(model: nn.Module, layers: Sequence[str], batch: Batch, loss_fn: LossFunction) -> dict[str, Head]:
    """Train a head on the output of each layer, on a batch with class ids (N,) or (N, T); the model is frozen."""
    classes = int(batch.targets.max()) + 1
    with evaluating(model), torch.no_grad():
        outputs, _ = _run(model, layers, {}, batch)
    return {layer: _train(layer, _tokens(outputs[layer]), batch.targets, classes, loss_fn) for layer in layers}


def head_loss(
    model: nn.Module,
    head: Head | None,
    replaced: Mapping[str, Tensor],
    batch: Batch,
    loss_fn: LossFunction,
) -> Tensor:
    """Return the mean loss of a head, or the network's own without one, with some of its tensors ``replaced``.

    The network must be in eval mode; gradients flow to ``replaced``.
    """
    outputs, last = _run(model, [head.layer] if head else [], replaced, batch)
    return loss_fn(head(outputs[head.layer], batch.targets) if head else last, batch.targets)


def _run(
    model: nn.Module, layers: Sequence[str], replaced: Mapping[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], Tree]:
    """Outputs of some layers and of the network."""
    parameters = {name: channels_first(p.detach()) for name, p in model.named_parameters()}
    outputs: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(layer).register_forward_hook(lambda _, __, y, name=layer: outputs.__setitem__(name, y))
        for layer in layers
    ]
    try:
        last = called(model, {**parameters, **replaced}, batch)
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


@dataclass(frozen=True)
class DiscriminationAware:
    """Greedy by the gradient of reconstruction plus auxiliary classifiers, then least squares.

    Raises:
        BadInputError: fewer than 1 round or sample, a negative number of heads, or weights that are negative or both 0.
    """

    heads: int = 3
    mse_weight: float = 1.0
    softmax_weight: float = 1.0
    rounds: int = 8
    samples: int = 128
    refit: ClassVar[str] = "least_squares"
    labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, bound in (("rounds", 1), ("samples", 1), ("heads", 0), ("mse_weight", 0), ("softmax_weight", 0)):
            if not getattr(self, name) >= bound:
                raise BadInputError(f"discrimination_aware: {name} = {getattr(self, name)}, must be at least {bound}")
        if self.mse_weight == self.softmax_weight == 0:
            raise BadInputError("discrimination_aware: mse_weight and softmax_weight are both 0, raise one above 0")

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, first chosen first.

        Raises:
            BadInputError: targets that are no class ids, where heads are trained.
        """
        position_of = problem.calibration.trace.network.layer_index
        layers = sorted(
            {r.inputs.layer for rs in problem.readers.values() for r in rs}, key=lambda x: position_of.get(x, 0)
        )
        heads = self._heads(problem.calibration, layers) if self.softmax_weight else []
        order_of = {}
        for group, readers in problem.readers.items():
            deepest = max(layers.index(reader.inputs.layer) for reader in readers)
            head = next((head for head in heads if layers.index(head.layer) >= deepest), None)
            order_of[group] = self._order(readers, problem.calibration, head)
        return order_of

    def _heads(self, calibration: Calibration, layers: Sequence[str]) -> list[Head]:
        """Heads in the order of their layers, at equal distances and never on the last layer."""
        batch = _batch(calibration, self.samples)
        if not isinstance(batch.targets, Tensor) or batch.targets.is_floating_point():
            kind = batch.targets.dtype if isinstance(batch.targets, Tensor) else f"a {type(batch.targets).__name__}"
            raise BadInputError(
                f"discrimination_aware needs class ids, the targets are {kind}; set heads and softmax_weight to 0, or "
                "choose another selector"
            )
        positions = {len(layers) * (i + 1) // (self.heads + 1) - 1 for i in range(self.heads)}
        taps = [layers[position] for position in sorted(positions) if position >= 0]
        return list(train_heads(calibration.model, taps, batch, calibration.loss_fn).values())

    def _order(self, readers: Sequence[Reader], calibration: Calibration, head: Head | None) -> NDArray[np.int64]:
        n_units, chosen = len(readers[0].columns), list[int]()
        step = -(-n_units // self.rounds)
        while len(chosen) < n_units:
            scores = self._scores(readers, chosen, calibration, head)
            scores[chosen] = -np.inf
            best = np.argsort(-scores, kind="stable")[: min(step, n_units - len(chosen))]
            chosen += best.tolist()
        return np.array(chosen, dtype=np.int64)

    def _scores(
        self, readers: Sequence[Reader], chosen: Sequence[int], calibration: Calibration, head: Head | None
    ) -> NDArray[np.float64]:
        """Sum over readers and filters of the norm of the gradient in every unit's slice, shape (n_units,)."""
        now = [_with_units(reader, chosen) for reader in readers]
        gradients = [
            (2.0 * self.mse_weight / (r.energy or 1.0)) * (new.weight - r.weight) @ r.inputs.gram
            for r, new in zip(readers, now, strict=True)
        ]
        if self.softmax_weight:
            by_reader = _loss_gradients(readers, now, calibration, head, self.samples)
            gradients = [g + self.softmax_weight * more for g, more in zip(gradients, by_reader, strict=True)]
        norms = [g[:, :, r.columns].norm(dim=-1).sum((0, 1)) for g, r in zip(gradients, readers, strict=True)]
        total: NDArray[np.float64] = torch.stack(norms).sum(0).numpy()
        return total


def _with_units(reader: Reader, chosen: Sequence[int]) -> Refitted:
    """The reader refitted to the chosen units alone; inputs from other groups stay."""
    taps = reader.inputs.taps
    removed = torch.zeros(reader.weight.shape[-1] // taps, dtype=torch.bool)
    removed[reader.columns[:, ::taps].flatten() // taps] = True
    removed[reader.columns[list(chosen), ::taps].flatten() // taps] = False
    return refitted(reader.inputs, reader.weight, removed, "bias" if removed.all() else "least_squares")


def _loss_gradients(
    readers: Sequence[Reader], now: Sequence[Refitted], calibration: Calibration, head: Head | None, samples: int
) -> list[Tensor]:
    """Gradients of a head's loss by the readers' weights as they are now, each of its weight matrix's shape."""
    model = calibration.model
    leaves = [_like(model, r.inputs.weight, new.weight).requires_grad_() for r, new in zip(readers, now, strict=True)]
    replaced = {r.inputs.weight: leaf for r, leaf in zip(readers, leaves, strict=True)}
    for reader, new in zip(readers, now, strict=True):
        replaced.update(_constants(model, reader, new.shift))
    with evaluating(model), torch.enable_grad():
        loss = head_loss(model, head, replaced, _batch(calibration, samples), calibration.loss_fn)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [g.double().cpu().reshape(r.weight.shape) for g, r in zip(gradients, readers, strict=True)]


def _constants(model: nn.Module, reader: Reader, shift: Tensor) -> dict[str, Tensor]:
    """The reader's bias, or the running mean of the norm behind it, with the shift in it."""
    if reader.inputs.bias:
        bias = model.get_parameter(reader.inputs.bias).detach()
        return {reader.inputs.bias: bias + shift.to(bias)}
    if reader.inputs.norm:
        name = f"{reader.inputs.norm}.running_mean"
        mean = model.get_buffer(name)
        return {name: mean - shift.to(mean)}
    return {}


def _like(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    dense = model.get_parameter(name)
    return weight.reshape(dense.shape).to(dense.device, dense.dtype, copy=True)


def _batch(calibration: Calibration, samples: int) -> Batch:
    """Return the first samples as one batch."""
    torch_device = next(calibration.model.parameters()).device
    return next(iter(calibration.batches.batched(samples))).to(torch_device)
