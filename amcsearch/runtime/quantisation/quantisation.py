"""Float32 ONNX model → the data type that the device computes in.

int8 is static quantisation (Jacob et al. 2018, arXiv 1712.05877): real = scale · (q − zero point). Weights are
symmetric with a scale for each output channel, activations unsigned with one scale a tensor, from the range the tensor
has on calibration data. The model holds the float operators between pairs of QuantizeLinear and DequantizeLinear, which
every runtime reads; ONNX Runtime fuses them to integer kernels when it opens it.

Weights use 7 of their 8 bits: processors without VNNI add two products of 8 by 8 bits in 16 bits, which weights of 8
bits overflow (ONNX Runtime's documentation of quantisation, `reduce_range`). We depart from its own quantiser in what
is quantised (see ``integer_nodes``), and in speed: it goes through channels one by one, and a table wants a hundred
models.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from amcsearch.core import BadInputError
from amcsearch.graph import Batch
from amcsearch.runtime.loaded import outputs_of_calls
from amcsearch.runtime.quantisation.integer_nodes import MULTIPLYING, IntegerNodes
from amcsearch.runtime.quantisation.quantise_graph import quantise_graph
from amcsearch.runtime.session import OnnxNetwork, simplified_model

__all__ = ["CONVERTERS", "converted", "quantised"]

REDUCTIONS: Final = ("ReduceMin", "ReduceMax")

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest value of tensors."""


Samples = NDArray[np.generic] | Iterable[Batch]
"""Calibration inputs: batches as the network takes them, or the one input (N, …)."""


def converted(model: bytes, dtype: str, inputs: Samples) -> bytes:
    """A serialised float32 model in the data type that the device computes in, one of ``CONVERTERS``.

    Args:
        model: serialised, its batch fixed or free.
        dtype: float32 leaves the model as it is.
        inputs: calibration samples, at least one; only int8 looks at them.

    Raises:
        BadInputError: an unknown type, or as ``quantised``.
    """
    if dtype not in CONVERTERS:
        raise BadInputError(f"dtype {dtype!r} is unknown; known are {', '.join(CONVERTERS)}")
    return CONVERTERS[dtype](model, inputs)


def quantised(model: bytes, inputs: Samples) -> bytes:
    """A serialised float32 model in int8, calibrated on samples.

    Raises:
        BadInputError: no operator that can be computed in int8, or a tensor that is not finite.
    """
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(simplified_model(model)))
    choice = IntegerNodes(proto.graph)
    if not any(choice.chosen):
        operators = ", ".join(sorted({node.op_type for node in proto.graph.node}))
        raise BadInputError(
            f"int8: no operator of the model ({operators}) multiplies float32 inputs by constant weights as "
            f"{', '.join(MULTIPLYING)} do; use device.dtype: float32"
        )
    ranges = _ranges(proto, choice.tensors, inputs)
    _check_finite({**ranges, **_weight_ranges(proto.graph, choice)})
    quantise_graph(proto.graph, choice, ranges)
    return bytes(proto.SerializeToString())


CONVERTERS: Final[Mapping[str, Callable[[bytes, Samples], bytes]]] = {
    "float32": lambda model, _: model,
    "int8": quantised,
}


def _ranges(proto: onnx.ModelProto, names: Sequence[str], inputs: Samples) -> Ranges:
    """Smallest and largest value of tensors; the model itself reduces them."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    for reduction in REDUCTIONS:
        for name in names:
            output = f"{name}/{reduction}"
            probe.graph.node.append(helper.make_node(reduction, [name], [output], keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    probed = OnnxNetwork(bytes(probe.SerializeToString()))
    batches = [Batch.of(torch.from_numpy(inputs))] if isinstance(inputs, np.ndarray) else inputs
    calls = [outputs for batch in batches for outputs in outputs_of_calls(probed, batch)]
    ends = np.array(calls, np.float64).reshape(-1, len(REDUCTIONS), len(names))
    return dict(zip(names, zip(ends[:, 0].min(axis=0), ends[:, 1].max(axis=0), strict=True), strict=True))


def _weight_ranges(graph: onnx.GraphProto, choice: IntegerNodes) -> Ranges:
    read = {name for node, integer in zip(graph.node, choice.chosen, strict=True) if integer for name in node.input}
    arrays = {name: numpy_helper.to_array(t) for name, t in choice.constants.items() if name in read}
    return {name: (float(values.min()), float(values.max())) for name, values in arrays.items() if values.size}


def _check_finite(ranges: Ranges) -> None:
    for name, (low, high) in ranges.items():
        if not np.isfinite([low, high]).all():
            raise BadInputError(f"int8: tensor {name} reaches from {low} to {high}, must be finite")
