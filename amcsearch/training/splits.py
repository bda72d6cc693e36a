"""Samples of a split, read from a data set when they are asked for, as calls of the network.

A data set of the user's is an ``Items``: it knows how its items become calls (``forms``). What else has pairs (input,
target) as items needs no such knowledge. Tensors in memory are sliced; everything else is read item by item.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from amcsearch.core import MIB, BadInputError, UserCode
from amcsearch.graph import Batch, tensors_of_tree
from amcsearch.training.forms import PAIR, Collate, Form
from amcsearch.training.seeding import seeded

__all__ = [
    "MEMORY_MIB",
    "SPLITS",
    "STREAM_SAMPLES",
    "Changed",
    "DataSplits",
    "Held",
    "Indices",
    "Items",
    "Samples",
    "Source",
    "fetch",
    "first_of_stream",
    "held",
    "is_in_memory",
    "is_stackable",
    "length",
    "probe_rows",
    "read",
    "read_stream",
    "source_of",
    "source_rows",
    "stacked",
    "stream_of",
]

SPLITS: Final = ("train", "calibration", "search", "test")
MEMORY_MIB: Final = 1024.0  # that each split but train may hold, where nothing else is said
STREAM_SAMPLES: Final = 512  # taken from an iterable split without a size
HEAD: Final = 16  # samples by which a split's size in memory is estimated

_ENDED: Final = object()

Indices = Sequence[int] | NDArray[np.int64]
Samples = Dataset[Any]
"""A data set whose items are pairs (input, target), or an ``Items``, or part of one."""


@dataclass(frozen=True)
class DataSplits:
    """The four splits: ``train`` trains, ``calibration`` serves statistics, ``search`` and ``test`` judge."""

    train: Samples
    calibration: Samples
    search: Samples
    test: Samples


@dataclass(frozen=True)
class Items(Dataset[Any]):
    """A data set of the user's with how its items become calls.

    Args:
        samples: map-style or iterable.
        form: of the items, or of the batches that ``collate`` makes.
        collate: makes batches of items; None stacks them.
        workers: processes that read batches side by side; 0 reads them in this one.
        epoch_samples: of an iterable data set without a length: samples of a pass.
    """

    samples: Samples
    form: Form = PAIR
    collate: Collate | None = None
    workers: int = 0
    epoch_samples: int | None = None

    def __len__(self) -> int:
        return length(self, "given")

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]

    @property
    def is_stream(self) -> bool:
        """Whether samples come in their own order alone."""
        return isinstance(self.samples, IterableDataset)


@dataclass(frozen=True)
class Held(Dataset[Any]):
    """Samples in memory: one batch of all of them."""

    whole: Batch

    def __len__(self) -> int:
        return self.whole.size

    def __getitem__(self, index: int) -> Any:
        return _as_item(self.whole.chosen([index]))


@dataclass(frozen=True)
class Changed(Dataset[Any]):
    """Samples with ``function`` of every batch, or with random transforms that repeat by a ``seed``."""

    samples: Samples
    function: Callable[[Batch], Batch] | None = None
    seed: int | None = None

    def __len__(self) -> int:
        return length(self.samples, "given")

    def __getitem__(self, index: int) -> Any:
        return _as_item(read(self, [index]))


def _as_item(batch: Batch) -> Any:
    """Return the sample of a batch of one: (input, target) of a network of one tensor, else the batch."""
    is_pair = len(batch.args) == 1 and not batch.kwargs and isinstance(batch.targets, Tensor)
    return (batch.args[0][0], batch.targets[0]) if is_pair and isinstance(batch.args[0], Tensor) else batch


def length(dataset: Samples, name: str) -> int:
    """Samples of a dataset.

    Raises:
        BadInputError: it has no length (an iterable dataset), or no samples.
    """
    if isinstance(dataset, Items):
        if dataset.epoch_samples is not None and not hasattr(dataset.samples, "__len__"):
            return dataset.epoch_samples
        return length(dataset.samples, name)
    if isinstance(dataset, Changed):
        return length(dataset.samples, name)
    is_stream, kind = isinstance(dataset, IterableDataset), type(dataset).__name__
    if is_stream and not hasattr(dataset, "__len__"):
        raise BadInputError(
            f"data: the {name} split is a stream ({kind}) without a length; set data.epoch_samples, the samples of an "
            "epoch"
        )
    if not hasattr(dataset, "__len__") or not (is_stream or hasattr(dataset, "__getitem__")):
        raise BadInputError(f"data: the {name} split is a {kind}, expected a dataset with a length and items")
    with UserCode(f"data: the length of the {name} split"):
        count = len(dataset)
    if count < 1:
        raise BadInputError(f"data: the {name} split has no samples, expected at least 1")
    return count


@dataclass(frozen=True)
class Source:
    """The data set behind all subsets, which of its samples are meant, and what is done to them."""

    dataset: Samples
    rows: Sequence[int]
    items: Items | None = None
    functions: tuple[Callable[[Batch], Batch], ...] = ()
    seed: int | None = None

    @property
    def form(self) -> Form:
        """How items become calls."""
        return self.items.form if self.items else PAIR

    @property
    def collate(self) -> Collate | None:
        """What makes batches of items; None stacks them."""
        return self.items.collate if self.items else None

    def batch(self, items: Sequence[object], numbers: Sequence[int], name: str) -> Batch:
        """Return items of the split ``name`` as a batch, with what is done to it. Raises as ``Form.batch``."""
        return self.changed(self.form.batch(items, numbers, name, self.collate))

    def changed(self, batch: Batch) -> Batch:
        """Return a batch with what is done to it."""
        for function in self.functions:
            batch = function(batch)
        return batch


def source_of(dataset: Samples, indices: Indices) -> Source:
    """Return the data set behind all subsets and changes, with the numbers that some samples have there."""
    rows: Sequence[int] = [int(i) for i in indices]
    source = Source(dataset, rows)
    while True:
        inner = source.dataset
        if type(inner) is Subset:
            source = replace(source, dataset=inner.dataset, rows=[int(inner.indices[i]) for i in source.rows])
        elif isinstance(inner, Changed):
            functions = (*((inner.function,) if inner.function else ()), *source.functions)
            seed = inner.seed if source.seed is None else source.seed
            source = replace(source, dataset=inner.samples, functions=functions, seed=seed)
        elif isinstance(inner, Items):
            source = replace(source, dataset=inner.samples, items=inner)
        else:
            return source


def source_rows(dataset: Samples, indices: Indices) -> list[int]:
    """Return which samples of the data set behind all subsets these are."""
    return list(source_of(dataset, indices).rows)


def is_in_memory(dataset: Samples) -> bool:
    """Whether reading costs nothing, and gives the same every time: tensors, and lists of items."""
    inner = source_of(dataset, []).dataset
    return type(inner) in (TensorDataset, Held, list, tuple)


def is_stackable(dataset: Samples) -> bool:
    """Whether batches have their samples along the first axis of every tensor of the inputs."""
    items = source_of(dataset, []).items
    return items is None or items.collate is None


def read(dataset: Samples, indices: Indices, name: str = "given") -> Batch:
    """Return samples as one batch; no copy a sample for tensors in memory.

    Targets of any integer type come as int64, floating point as float32. ``name`` is the split's, for errors; they
    number samples as the data set does that the split is cut from.

    Raises:
        BadInputError: an item of another form, no numbers, or samples whose shapes differ; names the split and the
            sample.
    """
    source = source_of(dataset, indices)
    tensors = source.dataset.tensors if type(source.dataset) is TensorDataset else ()
    if type(source.dataset) is Held:
        batch = source.dataset.whole.chosen(source.rows)
    elif tensors and source.collate is None and _is_of_tensors(source.form, len(tensors)):
        batch = source.form.sliced(tensors, torch.as_tensor(np.asarray(source.rows, dtype=np.int64)))
    else:
        return source.batch(list(_items(source, name)), source.rows, name)
    return source.changed(batch)


def read_stream(dataset: Samples, parts: Sequence[Indices], name: str) -> Iterator[Batch]:
    """Yield a batch for the samples of each part of an iterable data set, which is gone through once.

    Raises:
        BadInputError: as ``read``, or parts that are not in the stream's order.
    """
    source = source_of(dataset, [int(row) for part in parts for row in part])
    items, start = _items(source, name), 0
    for part in parts:
        numbers = source.rows[start : start + len(part)]
        yield source.batch(list(islice(items, len(part))), numbers, name)
        start += len(part)


def _is_of_tensors(form: Form, count: int) -> bool:
    paths = [*form.args, *(path for _, path in form.kwargs), *([form.target] if form.target else [])]
    return not form.is_ragged and form.width in (None, count) and all(len(path) == 1 for path in paths)


def _items(source: Source, name: str) -> Iterator[object]:
    if isinstance(source.dataset, IterableDataset):
        yield from _streamed_items(source.dataset, source.rows, name)
        return
    for row in source.rows:
        with UserCode(f"data: sample {row} of the {name} split"), _repeating(source.seed, row):
            item = source.dataset[row]
        yield item


def _repeating(seed: int | None, row: int) -> Any:
    return nullcontext() if seed is None else seeded(seed * 1_000_003 + row)


def _streamed_items(dataset: Samples, rows: Sequence[int], name: str) -> Iterator[object]:
    """Yield some samples of a stream in its order, going through it once."""
    if any(later <= earlier for earlier, later in pairwise(rows)):
        raise BadInputError(f"data: the {name} split is an iterable data set, whose samples are read in their order")
    stream = enumerate(stream_of(dataset, name))
    for row in rows:
        item = next((item for number, item in stream if number == row), _ENDED)
        if item is _ENDED:
            raise BadInputError(
                f"data: the {name} split ended before sample {row}; lower data.epoch_samples or data.splits"
            )
        yield item


def stream_of(dataset: Samples, name: str) -> Iterator[object]:
    """Yield the items of an iterable data set; what it raises is the user's error."""
    with UserCode(f"data: the beginning of the {name} split"):
        iterator = iter(cast(IterableDataset[Any], dataset))
    for number in range(2**62):
        with UserCode(f"data: sample {number} of the {name} split"):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def fetch(dataset: Samples, indices: Indices, name: str = "given") -> tuple[Tensor, Tensor]:
    """Return samples of a network of one tensor as inputs (n, …) and targets (n, …). Raises as ``read``."""
    batch = read(dataset, indices, name)
    return _only_tensor(batch, name), batch.targets


def _only_tensor(batch: Batch, name: str) -> Tensor:
    if len(batch.args) != 1 or batch.kwargs or not isinstance(batch.args[0], Tensor):
        raise BadInputError(f"data: the {name} split has {', '.join(batch.inputs)} as inputs, expected one tensor")
    return batch.args[0]


def stacked(dataset: Samples, limit: int | None = None, name: str = "given") -> tuple[Tensor, Tensor]:
    """All samples in memory, or the first ``limit``: inputs (N, …) and targets (N, …).

    Raises:
        BadInputError: no samples, or as ``fetch``.
    """
    count = length(dataset, name)
    return fetch(dataset, np.arange(count if limit is None else min(limit, count)), name)


def probe_rows(dataset: Samples, count: int, name: str) -> NDArray[np.int64]:
    """At most ``count`` samples spread evenly over a split; of an iterable one its first."""
    total = length(dataset, name)
    inner = source_of(dataset, []).dataset
    if isinstance(inner, IterableDataset):
        return np.arange(min(count, total))
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))


def held(dataset: Samples, name: str, most_bytes: float) -> Samples | None:
    """Return all samples of a split in memory, read once; None where they would take more than so many bytes.

    Raises:
        BadInputError: as ``read``.
    """
    count = length(dataset, name)
    source = source_of(dataset, range(count))
    if is_in_memory(dataset) and is_stackable(dataset):
        head = read(dataset, range(min(HEAD, count)), name)
        return Held(read(dataset, range(count), name)) if _fits(head, count, most_bytes) else None
    form, collate = source.form, source.collate
    items: list[object] = []
    for item in _items(source, name):
        items.append(item)
        is_head = len(items) == min(HEAD, count)
        if is_head and not _fits(form.batch(items, source.rows[: len(items)], name, collate), count, most_bytes):
            return None
    if collate is not None:
        return Items(cast(Samples, items), form, collate)
    return Held(form.batch(items, source.rows, name, None))


def first_of_stream(dataset: Samples, name: str, size: int | None, seed: int, memory_mib: float) -> Samples:
    """Return the first ``size`` samples of an iterable data set, 512 without a size, or all where it has fewer.

    They are in memory where they take at most ``memory_mib``, else read at every use. ``seed`` is of random transforms.

    Raises:
        BadInputError: as ``read``.
    """
    items, count = dataset if isinstance(dataset, Items) else Items(dataset), size or STREAM_SAMPLES
    with seeded(seed):
        stream = stream_of(items.samples, name)
        taken = list(islice(stream, min(HEAD, count)))
        head = items.form.batch(taken, range(len(taken)), name, items.collate) if taken else None
        if head is not None and not _fits(head, count, memory_mib * MIB):
            return Subset(replace(items, epoch_samples=count), range(count))
        taken.extend(islice(stream, count - len(taken)))
    return Items(cast(Samples, taken), items.form, items.collate)


def _fits(head: Batch, count: int, most_bytes: float) -> bool:
    """Whether so many samples, each as large as those of ``head``, take at most so many bytes."""
    tensors = [*head.inputs.values(), *(tensor for _, tensor in tensors_of_tree(head.targets))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) * count <= most_bytes * head.size
