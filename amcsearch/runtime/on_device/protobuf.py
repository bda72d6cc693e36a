"""As much of the protocol-buffer wire format as models need: there is no onnx package on the device.

A message is a sequence of (tag, value); tag = field number * 8 + wire type. Wire types: 0 varint, 1 eight bytes,
2 length-delimited (strings, nested messages), 5 four bytes. Serialised messages may be concatenated: a parser appends
repeated fields and merges nested messages, so a graph's weights can be appended to a model without reading it.

Encoding: https://protobuf.dev/programming-guides/encoding; field numbers: onnx/onnx.proto.
"""

from __future__ import annotations

from typing import Callable, Iterator, NamedTuple, Sequence

from amcsearch.runtime.on_device.errors import DeviceError

__all__ = [
    "Field",
    "OptimisedNode",
    "external_data",
    "fields",
    "graph_of",
    "nchwc_block",
    "rewritten_initializers",
    "tensor",
    "weights_message",
    "without_data",
]

VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_OP_TYPE, NODE_DOMAIN = 1, 4, 7
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9
NCHWC_DOMAIN = "com.microsoft.nchwc"


class Field(NamedTuple):
    """One field of a message: ``value`` is an int for varints, else bytes; ``encoded`` is the field with its tag."""

    number: int
    value: int | bytes
    encoded: bytes


class OptimisedNode(NamedTuple):
    """What is read of a node."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _read_field(message: bytes, start: int) -> tuple[Field, int]:
    tag, at = _read_varint(message, start)
    wire = tag & 7
    if wire == VARINT:
        value, end = _read_varint(message, at)
        return Field(tag >> 3, value, message[start:end]), end
    if wire == LENGTH:
        size, at = _read_varint(message, at)
    elif wire in (EIGHT_BYTES, FOUR_BYTES):
        size = 8 if wire == EIGHT_BYTES else 4
    else:
        raise DeviceError(f"a model holds wire type {wire}, which ONNX does not use; build the kit again")
    if at + size > len(message):
        raise DeviceError(f"a model ends {at + size - len(message)} bytes too early; build the kit again")
    return Field(tag >> 3, message[at : at + size], message[start : at + size]), at + size


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a serialised message, in order.

    Raises:
        DeviceError: the message is cut off or is none.
    """
    at = 0
    while at < len(message):
        try:
            field, at = _read_field(message, at)
        except IndexError:
            raise DeviceError("a model is cut off in the middle of a number; build the kit again") from None
        yield field


def _nested(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | LENGTH) + _varint(len(content)) + content


def tensor(name: str, dims: Sequence[int], data_type: int, raw: bytes | None) -> bytes:
    """A serialised TensorProto; without its data if ``raw`` is None."""
    out = b"".join(_varint(TENSOR_DIMS << 3 | VARINT) + _varint(dim) for dim in dims)
    out += _varint(TENSOR_TYPE << 3 | VARINT) + _varint(data_type) + _nested(TENSOR_NAME, name.encode())
    return out if raw is None else out + _nested(TENSOR_RAW, raw)


def weights_message(tensors: Sequence[bytes]) -> bytes:
    """A serialised ModelProto of initializers and nothing else: appended to a model, it gives it these weights."""
    return _nested(MODEL_GRAPH, b"".join(_nested(GRAPH_INITIALIZER, tensor) for tensor in tensors))


def _rewritten(message: bytes, number: int, change: Callable[[bytes], bytes | None]) -> bytes:
    parts = []
    for field in fields(message):
        if field.number != number or isinstance(field.value, int):
            parts.append(field.encoded)
            continue
        content = change(field.value)
        if content is not None:
            parts.append(_nested(number, content))
    return b"".join(parts)


def rewritten_initializers(model: bytes, change: Callable[[bytes], bytes | None]) -> bytes:
    """The model with each serialised initializer replaced by what ``change`` makes of it, None dropping it."""
    return _rewritten(model, MODEL_GRAPH, lambda graph: _rewritten(graph, GRAPH_INITIALIZER, change))


def without_data(model: bytes) -> bytes:
    """The model with initializers that keep name, dims and type but no data."""
    kept = (TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME)
    return rewritten_initializers(model, lambda tensor: b"".join(f.encoded for f in fields(tensor) if f.number in kept))


def _text(value: int | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _node(message: bytes) -> OptimisedNode:
    parts = list(fields(message))
    last = {field.number: _text(field.value) for field in parts if field.number in (NODE_OP_TYPE, NODE_DOMAIN)}
    inputs = tuple(_text(field.value) for field in parts if field.number == NODE_INPUT)
    return OptimisedNode(last.get(NODE_OP_TYPE, ""), last.get(NODE_DOMAIN, ""), inputs)


def _dims(parts: Sequence[Field]) -> tuple[int, ...]:
    dims: list[int] = []
    for field in parts:
        if field.number == TENSOR_DIMS and isinstance(field.value, int):
            dims.append(field.value)
        elif field.number == TENSOR_DIMS:  # packed: several numbers in one field
            at, packed = 0, bytes(field.value)
            while at < len(packed):
                dim, at = _read_varint(packed, at)
                dims.append(dim)
    return tuple(dims)


def graph_of(model: bytes) -> tuple[list[OptimisedNode], dict[str, tuple[int, ...]]]:
    """Nodes of a serialised model, and dims of its initializers by name."""
    nodes, shapes = [], {}
    for graph in (f.value for f in fields(model) if f.number == MODEL_GRAPH and isinstance(f.value, bytes)):
        for field in fields(graph):
            if field.number == GRAPH_NODE and isinstance(field.value, bytes):
                nodes.append(_node(field.value))
            elif field.number == GRAPH_INITIALIZER and isinstance(field.value, bytes):
                parts = list(fields(field.value))
                name = next((_text(f.value) for f in parts if f.number == TENSOR_NAME), "")
                shapes[name] = _dims(parts)
    return nodes, shapes


NESTED = {
    "model": {MODEL_GRAPH: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {GRAPH_NODE: "node", GRAPH_INITIALIZER: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Which fields of a message hold messages in which a tensor may lie."""
TENSOR_ELSEWHERE = (13, 14)  # where its data lie, unless inside
MOST_DEPTH = 64


def external_data(model: bytes, kind: str = "model", depth: int = 0) -> bool:
    """Whether a tensor of a serialised model, in whatever subgraph, keeps its data in another file.

    Raises:
        DeviceError: the model is cut off, or its graphs are nested too deep.
    """
    if depth > MOST_DEPTH:
        raise DeviceError(f"a model nests graphs more than {MOST_DEPTH} deep; build the kit again")
    if kind == "tensor":
        return any(field.number in TENSOR_ELSEWHERE and field.value != 0 for field in fields(model))
    inner = NESTED[kind]
    return any(
        external_data(field.value, inner[field.number], depth + 1)
        for field in fields(model)
        if field.number in inner and isinstance(field.value, bytes)
    )


def nchwc_block(optimised: bytes) -> int:
    """Channels in a block of the NCHWc layout, 0 without it: the padded outputs of the probe's one convolution."""
    nodes, shapes = graph_of(optimised)
    conv = next((node for node in nodes if node.op_type == "Conv" and node.domain == NCHWC_DOMAIN), None)
    return shapes[conv.inputs[1]][0] if conv is not None else 0
