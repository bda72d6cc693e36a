"""Pairs of QuantizeLinear and DequantizeLinear around the nodes that shall compute in int8.

Activations are uint8 with a scale and a zero point for each tensor; weights int8 with a scale for each output channel;
biases int32 with the scale of the product. New names begin with the name of the tensor they belong to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from amcsearch.runtime.quantisation.integer_nodes import MOVING, IntegerNodes

__all__ = ["Affine", "quantise_graph", "weight_scales"]

WEIGHT_MOST: Final = 64  # 7 bits: see ``quantisation``
BIAS_MOST: Final = 2.0**30
LEAST_SCALE: Final = 1e-30

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Affine:
    """real = scale · (q − zero), q in 0 … 255."""

    scale: np.float32
    zero: np.uint8

    @classmethod
    def covering(cls, low: float, high: float) -> "Affine":
        """All of [low, high], and 0 exactly, which padding and clipping need."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        scale = max((high - low) / 255.0, LEAST_SCALE)
        return cls(np.float32(scale), np.uint8(round(-low / scale)))

    def quantised(self, values: Array) -> NDArray[np.uint8]:
        """The nearest q of every value."""
        return np.clip(np.round(values / self.scale) + self.zero, 0, 255).astype(np.uint8)


def weight_scales(rows: Array, bias: Array | None, input_scale: np.float32) -> Array:
    """A scale for each output channel (C_out,) of weights (C_out, …) and their bias.

    It is as small as weights of 7 bits allow, but no smaller than a bias of 31 bits allows: a channel whose weights are
    next to nothing may have one.
    """
    scales = np.abs(rows).reshape(len(rows), -1).max(axis=1) / WEIGHT_MOST
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias) / (BIAS_MOST * input_scale))
    return np.where(scales > LEAST_SCALE, scales, 1.0).astype(np.float32)


def quantise_graph(graph: onnx.GraphProto, choice: IntegerNodes, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Rewrite a graph in place.

    Args:
        graph: of float32 nodes.
        choice: made of this graph.
        ranges: smallest and largest value of each of ``choice.tensors``.
    """
    work = _Work(choice, _scales(graph, choice, ranges))
    for value in graph.input:
        work.pair(value.name, value.name)
    for node, integer in zip(list(graph.node), choice.chosen, strict=True):
        work.add(node, integer)
    kept = {name for node in work.nodes for name in node.input} | {value.name for value in graph.output}
    tensors = [tensor for tensor in (*graph.initializer, *work.tensors) if tensor.name in kept]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(work.nodes)
    graph.initializer.extend(tensors)


def _scales(
    graph: onnx.GraphProto, choice: IntegerNodes, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Affine]:
    """Of each tensor: its own, but that of what was moved to make it."""
    moved = {
        node.output[0]: node.input[0]
        for node, integer in zip(graph.node, choice.chosen, strict=True)
        if integer and node.op_type in MOVING
    }
    scales: dict[str, Affine] = {}
    for name in choice.tensors:
        scales[name] = scales.get(moved.get(name, "")) or Affine.covering(*ranges[name])
    return scales


@dataclass
class _Work:
    """Nodes in order, and the numbers they need."""

    choice: IntegerNodes
    scales: Mapping[str, Affine]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    held: set[str] = field(default_factory=set)

    def add(self, node: onnx.NodeProto, integer: bool) -> None:
        """Let a node read what was quantised; behind it come the pairs of its outputs."""
        data = self.choice.data(node)
        if integer and self.choice.multiplies(node):
            self._weights(node)
        for at, name in enumerate(node.input):
            if name in self.scales and (self.choice.made_in_integers(name) or (integer and name in data)):
                node.input[at] = self._read(name)
            elif integer and name in data and name in self.choice.constants:
                node.input[at] = self._constant(name)
        names = list(node.output)
        made = [f"{name}_made" if self.choice.is_renamed(name) else name for name in names]
        del node.output[:]
        node.output.extend(made)
        self.nodes.append(node)
        for name, source in zip(names, made, strict=True):
            self.pair(name, source)

    def pair(self, name: str, source: str) -> None:
        """Quantise a tensor that ``source`` holds, if it is one of those that are quantised."""
        if name not in self.scales:
            return
        scale = self.scales[name]
        numbers = [self._hold(f"{name}_scale", scale.scale), self._hold(f"{name}_zero_point", scale.zero)]
        quantised = f"{name}_QuantizeLinear_Output"
        self.nodes.append(
            helper.make_node("QuantizeLinear", [source, *numbers], [quantised], name=f"{name}_QuantizeLinear")
        )
        self._dequantise(name, [quantised, *numbers], self._read(name))

    def _read(self, name: str) -> str:
        return name if self.choice.is_renamed(name) else f"{name}_DequantizeLinear_Output"

    def _hold(self, name: str, values: NDArray[np.generic] | np.generic) -> str:
        if name not in self.held:
            self.held.add(name)
            self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _dequantise(self, name: str, inputs: list[str], output: str, axis: int | None = None) -> str:
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [output], name=f"{name}_DequantizeLinear", axis=axis)
        )
        return output

    def _constant(self, name: str) -> str:
        """A constant that is data: one scale for all of it."""
        output = f"{name}_DequantizeLinear_Output"
        if f"{name}_quantized" not in self.held:
            values = numpy_helper.to_array(self.choice.constants[name])
            scale = Affine.covering(values.min(initial=0.0), values.max(initial=0.0))
            numbers = [self._hold(f"{name}_quantized", scale.quantised(values))]
            numbers += [self._hold(f"{name}_scale", scale.scale), self._hold(f"{name}_zero_point", scale.zero)]
            self._dequantise(name, numbers, output)
        return output

    def _weights(self, node: onnx.NodeProto) -> None:
        """Weight and bias of a node that multiplies, copied where they are shared: scales depend on its input."""
        weight, *bias = (numpy_helper.to_array(self.choice.constants[name]) for name in node.input[1:] if name)
        rows_first = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        rows = weight if rows_first else weight.T  # (C_out, …)
        input_scale = self.scales[node.input[0]].scale
        scales = weight_scales(rows, bias[0] if bias else None, input_scale)
        integers = np.round(rows / scales.reshape(-1, *[1] * (rows.ndim - 1))).astype(np.int8)
        name, axis = f"{node.output[0]}_weight", 0 if rows_first else 1
        zeros = self._hold(f"{name}_zero_point", np.zeros(len(rows), np.int8))
        numbers = [self._hold(f"{name}_quantized", np.ascontiguousarray(integers if rows_first else integers.T))]
        numbers += [self._hold(f"{name}_scale", scales), zeros]
        node.input[1] = self._dequantise(name, numbers, f"{name}_DequantizeLinear_Output", axis)
        if bias:
            name, products = f"{node.output[0]}_bias", np.maximum(input_scale * scales, np.float32(LEAST_SCALE))
            numbers = [self._hold(f"{name}_quantized", np.round(bias[0] / products).astype(np.int32))]
            numbers += [self._hold(f"{name}_scale", products)]
            node.input[2] = self._dequantise(name, numbers, f"{name}_DequantizeLinear_Output", 0)
