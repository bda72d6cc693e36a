"""What whole modules do to labels, where their operations would say less: norms over channels, recurrent layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amcsearch.core import Side
from amcsearch.graph.outputs import tensors_in
from amcsearch.graph.tracing.flow import Flow
from amcsearch.graph.tracing.labels import small, varying
from amcsearch.graph.tracing.layer_types import layer_type, norm_dim, unit_period, vector_dim

__all__ = ["entered", "left"]

ModuleRule = Callable[[Flow, Any, str, tuple[Any, ...], Any], None]


def entered(flow: Flow, module: nn.Module) -> None:
    """Stop following operations inside a module that is followed as a whole."""
    if _rule(module) is not None:
        flow.muted += 1


def left(flow: Flow, module: nn.Module, path: str, inputs: Sequence[Tensor], output: Any) -> None:
    """Label what such a module returns."""
    rule = _rule(module)
    if rule is None:
        return
    flow.muted -= 1
    if not flow.muted:
        rule(flow, module, path, tuple(inputs), output)
        for listener in flow.listeners:
            listener.ran(type(module).__name__, inputs, list(tensors_in([output])))


def _rule(module: nn.Module) -> ModuleRule | None:
    """Return the rule of a module that is followed as a whole; None where its operations are followed."""
    if isinstance(module, nn.RNNBase):
        return recurrent
    kind = layer_type(module)
    return mixing_norm if kind is not None and kind.mixes else None


def mixing_norm(flow: Flow, module: Any, path: str, inputs: tuple[Any, ...], output: Any) -> None:
    """Layer, RMS and group norms: the channels of the input with each vector; statistics are taken over kept ones."""
    x, layers = inputs[0], []
    if not isinstance(output, Tensor) or output.shape != x.shape:
        flow.lose([x], flow.why_combined(path))
        return
    vectors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    shape = getattr(module, "normalized_shape", ())
    width = module.num_channels if isinstance(module, nn.GroupNorm) else (*shape, *(v.numel() for v in vectors), 0)[0]
    for label in flow.labels(x):
        dims = varying(label)
        normalised = range(x.ndim - max(len(shape), 1), x.ndim)
        if not isinstance(module, nn.GroupNorm) and len(dims) > 1 and normalised[0] in dims and x.shape[-1] == width:
            flow.keeps(small(label), set(normalised) & set(dims), f"{path} keeps its width")  # a norm in each head
            layers.append(small(label))
            continue
        if not set(dims) & set(normalised) and norm_dim(module, x.shape) in normalised:  # every channel by itself
            layers.append(small(label))
            continue
        if dims != (norm_dim(module, x.shape),) or x.shape[dims[0]] != width:
            over = f"over several dimensions {tuple(shape)}" if len(shape) > 1 else "over other channels than its own"
            flow.slots.block(small(label), f"{path} normalises {over}")
            continue
        flat = small(label).reshape(-1)
        for vector in vectors:
            for other in flow.labels(vector):
                if varying(other) in (
                    (),
                    (vector_dim(vector),),
                ):  # the others of a norm over several dimensions are positions
                    flow.slots.same(flat, small(other).reshape(-1), f"{path} keeps its width")
        if period := unit_period(module, Side.OUT):
            flow.slots.together(flat.reshape(-1, period)[:1], flat.reshape(-1, period))
        layers.append(small(label))
    flow.put(output, layers)


def recurrent(flow: Flow, module: Any, path: str, inputs: tuple[Any, ...], output: Any) -> None:
    """LSTM, GRU and plain recurrent layers: hidden unit j of every layer and direction leaves together.

    Weights (gates x hidden, in) and (gates x hidden, state); with a projection (state, hidden) the state is narrower
    than the hidden units. One attribute states the width of all layers.
    """
    slots = flow.slots
    read, cells, states = _last(flow, inputs[0], path), [], []
    for layer in range(module.num_layers):
        written = []
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            columns = _axis(flow, getattr(module, f"weight_ih_l{layer}{suffix}"), 1)
            slots.same(read, columns, f"{path} reads a tensor that keeps its width")
            cell, state = _cell(flow, module, f"l{layer}{suffix}", f"{path} keeps its width")
            cells.append(cell)
            states.append(state)
            written.append(state)
        read = torch.cat(written)
    for parts in (cells, states):
        slots.produces(torch.cat(parts))
        for part in parts:
            slots.together(parts[0], part)
    sequence, last = output
    flow.put(sequence, [read.reshape([1] * (sequence.ndim - 1) + [-1])])
    for tensor, label in zip(last if isinstance(last, tuple) else (last,), (states[-1], cells[-1]), strict=False):
        flow.put(tensor, [label.reshape([1] * (tensor.ndim - 1) + [-1])])


def _cell(flow: Flow, module: Any, name: str, reason: str) -> tuple[Tensor, Tensor]:
    """Tie the gates of one layer and direction; return the labels (hidden,) of its cell and (state,) of its output."""
    tensors = [getattr(module, f"{kind}_{name}", None) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    gates = [_axis(flow, tensor, 0).reshape(-1, module.hidden_size) for tensor in tensors if tensor is not None]
    cell, state = gates[0][0], _axis(flow, tensors[1], 1)
    for rows in gates:
        flow.slots.same(rows, cell[None], reason)
    if module.proj_size:
        projection = getattr(module, f"weight_hr_{name}")
        flow.slots.same(_axis(flow, projection, 0), state, reason)
        flow.slots.same(_axis(flow, projection, 1), cell, reason)
    else:
        flow.slots.same(cell, state, reason)
    return cell, state


def _axis(flow: Flow, tensor: Any, dim: int) -> Tensor:
    """Labels (size,) of one axis of a parameter."""
    for label in flow.labels(tensor):
        if varying(label) == (dim,):
            return small(label).reshape(-1)
    return torch.zeros(tensor.shape[dim], dtype=torch.int64)


def _last(flow: Flow, x: Tensor, path: str) -> Tensor:
    """Labels (width,) of the last dimension of a recurrent layer's input."""
    for label in flow.labels(x):
        if varying(label) == (x.ndim - 1,):
            return small(label).reshape(-1)
        flow.slots.block(small(label), f"{path} reads them as positions")
    return torch.zeros(x.shape[-1], dtype=torch.int64)
