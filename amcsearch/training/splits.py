"""Four splits from what a data factory returns, and their samples as stacked tensors.

- ``train`` trains and fine-tunes; ``calibration`` (batch-norm statistics, saliency) is drawn from it and stays in it;
- ``search`` scores policies, ``test`` is read once at the end: both are disjoint from each other and from ``train``.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from amcsearch.core import BadInputError, UserCode
from amcsearch.graph import HeldBatches

__all__ = [
    "DEFAULT_SIZES",
    "SPLITS",
    "Converted",
    "DataSplits",
    "Samples",
    "as_datasets",
    "batches_of",
    "fetch",
    "make_splits",
    "source_rows",
    "stacked",
    "stratified",
]

SPLITS: Final = ("train", "calibration", "search", "test")
DEFAULT_SHARE: Final = 0.2  # of the train split, in a cut without a size
DEFAULT_SIZES: Final[Mapping[str, int]] = {"calibration": 512, "search": 512}  # the most that such a cut takes

BATCH: Final = 256  # samples in a forward pass where nothing else is said

_log = logging.getLogger(__name__)
_NO_DATASETS: Final = (Tensor, np.ndarray, str, bytes)

Indices = Sequence[int] | NDArray[np.int64]
Samples = Dataset[tuple[Tensor, ...]]  # of pairs (input, target)


@dataclass(frozen=True)
class DataSplits:
    """The four datasets of (input, target); see the module for what each is for."""

    train: Samples
    calibration: Samples
    search: Samples
    test: Samples


def as_datasets(data: object) -> dict[str, Samples]:
    """Return datasets by split from data in memory.

    Args:
        data: a dataset of (input, target); a loader, of which the dataset counts; a pair of tensors or numpy arrays,
            inputs (N, …) and targets (N, …); or a mapping of split names (``train``, ``calibration``, ``search``,
            ``test``) to any of these. What is no mapping is the train split.

    Raises:
        BadInputError: anything else; names its type.
    """
    if isinstance(data, Mapping):
        return {str(name): _as_dataset(value, str(name)) for name, value in data.items()}
    return {"train": _as_dataset(data, "train")}


def _as_dataset(value: object, name: str) -> Samples:
    if isinstance(value, DataLoader):
        return _as_dataset(value.dataset, name)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, Tensor | np.ndarray) for v in value):
        inputs, targets = (_as_tensor(part, name) for part in value)
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets):
            counts = (
                f"{len(inputs) if inputs.ndim else 'no'} inputs and {len(targets) if targets.ndim else 'no'} targets"
            )
            raise BadInputError(f"data: the {name} split has {counts}")
        return TensorDataset(inputs, targets)
    if not hasattr(value, "__getitem__") or not hasattr(value, "__len__") or isinstance(value, _NO_DATASETS):
        raise BadInputError(
            f"data: the {name} split is a {type(value).__name__}, expected a dataset of (input, target) with a length, "
            "a loader of one, or a pair of tensors or numpy arrays (inputs, targets)"
        )
    return cast(Samples, value)


def _as_tensor(array: object, name: str) -> Tensor:
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array)
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # torch warns of read-only ones
    except TypeError as error:
        raise BadInputError(
            f"data: the {name} split has a numpy array of {array.dtype}, expected numbers; convert it"
        ) from error


def make_splits(factory_result: Mapping[str, Samples], sizes: Mapping[str, int], seed: int) -> DataSplits:
    """Cut the splits that a data factory does not give.

    ``search`` and ``test`` leave the train split; ``calibration`` is drawn from what remains of it. Cuts are repeatable
    by seed and keep the class shares where targets are class ids. A size applies to a split that is cut; without a size
    a cut takes a fifth of the train split, ``calibration`` and ``search`` at most 512 samples.

    Args:
        factory_result: split name → map-style dataset of (input, target); ``train`` is needed, the rest may be absent.
        sizes: split name → samples.
        seed: of the cuts.

    Raises:
        BadInputError: not a mapping, an unknown or empty split, one whose length changes, no ``train``, two given
            splits that share samples of one dataset, sizes that do not fit, or as ``fetch``.
    """
    given = _given(factory_result)
    train = given["train"]
    total = length(train, "train")
    wanted = _cut_sizes(given, sizes, total)
    labels = _targets_of(train) if wanted else None
    remaining = np.arange(total, dtype=np.int64)
    cut: dict[str, Samples] = {}
    for name in ("test", "search"):
        if name in wanted:
            chosen = stratified(remaining, labels, wanted[name], np.random.default_rng([seed, SPLITS.index(name)]))
            cut[name], remaining = Subset(train, chosen.tolist()), np.setdiff1d(remaining, chosen)
    if cut:
        train = Subset(train, remaining.tolist())
    if "calibration" in wanted:
        rng = np.random.default_rng([seed, SPLITS.index("calibration")])
        cut["calibration"] = Subset(given["train"], stratified(remaining, labels, wanted["calibration"], rng).tolist())
    splits = {**given, **cut, "train": train}
    return DataSplits(**{name: splits[name] for name in SPLITS})


def stratified(
    indices: NDArray[np.int64], labels: NDArray[np.int64] | None, size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Choose ``size`` of ``indices``, (n,) → (size,) ascending, each class to within one of its share.

    ``labels`` holds the class of every sample of the dataset, (N,), indexed by ``indices``; None chooses freely.
    """
    shuffled = rng.permutation(indices)
    if labels is None:
        return np.sort(shuffled[:size])
    quantile = np.empty(len(shuffled))
    for label in np.unique(labels[shuffled]):
        members = np.flatnonzero(labels[shuffled] == label)
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(shuffled[np.argsort(quantile, kind="stable")[:size]])


def fetch(dataset: Samples, indices: Indices, name: str = "given") -> tuple[Tensor, Tensor]:
    """Stack the samples of ``indices``: inputs (n, …) and targets (n, …); no copy a sample for tensors in memory.

    Targets of any integer type come as int64. ``name`` is the split's, for errors; they number samples as the data set
    does that the split is cut from.

    Raises:
        BadInputError: an item is no (input, target) pair of tensors or numbers, or the items' shapes differ; names the
            split and the sample.
    """
    if type(dataset) is Converted:
        return dataset.converted(*fetch(dataset.samples, indices, name))
    if type(dataset) is Subset:
        return fetch(dataset.dataset, [dataset.indices[int(i)] for i in indices], name)
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return _usual(dataset.tensors[0][rows], dataset.tensors[1][rows])
    items: list[Any] = [_item(dataset, int(i), name) for i in indices]
    try:
        inputs, targets = default_collate(items)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BadInputError(_why_not_stacked(items, indices, name) or f"data: the {name} split: {error}") from error
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise BadInputError(_why_not_stacked(items, indices, name) or f"data: the {name} split is no numbers")
    return _usual(inputs, targets)


def source_rows(dataset: Samples, indices: Indices) -> list[int]:
    """Return which samples of the data set behind all subsets these are."""
    if type(dataset) is Converted:
        return source_rows(dataset.samples, indices)
    if type(dataset) is Subset:
        return source_rows(dataset.dataset, [dataset.indices[int(i)] for i in indices])
    return [int(i) for i in indices]


def _item(dataset: Samples, index: int, name: str) -> tuple[object, object]:
    with UserCode(f"data: sample {index} of the {name} split"):
        item: object = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
        raise BadInputError(f"data: sample {index} of the {name} split is {what}, expected a pair (input, target)")
    return item[0], item[1]


def _why_not_stacked(items: Sequence[tuple[object, object]], indices: Indices, name: str) -> str:
    """Name the first item that is no numbers, or whose shape is not that of the first."""
    firsts: dict[str, tuple[int, ...]] = {}
    for index, item in zip(indices, items, strict=True):
        for what, value in zip(("input", "target"), item, strict=True):
            where = f"data: the {what} of sample {int(index)} of the {name} split"
            if not isinstance(value, Tensor | np.ndarray | np.number | np.bool_ | float | int):
                return f"{where} is a {type(value).__name__}, expected a tensor, an array or a number"
            shape = tuple(np.shape(value))
            if firsts.setdefault(what, shape) != shape:
                return f"{where} has the shape {shape}, that of sample {int(indices[0])} {firsts[what]}"
    return ""


def _usual(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cut samples off any gradient, and make class ids int64."""
    is_integer = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return inputs.detach(), targets.detach().long() if is_integer else targets.detach()


class Converted(Dataset[tuple[Tensor, ...]]):
    """Samples as networks and losses take them: float inputs as float32, and class ids in place of one-hot rows."""

    def __init__(self, samples: Samples, *, is_one_hot: bool) -> None:
        self.samples, self.is_one_hot = samples, is_one_hot

    def __len__(self) -> int:
        return length(self.samples, "given")

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs, targets = fetch(self, [index])
        return inputs[0], targets[0]

    def converted(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Convert stacked samples (n, …); one-hot targets (n, …, C) become (n, …)."""
        inputs = inputs.float() if inputs.is_floating_point() else inputs
        return inputs, targets.long().argmax(-1) if self.is_one_hot else targets


def stacked(dataset: Samples, limit: int | None = None, name: str = "given") -> tuple[Tensor, Tensor]:
    """All samples in memory, or the first ``limit``: inputs (N, …) and targets (N, …).

    Raises:
        BadInputError: no samples, or as ``fetch``.
    """
    count = length(dataset, name)
    return fetch(dataset, np.arange(count if limit is None else min(limit, count)), name)


def batches_of(dataset: Samples, batch_size: int = BATCH, name: str = "given") -> HeldBatches:
    """Return all samples of a data set in batches.

    Raises:
        BadInputError: as ``stacked``.
    """
    return HeldBatches.of(*stacked(dataset, name=name), batch_size)


def length(dataset: Samples, name: str) -> int:
    """Samples of a dataset.

    Raises:
        BadInputError: it has no length (an iterable dataset), or no samples.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise BadInputError(
            f"data: the {name} split is a {type(dataset).__name__}, expected a dataset with a length and items"
        )
    with UserCode(f"data: the length of the {name} split"):
        count = len(dataset)
    if count < 1:
        raise BadInputError(f"data: the {name} split has no samples, expected at least 1")
    return count


def _targets_of(dataset: Samples) -> NDArray[np.int64] | None:
    """Class ids (N,) of the train split, None where targets are not one class a sample.

    Reads every item where it must.
    """
    if type(dataset) is Subset:
        inner = _targets_of(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return _class_ids(_as_array(dataset.tensors[1]))
    count = length(dataset, "train")
    attribute = getattr(dataset, "targets", None)  # torchvision's, which spares reading the images
    if isinstance(attribute, Tensor | np.ndarray | list | tuple) and len(attribute) == count:
        with contextlib.suppress(ValueError, TypeError, RuntimeError):
            ids = _class_ids(np.asarray(attribute))
            if ids is not None:
                return ids
    read = [fetch(dataset, [i], "train")[1][0] for i in range(count)]
    shapes = {tuple(target.shape) for target in read}
    return _class_ids(_as_array(torch.stack(read))) if len(shapes) == 1 else None


def _as_array(targets: Tensor) -> NDArray[Any]:
    return (targets.float() if targets.is_floating_point() else targets).numpy(force=True)  # numpy has no bfloat16


def _class_ids(targets: NDArray[Any]) -> NDArray[np.int64] | None:
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        return targets.astype(np.int64)
    is_one_hot = targets.ndim == 2 and np.isin(targets, (0, 1)).all() and (targets.sum(1) == 1).all()
    return targets.argmax(1).astype(np.int64) if is_one_hot else None


def _given(factory_result: Mapping[str, Samples]) -> dict[str, Samples]:
    if not isinstance(factory_result, Mapping):
        raise BadInputError(
            f"data.factory returned a {type(factory_result).__name__}, expected a mapping of {', '.join(SPLITS)}"
        )
    unknown = sorted(set(factory_result) - set(SPLITS))
    if unknown or "train" not in factory_result:
        problem = f"unknown splits {unknown}" if unknown else "no train split"
        raise BadInputError(f"data.factory returned {problem}, expected train and any of {', '.join(SPLITS[1:])}")
    for name, dataset in factory_result.items():
        counts = [length(dataset, name) for _ in range(2)]
        if counts[0] != counts[1]:
            raise BadInputError(
                f"data: the {name} split has {counts[0]} samples, then {counts[1]}; its length must not change"
            )
        fetch(dataset, [0], name)  # what is no dataset of pairs is said before sizes that do not fit it
    _check_disjoint(factory_result)
    return dict(factory_result)


def _check_disjoint(given: Mapping[str, Samples]) -> None:
    subsets = {name: x for name, x in given.items() if type(x) is Subset}
    for first, second in (("search", "train"), ("search", "calibration"), ("search", "test"), ("test", "train")):
        if first in subsets and second in subsets and subsets[first].dataset is subsets[second].dataset:
            shared = len(set(subsets[first].indices) & set(subsets[second].indices))
            if shared:
                raise BadInputError(f"data: {first} and {second} share {shared} samples, expected disjoint splits")


def _cut_sizes(given: Mapping[str, Samples], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    for name, size in sizes.items():
        if name not in SPLITS[1:] or size < 1:
            raise BadInputError(f"data.splits.{name} = {size}, expected at least 1 for one of {', '.join(SPLITS[1:])}")
        if name in given:
            _log.warning("data.splits.%s = %d is not used: the data has a %s split of its own", name, size, name)
    share = max(1, round(DEFAULT_SHARE * total))
    usual = {name: min(share, DEFAULT_SIZES.get(name, share)) for name in SPLITS[1:]}
    wanted = {name: sizes.get(name, usual[name]) for name in SPLITS[1:] if name not in given}
    leaving = sum(size for name, size in wanted.items() if name != "calibration")
    if leaving + wanted.get("calibration", 1) > total:
        asked = ", ".join(f"{name} {size}" for name, size in wanted.items())
        raise BadInputError(
            f"data.splits: {asked} do not fit into {total} train samples "
            "(search and test leave the train split, calibration is drawn from the rest); ask for fewer"
        )
    return wanted
