"""Operators that torch's tracing exporter to ONNX lacks, or writes wrongly.

Those of mixtures of experts and Mamba 2, and the LSTM whose state is a projection of its hidden units:

permute      with axes counted from the last, which ONNX does not take
diff         x[1:] - x[:-1] along an axis
cumsum       of booleans, which ONNX does not add up: they become integers first
histc        how many numbers are in each bin: a sum of one-hot rows; numbers outside are in none
_grouped_mm  (T, K) rows by matrices (E, K, N), of which the e-th is for the rows before offset e, and not before
             the offset of the one ahead of it: each row's matrix is gathered, (T, K, N) in all
lstm         with ``proj_size``: a loop over the steps, which computes what torch does. ONNX's own LSTM has a state of
             all hidden units alone
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch import onnx
from torch.onnx import symbolic_helper, symbolic_opset9

__all__ = ["further_operators"]

FLOAT, INT64 = 1, 7  # data types of ONNX
SINCE: Final = 13  # opset: axes are inputs


def _constant(g: Any, value: object, dtype: torch.dtype = torch.int64) -> Any:
    return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))


@symbolic_helper.parse_args("v", "is")
def _permute(g: Any, x: Any, axes: list[int]) -> Any:
    return g.op("Transpose", x, perm_i=[axis % len(axes) for axis in axes])


@symbolic_helper.parse_args("v", "i", "i", "v", "v")
def _diff(g: Any, x: Any, n: int, dim: int, prepend: Any, append: Any) -> Any:
    parts = [part for part in (prepend, x, append) if not symbolic_helper._is_none(part)]
    x = g.op("Concat", *parts, axis_i=dim) if len(parts) > 1 else x
    axis, start, end = (_constant(g, [number]) for number in (dim, 0, 2**62))
    for _ in range(n):
        later = g.op("Slice", x, _constant(g, [1]), end, axis)
        x = g.op("Sub", later, g.op("Slice", x, start, _constant(g, [-1]), axis))
    return x


@symbolic_helper.parse_args("v", "i", "v")
def _cumsum(g: Any, x: Any, dim: int, dtype: Any) -> Any:
    is_open = symbolic_helper._is_none(dtype)
    wanted = None if is_open else symbolic_helper._get_const(dtype, "i", "dtype")  # type: ignore[no-untyped-call]
    if wanted is not None:
        x = g.op("Cast", x, to_i=symbolic_helper.scalar_type_to_onnx[wanted])
    elif x.type() is not None and x.type().scalarType() in ("Bool", "Int", "Short", "Byte", "Char"):
        x = g.op("Cast", x, to_i=INT64)
    return g.op("CumSum", x, _constant(g, dim))


@symbolic_helper.parse_args("v", "i", "f", "f")
def _histc(g: Any, x: Any, bins: int, low: float, high: float) -> Any:
    x = g.op("Cast", x, to_i=FLOAT)
    first, last, width = (_constant(g, number, torch.float32) for number in (low, high, (high - low) / bins))
    place = g.op("Floor", g.op("Div", g.op("Sub", x, first), width))
    place = g.op("Min", place, _constant(g, float(bins - 1), torch.float32))  # the last bin holds its upper end
    is_inside = g.op("And", g.op("GreaterOrEqual", x, first), g.op("LessOrEqual", x, last))
    place = g.op("Where", is_inside, place, _constant(g, float(bins), torch.float32))
    rows = g.op("OneHot", g.op("Cast", place, to_i=INT64), _constant(g, [bins]), _constant(g, [0, 1], torch.float32))
    return g.op("ReduceSum", rows, _constant(g, [0]), keepdims_i=0)


@symbolic_helper.parse_args("v", "v", "v", "v", "v")
def _grouped_mm(g: Any, rows: Any, matrices: Any, offsets: Any, bias: Any, _: Any) -> Any:
    if not symbolic_helper._is_none(bias):
        return symbolic_helper._unimplemented("_grouped_mm", "a bias")
    axis = _constant(g, [1])
    count = g.op("Squeeze", g.op("Slice", g.op("Shape", rows), _constant(g, [0]), axis))
    numbers = g.op("Range", _constant(g, 0), count, _constant(g, 1))
    ended = g.op("LessOrEqual", g.op("Cast", offsets, to_i=INT64), g.op("Unsqueeze", numbers, axis))  # (T, E)
    expert = g.op("ReduceSum", g.op("Cast", ended, to_i=INT64), axis, keepdims_i=0)  # (T,)
    products = g.op("MatMul", g.op("Unsqueeze", rows, axis), g.op("Gather", matrices, expert, axis_i=0))
    return g.op("Squeeze", products, axis)


def _lstm(g: Any, *args: Any) -> Any:
    if symbolic_helper._is_tensor_list(args[3]):  # packed sequences
        return symbolic_opset9.lstm(g, *args)
    states, weights = (symbolic_helper._unpack_list(argument) for argument in args[1:3])
    numbers = (symbolic_helper._maybe_get_const(args[i], "i") for i in (3, 4, 7, 8))
    has_biases, n_layers, bidirectional, batch_first = (int(number) for number in numbers)
    ways = 2 if bidirectional else 1
    each = len(weights) // (n_layers * ways)
    if each == (4 if has_biases else 2):
        return symbolic_opset9.lstm(g, *args)
    x = g.op("Transpose", args[0], perm_i=[1, 0, 2]) if batch_first else args[0]  # (T, N, I)
    hidden, cells = [], []
    for layer in range(n_layers):
        written = []
        for way in range(ways):
            number = layer * ways + way
            first = [g.op("Gather", state, _constant(g, number), axis_i=0) for state in states]
            last = _projected(g, x, first, weights[number * each : (number + 1) * each], backwards=way == 1)
            hidden.append(last[0])
            cells.append(last[1])
            written.append(last[2])
        x = g.op("Concat", *written, axis_i=2) if ways > 1 else written[0]
    output = g.op("Transpose", x, perm_i=[1, 0, 2]) if batch_first else x
    axis = _constant(g, [0])
    whole = [g.op("Concat", *(g.op("Unsqueeze", v, axis) for v in part), axis_i=0) for part in (hidden, cells)]
    return output, whole[0], whole[1]


def _projected(g: Any, x: Any, first: list[Any], weights: list[Any], *, backwards: bool) -> tuple[Any, Any, Any]:
    """Return the last state (N, P), the last cells (N, H) and all states (T, N, P) of one layer in one direction.

    ``weights``: those of the inputs (4 H, I), of the state (4 H, P), both biases or none, the projection (P, H).
    """
    of_inputs, of_state, *biases, projection = weights
    width = symbolic_helper._get_tensor_dim_size(projection, 1)
    gates = g.op("MatMul", _reversed(g, x) if backwards else x, g.op("Transpose", of_inputs, perm_i=[1, 0]))
    for bias in biases:
        gates = g.op("Add", gates, bias)
    of_state, projection = (g.op("Transpose", weight, perm_i=[1, 0]) for weight in (of_state, projection))
    steps = g.op("Gather", g.op("Shape", gates), _constant(g, 0))
    state, cells, states = g.op("Loop", steps, _constant(g, True, torch.bool), *first, outputs=3)
    block = state.node().addBlock()
    body = replace(g, block=block)
    step, goes_on, before, cell = (block.addInputToBlock() for _ in range(4))
    summed = body.op("Add", body.op("Gather", gates, step, axis_i=0), body.op("MatMul", before, of_state))
    entering, staying, new, leaving = body.op("Split", summed, _constant(body, [width] * 4), axis_i=1, outputs=4)
    entering, staying, leaving = (body.op("Sigmoid", gate) for gate in (entering, staying, leaving))
    cell = body.op("Add", body.op("Mul", staying, cell), body.op("Mul", entering, body.op("Tanh", new)))
    after = body.op("MatMul", body.op("Mul", leaving, body.op("Tanh", cell)), projection)
    for value in (body.op("Identity", goes_on), after, cell, body.op("Identity", after)):
        block.registerOutput(value)
    return state, cells, _reversed(g, states) if backwards else states


def _reversed(g: Any, x: Any) -> Any:
    """Return (T, …) from the last step to the first."""
    first, last, axis, step = (_constant(g, [number]) for number in (-1, -(2**62), 0, -1))
    return g.op("Slice", x, first, last, axis, step)


_OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "aten::permute": _permute,
    "aten::diff": _diff,
    "aten::cumsum": _cumsum,
    "aten::histc": _histc,
    "aten::_grouped_mm": _grouped_mm,
    "aten::lstm": _lstm,
}


@contextmanager
def further_operators() -> Iterator[None]:
    """Let the tracing exporter write these operators."""
    for name, write in _OPERATORS.items():
        onnx.register_custom_op_symbolic(name, write, SINCE)  # type: ignore[attr-defined]  # not in its face's list
    try:
        yield
    finally:
        for name in _OPERATORS:
            onnx.unregister_custom_op_symbolic(name, SINCE)  # type: ignore[attr-defined]
