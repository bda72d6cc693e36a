"""What moving data does to labels: views, slices, picks and concatenations move them by the same operation.

A view that makes a grid of a dimension of channels, and slices that tile one, are noted: they say how plain code counts
the channels.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor

from amcsearch.graph.tracing.flow import Call, Flow, Split, outputs
from amcsearch.graph.tracing.labels import FRESH, NONE, small, tidy, varying

__all__ = ["VIEWS", "concatenate", "cut", "embedding", "gather", "move", "pick", "strided", "view"]

VIEWS: Final = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten"})


def move(flow: Flow, call: Call) -> None:
    """Data moves: the same operation moves the labels."""
    source, outs = call.args[0], outputs(call)
    moved = [_moved(call, label, outs) for label in flow.labels(source)]
    canvas = flow.canvas(source)
    canvases = [None] * len(outs) if canvas is None else _moved(call, canvas, outs)
    for i, out in enumerate(outs):
        flow.put(out, [tidy(labels[i]) for labels in moved], flow.is_fresh(source), canvases[i])


def _moved(call: Call, label: Tensor, outs: Sequence[Tensor]) -> list[Tensor]:
    try:
        result = call.func(label, *call.args[1:])
    except RuntimeError:
        if call.name not in VIEWS:
            raise
        return [label.reshape(outs[0].shape)]
    return [result] if isinstance(result, Tensor) else list(result)


def view(flow: Flow, call: Call) -> None:
    """A view in another shape; a dimension of channels that it cuts into a grid, or makes of several, is noted."""
    move(flow, call)
    source, out = call.args[0], outputs(call)[0]
    flow.asked(out)
    for label in flow.labels(source):
        dims = varying(label)
        for inside, outside in _regrouped(source.shape, out.shape):
            if len(outside) == 1 and len(set(dims) & set(inside)) > 1:
                grid = small(tidy(label.reshape(out.shape)))
                flow.merges.append(Split(grid.movedim(outside[0], -1), 1, flow.where()))
            if len(set(dims) & set(inside)) != 1 or len([d for d in outside if out.shape[d] > 1]) < 2:
                continue
            grid = small(tidy(label.reshape(out.shape)))
            axes = [d for d in outside if grid.shape[d] > 1]
            if len(axes) > 1:
                flow.splits.append(Split(grid.movedim(axes, list(range(-len(axes), 0))), len(axes), flow.where()))


def _regrouped(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return the blocks of dimensions of equal size in two shapes of the same number of elements."""
    groups, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        inside, outside, left, right = [i], [j], before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
                inside.append(i)
            else:
                j += 1
                right *= after[j]
                outside.append(j)
        groups.append((inside, outside))
        i, j = i + 1, j + 1
    return groups


def cut(flow: Flow, call: Call) -> None:
    """Parts of a dimension: slices and splits; parts that tile it are noted."""
    move(flow, call)
    source = call.args[0]
    dim = call.argument("dim") % source.ndim
    for label in flow.labels(source):
        if dim not in varying(label):
            continue
        if call.name == "slice":
            start, length = _start(call, source.shape[dim]), outputs(call)[0].shape[dim]
            if call.argument("step") == 1 and length < source.shape[dim]:
                flow.cut(label, dim, start, length)
            continue
        start = 0
        for out in outputs(call):
            flow.cut(label, dim, start, out.shape[dim])
            start += out.shape[dim]


def strided(flow: Flow, call: Call) -> None:
    """The same tensor in another order in memory; any other window on the memory cannot be followed."""
    source = call.args[0]
    if tuple(call.out.shape) == tuple(source.shape):
        flow.put(call.out, [small(label) for label in flow.labels(source)])
    else:
        flow.lose([source], f"as_strided{flow.place()} cannot be followed")


def _start(call: Call, size: int) -> int:
    start = call.argument("start") or 0
    return min(start + size if start < 0 else start, size)


def pick(flow: Flow, call: Call) -> None:
    """One index of a dimension: a single channel picked by its number, and read, keeps its place."""
    source = call.args[0]
    dim = int(call.argument("dim") or 0) % source.ndim
    reason = f"single channels are picked by number ({call.name}{flow.place()})".rstrip()
    picked = [(small(label), reason) for label in flow.labels(source) if varying(label) == (dim,)]
    move(flow, call)
    for out in outputs(call):
        labels = [small(label) for label in flow.labels(out) if varying(label)]
        flow.put(out, labels, flow.is_fresh(source), flow.canvas(out), picked)


def gather(flow: Flow, call: Call) -> None:
    """Elements at indices: labels along other dimensions go through, rows of a table are left alone."""
    source, out = call.args[0], outputs(call)[0]
    kept = []
    for label in flow.labels(source):
        moved = tidy(call.func(label, *call.args[1:]))
        if id(source) in flow.slots.of and len(varying(moved)) and _crossed(call, label):
            flow.slots.block(small(label), f"its rows are picked by number ({call.name}{flow.place()})".rstrip())
        else:
            kept.append(moved)
    flow.put(out, kept)


def _crossed(call: Call, label: Tensor) -> bool:
    """Whether the operation picks along a dimension in which the label varies."""
    if call.name == "index":
        dims = {d for d, index in enumerate(call.args[1]) if index is not None}
    else:
        dims = {call.argument("dim") % label.ndim}
    return bool(dims & set(varying(label)))


def embedding(flow: Flow, call: Call) -> None:
    """Rows of a table (rows, channels) by number."""
    weight, out = call.args[0], call.out
    for label in flow.labels(weight):
        if varying(label) == (1,):
            flow.slots.produces(small(label))
            flow.put(out, [small(label).reshape(-1)])
        else:
            flow.slots.block(small(label), f"its rows are picked by number{flow.place()}")


def concatenate(flow: Flow, call: Call) -> None:
    """Concatenation, and stacking as concatenation along a new dimension."""
    parts = [t for t in call.args[0] if t.numel()] or [t for t in call.args[0] if t.shape != (0,)]
    out = call.out
    dim = int(call.argument("dim") or 0) % out.ndim
    layers = [
        [label.unsqueeze(dim) for label in flow.labels(t)] if call.name == "stack" else list(flow.labels(t))
        for t in parts
    ]
    shapes = [label.unsqueeze(dim).shape if call.name == "stack" else label.shape for label in parts]
    along = [[label for label in mine if dim in varying(label) or not varying(label)] for mine in layers]
    across = [[label for label in mine if dim not in varying(label) and varying(label)] for mine in layers]
    result = _across(flow, call, across, parts)
    if any(along):
        if any(len(mine) > 1 for mine in along):
            flow.lose(parts, f"{call.name}{flow.place()} of several axes of channels cannot be followed")
        whole = torch.cat(
            [
                mine[0] if mine else torch.full(shape, FRESH if flow.is_fresh(part) else NONE)
                for mine, shape, part in zip(along, shapes, parts, strict=True)
            ],
            dim,
        )
        result.append(tidy(whole))
    flow.put(out, flow.merged([small(label) for label in result]))


def _across(flow: Flow, call: Call, layers: list[list[Tensor]], parts: Sequence[Tensor]) -> list[Tensor]:
    """Tie the labels along the dimensions that are not concatenated: all parts have them alike."""
    if not any(layers):
        return []
    reason = f"is combined ({call.name}{flow.place()}) with a tensor of fixed width"
    tied = [small(label) for mine in layers for label in mine]
    for i, mine in enumerate(layers):
        for label in mine:
            for j, others in enumerate(layers):
                beside = [other for other in others if varying(other) == varying(label)]
                if j != i and not beside and not flow.is_fresh(parts[j]) and varying(label):
                    flow.slots.block(small(label), reason)
                for other in beside if j > i else ():
                    flow.slots.same(small(label), small(other), reason)
    return [label.clone() for label in _distinct(tied)]


def _distinct(labels: Iterable[Tensor]) -> list[Tensor]:
    by_dims: dict[tuple[int, ...], Tensor] = {}
    for label in labels:
        by_dims.setdefault(varying(label), label)
    return list(by_dims.values())
