"""Multiply-accumulates and parameters: what is counted, and what is not.

Counted as MACs: the products of weights with activations, the two products of attention, Q·Kᵀ and scores·V, and any
other product of two maps. Not counted: biases, normalisation, activation functions, softmax, pooling, additions and
look-ups, which the usual counters leave out too. A causal mask does not lower the count: the runtime computes the
masked scores as well. One MAC is two FLOPs.
"""

from collections.abc import Callable, Mapping
from math import gcd, prod
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec

__all__ = ["Macs", "Params", "is_transposed", "macs", "macs_at", "params", "params_at"]

_Widths = TypeVar("_Widths", int, NDArray[np.int64])


def is_transposed(layer: LayerSpec) -> bool:
    """Whether the output is larger than the input, by just what a transposed convolution of this shape makes.

    Images that one sample holds lie under each other: it must hold for some number of them.
    """
    if prod(layer.out_size) <= prod(layer.in_size):
        return False
    most = gcd(layer.in_size[0], layer.out_size[0])
    return any(most % images == 0 and _is_grown(layer, images) for images in range(1, most + 1))


def _is_grown(layer: LayerSpec, images: int) -> bool:
    ins, outs = ((size[0] // images, size[1]) for size in (layer.in_size, layer.out_size))
    sizes = zip(ins, outs, layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True)
    # what is left over is its `output_padding`
    extra = [(o - ((i - 1) * s - 2 * p + d * (k - 1) + 1), max(s, d)) for i, o, k, s, p, d in sizes]
    return all(0 <= more < bound for more, bound in extra)


def _conv_weights(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:
    # a depthwise convolution loses whole groups, any other keeps its groups and each becomes thinner
    if layer.is_product:  # whole groups leave as far as both sides shrink alike
        return cast(_Widths, np.minimum(c_in * layer.out_channels, c_out * layer.in_channels) // layer.conv_groups)
    in_group = layer.in_channels // layer.conv_groups if layer.is_depthwise else c_in // layer.conv_groups
    return c_out * in_group * prod(layer.kernel)


def _conv_macs(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:
    # each output position gathers, or each input position of a transposed convolution spreads, kH·kW products
    return _conv_weights(layer, c_in, c_out) * prod(layer.in_size if is_transposed(layer) else layer.out_size)


def _linear_macs(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:
    return c_in * c_out * prod(layer.out_size)


def _attention_macs(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:
    # (T_q, d)·(d, T_k) and (T_q, T_k)·(T_k, e), summed over heads: d adds up to the keys' width, e to the values'
    return prod(layer.out_size) * prod(layer.in_size) * (c_in + c_out)


def _nothing(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:  # noqa: ARG001 (one signature for all)
    return 0 * c_out


def _conv_params(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:
    return _conv_weights(layer, c_in, c_out) * layer.has_weight + c_out * layer.has_bias


def _linear_params(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:
    return c_in * c_out * layer.has_weight + c_out * layer.has_bias


def _norm_params(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:  # noqa: ARG001 (as _nothing)
    return c_out * prod(layer.kernel) * (layer.has_weight + layer.has_bias)


def _rows_params(layer: LayerSpec, c_in: _Widths, c_out: _Widths) -> _Widths:
    return c_in * c_out * layer.has_weight


_Count = Callable[[LayerSpec, Any, Any], Any]  # widths as integers, or arrays of them
_MACS: Final[Mapping[LayerKind, _Count]] = {
    LayerKind.CONV: _conv_macs,
    LayerKind.LINEAR: _linear_macs,
    LayerKind.ATTENTION: _attention_macs,
    LayerKind.BATCH_NORM: _nothing,
    LayerKind.LAYER_NORM: _nothing,
    LayerKind.GROUP_NORM: _nothing,
    LayerKind.EMBEDDING: _nothing,
    LayerKind.PARAMETER: _nothing,
}

_PARAMS: Final[Mapping[LayerKind, _Count]] = {
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
    return int(_MACS[layer.kind](layer, layer.in_channels, layer.out_channels))


def params(layer: LayerSpec) -> int:
    """Trainable numbers of one layer; weights counted under another name (``has_weight`` false) are left out."""
    return int(_PARAMS[layer.kind](layer, layer.in_channels, layer.out_channels))


def macs_at(layer: LayerSpec, in_channels: NDArray[Any], out_channels: NDArray[Any]) -> NDArray[np.float64]:
    """Multiply-accumulates, (L,), of ``layer`` resized to each pair of widths."""
    return np.asarray(_MACS[layer.kind](layer, in_channels, out_channels), dtype=np.float64)


def params_at(layer: LayerSpec, in_channels: NDArray[Any], out_channels: NDArray[Any]) -> NDArray[np.float64]:
    """Trainable numbers, (L,), of ``layer`` resized to each pair of widths."""
    return np.asarray(_PARAMS[layer.kind](layer, in_channels, out_channels), dtype=np.float64)


class Macs:
    """Multiply-accumulates for one sample, as a cost."""

    name = "macs"
    constant = 0.0

    def layer_cost(self, layer: LayerSpec) -> float:
        """MACs of one layer; every kind is known, so nothing is raised."""
        return float(macs(layer))

    def layer_costs(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """MACs of one layer at many widths."""
        return macs_at(layer, in_channels, out_channels)


class Params:
    """Trainable parameters, as a cost."""

    name = "params"
    constant = 0.0

    def layer_cost(self, layer: LayerSpec) -> float:
        """Parameters of one layer; every kind is known, so nothing is raised."""
        return float(params(layer))

    def layer_costs(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Parameters of one layer at many widths."""
        return params_at(layer, in_channels, out_channels)
