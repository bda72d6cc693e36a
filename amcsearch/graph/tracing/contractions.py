"""Sums of products as torch runs them, whatever wrote them: matmul, einsum, a functional convolution, attention.

``ContractionLog`` sees the ATen operations below every function, where a matrix product is ``mm`` or ``bmm``, and
einsum, F.linear over windows and ``nn.MultiheadAttention`` are no more than that. It follows two things through the
operations between them. Tensors that do not depend on the sample (a parameter, its transpose, one expert's slice, a
weight computed from others) make a product a layer with a weight. The scores of a product that reach a softmax make the
product that reads them the second half of an attention.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.graph.outputs import tensors_in
from amcsearch.graph.tracing.layer_types import folded, merged, padded, pair
from amcsearch.graph.tracing.operations import OperationMode

__all__ = ["Attention", "Contraction", "ContractionLog", "Convolution", "Product", "Uncounted", "Weight"]


@dataclass(frozen=True)
class Weight:
    """An operand that is the same for every sample: ``numel`` distinct numbers that come from parameter ``name``.

    ``name`` is empty where it comes from none or from several; ``row`` numbers a slice of it (the first row, in slices
    of this size where it is a multiple of them), None where all of it is used.
    """

    name: str
    numel: int
    row: int | None


Channels = tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]
"""Labels of what an operation reads and of what it writes, along its channels; None where they are unknown.

(n, width), or (n, rows, width) where the rows of a head have labels and its columns none: it leaves with all its rows.
"""
Labeller = Callable[[Tensor, Sequence[int]], NDArray[np.int64] | None]
"""Labels of a tensor along some of its dimensions, flat."""
_UNKNOWN: Final[Channels] = (None, None)


@dataclass(frozen=True)
class Product:
    """``groups`` products (rows, terms) x (terms, columns); ``weight`` is the second operand, None if it is a map."""

    groups: int
    rows: int
    terms: int
    columns: int
    weight: Weight | None = None
    number: int = 0
    channels: Channels = field(default=_UNKNOWN, compare=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.groups * self.rows * self.terms * self.columns


@dataclass(frozen=True)
class Convolution:
    """A convolution as a layer without a name; ``weight`` None: its filters depend on the sample."""

    layer: LayerSpec
    weight: Weight | None
    channels: Channels = field(default=_UNKNOWN, compare=False)


@dataclass(frozen=True)
class Attention:
    """softmax(QKᵀ)V of ``heads`` (times windows) heads; ``product`` is the number of QKᵀ, None where both are fused."""

    heads: int
    queries: int
    keys: int
    key_width: int
    value_width: int
    product: int | None = None
    channels: Channels = field(default=_UNKNOWN, compare=False)


@dataclass(frozen=True)
class Uncounted:
    """An operation that multiplies and adds but fits no kind of layer."""

    operation: str
    macs: int


Contraction = Product | Convolution | Attention | Uncounted


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class ContractionLog(OperationMode):
    """Collects the contractions that run while it is entered, oldest first; ``take`` hands them over."""

    def __init__(self, model: nn.Module, labeller: Labeller = lambda _, __: None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._labeller = labeller
        self._calls: list[Contraction] = []
        self._tensors: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        # names of what a constant is made of, by storage
        self._constants: dict[int, frozenset[str]] = {}
        for name, tensor in self._tensors.items():
            key = _storage(tensor)
            self._constants[key] = self._constants.get(key, frozenset()) | {name}
        self._scores: dict[int, tuple[Product, bool]] = {}  # by storage: the product, and whether a softmax followed
        self._held: list[Any] = []  # storages whose numbers must not be used again
        self._products = 0

    def take(self) -> list[Contraction]:
        """Return what ran since the last call."""
        calls, self._calls = self._calls, []
        return calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        row = _ROWS.get(func.overloadpacket)
        results = list(tensors_in([result]))
        if row is not None:
            call = row(self, args, result)
            if call is not None:
                self._calls.append(call)
        operands = [*tensors_in(args), *tensors_in((kwargs or {}).values())]
        self._carry_constants(operands, results, is_contraction=row is not None)
        if row is None:
            self._carry_scores(operands, results, is_softmax="softmax" in func.overloadpacket.__name__)
        return result

    def _carry_constants(self, operands: list[Tensor], results: list[Tensor], *, is_contraction: bool) -> None:
        sources = [self._constants.get(_storage(tensor)) for tensor in operands]
        if any(source is None for source in sources):
            for tensor in results:  # an operation in place that writes a map into a constant
                self._constants.pop(_storage(tensor), None)
            return
        names = frozenset[str]() if is_contraction else frozenset[str]().union(*(s for s in sources if s))
        for tensor in results:
            key = _storage(tensor)
            self._constants[key] = self._constants.get(key, frozenset()) | names
            self._held.append(tensor.untyped_storage())

    def _carry_scores(self, operands: list[Tensor], results: list[Tensor], *, is_softmax: bool) -> None:
        known = next((self._scores[key] for key in map(_storage, operands) if key in self._scores), None)
        if known is None:
            return
        for tensor in results:
            if tensor.is_floating_point():
                self._scores[_storage(tensor)] = (known[0], known[1] or is_softmax)
                self._held.append(tensor.untyped_storage())

    def labels(self, tensor: Tensor, dims: Sequence[int]) -> NDArray[np.int64] | None:
        """Return the labels of a tensor along some dimensions, flat; None where it holds no channels."""
        return self._labeller(tensor, dims)

    def weight_of(self, tensor: Tensor, distinct: int) -> Weight | None:
        """Return what an operand of ``distinct`` numbers is made of, None if it depends on the sample."""
        names = self._constants.get(_storage(tensor))
        if names is None:
            return None
        owner = self._owner(tensor, names)
        if owner is None:
            return Weight("", distinct, None)
        whole = self._tensors[owner]
        if distinct >= whole.numel():
            return Weight(owner, whole.numel(), None)
        row = 0
        if _storage(tensor) == _storage(whole) and whole.ndim and whole.stride(0):
            row = (tensor.storage_offset() - whole.storage_offset()) // whole.stride(0)
            rows = max(distinct * whole.shape[0] // whole.numel(), 1)
            row = row // rows if row % rows == 0 else row
        return Weight(owner, distinct, row)

    def _owner(self, tensor: Tensor, names: frozenset[str]) -> str | None:
        """The one parameter or buffer that a constant comes from; several may share a storage."""
        if len(names) == 1:
            return next(iter(names))
        offset = tensor.storage_offset()
        return next(
            (
                name
                for name in sorted(names)
                if _storage(whole := self._tensors[name]) == _storage(tensor)
                and whole.storage_offset() <= offset < whole.storage_offset() + max(whole.numel(), 1)
            ),
            None,
        )

    def product(self, left: Tensor, right: Tensor, result: Any) -> Contraction | None:
        """Describe (G, M, K) x (G, K, N); without G where both are matrices."""
        groups = left.shape[0] if left.ndim == 3 else 1
        rows, terms, columns = int(left.shape[-2]), int(left.shape[-1]), int(right.shape[-1])
        if not groups * rows * terms * columns:
            return None
        attention = self._attention(left, right, groups, result)
        if attention is not None:
            return attention
        shape = Product(groups, rows, terms, columns, channels=self._channels(left, (0, -1), result, (0, -1)))
        weight = self.weight_of(right, _distinct(right))
        if weight is None and (weight := self.weight_of(left, _distinct(left))) is not None:
            shape = Product(groups, columns, terms, rows, channels=self._channels(right, (0, -2), result, (0, -2)))
        if weight is not None and weight.numel == shape.terms * shape.columns and groups > 1:
            shape = replace(shape, groups=1, rows=shape.rows * groups)  # one weight for all of the batch
        if weight is not None and (weight.name or left.ndim == 2 or shape.groups != groups):  # else a learnt query
            return replace(shape, weight=weight)
        if columns == 1 and rows > 1:  # a matrix times a vector: its rows are what it writes
            shape = Product(groups, 1, terms, rows, channels=self._channels(right, (0, -2), result, (0, -2)))
        self._products += 1
        shape = replace(shape, number=self._products)
        for tensor in tensors_in([result]):
            self._scores[_storage(tensor)] = (shape, False)
            self._held.append(tensor.untyped_storage())
        return shape

    def _attention(self, left: Tensor, right: Tensor, groups: int, result: Tensor) -> Attention | None:
        if result.ndim < 2:  # a matrix times a vector
            return None
        for scores, values, written in ((left, right, result), (right.mT, left.mT, result.mT)):
            first, is_softmax = self._scores.get(_storage(scores), (None, False))
            if first is None or not is_softmax or first.groups != groups:
                continue
            queries, keys = int(scores.shape[-2]), int(scores.shape[-1])
            if sorted((queries, keys)) == sorted((first.rows, first.columns)):
                del self._scores[_storage(scores)]
                channels = first.channels[0], self._along(written, (0, 2) if written.ndim == 3 else (1,))
                return Attention(groups, queries, keys, first.terms, int(values.shape[-1]), first.number, channels)
        return None

    def _channels(self, x: Tensor, reads: Sequence[int], y: Any, writes: Sequence[int]) -> Channels:
        """Labels of a matrix or a batch of them (dimension 0 and one more) on both sides of a product."""
        inside, outside = ([d % t.ndim for d in dims if d or t.ndim == 3] for t, dims in ((x, reads), (y, writes)))
        return self._along(x, inside), self._along(y, outside)

    def _along(self, x: Tensor, dims: Sequence[int]) -> NDArray[np.int64] | None:
        """Labels along some dimensions, (n, size); (n, rows, size) where only heads with their rows have labels."""
        labels = self._labeller(x, dims)
        if labels is not None or len(dims) < 2:
            return labels
        other = ({1, 2} - {*dims}).pop()
        labels = self._labeller(x, (0, other))
        if labels is None:
            return None
        heads = labels.reshape(len(labels), x.shape[0], x.shape[other]).swapaxes(1, 2)  # (n, rows, heads)
        return heads.repeat(x.shape[dims[1]], axis=2)


def _distinct(tensor: Tensor) -> int:
    """Numbers of a tensor, those that ``expand`` repeats counted once."""
    return prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def _at(left: int, right: int) -> Callable[[ContractionLog, Any, Any], Contraction | None]:
    return lambda log, args, result: log.product(args[left], args[right], result)


def _vector(matrix: int) -> Callable[[ContractionLog, Any, Any], Contraction | None]:
    return lambda log, args, result: log.product(args[matrix], args[matrix + 1][:, None], result)


def _grouped(log: ContractionLog, args: Any, result: Any) -> Contraction | None:
    """Rows (T, K), each multiplied by the one of (E, K, N) that is its expert's."""
    rows, experts = args[0], args[1]
    if rows.ndim != 2 or experts.ndim != 3:
        macs = prod(rows.shape) * int(experts.shape[-1])
        return Uncounted("_grouped_mm", macs)
    weight = log.weight_of(experts, _distinct(experts)) or Weight("", experts.numel(), None)
    channels = log.labels(rows, (1,)), log.labels(result, (1,))
    return Product(1, int(rows.shape[0]), int(rows.shape[1]), int(experts.shape[2]), weight, channels=channels)


def _convolution(log: ContractionLog, args: Any, result: Any) -> Contraction | None:
    x, weight, _, stride, padding, dilation, _, _, groups = args[:9]
    if not result.numel():
        return None
    layer = LayerSpec(
        "convolution", LayerKind.CONV, int(x.shape[1]), int(result.shape[1]), merged(weight.shape[2:]), merged(stride),
        padded(padding, weight.shape[2:], stride), pair(dilation, 1), int(groups), folded(x.shape[0], x.shape[2:]),
        folded(x.shape[0], result.shape[2:]), has_weight=False,
    )  # fmt: skip
    channels = log.labels(x, (1,)), log.labels(result, (1,))
    return Convolution(layer, log.weight_of(weight, _distinct(weight)), channels)


def _fused(log: ContractionLog, args: Any, result: Any) -> Contraction | None:
    if not next(tensors_in([result])).numel():
        return None
    query, key, value = (tuple(map(int, tensor.shape)) for tensor in args[:3])
    channels = log.labels(args[0], (0, 1, 3)), log.labels(next(tensors_in([result])), (0, 1, 3))
    return Attention(prod(query[:-2]), query[-2], key[-2], query[-1], value[-1], channels=channels)


def _trilinear(log: ContractionLog, args: Any, _: Any) -> Contraction:  # noqa: ARG001 (one signature for the whole table)
    samples, weight = int(args[0].shape[0]), args[1]
    return Uncounted("bilinear", samples * weight.numel() + samples * int(weight.shape[0]) * int(weight.shape[-1]))


def _distances(log: ContractionLog, args: Any, _: Any) -> Contraction:  # noqa: ARG001 (as above)
    return Uncounted("cdist", prod(args[0].shape) * int(args[1].shape[-2]))


_ATEN: Final = torch.ops.aten
_ROWS: Final[Mapping[Any, Callable[[ContractionLog, Any, Any], Contraction | None]]] = {
    _ATEN.mm: _at(0, 1),
    _ATEN.bmm: _at(0, 1),
    _ATEN.addmm: _at(1, 2),
    _ATEN.baddbmm: _at(1, 2),
    _ATEN.addbmm: _at(1, 2),
    _ATEN.mv: _vector(0),
    _ATEN.addmv: _vector(1),
    _ATEN._grouped_mm: _grouped,
    _ATEN.convolution: _convolution,
    _ATEN._convolution: _convolution,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _fused,
    _ATEN._scaled_dot_product_flash_attention: _fused,
    _ATEN._scaled_dot_product_efficient_attention: _fused,
    _ATEN._scaled_dot_product_cudnn_attention: _fused,
    _ATEN._scaled_dot_product_fused_attention_overrideable: _fused,
    _ATEN._trilinear: _trilinear,
    _ATEN._cdist_forward: _distances,
}
