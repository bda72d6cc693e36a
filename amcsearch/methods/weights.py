"""Single weights: those that may be zeroed one by one, and the scores that a criterion gives them."""

from collections.abc import Mapping
from contextlib import closing

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError, LayerKind
from amcsearch.graph import Batches, Trace
from amcsearch.methods.criterion import Criterion, saliency_of
from amcsearch.methods.first_order import LossFunction
from amcsearch.methods.needs import Draw
from amcsearch.methods.reduction import REDUCTIONS
from amcsearch.methods.statistics import gather, sliced_parameters

__all__ = ["layer_of", "sparse_weights", "weight_scores"]


def sparse_weights(model: nn.Module, trace: Trace) -> dict[str, nn.Parameter]:
    """Return the weights of convolutions and linear layers that some group cuts, by state-dict name.

    A weight with several names appears under its first; one that is also an embedding's is left out.

    Raises:
        BadInputError: there is none.
    """
    kinds = {layer.name: layer.kind for layer in trace.network.layers}
    name_of: dict[nn.Parameter, str] = {}
    for name, parameter in sliced_parameters(model, trace).items():
        if parameter.ndim >= 2 and kinds.get(layer_of(name)) in (LayerKind.CONV, LayerKind.LINEAR):
            name_of.setdefault(parameter, name)
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    name_of = {parameter: name for parameter, name in name_of.items() if parameter not in tables}
    if not name_of:
        raise BadInputError(f"{type(model).__name__} has no convolution or linear weight that a group cuts")
    return {name: parameter for parameter, name in name_of.items()}


def layer_of(name: str) -> str:
    """Return the layer's name of a tensor's: ``blocks.0.up.weight`` is of ``blocks.0.up``."""
    return name.rpartition(".")[0]


def weight_scores(
    model: nn.Module,
    trace: Trace,
    criterion: Criterion,
    names: Mapping[str, Tensor],
    batches: Batches,
    loss_fn: LossFunction,
) -> dict[str, Tensor]:
    """Score every weight of the tensors ``names`` by a criterion on calibration data, largest is best.

    A weight is a group of one: its score is the mean over draws, weighted by their samples, of its saliency after the
    finish of the criterion's reduction (absolute value, square, root; signs stay where the reduction keeps them).

    Raises:
        BadInputError: a tensor that the criterion does not score weight by weight, or as ``gather``.
    """
    draw = next(iter({statistic.draw for statistic in criterion.needs}), Draw.SET)
    finish = REDUCTIONS[criterion.reduction].finish
    totals: dict[str, Tensor] = {}
    sample_count = 0
    with closing(gather(model, trace, batches, loss_fn, criterion.needs)) as stream:
        for statistics in stream:
            if statistics.draw is not draw:
                continue
            saliency = saliency_of(criterion, statistics)
            lost = [name for name, w in names.items() if name not in saliency or saliency[name].shape != w.shape]
            if lost:
                raise BadInputError(
                    f"{type(criterion).__name__} scores no single weight of {lost[0]}; choose a criterion of weights "
                    "(magnitude, wanda, taylor, or fisher with per_weight: true)"
                )
            for name in names:
                value = finish(saliency[name].detach())
                totals[name] = totals.get(name, torch.zeros_like(value)) + value * statistics.samples
            sample_count += statistics.samples
    return {name: total / max(1, sample_count) for name, total in totals.items()}
