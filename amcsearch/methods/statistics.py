"""What criteria look at: weights, and gradients of the loss over the calibration samples.

One pass over the calibration data serves every criterion. It is streamed: each *draw* (a minibatch, a single sample,
or the whole set) is handed over as it comes, so that memory does not grow with the number of minibatches. The network
is called through ``torch.func.functional_call`` on detached leaves: its ``.grad`` fields, its ``requires_grad`` flags
and its buffers are never touched.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from amcsearch.core import BadInputError
from amcsearch.graph.layout import channels_first
from amcsearch.graph.modes import evaluating
from amcsearch.graph.slices import Trace

__all__ = ["Draw", "LossFunction", "Statistic", "Statistics", "gather", "sliced_parameters"]

LossFunction = Callable[[Any, Tensor], Tensor]  # (model output, target) -> mean loss over the samples, a scalar


class Draw(StrEnum):
    """What one set of statistics was averaged over."""

    SET = "set"
    MINIBATCH = "minibatch"
    SAMPLE = "sample"


class Statistic(StrEnum):
    """What a criterion may ask for beyond the weights, which are always there."""

    SET_GRADIENT = "set_gradient"
    MINIBATCH_GRADIENT = "minibatch_gradient"
    SAMPLE_GRADIENT = "sample_gradient"

    @property
    def draw(self) -> Draw:
        """The draw this statistic comes with."""
        return _DRAWS[self]


_DRAWS = {
    Statistic.SET_GRADIENT: Draw.SET,
    Statistic.MINIBATCH_GRADIENT: Draw.MINIBATCH,
    Statistic.SAMPLE_GRADIENT: Draw.SAMPLE,
}


@dataclass(frozen=True)
class Statistics:
    """One draw: tensors by state-dict name, each of the shape of its parameter.

    ``gradients`` are those of the mean loss over the draw's ``samples``; empty where nobody asked.
    """

    draw: Draw
    samples: int
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


def gather(
    model: nn.Module,
    trace: Trace,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: LossFunction,
    needs: AbstractSet[Statistic],
    batch_size: int,
) -> Generator[Statistics, None, None]:
    """Yield what ``needs`` names, draw after draw; the last one covers the whole set (weights are always in it).

    ``inputs`` (N, …) and ``targets`` (N, …) are cut into batches of ``batch_size`` in order; the last may be shorter
    and weighs by its samples. The network is in eval mode while it runs and in the mode it was found between draws.

    Raises:
        BadInputError: no samples, unequal lengths, or a batch size below 1, where gradients are asked for.
    """
    parameters = sliced_parameters(model, trace)
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    total: dict[str, Tensor] = {}
    for batch, target in _batches(inputs, targets, batch_size) if needs else ():
        if needs & {Statistic.MINIBATCH_GRADIENT, Statistic.SET_GRADIENT}:
            gradients = _gradients(model, parameters, batch, target, loss_fn)
            if Statistic.MINIBATCH_GRADIENT in needs:
                yield Statistics(Draw.MINIBATCH, len(batch), weights, gradients)
            if Statistic.SET_GRADIENT in needs:
                for name, gradient in gradients.items():
                    total[name] = total.get(name, 0) + gradient * (len(batch) / len(inputs))
        if Statistic.SAMPLE_GRADIENT in needs:
            for sample, label in _batches(batch, target, 1):
                yield Statistics(Draw.SAMPLE, 1, weights, _gradients(model, parameters, sample, label, loss_fn))
    yield Statistics(Draw.SET, len(inputs), weights, total)


def sliced_parameters(model: nn.Module, trace: Trace) -> dict[str, nn.Parameter]:
    """Return the parameters that some group cuts, under every name the trace uses (tied weights have several)."""
    named = dict(model.named_parameters(remove_duplicate=False))
    used = (part.tensor for slices in trace.slices.values() for part in slices)
    return {name: named[name] for name in dict.fromkeys(used) if name in named}


def _batches(inputs: Tensor, targets: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    if batch_size < 1:
        raise BadInputError(f"calibration batch size = {batch_size}, must be at least 1")
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise BadInputError(
            f"calibration data: {len(inputs)} inputs and {len(targets)} targets; they must be as many, at least 1"
        )
    return zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True)


def _gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], inputs: Tensor, targets: Tensor, loss_fn: LossFunction
) -> dict[str, Tensor]:
    """Gradients of the mean loss over one batch, in eval mode, by name; zero where the loss does not reach."""
    leaves = {parameter: channels_first(parameter.detach()).requires_grad_() for parameter in parameters.values()}
    name_of = {parameter: name for name, parameter in parameters.items()}  # one name each, also for tied weights
    torch_device = next(iter(leaves)).device
    with evaluating(model), torch.enable_grad():
        replaced = {name_of[parameter]: leaf for parameter, leaf in leaves.items()}
        output = functional_call(model, replaced, (channels_first(inputs.to(torch_device)),))
        loss = loss_fn(output, targets.to(torch_device))
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    gradient_of = dict(zip(leaves, found, strict=True))
    return {name: gradient_of[parameter] for name, parameter in parameters.items()}
