"""Models without their weights: what a kit carries.

Large tensors of two dimensions or more go; biases, batch-norm statistics, scales, zero points and shape constants stay,
because optimisations look at their values. What replaces a weight has variance 2 / fan-in (see ``on_device.weights``).
"""

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from amcsearch.core import BadInputError
from amcsearch.runtime.on_device.weights import DATA_TYPES, WeightSpec

__all__ = ["without_weights"]

LARGE_BYTES: Final = 1024  # smaller tensors travel as they are
# int32 and int64 travel: they may be indices, whose values must be in range
TYPE_NAMES: Final = {number: name for name, number in DATA_TYPES.items() if name != "int32"}


def _fan_in(tensor: onnx.TensorProto, user: onnx.NodeProto | None) -> int:
    """Numbers summed for one output: (C_out, C_in, kH, kW) for convolutions, (in, out) for matrices."""
    dims = list(tensor.dims)
    if user is not None and user.op_type in {"Gather", "Add"}:  # embeddings: used as they are
        return 2
    if user is not None and user.op_type == "Gemm" and helper.get_node_attr_value(user, "transB"):
        return int(dims[1])
    return int(dims[-2] if len(dims) == 2 or (user is not None and user.op_type == "MatMul") else np.prod(dims[1:]))


def _is_weight(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's numbers can be made up: large, two dimensions or more, no integers that may be indices."""
    size = len(tensor.raw_data) or 4 * max(len(tensor.float_data), len(tensor.int32_data))
    return len(tensor.dims) >= 2 and tensor.data_type in TYPE_NAMES and size > LARGE_BYTES


def without_weights(model: bytes, name: str) -> tuple[bytes, tuple[WeightSpec, ...]]:
    """Take the weights out of a serialised ONNX model; ``on_device.weights.with_weights`` puts others in.

    Args:
        model: serialised model, weights inside.
        name: of the model, for messages.

    Returns:
        The model without them, and what is needed to make others.

    Raises:
        BadInputError: the model cannot be read, or keeps weights in another file.
    """
    try:
        proto = onnx.load_from_string(model)
    except Exception as error:  # protobuf's decode errors have no public base
        raise BadInputError(f"kit: model {name!r} is not an ONNX model ({error}); export it again") from error
    users = {tensor: node for node in reversed(proto.graph.node) for tensor in node.input}
    kept, weights = [], []
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise BadInputError(f"kit: model {name!r} keeps {tensor.name} in another file; save it as one file")
        if not _is_weight(tensor):
            kept.append(tensor)
            continue
        scale = (2.0 / max(_fan_in(tensor, users.get(tensor.name)), 1)) ** 0.5
        weights.append(WeightSpec(tensor.name, tuple(tensor.dims), TYPE_NAMES[tensor.data_type], scale))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return bytes(proto.SerializeToString()), tuple(weights)
