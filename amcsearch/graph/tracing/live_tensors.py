"""Log of the tensors that a running network writes and reads, and what of it is live together in the delivered file.

The order is that of torch, which is the order of the nodes in the ONNX file. What the file does not hold as a tensor of
its own is left out:

- tensors that follow from weights alone: they are constants of the file;
- views (reshapes, transpositions, slices), which lie in the memory of what they look at;
- a batch norm behind a convolution, which the exporter folds into it;
- results that nothing reads, such as the places of the maxima of a pooling layer.

Nothing is taken to happen in place: an activation writes another tensor than it reads, also where the module says
``inplace``. A norm or a recurrent layer is one operation; attention, fused or not, is Q·Kᵀ, softmax and the product
with V, so that its scores are counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amcsearch.core import Execution, LiveTensor, WidthSum
from amcsearch.graph.outputs import tensors_in
from amcsearch.graph.tracing.flow import Call, Flow
from amcsearch.graph.tracing.labels import small, varying

__all__ = ["LiveLog", "SlotsOf"]

_NORM: Final = "batch_norm"
_CONVOLUTION: Final = "convolution"
_ATTENTION: Final = "scaled_dot_product"


@dataclass(frozen=True)
class SlotsOf:
    """``group_of`` (slots,) is the position of each slot's group, -1 for none; ``groups`` are names and channels."""

    group_of: NDArray[np.int64]
    groups: Sequence[tuple[str, int]]

    @classmethod
    def of(cls, unit_of: NDArray[np.int64], groups: Mapping[str, tuple[NDArray[np.int64], int]]) -> Self:
        """Make it of the unit of each slot, (slots,), and of each group's units and count of channels, by name."""
        group_of_unit = np.full(len(unit_of), -1)
        for position, (units, _) in enumerate(groups.values()):
            group_of_unit[units] = position
        return cls(group_of_unit[unit_of], [(name, channels) for name, (_, channels) in groups.items()])

    def width(self, labels: NDArray[np.int64]) -> WidthSum:
        """Return how many of the labelled places stay, for the kept channels of every group."""
        positions = np.where(labels > 0, self.group_of[np.maximum(labels, 0)], -1)
        counts = np.bincount(positions + 1, minlength=1)  # those of no group first
        steps = ((*self.groups[g - 1], int(counts[g])) for g in np.flatnonzero(counts).tolist() if g)
        return WidthSum(float(counts[0]), tuple((name, count / channels) for name, channels, count in steps))


@dataclass
class _Value:
    """One tensor as it was written: its numbers, and the labels of its dimensions, or who has them later."""

    numel: int
    item_bytes: int
    is_float: bool
    shape: tuple[int, ...]
    labels: list[Tensor] = field(default_factory=list)
    canvas: Tensor | None = None


@dataclass
class _Operation:
    name: str
    place: str
    reads: list[int]
    writes: list[int]


class LiveLog:
    """Logs what a ``flow`` follows and labels, from ``begin`` to ``end``."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._values: list[_Value] = []
        self._operations: list[_Operation] = []
        self._of: dict[int, int] = {}  # storage → the value that lies in it
        self._held: list[Any] = []  # storages whose numbers must not be used again
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._is_known = True

    def begin(self, inputs: Iterable[Tensor]) -> None:
        """Note the inputs of the network, and listen."""
        self._flow.listeners.append(self)
        self._inputs = [self._write(tensor) for tensor in inputs]

    def end(self, outputs: Iterable[Tensor]) -> None:
        """Note the outputs of the network, and listen no longer."""
        self._flow.listeners.remove(self)
        self._outputs = [self._of[key] for key in map(_storage, outputs) if key in self._of]

    def saw(self, call: Call) -> None:
        """Note an operation; of one whose tensors lie in no plain memory, that the order is not known."""
        try:
            self._saw(call)
        except RuntimeError:
            self._is_known = False

    def _saw(self, call: Call) -> None:
        operands = list(tensors_in((*call.args, *call.kwargs.values())))
        if _ATTENTION in call.name:
            operands = self._scores(operands, bool(call.argument("is_causal")))
        self.ran(call.name, operands, list(tensors_in([call.out])), call.func._schema.is_mutable)

    def ran(self, name: str, operands: Sequence[Tensor], results: Sequence[Tensor], in_place: bool = False) -> None:
        """Note an operation, or a module that counts as one."""
        keys = {_storage(tensor) for tensor in operands}
        reads = sorted({self._of[key] for key in keys if key in self._of})
        writes = []
        for tensor in results if reads else ():
            known = self._of.get(_storage(tensor))
            is_part = known is not None and tensor.numel() < self._values[known].numel
            if _storage(tensor) not in keys or (in_place and not is_part):
                writes.append(self._write(tensor, not in_place or _fills(tensor)))
            elif in_place and known is not None:
                writes.append(known)
        if writes:
            self._operations.append(_Operation(name, self._flow.where(), reads, writes))

    def _write(self, tensor: Tensor, is_whole: bool = True) -> int:
        """Add the value that a tensor holds, or all of the memory that it is a part of."""
        storage, key, item = tensor.untyped_storage(), _storage(tensor), tensor.element_size()
        value = _Value(tensor.numel(), item, tensor.is_floating_point(), tuple(tensor.shape))
        if is_whole and self._flow.canvas(tensor) is not None:
            value.canvas = tensor
        elif is_whole:
            value.labels = [small(label) for label in self._flow.labels(tensor)]
        else:
            value.numel = storage.nbytes() // item
        self._values.append(value)
        self._held.append(storage)
        self._of[key] = len(self._values) - 1
        return self._of[key]

    def _scores(self, operands: list[Tensor], is_causal: bool) -> list[Tensor]:
        """Add the operations of fused attention that write its scores; return what its last one reads."""
        query, key, value, *others = operands
        shape = (*query.shape[:-1], key.shape[-2])
        labels = []
        for label in map(small, self._flow.labels(query)):
            dims = [dim for dim in varying(label) if dim < query.ndim - 1]
            if dims:
                labels.append(label.narrow(-1, 0, 1))
        reads = sorted({self._of[k] for k in map(_storage, (query, key, *others)) if k in self._of})
        if not reads:
            return operands
        for name in ("scores", *(["mask"] if is_causal else []), "softmax"):
            if name == "mask":  # the file makes it where it is needed
                self._values.append(_Value(prod(shape[-2:]), query.element_size(), True, shape[-2:]))
                reads = [*reads, len(self._values) - 1]
            self._values.append(_Value(prod(shape), query.element_size(), True, shape, labels))
            self._operations.append(_Operation(name, self._flow.where(), reads, [len(self._values) - 1]))
            reads = [len(self._values) - 1]
        weights = torch.empty(0)
        self._held.append(weights.untyped_storage())
        self._of[_storage(weights)] = reads[0]
        return [weights, value]

    def execution(self, slots: SlotsOf) -> tuple[Execution, dict[str, str]]:
        """Return what is live when, and the path of each folded batch norm with that of its convolution."""
        operations, folded = self._folded(self._needed() if self._is_known else [])
        if not operations:
            return Execution(), {}
        live = dict.fromkeys(self._inputs, (0, 0))
        for moment, operation in enumerate(operations):
            for i in (*operation.reads, *operation.writes):
                live[i] = (live[i][0] if i in live else moment, moment)
        last = len(operations) - 1
        ends = {*self._outputs, *self._inputs}
        names = {i: f"{x.place}.{x.name}".lstrip(".") for x in reversed(operations) for i in x.writes}
        tensors = []
        order = sorted(live, key=lambda i: live[i][0])
        for i in order:
            begun, ended = live[i]
            value, name = self._values[i], names.get(i, "input")
            fixed, widths = _sizes(value, self._flow, slots)
            until = last if i in self._outputs else ended
            tensors.append(
                LiveTensor(name, begun, until, fixed, widths, value.item_bytes, value.is_float and i not in ends)
            )
        moments = tuple(f"{x.place}.{x.name}".lstrip(".") for x in operations)
        position = {i: place for place, i in enumerate(order)}
        reads, writes = (
            tuple(tuple(position[i] for i in indices) for indices in of_all)
            for of_all in ([x.reads for x in operations], [x.writes for x in operations])
        )
        return Execution(moments, tuple(tensors), reads, writes), folded

    def _needed(self) -> list[_Operation]:
        """The operations that the outputs depend on, without results that nothing reads."""
        needed, operations = set(self._outputs), []
        for operation in reversed(self._operations):
            if needed & set(operation.writes):
                writes = [i for i in operation.writes if i in needed]
                needed |= set(operation.reads)
                operations.append(_Operation(operation.name, operation.place, operation.reads, writes))
        return operations[::-1]

    def _folded(self, operations: list[_Operation]) -> tuple[list[_Operation], dict[str, str]]:
        """Leave out every batch norm that alone reads what a convolution wrote; its result is the convolution's."""
        makers = {i: operation for operation in operations for i in operation.writes}
        readers: dict[int, int] = {}
        for operation in operations:
            for i in operation.reads:
                readers[i] = readers.get(i, 0) + 1
        kept, paths = [], {}
        for operation in operations:
            source = makers.get(operation.reads[0]) if len(operation.reads) == 1 else None
            alone = source is not None and readers[operation.reads[0]] == 1 and operation.reads[0] not in self._outputs
            if _NORM in operation.name and alone and source is not None and _CONVOLUTION in source.name:
                source.writes = operation.writes
                paths[operation.place] = source.place
            else:
                kept.append(operation)
        return kept, paths


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _fills(tensor: Tensor) -> bool:
    """Whether a tensor is all that lies in its memory."""
    return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()


def _sizes(value: _Value, flow: Flow, slots: SlotsOf) -> tuple[float, tuple[WidthSum, ...]]:
    """Elements that no group resizes, and the lengths of the dimensions, joined where one label spans several."""
    labels = value.labels if value.canvas is None else [small(label) for label in flow.labels(value.canvas)]
    fixed, widths, taken = float(value.numel), [], set[int]()
    for label in sorted(labels, key=lambda x: -len(varying(x))):
        dims = set(varying(label))
        if not dims or dims & taken or label.ndim != len(value.shape):
            continue
        width = slots.width(np.asarray(label.reshape(-1).numpy()))
        if width.steps:
            taken |= dims
            fixed /= label.numel()
            widths.append(width)
    return fixed, tuple(widths)
