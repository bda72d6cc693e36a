"""Samples as a network takes them, and trees of tensors: tensors in tuples, lists, mappings and data classes.

A ``Batch`` is a call of the network with what its outputs are judged by: ``model(*args, **kwargs)`` beside ``targets``.
Whoever makes it from the items of a data set decides once how they reach the network; all that comes after only runs
it. ``Batches`` are samples that can be read again and again, always in the same order.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError

__all__ = [
    "Batch",
    "Batches",
    "HeldBatches",
    "MappedBatches",
    "PerSample",
    "Tree",
    "as_batch",
    "map_tensors",
    "plain_tree",
    "tensors_of_tree",
]

Tree = Any
"""Tensors in tuples, lists, mappings and data classes; whatever else stands among them is carried along."""


class PerSample(list[Tree]):
    """Targets of various shapes (boxes, say): a list with a tree for each sample."""


def tensors_of_tree(tree: Tree, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a tree with its path (``heads.scores``, ``1.0``, or ``name`` for a bare tensor), in order.

    Data classes that are mappings as well are read as mappings. What is no tensor is passed over.
    """
    if isinstance(tree, Tensor):
        yield name, tree
        return
    for key, value in _children(tree):
        yield from tensors_of_tree(value, f"{name}.{key}" if name else str(key))


def _children(tree: object) -> Iterable[tuple[object, object]]:
    if isinstance(tree, Mapping):
        return tree.items()
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return zip(tree._fields, tree, strict=True)
    if isinstance(tree, tuple | list):
        return enumerate(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return ((f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree))
    return ()


def map_tensors(tree: Tree, function: Callable[[Tensor], Tensor]) -> Tree:
    """Return the tree with ``function`` of every tensor in its place; what is no tensor is the same object."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in tree.items()}
        return mapped if type(tree) is dict else _refilled(tree, mapped)
    if isinstance(tree, tuple | list):
        items = [map_tensors(value, function) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        changed = copy.copy(tree)
        for f in dataclasses.fields(tree):
            object.__setattr__(changed, f.name, map_tensors(getattr(tree, f.name), function))
        return changed
    return tree


def plain_tree(tree: Tree) -> Tree:
    """Return the tree of dicts, lists, tuples and plain values alone.

    Mappings of other types, data classes and named tuples become dicts, and whatever is no number or text None: any
    process can read it.
    """
    if isinstance(tree, Tensor | str | int | float | bool):
        return tree
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return (tuple if isinstance(tree, tuple) else list)(map(plain_tree, tree))
    children = dict(_children(tree))
    return {key: plain_tree(value) for key, value in children.items()} if children or type(tree) is dict else None


def _refilled(tree: Any, items: Mapping[Any, Any]) -> Any:
    """Return a copy of a mapping of another type than dict that holds ``items`` under the same keys."""
    changed = copy.copy(tree)
    for key, value in items.items():
        changed[key] = value
    return changed


@dataclass(frozen=True)
class Batch:
    """Some samples: the network is called as ``model(*args, **kwargs)``, and ``targets`` judge what it returns.

    ``args``, ``kwargs`` and ``targets`` are trees of tensors; what has an entry for each sample has the samples along
    its first axis. ``targets`` None: there are none. ``size`` counts the samples.

    Raises:
        BadInputError: no samples.
    """

    args: tuple[Tree, ...]
    kwargs: Mapping[str, Tree] = field(default_factory=dict)
    targets: Tree = None
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BadInputError(f"a batch of {self.size} samples, must have at least 1")

    @classmethod
    def of(cls, inputs: Tensor, targets: Tree = None) -> "Batch":
        """Return the batch of a network of one argument: ``inputs`` (N, …)."""
        return cls((inputs,), {}, targets, len(inputs))

    def through(self, model: nn.Module) -> Tree:
        """Return what the network gives for the samples."""
        return model(*self.args, **self.kwargs)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The tensors that the network is given, by path: ``0`` is the first argument, ``input_ids`` a keyword."""
        arguments = [*((str(i), value) for i, value in enumerate(self.args)), *self.kwargs.items()]
        return {path: tensor for name, value in arguments for path, tensor in tensors_of_tree(value, name)}

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with ``function`` of every tensor that the network is given; targets stay as they are."""
        return replace(self, args=map_tensors(self.args, function), kwargs=map_tensors(dict(self.kwargs), function))

    def chosen(self, rows: Sequence[int] | Tensor) -> "Batch":
        """Return the samples of these numbers, in this order; what has no entry for each sample stays as it is."""
        index = torch.as_tensor(rows, dtype=torch.int64)

        def cut(tensor: Tensor) -> Tensor:
            has_samples = tensor.ndim > 0 and len(tensor) == self.size
            return tensor[index.to(tensor.device)] if has_samples else tensor

        return replace(self.map(cut), targets=_cut_targets(self.targets, index, cut), size=len(index))

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory, from where copies to a GPU are fast; torch's loaders call this."""
        return replace(self.map(Tensor.pin_memory), targets=map_tensors(self.targets, Tensor.pin_memory))

    def to(self, torch_device: torch.device | str) -> "Batch":
        """Return the batch on a device, targets as well."""
        moved = self.map(lambda tensor: tensor.to(torch_device))
        return replace(moved, targets=map_tensors(self.targets, lambda tensor: tensor.to(torch_device)))


def _cut_targets(targets: Tree, rows: slice | Tensor, cut: Callable[[Tensor], Tensor]) -> Tree:
    """Return some samples' targets: those of a list for each sample, or cut along the first axis."""
    if not isinstance(targets, PerSample):
        return map_tensors(targets, cut)
    return PerSample(targets[rows] if isinstance(rows, slice) else [targets[int(row)] for row in rows])


def as_batch(example: Batch | Tensor) -> Batch:
    """Return a batch as it is; a tensor (N, …) is that of a network of one argument."""
    return example if isinstance(example, Batch) else Batch.of(example)


class Batches(Protocol):
    """Samples in batches, the same ones in the same order at every reading; not all are in memory at a time.

    ``batch_size`` is that of every batch but the last, which may be smaller; ``samples`` are those of all batches.
    """

    @property
    def samples(self) -> int:
        """Samples in all."""

    @property
    def batch_size(self) -> int:
        """Samples of every batch but the last."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield all samples, a batch at a time."""

    def batched(self, batch_size: int) -> Self:
        """Return the same samples in batches of another size."""

    def chosen(self, rows: Sequence[int]) -> Self:
        """Return the samples of these numbers, in this order, in batches of the same size."""


@dataclass(frozen=True)
class HeldBatches:
    """Samples in memory: ``whole`` is one batch of all of them, with the samples along the first axis of every tensor.

    Raises:
        BadInputError: a batch size below 1, or tensors of another length than the number of samples.
    """

    whole: Batch
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise BadInputError(f"batch size = {self.batch_size}, must be at least 1")
        targets = None if isinstance(self.whole.targets, PerSample) else self.whole.targets
        tensors = {**self.whole.inputs, **dict(tensors_of_tree(targets, "targets"))}
        for name, tensor in tensors.items():
            if tensor.ndim < 1 or len(tensor) != self.samples:
                raise BadInputError(
                    f"{name} of shape {tuple(tensor.shape)} does not hold {self.samples} samples along its first axis"
                )

    @classmethod
    def of(cls, inputs: Tensor, targets: Tree, batch_size: int) -> "HeldBatches":
        """Return the samples of a network of one argument: ``inputs`` (N, …) and ``targets`` (N, …)."""
        return cls(Batch.of(inputs, targets), batch_size)

    @property
    def samples(self) -> int:
        """Samples in all."""
        return self.whole.size

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            rows = slice(start, min(start + self.batch_size, self.samples))
            yield self._part(rows, rows.stop - start)

    def batched(self, batch_size: int) -> "HeldBatches":
        """Return the same samples in batches of another size."""
        return HeldBatches(self.whole, batch_size)

    def chosen(self, rows: Sequence[int]) -> "HeldBatches":
        """Return the samples of these numbers, in this order, in batches of the same size."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return HeldBatches(self._part(index, len(index)), self.batch_size)

    def _part(self, rows: slice | Tensor, size: int) -> Batch:
        def cut(tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device) if isinstance(rows, Tensor) else rows]

        return replace(self.whole.map(cut), targets=_cut_targets(self.whole.targets, rows, cut), size=size)


@dataclass(frozen=True)
class MappedBatches:
    """Batches with ``function`` of each as it is read: moved to a device, or in another memory layout."""

    source: Batches
    function: Callable[[Batch], Batch]

    @property
    def samples(self) -> int:
        """Samples in all."""
        return self.source.samples

    @property
    def batch_size(self) -> int:
        """Samples of every batch but the last."""
        return self.source.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return map(self.function, self.source)

    def batched(self, batch_size: int) -> "MappedBatches":
        """Return the same samples in batches of another size."""
        return MappedBatches(self.source.batched(batch_size), self.function)

    def chosen(self, rows: Sequence[int]) -> "MappedBatches":
        """Return the samples of these numbers, in this order, in batches of the same size."""
        return MappedBatches(self.source.chosen(rows), self.function)
