"""Bias correction: add the mean contribution of removed channels to the biases of the layers that read them.

    b' = b + sum over removed c of (sum over kernel positions of W[:, c]) * mean_c

Nagel et al. 2019 (arXiv 1906.04721) absorb biases so; An et al. 2024 (FLAP, arXiv 2312.11983) compensate pruning. A
reader without a bias gets one, unless a batch norm follows it: then the term is subtracted from that norm's running
mean. (A later recalibration replaces this mean by a measured one.) The correction is exact in expectation for the
inputs of the dense network. With zero padding it is exact in the interior alone, because borders use fewer taps.
Transposed convolutions are left as they are, because their outputs use different taps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from amcsearch.graph import (
    Batches,
    ConstantLayer,
    Kept,
    Trace,
    check_kept,
    evaluating,
    removed_positions,
    vanished_layers,
)
from amcsearch.methods import Criterion, LossFunction, Statistic, following_norms, gather, readers

__all__ = ["Means", "fold_means", "input_means", "means_for"]


@dataclass(frozen=True)
class Means:
    """By reader's weight: ``terms[name]`` (C_out, positions along the input axis), what each position adds to the
    outputs on average; ``norms[name]`` is the batch norm that takes those outputs next, if one does.
    """

    terms: Mapping[str, Tensor]
    norms: Mapping[str, str]


def means_for(
    criterion: Criterion, model: nn.Module, trace: Trace, batches: Batches, loss_fn: LossFunction
) -> Means | None:
    """Return the means to fold where the criterion wants it (``fold_means``), else None.

    Raises:
        BadInputError: as ``gather``.
    """
    if not getattr(criterion, "fold_means", False):
        return None
    return input_means(model, trace, batches, loss_fn)


def input_means(model: nn.Module, trace: Trace, batches: Batches, loss_fn: LossFunction) -> Means:
    """Measure the mean inputs of every reader on calibration data.

    Raises:
        BadInputError: as ``gather``.
    """
    *_, whole = gather(model, trace, batches, loss_fn, {Statistic.INPUT_MOMENTS})
    modules = dict(model.named_modules(remove_duplicate=False))
    terms = {}
    for name in sorted(readers(trace) & set(whole.inputs)):
        if not isinstance(modules[_layer(name)], _ConvTransposeNd):
            weight = whole.weights[name]
            each = weight * whole.inputs[name].mean.to(weight)
            terms[name] = each.sum(tuple(range(2, each.ndim))) if each.ndim > 2 else each
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)}
    with evaluating(model):
        norms = following_norms(model, layers, next(iter(batches.batched(1))).to(next(model.parameters()).device))
    return Means(terms, {name: norms[_layer(name)] for name in terms if _layer(name) in norms})


def fold_means(smaller: nn.Module, trace: Trace, kept: Kept, means: Means) -> None:
    """Add the means of removed channels to ``smaller``, in place; ``smaller`` is ``remove(model, trace, kept)``.

    Raises:
        BadInputError: kept channels that do not fit the trace.
    """
    removed = check_kept(trace, kept)
    positions = removed_positions(trace, removed)
    silent = vanished_layers(trace, kept).silent
    modules = dict(smaller.named_modules(remove_duplicate=False))
    for name, terms in means.terms.items():
        gone = positions.get((name, 1))
        if gone is None or _layer(name) in silent:
            continue
        lost = terms[:, torch.from_numpy(gone)].sum(1)
        rows = np.delete(np.arange(len(terms)), positions.get((name, 0), np.empty(0, dtype=np.int64)))
        _add(modules, name, means.norms.get(name), lost[torch.from_numpy(rows)])


def _add(modules: Mapping[str, nn.Module], name: str, norm: str | None, lost: Tensor) -> None:
    layer = modules[_layer(name)]
    assert isinstance(layer, nn.Linear | _ConvNd | ConstantLayer)
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias += lost.to(layer.bias)
        elif norm is not None:
            running = modules[norm].running_mean
            assert isinstance(running, Tensor)
            running -= lost.to(running)
        else:
            layer.bias = nn.Parameter(lost.to(layer.weight), requires_grad=layer.weight.requires_grad)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
