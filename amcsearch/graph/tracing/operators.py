"""What each operation does to labels: one small rule a kind of operation, and a table from names to rules.

Moving data moves labels the same way, by the same operation. Element-wise operations tie their operands. Products tie
what they sum over. Adding an operation is adding its name to a row of ``RULES``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from amcsearch.graph.outputs import tensors_in
from amcsearch.graph.tracing.flow import Call, Flow, Rule, filled, outputs
from amcsearch.graph.tracing.labels import FRESH, NONE, small, tidy, varying
from amcsearch.graph.tracing.move_rules import VIEWS, concatenate, cut, embedding, gather, move, pick, strided, view
from amcsearch.graph.tracing.product_rules import attention, convolution, experts, product

__all__ = ["RULES", "unlisted"]


def unlisted(func: Any) -> Rule | None:
    """Return the rule of an operation that the table does not name: element-wise ones are marked as such by torch."""
    return pointwise if torch.Tag.pointwise in func.tags else None


def keep(flow: Flow, call: Call) -> None:
    """The result has the labels of the first operand, of the same shape."""
    source = call.args[0]
    for out in outputs(call):
        flow.put(out, [small(label) for label in flow.labels(source)], flow.is_fresh(source), flow.canvas(source))


def pointwise(flow: Flow, call: Call) -> None:
    """Element-wise: operands that meet are tied."""
    operands = list(tensors_in((*call.args, *call.kwargs.values())))
    out = outputs(call)[0]
    if operands[0] is out and len(operands) == 1:
        return
    operands = [operand for operand in operands if operand is not call.kwargs.get("out")]
    reason = f"is combined ({call.name}{flow.place()}) with a tensor of fixed width"
    layers = flow.combined(operands, reason)
    if operands[0] is out and flow.canvas(out) is not None:
        write(flow, call)
        return
    flow.put(out, layers, all(flow.is_fresh(operand) for operand in operands))


def write(flow: Flow, call: Call) -> None:
    """Writing into a tensor: into zeros it labels the part that is written, else both are tied."""
    target = call.args[0]
    sources = [t for t in tensors_in((*call.args[1:], *call.kwargs.values())) if flow.labels(t)]
    canvas = flow.canvas(target)
    if canvas is not None:
        for source in sources:
            for label in flow.labels(source):
                canvas.copy_(torch.where(canvas > NONE, canvas, label.expand(canvas.shape)))
    elif sources or flow.labels(target):
        reason = f"is written{flow.place()} into a tensor of fixed width"
        flow.combined([target, *(t for t in tensors_in(call.args[1:]))], reason)


def write_at(flow: Flow, call: Call) -> None:
    """Writing at indices (index_put, index_add, scatter): the labels are written where the operation says.

    What is written at other indices lies along the same channels: hence labels of the same place are one channel.
    """
    target, out = call.args[0], outputs(call)[0]
    canvas = flow.canvas(target)
    mine = [small(label) for label in flow.labels(target)]
    written = [
        _written_at(call, source, label)
        for source in tensors_in((*call.args[1:], *call.kwargs.values()))
        for label in flow.labels(source)
    ]
    if canvas is not None and len(written) == 1:
        flow.slots.same(_only(canvas), _only(written[0]), "")
        canvas.copy_(_levelled(flow, torch.where(canvas > NONE, canvas, written[0]), written[0]))
        flow.put(out, [], True, canvas)
        return
    whole = [small(tidy(filled(label))) for label in written]
    for label in whole:
        for other in mine:
            if varying(label) == varying(other):
                flow.slots.same(label, other, f"is written{flow.place()} into other channels")
    if written:
        flow.put(out, mine or whole)


def _written_at(call: Call, source: Tensor, label: Tensor) -> Tensor:
    """Labels of what an operation writes, in a tensor like its target, ``FRESH`` elsewhere."""
    args = [label.contiguous() if argument is source else argument for argument in call.args]
    args[0] = torch.full(call.args[0].shape, FRESH)
    name = call.func._schema.name.removeprefix("aten::").rstrip("_")
    if name in _ADDING:  # labels of the same place must not be added up
        return _ADDING[name](*args[:4])
    written: Tensor = call.func(*(args[:3] if "index_put" in name else args))
    return written


def _only(label: Tensor) -> Tensor:
    return torch.where(label > NONE, label, FRESH)


def _levelled(flow: Flow, canvas: Tensor, written: Tensor) -> Tensor:
    """Tie the labels of one place in all rows, where rows are what the written labels do not vary in."""
    for dim in set(range(canvas.ndim)) - set(varying(tidy(filled(written)))):
        most = canvas.amax(dim, keepdim=True)
        flow.slots.same(_only(most), _only(canvas), "")
        canvas = torch.where(canvas > NONE, most, canvas)
    return canvas


def reduce(flow: Flow, call: Call) -> None:
    """Sums, means, maxima over dimensions.

    What a result is made of leaves together. Over all channels, only a sum is indifferent to zeros that are gone; any
    other result that is used blocks them. Whether a maximum is (of what is not negative, or of the sums of a softmax,
    which are least without a head) is left to the check.
    """
    source = call.args[0]
    dims = _dims(call, source.ndim)
    outs = outputs(call)
    for out in outs:
        keepdim = out.ndim == source.ndim
        layers, mixed = [], []
        for label in flow.labels(source):
            over = [d for d in dims if d in varying(label)]
            if over and over == list(varying(label)) and call.name not in _SUMS | _MAXIMA:
                mixed.append((small(label), flow.why_combined(call.name)))
                flow.mixing[flow.where()] = None
            reduced = flow.slots.contracted(small(label), over) if over else small(label)
            layers.append(reduced if keepdim else _squeezed(reduced, dims))
        flow.put(out, flow.merged(layers), mixed=mixed)


def _dims(call: Call, rank: int) -> list[int]:
    dims = call.argument("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return [d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])]


def _squeezed(label: Tensor, dims: Sequence[int]) -> Tensor:
    keep = [slice(None) if d not in dims else 0 for d in range(label.ndim)]
    return label.narrow(0, 0, label.shape[0])[tuple(keep)] if label.ndim else label


def along(flow: Flow, call: Call) -> None:
    """Operations along one dimension (softmax, cumsum, sort): over channels they mix them.

    Channels in several rows (the taps of each head) are mixed in their row only, which leaves as a whole.
    """
    source = call.args[0]
    dim = _dims(call, source.ndim)
    for out in outputs(call):
        layers = []
        for label in flow.labels(source):
            if set(dim) & set(varying(label)):
                flow.keeps(small(label), set(dim) & set(varying(label)), flow.why_combined(call.name))
            if not set(varying(label)) <= set(dim):
                layers.append(small(label))
        flow.put(out, layers)


def spatial(flow: Flow, call: Call) -> None:
    """Pooling, resizing and padding of maps (N, C, …): channels pass, positions change."""
    source = call.args[0]
    pooled = _pooled(call, source.ndim)
    for out in outputs(call):
        flow.put(out, [_spatial(flow, call, label, pooled) for label in flow.labels(source)])


def _pooled(call: Call, rank: int) -> set[int]:
    """Dimensions of positions that the operation changes: not those with windows of one (tokens pooled as a map)."""
    sizes = [call.argument(name) for name in ("kernel_size", "stride", "padding")]
    known = [list(size) if isinstance(size, list | tuple) else [size] for size in sizes if size not in (None, [])]
    windows = [(size * (rank - 2))[: rank - 2] if len(size) == 1 else size for size in known]
    if sizes[0] is None or any(len(window) != rank - 2 for window in windows):
        return set(range(2, rank))
    kernel, *more = windows
    return {d + 2 for d, size in enumerate(kernel) if size != 1 or any(window[d] not in (0, 1) for window in more)}


def windows(flow: Flow, call: Call) -> None:
    """Windows of a map (N, C, H, W) as columns (N, C * taps, L): every tap has the channel that it is of."""
    source, out = call.args[0], outputs(call)[0]
    layers = []
    for label in flow.labels(source):
        if varying(label) == (source.ndim - 3,):
            channels = small(label).reshape(-1)
            layers.append(channels.repeat_interleave(out.shape[-2] // len(channels)).reshape(-1, 1))
        else:
            flow.slots.block(small(label), flow.why_combined(call.name))
    flow.put(out, layers)


def unwindowed(flow: Flow, call: Call) -> None:
    """Columns (N, C * taps, L) as the map (N, C, H, W) of their windows: the taps of a channel leave together."""
    source, out = call.args[0], outputs(call)[0]
    layers = []
    for label in flow.labels(source):
        if varying(label) == (source.ndim - 2,):
            taps = small(label).reshape(out.shape[-3], -1)
            flow.slots.same(taps[:, :1], taps, "")
            layers.append(taps[:, :1, None])
        else:
            flow.slots.block(small(label), flow.why_combined(call.name))
    flow.put(out, layers)


def _spatial(flow: Flow, call: Call, label: Tensor, pooled: set[int]) -> Tensor:
    positions = [d for d in varying(label) if d in pooled]
    if positions and set(varying(label)) - set(positions):
        return flow.slots.contracted(small(label), positions)
    if positions:
        flow.slots.block(small(label), flow.why_combined(call.name))
        return torch.zeros([1] * label.ndim, dtype=torch.int64)
    return small(label)


def pad(flow: Flow, call: Call) -> None:
    """Padding with a constant: of positions it changes nothing, of channels it adds some that belong to none."""
    source, out = call.args[0], call.out
    layers = []
    for label in flow.labels(source):
        amounts = list(call.args[1])
        for i in range(0, len(amounts), 2):
            if label.ndim - 1 - i // 2 not in varying(label):
                amounts[i] = amounts[i + 1] = 0
        layers.append(tidy(torch.constant_pad_nd(small(label), amounts, NONE)))
    flow.put(out, [small(label) for label in layers])


def norm(flow: Flow, call: Call) -> None:
    """Batch norm: dimension 1 with each of its vectors."""
    source = call.args[0]
    vectors = [t for t in tensors_in((*call.args[1:], *call.kwargs.values())) if t.ndim == 1]
    reason = f"{call.name}{flow.place()} has vectors of a fixed width"
    for label in flow.labels(source):
        dims = varying(label)
        if 1 not in dims:
            flow.slots.block(small(label), flow.why_combined(call.name))
            continue
        # positions made of channels (after a pixel shuffle) leave with theirs
        channels = small(label) if len(dims) == 1 else flow.slots.contracted(small(label), [d for d in dims if d != 1])
        for vector in vectors:
            for other in flow.labels(vector):
                flow.slots.same(channels.reshape(-1), other, reason)
    flow.put(outputs(call)[0], [small(label) for label in flow.labels(source)])


def layer_norm(flow: Flow, call: Call) -> None:
    """Layer norm by plain code: its channels stay, unless the module that it runs in is taken for a norm."""
    flow.mixing[flow.where()] = None
    flow.lose(call.args[:1], flow.why_combined(call.name))


def glu(flow: Flow, call: Call) -> None:
    """Gated linear unit: the halves of a dimension are multiplied."""
    source = call.args[0]
    dim = int(call.argument("dim")) % source.ndim
    layers = []
    for label in flow.labels(source):
        if dim in varying(label):
            first, second = small(label).chunk(2, dim)
            flow.slots.same(first, second, "")
            flow.cut(label, dim, 0, first.shape[dim])
            flow.cut(label, dim, first.shape[dim], first.shape[dim])
            layers.append(first)
        else:
            layers.append(small(label))
    flow.put(call.out, layers)


def ignore(flow: Flow, call: Call) -> None:
    """Random numbers and constants written into a tensor, sizes and comparisons: labels stay as they are."""


def like(flow: Flow, call: Call) -> None:
    """A new tensor of the shape of another (zeros_like): its width goes with what it meets."""
    for out in outputs(call):
        flow._make(out)


_ADDING: Final[dict[str, Callable[..., Tensor]]] = {"index_add": torch.index_copy, "scatter_add": torch.scatter}
_MAXIMA: Final = frozenset({"max", "amax"})
_SUMS: Final = frozenset({"sum", "linalg_vector_norm", "norm", "nansum"})
_ROWS: Final[dict[Callable[[Flow, Call], None], str]] = {
    keep: "clone contiguous _to_copy detach alias lift_fresh lift lift_fresh_copy tril triu bernoulli native_dropout "
    "resolve_conj resolve_neg _conj to view_as_real_copy",
    move: "permute transpose t mT mH adjoint expand squeeze unsqueeze flip roll repeat diagonal unfold pixel_shuffle "
    "pixel_unshuffle channel_shuffle native_channel_shuffle numpy_T movedim swapaxes narrow_copy repeat_interleave",
    view: " ".join(VIEWS),
    cut: "slice split split_with_sizes narrow unsafe_split unsafe_split_with_sizes",
    strided: "as_strided",
    pick: "select unbind",
    gather: "index index_select gather take_along_dim",
    embedding: "embedding",
    concatenate: "cat stack",
    reduce: "sum mean amax amin prod var std var_mean std_mean linalg_vector_norm norm logsumexp any all argmax argmin "
    "max min median nansum",
    along: "_safe_softmax _softmax _log_softmax softmax log_softmax cumsum cumprod sort topk kthvalue cummax cummin "
    "logcumsumexp _fft_r2c _fft_c2c _fft_c2r",
    spatial: "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
    "avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d grid_sampler_3d "
    "mkldnn_max_pool2d fractional_max_pool2d",
    windows: "im2col",
    unwindowed: "col2im",
    pad: "constant_pad_nd",
    norm: "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "_batch_norm_with_update _batch_norm_no_update batch_norm",
    layer_norm: "native_layer_norm",
    glu: "glu",
    pointwise: "_prelu_kernel hardswish hardsigmoid hardtanh relu6 mish softplus elu celu selu leaky_relu threshold "
    "rrelu_with_noise softshrink hardshrink log_sigmoid log_sigmoid_forward _fused_dropout masked_fill where",
    product: "mm bmm mv dot addmm baddbmm addmv vdot",
    attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_fused_attention_overrideable",
    experts: "_grouped_mm",
    convolution: "convolution _convolution convolution_overrideable mkldnn_convolution",
    write: "copy masked_scatter",
    write_at: "index_put _index_put_impl index_add scatter scatter_add index_copy slice_scatter select_scatter",
    ignore: "fill zero normal uniform random exponential _local_scalar_dense equal is_same_size nonzero "
    "_assert_async isnan",
    like: "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty "
    "new_empty_strided",
}
RULES: Final[dict[str, Rule]] = {name: rule for rule, names in _ROWS.items() for name in names.split()}
