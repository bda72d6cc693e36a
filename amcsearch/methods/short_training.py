"""Movement scores from a short training of a copy whose weights are masked by their own scores.

    each step:  W' = W * M,  M = Top_v(S),  G = dL/dW' on the next minibatch
                S <- S - G * W      (straight through: dL/dS = G * W, for entries off as well as on)
                W <- W - rate * G * M

``v`` falls from 1 to ``keep`` along a cubic over the steps. Minibatches are taken in order, again and again. Plain
gradient descent in eval mode: under train-mode batch norm the scores of a filter would sum to 0, since the loss does
not depend on its scale.
"""

import math
from collections.abc import Mapping
from itertools import chain, islice, repeat
from typing import Final

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batches, channels_first, evaluating
from amcsearch.methods.first_order import LossFunction, called
from amcsearch.methods.needs import ShortTraining
from amcsearch.methods.weight_choice import keep_top

__all__ = ["accumulated", "keep_share", "movement_scores", "top_mask"]

_CURE: Final = "lower selection.params.learning_rate"


def accumulated(scores: Tensor, weight: Tensor, gradient: Tensor, learning_rate: float = 1.0) -> Tensor:
    """S - rate * G * W, all of one shape; ``gradient`` is that at the MASKED weight, so that scores of weights that
    are off move too, and these can come back.
    """
    return scores - learning_rate * gradient * weight


def top_mask(scores: Tensor, keep: float) -> Tensor:
    """1 for exactly floor(keep * n) entries, those of the largest scores, else 0; ties keep the first in memory."""
    return keep_top(scores, math.floor(keep * scores.numel() + 1e-9)).to(scores.dtype)


def keep_share(step: int, steps: int, final: float) -> float:
    """Share kept at a step: v_f + (1 - v_f)(1 - t)^3 with t from 0 at the first step to 1 at the last."""
    progress = min(max(step / max(steps - 1, 1), 0.0), 1.0)
    return final + (1.0 - final) * (1.0 - progress) ** 3


def movement_scores(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Batches,
    loss_fn: LossFunction,
    need: ShortTraining,
) -> dict[str, Tensor]:
    """Return S by tensor name, its shape, for every scored tensor; ``model`` is not touched.

    Raises:
        BadInputError: a loss or a gradient that is not finite.
    """
    names = {p: name for name, p in model.named_parameters()}
    weights = {name: channels_first(p.detach()).clone() for p, name in names.items()}
    scores = {names[p]: torch.zeros_like(p) for p in parameters.values() if p.ndim > 1}
    torch_device = next(iter(weights.values())).device
    endless = chain.from_iterable(repeat(batches))
    with evaluating(model), torch.enable_grad():
        for step, batch in enumerate(islice(endless, need.steps)):
            share = keep_share(step, need.steps, need.keep)
            masks = {name: top_mask(s, share) for name, s in scores.items()} if share < 1.0 else {}
            masked = {name: w * masks[name] if name in masks else w.clone() for name, w in weights.items()}
            leaves = {name: w.requires_grad_(w.is_floating_point()) for name, w in masked.items()}
            batch = batch.to(torch_device)
            loss = loss_fn(called(model, leaves, batch), batch.targets)
            if not torch.isfinite(loss):
                raise BadInputError(
                    f"movement: the loss is {float(loss.detach())} in step {step} of the short training at "
                    f"learning_rate = {need.learning_rate}, must be finite; {_CURE}"
                )
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                if name in scores:
                    scores[name] = accumulated(scores[name], weights[name], gradient)
                    gradient = gradient * masks[name] if masks else gradient
                weights[name] = weights[name] - need.learning_rate * gradient
    bad = next((name for name, score in scores.items() if not score.isfinite().all()), None)
    if bad is not None:
        raise BadInputError(
            f"movement: the gradients of {bad} in the short training at learning_rate = {need.learning_rate} must be "
            f"finite and are not; {_CURE}, or look for a root or a logarithm of 0 in the network"
        )
    return {name: scores[names[p]] for name, p in parameters.items() if names[p] in scores}
