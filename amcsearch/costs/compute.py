"""Multiply-accumulates and parameters: what is counted, and what is not.

Counted as MACs: the products of weights with activations, and the two products of attention, Q·Kᵀ and scores·V.
Not counted: biases, normalisation, activation functions, softmax, pooling, additions and look-ups, which the usual
counters leave out too. A causal mask does not lower the count: the runtime computes the masked scores as well.
One MAC is two FLOPs.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Final

from amcsearch.core import LayerKind, LayerSpec

__all__ = ["Macs", "Params", "is_transposed", "macs", "params"]


def is_transposed(layer: LayerSpec) -> bool:
    """Whether the output is larger than the input, by just what a transposed convolution of this shape makes."""
    sizes = zip(layer.in_size, layer.out_size, layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True)
    # what is left over is its `output_padding`
    extra = [(o - ((i - 1) * s - 2 * p + d * (k - 1) + 1), max(s, d)) for i, o, k, s, p, d in sizes]
    return prod(layer.out_size) > prod(layer.in_size) and all(0 <= more < bound for more, bound in extra)


def _conv_macs(layer: LayerSpec) -> int:
    # each output position gathers, or each input position of a transposed convolution spreads, kH·kW products
    positions = prod(layer.in_size if is_transposed(layer) else layer.out_size)
    return layer.out_channels * (layer.in_channels // layer.conv_groups) * prod(layer.kernel) * positions


def _linear_macs(layer: LayerSpec) -> int:
    return layer.in_channels * layer.out_channels * prod(layer.out_size)


def _attention_macs(layer: LayerSpec) -> int:
    # (T_q, d)·(d, T_k) and (T_q, T_k)·(T_k, d), summed over heads: d adds up to the width
    return 2 * prod(layer.out_size) * prod(layer.in_size) * layer.out_channels


def _nothing(layer: LayerSpec) -> int:  # noqa: ARG001 (one signature for the whole table)
    return 0


def _conv_params(layer: LayerSpec) -> int:
    weight = layer.out_channels * (layer.in_channels // layer.conv_groups) * prod(layer.kernel)
    return weight * layer.has_weight + layer.out_channels * layer.has_bias


def _linear_params(layer: LayerSpec) -> int:
    return layer.in_channels * layer.out_channels * layer.has_weight + layer.out_channels * layer.has_bias


def _norm_params(layer: LayerSpec) -> int:
    return layer.out_channels * (layer.has_weight + layer.has_bias)


def _rows_params(layer: LayerSpec) -> int:
    return layer.in_channels * layer.out_channels * layer.has_weight


_MACS: Final[Mapping[LayerKind, Callable[[LayerSpec], int]]] = {
    LayerKind.CONV: _conv_macs,
    LayerKind.LINEAR: _linear_macs,
    LayerKind.ATTENTION: _attention_macs,
    LayerKind.BATCH_NORM: _nothing,
    LayerKind.LAYER_NORM: _nothing,
    LayerKind.GROUP_NORM: _nothing,
    LayerKind.EMBEDDING: _nothing,
    LayerKind.PARAMETER: _nothing,
}

_PARAMS: Final[Mapping[LayerKind, Callable[[LayerSpec], int]]] = {
    LayerKind.CONV: _conv_params,
    LayerKind.LINEAR: _linear_params,
    LayerKind.ATTENTION: _nothing,  # its projections are linear layers of their own
    LayerKind.BATCH_NORM: _norm_params,  # running statistics are buffers, not parameters
    LayerKind.LAYER_NORM: _norm_params,
    LayerKind.GROUP_NORM: _norm_params,
    LayerKind.EMBEDDING: _rows_params,
    LayerKind.PARAMETER: _rows_params,
}


def macs(layer: LayerSpec) -> int:
    """Multiply-accumulates of one layer for one sample."""
    return _MACS[layer.kind](layer)


def params(layer: LayerSpec) -> int:
    """Trainable numbers of one layer; weights counted under another name (``has_weight`` false) are left out."""
    return _PARAMS[layer.kind](layer)


class Macs:
    """Multiply-accumulates for one sample, as a cost."""

    name = "macs"
    constant = 0.0

    def layer_cost(self, layer: LayerSpec) -> float:
        """MACs of one layer; every kind is known, so nothing is raised."""
        return float(macs(layer))


class Params:
    """Trainable parameters, as a cost."""

    name = "params"
    constant = 0.0

    def layer_cost(self, layer: LayerSpec) -> float:
        """Parameters of one layer; every kind is known, so nothing is raised."""
        return float(params(layer))
