"""Four splits from what a data factory returns, and their samples as stacked tensors.

- ``train`` trains and fine-tunes; ``calibration`` (batch-norm statistics, saliency) is drawn from it and stays in it;
- ``search`` scores policies, ``test`` is read once at the end: both are disjoint from each other and from ``train``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from amcsearch.core import BadInputError

__all__ = [
    "SPLITS",
    "DataSplits",
    "Samples",
    "as_datasets",
    "fetch",
    "make_splits",
    "stacked",
    "stratified",
]

SPLITS: Final = ("train", "calibration", "search", "test")
DEFAULT_SHARE: Final = 0.2

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
        data: a dataset of (input, target); a loader, of which the dataset counts; a pair of tensors, inputs (N, …) and
            targets (N, …); or a mapping of split names (``train``, ``calibration``, ``search``, ``test``) to any of
            these. What is no mapping is the train split.

    Raises:
        BadInputError: anything else; names its type.
    """
    if isinstance(data, Mapping):
        return {str(name): _as_dataset(value, str(name)) for name, value in data.items()}
    return {"train": _as_dataset(data, "train")}


def _as_dataset(value: object, name: str) -> Samples:
    if isinstance(value, DataLoader):
        return _as_dataset(value.dataset, name)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, Tensor) for part in value):
        inputs, targets = value
        if len(inputs) != len(targets):
            raise BadInputError(f"data: the {name} split has {len(inputs)} inputs and {len(targets)} targets")
        return TensorDataset(inputs, targets)
    if not hasattr(value, "__getitem__") or not hasattr(value, "__len__") or isinstance(value, Tensor | str):
        raise BadInputError(
            f"data: the {name} split is a {type(value).__name__}, expected a dataset of (input, target) with a length, "
            "a loader of one, or a pair of tensors (inputs, targets)"
        )
    return cast(Samples, value)


def make_splits(factory_result: Mapping[str, Samples], sizes: Mapping[str, int], seed: int) -> DataSplits:
    """Cut the splits that a data factory does not give.

    ``search`` and ``test`` leave the train split; ``calibration`` is drawn from what remains of it. Cuts are repeatable
    by seed and keep the class shares where targets are class ids. A size applies to a split that is cut; without a size
    a cut takes a fifth of the train split.

    Args:
        factory_result: split name → map-style dataset of (input, target); ``train`` is needed, the rest may be absent.
        sizes: split name → samples.
        seed: of the cuts.

    Raises:
        BadInputError: not a mapping, an unknown or empty split, no ``train``, two given splits that share samples of
            one dataset, or sizes that do not fit.
    """
    given = _given(factory_result)
    train = given["train"]
    total = length(train, "train")
    wanted = _cut_sizes(given, sizes, total)
    labels = targets_of(train) if wanted else None
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


def fetch(dataset: Samples, indices: Indices) -> tuple[Tensor, Tensor]:
    """Stack the samples of ``indices``: inputs (n, …) and targets (n, …); no copy a sample for tensors in memory.

    Raises:
        BadInputError: an item is no (input, target) pair, or the items' shapes differ.
    """
    if type(dataset) is Subset:
        return fetch(dataset.dataset, [dataset.indices[int(i)] for i in indices])
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return dataset.tensors[0][rows], dataset.tensors[1][rows]
    items: list[Any] = [dataset[int(i)] for i in indices]
    for i, item in zip(indices, items, strict=True):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise BadInputError(f"dataset item {int(i)} is a {type(item).__name__}, expected a pair (input, target)")
    try:
        inputs, targets = default_collate(items)
    except (RuntimeError, TypeError) as error:
        shapes = sorted({str(tuple(np.shape(item[0]))) for item in items})
        raise BadInputError(f"dataset items cannot be stacked (input shapes {', '.join(shapes)}): {error}") from error
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise BadInputError("dataset items are no tensors or numbers, expected pairs (input tensor, target)")
    return inputs, targets


def stacked(dataset: Samples, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """All samples in memory, or the first ``limit``: inputs (N, …) and targets (N, …).

    Raises:
        BadInputError: no samples, or as ``fetch``.
    """
    count = length(dataset, "given")
    return fetch(dataset, np.arange(count if limit is None else min(limit, count)))


def length(dataset: Samples, name: str) -> int:
    """Samples of a dataset.

    Raises:
        BadInputError: it has no length (an iterable dataset), or no samples.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise BadInputError(
            f"data: the {name} split is a {type(dataset).__name__}, expected a dataset with a length and items"
        )
    count = len(dataset)
    if count < 1:
        raise BadInputError(f"data: the {name} split has no samples, expected at least 1")
    return count


def targets_of(dataset: Samples) -> NDArray[np.int64] | None:
    """Class ids (N,) of a dataset, None where targets are not single integers. Reads every item where it must."""
    if type(dataset) is Subset:
        inner = targets_of(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        targets: Any = dataset.tensors[1].numpy(force=True)
    else:
        count = length(dataset, "train")
        targets = getattr(dataset, "targets", None)
        targets = np.asarray(
            [np.asarray(fetch(dataset, [i])[1][0]) for i in range(count)] if targets is None else targets
        )
    return targets.astype(np.int64) if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer) else None


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
        length(dataset, name)
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
    share = max(1, round(DEFAULT_SHARE * total))
    wanted = {name: sizes.get(name, share) for name in SPLITS[1:] if name not in given}
    leaving = sum(size for name, size in wanted.items() if name != "calibration")
    if leaving + wanted.get("calibration", 1) > total:
        asked = ", ".join(f"{name} {size}" for name, size in wanted.items())
        raise BadInputError(
            f"data.splits: {asked} do not fit into {total} train samples "
            "(search and test leave the train split, calibration is drawn from the rest); ask for fewer"
        )
    return wanted
