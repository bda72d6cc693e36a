"""Refit the layers that read pruned channels, from input moments that are gathered once.

The moments come from one pass over the dense network (``methods.layer_inputs``). A policy then costs one linear solve
for each layer that lost inputs, by a row of ``REFITS`` (none, bias, scales, least_squares). Each output is fitted
independently, so rows of removed outputs are dropped afterwards. The change of the mean output goes into the layer's
bias, or into the running mean of the batch norm after it. (Batch-norm recalibration, where it follows, measures the
same mean.)

A layer is refitted to the dense layer's output from the inputs that it had in the dense network. It ignores that
earlier layers have been refitted too, and that norms over a narrower residual stream have other statistics. The layers
that read one stream are refitted independently.

Refitted weights are cached by layer and lost inputs, up to ``CACHE_BYTES``; the least recently used are dropped first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Kept, Trace, check_kept, removed_positions, tensors_of, vanished_layers
from amcsearch.methods import DAMPING, REFITS, LayerInputs, Refitted, refitted, weight_matrix

__all__ = ["CACHE_BYTES", "Reconstruction"]

CACHE_BYTES: Final = 256 * 2**20


class Reconstruction:
    """Refits pruned copies of one dense network; can be sent to worker processes.

    Raises:
        BadInputError: an unknown refit, or damping below 0.
    """

    def __init__(
        self, model: nn.Module, trace: Trace, inputs: Iterable[LayerInputs], refit: str, damping: float = DAMPING
    ) -> None:
        if refit not in REFITS:
            raise BadInputError(f"reconstruction = {refit!r} is unknown; known: {', '.join(REFITS)}")
        if not damping >= 0.0:
            raise BadInputError(f"reconstruction: damping = {damping}, must be at least 0 ({DAMPING} as a rule)")
        self.trace = trace
        self.refit = refit
        self.damping = damping
        self._inputs = tuple(inputs)
        self._weights = {
            layer_inputs.layer: weight_matrix(model.get_submodule(layer_inputs.layer)).cpu()
            for layer_inputs in self._inputs
        }
        self._dtypes = {
            layer_inputs.layer: model.get_parameter(layer_inputs.weight).dtype for layer_inputs in self._inputs
        }
        self._cache: OrderedDict[tuple[str, bytes], Refitted] = OrderedDict()
        self._cached_bytes = 0

    def apply(self, smaller: nn.Module, kept: Kept) -> None:
        """Refit, in place, every layer of ``smaller`` that lost inputs; ``smaller`` is ``remove(model, trace, kept)``.

        Raises:
            BadInputError: kept channels that do not fit the trace, or a Gram matrix that cannot be solved.
        """
        gone = removed_positions(self.trace, check_kept(self.trace, kept))
        vanished = vanished_layers(self.trace, kept)
        losing = [each for each in self._inputs if (each.weight, 1) in gone and each.layer not in vanished.silent]
        names = {layer_inputs.layer: _names(layer_inputs) for layer_inputs in losing}
        for layer in vanished.constant & set(names):
            names[layer] = names[layer][1:]  # nothing is left of its weight
        touched = tensors_of(smaller, (name for layer in names.values() for name in layer))
        for layer_inputs in losing:
            self._refit(layer_inputs, gone, touched)

    def _refit(
        self,
        layer_inputs: LayerInputs,
        gone: Mapping[tuple[str, int], NDArray[np.int64]],
        touched: Mapping[str, Tensor],
    ) -> None:
        new = self._solved(layer_inputs, gone[layer_inputs.weight, 1])
        rows = torch.ones(len(new.weight), dtype=torch.bool)
        rows[torch.from_numpy(gone.get((layer_inputs.weight, 0), np.empty(0, np.int64)))] = False
        if layer_inputs.weight in touched:
            weight = touched[layer_inputs.weight].data
            weight.copy_(new.weight[rows].reshape(weight.shape))
        if layer_inputs.bias is not None:
            bias = touched[layer_inputs.bias].data
            bias.add_(new.shift[rows].to(bias))
        if layer_inputs.norm is not None:
            mean, variance = (touched[name] for name in _running(layer_inputs.norm))
            if layer_inputs.weight in touched:  # a constant has no variance to follow
                variance.mul_(new.spread[rows].to(variance))
            if layer_inputs.bias is None:
                mean.sub_(new.shift[rows].to(mean))

    def _solved(self, layer_inputs: LayerInputs, lost: NDArray[np.int64]) -> Refitted:
        """Refit a layer without some input channels; its weight comes as (C_out, kept columns)."""
        key = layer_inputs.layer, lost.tobytes()
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        dense = self._weights[layer_inputs.layer]
        removed = torch.zeros(dense.shape[-1] // layer_inputs.taps, dtype=torch.bool)
        removed[torch.from_numpy(lost)] = True
        new = refitted(layer_inputs, dense, removed, self.refit, self.damping)
        weight = (
            new.weight[:, :, ~removed.repeat_interleave(layer_inputs.taps)]
            .flatten(0, 1)
            .to(self._dtypes[layer_inputs.layer])
        )
        self._cache[key] = replace(new, weight=weight)
        self._cached_bytes += weight.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].weight.nbytes
        return self._cache[key]


def _names(layer_inputs: LayerInputs) -> list[str]:
    bias = [layer_inputs.bias] if layer_inputs.bias is not None else []
    return [layer_inputs.weight, *bias, *(_running(layer_inputs.norm) if layer_inputs.norm is not None else ())]


def _running(norm: str) -> tuple[str, str]:
    return f"{norm}.running_mean", f"{norm}.running_var"
