"""Which nodes of a float32 graph shall compute in int8, and which activations are quantised for them.

Nodes that multiply by a constant weight do. So do nodes that pass values on (sums, pools, reshapes) where one that
computes in int8 reads them: a residual stream that only normalisations read stays in float32. A clipping node behind an
integer one costs nothing, the range of its output clips; what it reads is not quantised by itself. What a matrix
product gives to float32 nodes alone is not rounded either: its integer kernel writes float32 as well.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import onnx
from onnx import TensorProto, helper

__all__ = ["MOVING", "MULTIPLYING", "IntegerNodes"]

MULTIPLYING: Final = ("Conv", "Gemm", "MatMul")
PRODUCTS: Final = ("Gemm", "MatMul")
CLIPPING: Final = ("Relu", "Clip")
MOVING: Final = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")  # values stay what they are
JOINING: Final = ("Add", "Mul", "Concat")  # all of their inputs are data
PASSING: Final = (*CLIPPING, *MOVING, *JOINING, "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")
GEMM: Final = {"alpha": 1.0, "beta": 1.0, "transA": 0}  # what its integer kernel can do


class IntegerNodes:
    """The choice for a graph with inferred types.

    Attributes:
        chosen: whether the node of this place computes in int8.
        constants: float initializers by name.
        tensors: activations that are quantised, in the order in which they are made.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = list(graph.node)
        self._outputs = {value.name for value in graph.output}
        typed = (*graph.input, *graph.value_info, *graph.output)
        self._floats = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        self.constants = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT}
        self._maker = {name: i for i, node in enumerate(self._nodes) for name in node.output}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self._nodes):
            for name in node.input:
                self._readers[name].append(i)
        self.chosen = self._choose()
        names = [*(value.name for value in graph.input), *(name for node in self._nodes for name in node.output)]
        self.tensors = tuple(name for name in names if self._is_quantised(name))

    @staticmethod
    def data(node: onnx.NodeProto) -> Sequence[str]:
        """The inputs of a node that are activations, or could be."""
        return list(node.input) if node.op_type in JOINING else list(node.input[:1])

    def made_in_integers(self, name: str) -> bool:
        """Whether a node that computes in int8 makes the tensor."""
        return name in self._maker and self.chosen[self._maker[name]]

    def is_renamed(self, name: str) -> bool:
        """Whether what a node makes becomes an output of the graph only after it was quantised."""
        return name in self._outputs and name in self.tensors and self.made_in_integers(name)

    def multiplies(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies by constant weights, in a way that integer kernels can."""
        if node.op_type not in MULTIPLYING or node.input[0] not in self._floats:
            return False
        if not all(name in self.constants for name in node.input[1:] if name):
            return False
        if node.op_type == "Gemm":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            bias_is_row = all(len(self.constants[name].dims) == 1 for name in node.input[2:] if name)
            return bias_is_row and all(attributes.get(name, wanted) == wanted for name, wanted in GEMM.items())
        return node.op_type == "Conv" or len(self.constants[node.input[1]].dims) == 2

    def _passes_on(self, node: onnx.NodeProto) -> bool:
        known = all(name in self._floats or name in self.constants for name in self.data(node))
        return node.op_type in PASSING and known

    def _choose(self) -> list[bool]:
        chosen = list(map(self.multiplies, self._nodes))
        self.chosen = chosen
        for i in reversed(range(len(self._nodes))):
            if self._passes_on(self._nodes[i]):
                chosen[i] = any(map(self._is_read_in_integers, self._nodes[i].output))
        for i, node in enumerate(self._nodes):
            if node.op_type in CLIPPING and self.made_in_integers(node.input[0]):
                chosen[i] = True
        return chosen

    def _is_read_in_integers(self, name: str) -> bool:
        return any(self.chosen[i] and name in self.data(self._nodes[i]) for i in self._readers[name])

    def _is_clipped(self, name: str) -> bool:
        """Whether an integer node's output is read by a clipping one alone."""
        readers = self._readers[name]
        alone = len(readers) == 1 and name not in self._outputs and self.made_in_integers(name)
        return alone and self.chosen[readers[0]] and self._nodes[readers[0]].op_type in CLIPPING

    def _is_quantised(self, name: str) -> bool:
        if name not in self._floats or self._is_clipped(name):
            return False
        written = self.made_in_integers(name) and self._nodes[self._maker[name]].op_type not in PRODUCTS
        return written or self._is_read_in_integers(name)
