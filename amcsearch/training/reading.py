"""Batches of a data set: from memory, read at every use, or read ahead by workers; and the batches of a training."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Batches, HeldBatches, PerSample, Tree, map_tensors, tensors_of_tree
from amcsearch.training.seeding import seeded
from amcsearch.training.splits import (
    Changed,
    Held,
    Indices,
    Items,
    Samples,
    is_in_memory,
    is_stackable,
    length,
    read,
    read_stream,
    source_of,
    stream_of,
)

__all__ = [
    "BATCH",
    "StepParts",
    "StreamedBatches",
    "TrainReader",
    "all_targets",
    "batches_of",
    "is_ragged",
    "read_in_order",
]

PROBES: Final = 16  # samples whose targets are compared
BATCH: Final = 256  # samples in a forward pass where nothing else is said …
LEAST_BATCH: Final = 16
PIXELS: Final = BATCH * 32 * 32  # … or as many larger images: 256 of 224x224 would take gigabytes a layer


class _Reader(Dataset[Any]):
    """Reads whole batches by the numbers of their samples, in a worker process of torch's loader."""

    def __init__(self, dataset: Samples, name: str, seed: int | None) -> None:
        self.dataset, self.name, self.seed = dataset, name, seed

    def __getitem__(self, rows: Indices) -> Batch | BadInputError:
        try:
            with nullcontext() if self.seed is None else seeded(self.seed + int(rows[0])):
                return read(self.dataset, rows, self.name)
        except BadInputError as error:
            return BadInputError(str(error))  # its cause may not pass from process to process


def read_in_order(
    dataset: Samples, parts: Sequence[Indices], name: str, *, seed: int | None = None, pinned: bool = False
) -> Iterator[Batch]:
    """Yield a batch for the samples of each part, read by the workers of the data set side by side.

    ``seed`` is of random transforms in workers, which do not see this process's generators. ``pinned`` puts tensors
    where copies to a GPU are fast.

    Raises:
        BadInputError: as ``read``.
    """
    source = source_of(dataset, [])
    workers = source.items.workers if source.items else 0
    is_stream = isinstance(source.dataset, IterableDataset)
    if not workers or is_in_memory(dataset) or is_stream:
        batches = read_stream(dataset, parts, name) if is_stream else (read(dataset, rows, name) for rows in parts)
        for batch in batches:
            yield batch.pin_memory() if pinned else batch
        return
    loader: DataLoader[Batch] = DataLoader(
        _Reader(_without_functions(dataset), name, seed),
        batch_size=None,
        sampler=map(_as_array, parts),  # one at a time: an epoch may have millions
        num_workers=min(workers, len(parts)),
        pin_memory=pinned,
        collate_fn=_same,
        generator=torch.Generator(),
    )
    for result in loader:
        if isinstance(result, BadInputError):
            raise result
        yield source.changed(result)


def _without_functions(dataset: Samples) -> Samples:
    """A data set without what is done to its batches."""
    if type(dataset) is Subset:
        return Subset(_without_functions(dataset.dataset), dataset.indices)
    if not isinstance(dataset, Changed):
        return dataset
    inner = _without_functions(dataset.samples)
    return inner if dataset.seed is None else Changed(inner, seed=dataset.seed)


def _as_array(rows: Indices) -> NDArray[np.int64]:
    return np.asarray(rows, dtype=np.int64)


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class StreamedBatches:
    """Samples read from a data set at every reading, in batches."""

    dataset: Samples
    batch_size: int
    name: str = "given"
    rows: tuple[int, ...] | range = ()

    @classmethod
    def of(cls, dataset: Samples, batch_size: int, name: str) -> "StreamedBatches":
        """Return all samples of a data set.

        Raises:
            BadInputError: a batch size below 1, or as ``length``.
        """
        if batch_size < 1:
            raise BadInputError(f"batch size = {batch_size}, must be at least 1")
        return cls(dataset, batch_size, name, range(length(dataset, name)))

    @property
    def samples(self) -> int:
        """Samples in all."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, len(self.rows), self.batch_size)
        return read_in_order(self.dataset, [self.rows[i : i + self.batch_size] for i in starts], self.name)

    def batched(self, batch_size: int) -> "StreamedBatches":
        """Return the same samples in batches of another size."""
        return replace(self, batch_size=batch_size)

    def chosen(self, rows: Sequence[int]) -> "StreamedBatches":
        """Return the samples of these numbers, in this order, in batches of the same size."""
        return replace(self, rows=tuple(self.rows[int(row)] for row in rows))


def all_targets(batches: Batches) -> Tree:
    """Return the targets of all samples: along the first axis of every tensor, or in a list for each sample.

    Where batches are padded to various lengths, a tensor holds all numbers along one axis.

    Raises:
        BadInputError: targets of other parts in some batches.
    """
    if isinstance(batches, HeldBatches):
        return batches.whole.targets
    parts = [batch.targets for batch in batches]
    if isinstance(parts[0], PerSample):
        return PerSample(tree for part in parts for tree in part)
    paths = [[path for path, _ in tensors_of_tree(part)] for part in parts]
    if any(each != paths[0] for each in paths):
        other = next(each for each in paths if each != paths[0])
        raise BadInputError(
            f"data: the targets of a batch have the tensors {_few(paths[0])}, those of another {_few(other)}; make "
            "them the same in data.collate, or a list with the targets of each sample"
        )
    columns = zip(*([tensor for _, tensor in tensors_of_tree(part)] for part in parts), strict=True)
    joined = iter([_joined(column) for column in columns])
    return map_tensors(parts[0], lambda _: next(joined))


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:4]) + (", …" if len(paths) > 4 else "")


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    is_padded = len({tensor.shape[1:] for tensor in tensors}) > 1
    return torch.cat([tensor.reshape(-1) if is_padded else tensor for tensor in tensors])


def is_ragged(items: Items) -> bool:
    """Whether targets are a list with those of each sample: ``collate`` makes one, or they do not stack.

    A list of a ``collate`` is one where it is as long as the batch, for batches of two sizes.
    """
    form = replace(items.form, args=(), kwargs=())
    count, rows = length(items, "train"), range(PROBES)
    if items.collate is not None:
        sizes = sorted({1, min(count, len(rows))})
        batches = [read(replace(items, form=form), rows[:size], "train") for size in sizes]
        return all(isinstance(x.targets, list | tuple) and len(x.targets) == x.size for x in batches)
    try:
        read(replace(items, form=form), rows[:count], "train")
    except BadInputError:
        read(replace(items, form=replace(form, is_ragged=True)), rows[:count], "train")
        return True
    return False


def fitting_batch_size(samples: Batch) -> int:
    """Return how many of some samples go through a network at once: 256, or fewer (at least 16) images above 32x32."""
    sizes = (x.shape[2:].numel() for x in samples.inputs.values() if x.ndim >= 4)
    return max(LEAST_BATCH, min(BATCH, PIXELS // max(1, *sizes, 1)))


def batches_of(dataset: Samples, batch_size: int | None = None, name: str = "given") -> Batches:
    """Return all samples of a data set in batches: from memory where they are there, else read at every reading.

    Without a ``batch_size``, batches are of ``fitting_batch_size``, and of 256 where samples are read at every use.

    Raises:
        BadInputError: as ``read`` and ``length``.
    """
    if isinstance(dataset, Held):
        return _held(dataset.whole, batch_size)
    if is_in_memory(dataset) and is_stackable(dataset):
        return _held(read(dataset, range(length(dataset, name)), name), batch_size)
    return StreamedBatches.of(dataset, BATCH if batch_size is None else batch_size, name)


def _held(whole: Batch, batch_size: int | None) -> HeldBatches:
    return HeldBatches(whole, fitting_batch_size(whole) if batch_size is None else batch_size)


class StepParts(Sequence[NDArray[np.int64]]):
    """The samples of an epoch, cut into steps of nearly equal size and these into batches of nearly equal size.

    A batch is cut when it is asked for: what an epoch takes does not grow with its steps.

    Args:
        order: numbers of the samples, (n,).
        steps: at most n.
        most: batches of a step, or as many as it has samples.
    """

    def __init__(self, order: NDArray[np.int64], steps: int, most: int) -> None:
        self.order, self.steps, self.most = order, steps, most

    def samples(self, step: int) -> int:
        """Samples of a step."""
        first, last = _cut(len(self.order), self.steps, step)
        return last - first

    def count(self, step: int) -> int:
        """Batches of a step."""
        return min(self.most, self.samples(step))

    def __len__(self) -> int:
        larger = len(self.order) % self.steps  # steps with one sample more
        return larger * self.count(0) + (self.steps - larger) * self.count(self.steps - 1)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int64]: ...

    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.int64]]: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        larger = len(self.order) % self.steps
        before = larger * self.count(0)  # batches
        if index < before:
            step, part = divmod(index, self.count(0))
        else:
            step, part = divmod(index - before, self.count(self.steps - 1))
            step += larger
        start, _ = _cut(len(self.order), self.steps, step)
        first, last = _cut(self.samples(step), self.count(step), part)
        return self.order[start + first : start + last]


def _cut(count: int, parts: int, index: int) -> tuple[int, int]:
    """First number of a part, and the first after it, of ``count`` cut as ``torch.tensor_split`` does."""
    size, larger = divmod(count, parts)
    first = index * size + min(index, larger)
    return first, first + size + (index < larger)


class TrainReader:
    """Reads the batches of a training, an epoch at a time.

    An iterable data set goes on where the epoch before ended, and begins again where it ends.

    Args:
        dataset: the train split.
        seed: of random transforms in workers.
        pinned: whether tensors are put where copies to a GPU are fast.
    """

    def __init__(self, dataset: Samples, seed: int, *, pinned: bool = False) -> None:
        self.drawn = 0
        """Samples of an iterable data set that were read; a training that goes on skips as many."""
        self._dataset, self._seed, self._pinned = dataset, seed, pinned
        self._stream: Iterator[object] | None = None

    def epoch(self, parts: Sequence[Indices], epoch: int) -> Iterator[Batch]:
        """Yield a batch for the samples of each part; of an iterable data set, as many samples as the part has.

        Raises:
            BadInputError: as ``read``.
        """
        if isinstance(source_of(self._dataset, []).dataset, IterableDataset):
            return self._streamed(parts)
        seed = self._seed + 1_000_003 * (epoch + 1)
        return read_in_order(self._dataset, parts, "train", seed=seed, pinned=self._pinned)

    def _streamed(self, parts: Sequence[Indices]) -> Iterator[Batch]:
        source = source_of(self._dataset, [])
        for rows in parts:
            chosen = self._next(len(rows))
            batch = source.batch(chosen, range(self.drawn - len(rows), self.drawn), "train")
            yield batch.pin_memory() if self._pinned else batch

    def _next(self, count: int) -> list[object]:
        """Read on in the stream."""
        dataset = source_of(self._dataset, []).dataset
        if self._stream is None:
            self._stream = _endless(dataset)
            for _ in islice(self._stream, self.drawn):  # by the training that this one goes on with
                pass
        self.drawn += count
        return list(islice(self._stream, count))


def _endless(dataset: Samples) -> Iterator[object]:
    """Yield the items of an iterable data set, again and again.

    Raises:
        BadInputError: it has none.
    """
    while True:
        is_empty = True
        for item in stream_of(dataset, "train"):
            is_empty = False
            yield item
        if is_empty:
            raise BadInputError("data: the train split has no samples, expected at least 1")
