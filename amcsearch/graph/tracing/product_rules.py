"""What sums of products do to labels: matrix products, fused attention and convolutions.

What is summed over is tied: an input's channels to the rows of the weight that read them, a head's queries to its keys.
The other axis of a weight labels the result.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from amcsearch.graph.outputs import tensors_in
from amcsearch.graph.tracing.flow import Call, Choice, Crossing, Flow
from amcsearch.graph.tracing.labels import FRESH, NONE, small, varying

__all__ = ["attention", "convolution", "experts", "product"]


_ALIGNMENT: Final = 16  # bytes


def product(flow: Flow, call: Call) -> None:
    """Matrix products: mm, bmm, mv, dot, and those that add a bias."""
    operands = list(tensors_in(call.args))
    bias = operands.pop(0) if call.name in ("addmm", "baddbmm", "addmv", "addbmm") else None
    left, right = operands
    a = [_matrix(label, is_left=True) for label in flow.labels(left)]
    b = [_matrix(label, is_left=False) for label in flow.labels(right)]
    layers = multiplied(flow, call.name, a, b, (flow.is_fresh(left), flow.is_fresh(right)), left.shape[-1])
    layers = [_as_result(label, call.out.ndim, left.ndim) for label in layers]
    _written(flow, call.out, layers, bias, call.name)


def _matrix(label: Tensor, is_left: bool) -> Tensor:
    """(batch, n, k) or (batch, k, m) of whatever rank came."""
    label = small(label)
    if label.ndim == 1:
        label = label[None] if is_left else label[:, None]
    return label[None] if label.ndim == 2 else label


def _as_result(label: Tensor, rank: int, left_rank: int) -> Tensor:
    if rank == 3:
        return label
    label = label[0]
    if rank == 2:
        return label
    if rank == 0:
        return label.reshape(())
    return label[0] if left_rank == 1 else label[:, 0]


def _written(flow: Flow, out: Tensor, layers: list[Tensor], bias: Tensor | None, name: str) -> None:
    flow.put(out, layers)
    if bias is not None and bias.numel() > 1:
        reason = f"is combined ({name}{flow.place()}) with a tensor of fixed width"
        flow.put(out, flow.combined([out, bias], reason))


def multiplied(
    flow: Flow, name: str, a: Sequence[Tensor], b: Sequence[Tensor], are_fresh: tuple[bool, bool], terms: int = 0
) -> list[Tensor]:
    """Labels of (batch, n, k) @ (batch, k, m), small; what is summed over is tied."""
    slots, result = flow.slots, []
    for side in (a, b):
        _choose(flow, side, f"whole heads leave, and their widths stay ({name}{flow.place()})")
    reason = f"is combined ({name}{flow.place()}) with a matrix of fixed width"
    inner_a, inner_b = [x for x in a if 2 in varying(x)], [x for x in b if 1 in varying(x)]
    if inner_a and inner_b:
        inner_a = [_of_terms(flow, x, 1, f"{name}{flow.place()} mixes channels") for x in inner_a]
        inner_b = [_of_terms(flow, y, 2, f"{name}{flow.place()} mixes channels") for y in inner_b]
    for label, dim, others, is_fresh in [
        *((x, 2, inner_b, are_fresh[1]) for x in inner_a),
        *((x, 1, inner_a, are_fresh[0]) for x in inner_b),
    ]:
        if not others and not is_fresh:
            flow.keeps(label, {dim}, reason)
    for x, y in _partners(flow, inner_a, inner_b, reason):
        _summed(flow, x[:, 0, :], y[:, :, 0], reason)
    for x in inner_a:
        result.append(slots.contracted(x, [2]))
    if not inner_a:
        result += [slots.contracted(y, [1]) for y in inner_b]
    result += [x for x in a if 2 not in varying(x)]
    outer_b = [y for y in b if 1 not in varying(y)]
    if inner_a or inner_b or terms == 1:
        for y in outer_b or [x for x in a if varying(x) == (1,)]:
            slots.produces(y)
    apart = [y for y in outer_b if varying(y) == (2,)]  # heads and their widths, of one tensor: neither implies another
    return [*flow.merged([*result, *(y for y in outer_b if varying(y) != (2,))]), *_unique(apart)]


def _choose(flow: Flow, side: Sequence[Tensor], reason: str) -> None:
    """Note where an operand (batch, n, m) has labels of heads along the batch beside others: not both can leave."""
    heads = tuple(label for label in side if varying(label) == (0,))
    if heads:
        widths = [label for label in side if varying(label) and 0 not in varying(label)]
        flow.choices += [Choice(heads, label, reason) for label in widths]


def _of_terms(flow: Flow, label: Tensor, rows: int, reason: str) -> Tensor:
    """Labels along the terms of a sum; where they differ by row (positions made of channels), all of a term leave."""
    if rows not in varying(label):
        return label
    terms = flow.slots.contracted(label, [rows])
    if not varying(terms):  # every term reads the same channels
        flow.slots.block(label, reason)
    return terms


def _unique(labels: Sequence[Tensor]) -> list[Tensor]:
    """Without labels that hold no channels, and without repeated ones."""
    kept: list[Tensor] = []
    for label in labels:
        if bool((label != NONE).any()) and not any(torch.equal(label, other) for other in kept):
            kept.append(label)
    return kept


def _partners(flow: Flow, a: Sequence[Tensor], b: Sequence[Tensor], reason: str) -> list[tuple[Tensor, Tensor]]:
    """Pair the labels of both sides of a sum.

    A dimension that is heads times widths may have a label for each. Labels that change at the same places are pairs.
    Where none do (heads and widths meet the columns of a layer), whole heads leave, and the widths stay.
    """
    if len(a) < 2 and len(b) < 2:
        return [(x, y) for x in a for y in b]
    pairs = [(x, y) for x in a for y in b if torch.equal(_changes(x[0, 0, :]), _changes(y[0, :, 0]))]
    if not pairs and a and b:
        pairs = [(min(a, key=lambda x: _runs(x[0, 0, :])), min(b, key=lambda y: _runs(y[0, :, 0])))]
    paired = {id(label) for pair in pairs for label in pair}
    for label in (*a, *b) if a and b else ():
        if id(label) not in paired:
            flow.slots.block(label, reason)
    return pairs


def _changes(vector: Tensor) -> Tensor:
    """For each place the number of its label among the distinct ones."""
    return torch.unique(vector, return_inverse=True)[1]  # type: ignore[no-any-return]  # torch does not annotate it


def _count(vector: Tensor) -> int:
    return len(torch.unique(vector[vector > NONE]))


def _runs(vector: Tensor) -> int:
    """How often the label changes: labels of heads fewer times than those of widths in each head."""
    return int(torch.count_nonzero(vector.diff()))


def _summed(flow: Flow, x: Tensor, y: Tensor, reason: str) -> None:
    """Tie (batch, k) and (batch, k), which a sum over k multiplies; a side without labels of its heads is shared."""
    slots = flow.slots
    if 0 in varying(x) and 0 not in varying(y):
        flow.crossings.append(Crossing(x, y, reason))
    elif 0 in varying(y) and 0 not in varying(x):
        flow.crossings.append(Crossing(y, x, reason))
    elif torch.equal(_changes(x[0]), _changes(y[0])) or _count(x[0]) == _count(y[0]):
        slots.same(x, y, reason)
    else:
        slots.together(x, y)
        slots.block(x[(y == NONE).expand(x.shape)], reason)
        slots.block(y[(x == NONE).expand(y.shape)], reason)


def attention(flow: Flow, call: Call) -> None:
    """softmax(Q Kᵀ) V of (batch, heads, tokens, width), fused; several query heads may share a key and a value head."""
    query, key, value = call.args[:3]
    q, k, v = ([small(label) for label in flow.labels(t)] for t in (query, key, value))
    if query.ndim != 4 or any(set(varying(label)) & {0, 2} for label in [*q, *k, *v]):
        flow.lose([query, key, value], flow.why_combined(call.name))
        return
    shared = query.shape[1] // key.shape[1]
    k, v = ([label.repeat_interleave(shared if 1 in varying(label) else 1, 1) for label in t] for t in (k, v))
    scores = multiplied(flow, call.name, [x[0] for x in q], [y[0].mT for y in k], (False, False))
    mask = call.argument("attn_mask")
    out = next(tensors_in([call.out]))
    shaped = [label[None] for label in scores]
    if isinstance(mask, Tensor) and (flow.labels(mask) or flow.is_fresh(mask)):
        plain = torch.empty((1, *query.shape[1:3], key.shape[2]), device="meta")
        flow.put(plain, shaped)
        shaped = flow.combined([plain, mask], f"meets ({call.name}{flow.place()}) a mask that keeps its heads")
    flow.put(out, flow.merged([*shaped, *v]))


def experts(flow: Flow, call: Call) -> None:
    """Rows (tokens, in), each multiplied by the one of (experts, in, out) that is its expert's."""
    rows, weights = call.args[:2]
    if rows.ndim != 2 or weights.ndim != 3:
        flow.lose([rows, weights], f"{call.name}{flow.place()} cannot be followed")
        return
    a = [small(label)[None] for label in flow.labels(rows)]
    b = []
    for label in flow.labels(weights):
        if 0 in varying(label):
            flow.slots.block(small(label), f"{call.name}{flow.place()} picks experts by number")
        else:
            b.append(small(label))
    layers = multiplied(flow, call.name, a, b, (flow.is_fresh(rows), flow.is_fresh(weights)))
    for label in (*a, *(y.mT for y in b), *layers):
        _aligned(flow, label, _ALIGNMENT // rows.element_size())
    flow.put(call.out, [label[0] for label in layers])


def _aligned(flow: Flow, label: Tensor, block: int) -> None:
    """Channels along the last dimension leave in blocks: torch multiplies grouped rows of whole 16 bytes only."""
    if varying(label) == (label.ndim - 1,) and label.shape[-1] % block == 0:
        flow.slots.together(label.reshape(-1, block)[:, :1], label.reshape(-1, block))


def convolution(flow: Flow, call: Call) -> None:
    """Convolution of any rank, grouped, depthwise, transposed.

    Weight (out, in / groups, …), or (in, out / groups, …) where transposed.
    """
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    inputs = [_of_channels(flow, small(label)) for label in flow.labels(x)]
    if any(varying(label) != (1,) for label in inputs) or len(inputs) > 1:
        flow.lose([x, weight], f"{call.name}{flow.place()} over what are no channels of its input")
        return
    read = inputs[0].reshape(-1) if inputs else torch.full((x.shape[1],), FRESH if flow.is_fresh(x) else NONE)
    labels = read, _axis(flow, weight, 0), _axis(flow, weight, 1)
    reason = f"is combined ({call.name}{flow.place()}) with a weight of fixed width"
    written = (_transposed if transposed else _direct)(flow, labels, groups, reason)
    flow.slots.produces(written)
    if isinstance(bias, Tensor):
        for label in flow.labels(bias) or [torch.zeros(1, dtype=torch.int64)]:
            flow.slots.same(written, label, f"{call.name}{flow.place()} has a bias that keeps its width")
    flow.put(call.out, [written.reshape([1, -1] + [1] * (call.out.ndim - 2))])


def _of_channels(flow: Flow, label: Tensor) -> Tensor:
    """Labels of dimension 1; where they differ by position (after a pixel shuffle), all of a channel leave together."""
    others = [dim for dim in varying(label) if dim != 1]
    return flow.slots.contracted(label, others) if others and 1 in varying(label) else label


def _axis(flow: Flow, weight: Tensor, dim: int) -> Tensor:
    """Labels (size,) of one axis of a weight; ``NONE`` where it has none."""
    for label in flow.labels(weight):
        if varying(label) == (dim,):
            return small(label).reshape(-1)
    return torch.zeros(weight.shape[dim], dtype=torch.int64)


def _direct(flow: Flow, labels: tuple[Tensor, Tensor, Tensor], groups: int, reason: str) -> Tensor:
    """Input (in,), weight rows (out,) and columns (in / groups,) → output (out,)."""
    read, rows, columns = labels
    slots = flow.slots
    if groups == 1:
        slots.same(read, columns, reason)
    elif groups == len(read):  # depthwise: input c writes outputs c·m … c·m + m − 1
        slots.same(read[:, None], rows.reshape(groups, -1), reason)
    else:
        inside, outside = read.reshape(groups, -1), rows.reshape(groups, -1)
        slots.together(inside[:1], inside)
        slots.together(inside[0], columns)
        slots.together(outside[:1], outside)
        if bool((read == NONE).any()):
            slots.block(read, reason)
            slots.block(columns, reason)
    return rows


def _transposed(flow: Flow, labels: tuple[Tensor, Tensor, Tensor], groups: int, reason: str) -> Tensor:
    """Input (in,), weight rows (in,) and columns (out / groups,) → output (out,)."""
    read, rows, columns = labels
    slots = flow.slots
    slots.same(read, rows, reason)
    if groups == 1:
        return columns
    if groups == len(read):
        return rows.repeat_interleave(len(columns))
    inside = rows.reshape(groups, -1)
    slots.together(inside[:1], inside)
    written = slots.fresh(groups * len(columns)).reshape(groups, -1)
    slots.together(columns[None], written)
    return written.reshape(-1)
