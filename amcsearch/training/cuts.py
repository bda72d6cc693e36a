"""Four splits from what a data factory returns or a caller hands over.

- ``train`` trains and fine-tunes; ``calibration`` (batch-norm statistics, saliency) is drawn from it and stays in it;
- ``search`` scores policies, ``test`` is read once at the end: both are disjoint from each other and from ``train``.
"""

import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final, cast, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from amcsearch.core import BadInputError, UserCode
from amcsearch.training.collation import as_tensor
from amcsearch.training.forms import Collate
from amcsearch.training.splits import (
    MEMORY_MIB,
    SPLITS,
    DataSplits,
    Items,
    Samples,
    first_of_stream,
    is_in_memory,
    length,
    read,
    stream_of,
)

__all__ = ["DEFAULT_SIZES", "as_datasets", "collate_of", "first_item", "make_splits", "stratified"]

DEFAULT_SHARE: Final = 0.2  # of the train split, in a cut without a size
DEFAULT_SIZES: Final[Mapping[str, int]] = {"calibration": 512, "search": 512}  # the most that such a cut takes
SEARCH_NAMES: Final = ("val", "valid", "validation", "dev")

_log = logging.getLogger(__name__)
_NO_DATASETS: Final = (str, bytes)


def as_datasets(data: object, key: str = "data") -> dict[str, Samples]:
    """Return datasets by split from data in memory.

    Args:
        data: a data set, map-style or iterable; a loader, of which the data set counts; a tuple of tensors or numpy
            arrays (N, …) each, such as inputs and targets; or a mapping of split names (``train``, ``calibration``,
            ``search``, ``test``) to any of these. ``val``, ``valid``, ``validation`` and ``dev`` are ``search``. What
            is no mapping is the train split.
        key: names the data in errors.

    Raises:
        BadInputError: anything else; names its type.
    """
    if not isinstance(data, Mapping):
        return {"train": _as_dataset(data, "train", key)}
    names = {str(name): "search" if str(name) in SEARCH_NAMES else str(name) for name in data}
    twice = [name for name, split in names.items() if split == "search"]
    if len(twice) > 1:
        raise BadInputError(f"{key}: {' and '.join(twice)} are both the search split; give one of them")
    if twice and twice[0] != "search":
        _log.info("data: the %s split is the search split, on which policies are judged", twice[0])
    return {names[str(name)]: _as_dataset(value, names[str(name)], key) for name, value in data.items()}


def _as_dataset(value: object, name: str, key: str) -> Samples:
    if isinstance(value, DataLoader):
        return _of_loader(value, name, key)
    if isinstance(value, Tensor | np.ndarray):  # inputs alone: of a network that keeps its own outputs
        return _of_arrays([value], name)
    if isinstance(value, tuple | list) and value:
        if all(isinstance(part, Tensor | np.ndarray) for part in value) and (len(value) == 2 or type(value) is tuple):
            return _of_arrays(value, name)
        if all(isinstance(part, Dataset | DataLoader) for part in value):
            raise BadInputError(
                f"{key} returned a {type(value).__name__} of {len(value)} data sets for the {name} split, expected a "
                "mapping that names them; return {'train': …, 'search': …, 'test': …}"
            )
    is_stream = isinstance(value, IterableDataset)
    has_items = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    if not (is_stream or has_items) or isinstance(value, _NO_DATASETS):
        raise BadInputError(
            f"data: the {name} split is a {type(value).__name__}, expected a dataset of (input, target) with a length, "
            "an iterable one, a loader of one, a pair of tensors or numpy arrays (inputs, targets), or the inputs alone"
        )
    return cast(Samples, value)


def _of_arrays(arrays: Sequence[Any], name: str) -> Samples:
    tensors = [_as_tensor(array, name) for array in arrays]
    if len(tensors) == 2 and (not all(t.ndim for t in tensors) or len(tensors[0]) != len(tensors[1])):
        inputs, targets = (str(len(t)) if t.ndim else "no" for t in tensors)
        raise BadInputError(f"data: the {name} split has {inputs} inputs and {targets} targets")
    if not all(t.ndim for t in tensors) or len({len(t) for t in tensors}) > 1:
        raise BadInputError(
            f"data: the {name} split has tensors of {[len(t) if t.ndim else 0 for t in tensors]} samples"
        )
    return TensorDataset(*tensors)


def _as_tensor(array: object, name: str) -> Tensor:
    tensor = array if isinstance(array, Tensor) else as_tensor(array)
    if tensor is None:
        kind = getattr(array, "dtype", type(array).__name__)
        raise BadInputError(f"data: the {name} split has a numpy array of {kind}, expected numbers; convert it")
    return tensor


def _of_loader(loader: "DataLoader[Any]", name: str, key: str) -> Samples:
    """The data set of a loader, of which batch size and order do not count; its sampler may leave some of it out."""
    if loader.batch_size is None and type(loader.batch_sampler) not in (BatchSampler, type(None)):
        _log.info("data: the batches of the loader of the %s split do not count, only its data set", name)
    if loader.batch_size is None and loader.batch_sampler is None:
        raise BadInputError(
            f"{key}: the loader of the {name} split has batch_size=None, so its items are batches; give a data set "
            "whose items are single samples"
        )
    dataset, sampler = _as_dataset(loader.dataset, name, key), loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return Subset(dataset, [int(i) for i in sampler.indices])
    if not isinstance(sampler, RandomSampler | SequentialSampler) and not isinstance(dataset, IterableDataset):
        _log.warning("data: the %s of the loader of the %s split is not used", type(sampler).__name__, name)
    return dataset


def collate_of(data: object) -> Collate | None:
    """Return the ``collate_fn`` that loaders among the data have, None where there is none but torch's.

    Raises:
        BadInputError: two loaders with different ones.
    """
    loaders = [
        each for each in (data.values() if isinstance(data, Mapping) else [data]) if isinstance(each, DataLoader)
    ]
    collates = [each.collate_fn for each in loaders if each.collate_fn is not default_collate]
    if any(each is not collates[0] for each in collates) or (collates and len(collates) < len(loaders)):
        raise BadInputError("data: the loaders have different collate_fn; give data.collate, for all splits")
    return collates[0] if collates else None


def first_item(dataset: Samples, name: str) -> object:
    """Return the first item of a data set.

    Raises:
        BadInputError: there is none, or reading it raises.
    """
    if isinstance(dataset, IterableDataset):
        for item in islice(stream_of(dataset, name), 1):
            return item
        raise BadInputError(f"data: the {name} split has no samples, expected at least 1")
    length(dataset, name)
    with UserCode(f"data: sample 0 of the {name} split"):
        return cast(object, dataset[0])


def make_splits(
    factory_result: Mapping[str, Samples], sizes: Mapping[str, int], seed: int, *, memory_mib: float = MEMORY_MIB
) -> DataSplits:
    """Cut the splits that a data factory does not give.

    ``search`` and ``test`` leave the train split; ``calibration`` is drawn from what remains of it. Cuts are repeatable
    by seed. They keep the class shares where class ids are known without reading samples: those of tensors and lists in
    memory, or an attribute ``targets`` or ``labels`` of the data set. A size applies to a split that is cut; without a
    size a cut takes a fifth of the train split, ``calibration`` and ``search`` at most 512 samples. Of iterable splits
    the first samples are taken, 512 without a size: into memory, or read at every use where they do not fit.

    Args:
        factory_result: split name → dataset of (input, target), or ``Items``; ``train`` is needed, the rest may be
            absent.
        sizes: split name → samples.
        seed: of the cuts.
        memory_mib: MiB that the samples of an iterable split may hold.

    Raises:
        BadInputError: not a mapping, an unknown or empty split, one whose length changes, no ``train``, two given
            splits that share samples of one dataset, sizes that do not fit, or as ``read``.
    """
    given = _given(factory_result, sizes, seed, memory_mib)
    train = given["train"]
    total = length(train, "train")
    if _is_stream(train):
        return _beside_stream(given, sizes, seed, memory_mib)
    streams = {name for name, dataset in factory_result.items() if _is_stream(dataset)}
    wanted = _cut_sizes(given, sizes, total, streams)
    if not wanted:
        return DataSplits(**{name: given[name] for name in SPLITS})
    labels = _targets_of(train)
    if labels is None and not is_in_memory(train):
        return _cut_at_random(given, wanted, total, seed)
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


def _cut_at_random(given: Mapping[str, Samples], wanted: Mapping[str, int], total: int, seed: int) -> DataSplits:
    """Cut a split whose classes are not known, by memory for the samples that leave it and not for those that stay."""
    train, leaving = given["train"], [name for name in ("test", "search") if name in wanted]
    sizes = [wanted[name] for name in (*leaving, "calibration") if name in wanted]
    chosen = np.random.default_rng([seed, len(SPLITS)]).choice(total, sum(sizes), replace=False)
    drawn = dict(zip((*leaving, "calibration"), np.split(chosen, np.cumsum(sizes)[:-1]), strict=False))
    cut: dict[str, Samples] = {name: Subset(train, np.sort(rows).tolist()) for name, rows in drawn.items()}
    gone = np.concatenate([np.empty(0, np.int64), *(drawn[name] for name in leaving)])
    cut["train"] = Subset(train, Remaining(total, gone)) if leaving else train
    splits = {**given, **cut}
    return DataSplits(**{name: splits[name] for name in SPLITS})


class Remaining(Sequence[int]):
    """Numbers from 0 to ``total`` - 1 without those that are ``gone``, in order."""

    def __init__(self, total: int, gone: NDArray[np.int64]) -> None:
        self._count = total - len(gone)
        self._before = np.sort(gone) - np.arange(len(gone))  # numbers that remain below each that is gone

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        position = index % self._count
        return position + int(np.searchsorted(self._before, position, side="right"))


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


def _is_stream(dataset: Samples) -> bool:
    return isinstance(dataset.samples if isinstance(dataset, Items) else dataset, IterableDataset)


def _beside_stream(given: Mapping[str, Samples], sizes: Mapping[str, int], seed: int, memory_mib: float) -> DataSplits:
    missing = [name for name in ("search", "test") if name not in given]
    if missing:
        raise BadInputError(
            f"data: the train split is an iterable data set, from which {' and '.join(missing)} cannot be cut; give "
            "these splits as well"
        )
    train, size = given["train"], sizes.get("calibration")
    calibration = given.get("calibration") or first_of_stream(train, "calibration", size, seed, memory_mib)
    return DataSplits(train, calibration, given["search"], given["test"])


def _targets_of(dataset: Samples) -> NDArray[np.int64] | None:
    """Class ids (N,) of the train split, None where targets are not one class a sample or need reading it."""
    if type(dataset) is Subset:
        inner = _targets_of(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    samples = dataset.samples if isinstance(dataset, Items) else dataset
    if type(samples) is Subset and isinstance(dataset, Items):
        inner = _targets_of(Items(samples.dataset, dataset.form, dataset.collate))
        return None if inner is None else inner[np.asarray(samples.indices)]
    if type(samples) in (TensorDataset, list, tuple):
        return _targets_in_memory(dataset)
    count = length(dataset, "train")
    for attribute in (getattr(samples, name, None) for name in ("targets", "labels")):  # torchvision's
        if isinstance(attribute, Tensor | np.ndarray | list | tuple) and len(attribute) == count:
            with contextlib.suppress(ValueError, TypeError, RuntimeError):
                ids = _class_ids(np.asarray(attribute))
                if ids is not None:
                    return ids
    _log.info(
        "data: splits are cut from train at random, without regard to classes: %s has no attribute targets or labels",
        type(samples).__name__,
    )
    return None


def _targets_in_memory(dataset: Samples) -> NDArray[np.int64] | None:
    items = dataset if isinstance(dataset, Items) else Items(dataset)
    judged = replace(items, form=replace(items.form, args=(), kwargs=()))
    try:
        targets = read(judged, range(length(dataset, "train")), "train").targets
    except BadInputError:  # which the checks say better
        return None
    return _class_ids(_as_array(targets)) if isinstance(targets, Tensor) else None


def _as_array(targets: Tensor) -> NDArray[Any]:
    return (targets.float() if targets.is_floating_point() else targets).numpy(force=True)  # numpy has no bfloat16


def _class_ids(targets: NDArray[Any]) -> NDArray[np.int64] | None:
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        return targets.astype(np.int64)
    is_one_hot = targets.ndim == 2 and np.isin(targets, (0, 1)).all() and (targets.sum(1) == 1).all()
    return targets.argmax(1).astype(np.int64) if is_one_hot else None


def _given(
    factory_result: Mapping[str, Samples], sizes: Mapping[str, int], seed: int, memory_mib: float
) -> dict[str, Samples]:
    if not isinstance(factory_result, Mapping):
        raise BadInputError(f"data is a {type(factory_result).__name__}, expected a mapping of {', '.join(SPLITS)}")
    unknown = sorted(set(factory_result) - set(SPLITS))
    if unknown or "train" not in factory_result:
        problem = f"unknown splits {unknown}" if unknown else "no train split"
        raise BadInputError(
            f"data has {problem}, expected train and any of {', '.join(SPLITS[1:])}; a pair (inputs, targets) needs no "
            "names"
        )
    given = {}
    for name, dataset in factory_result.items():
        is_taken = name != "train" and _is_stream(dataset)
        given[name] = first_of_stream(dataset, name, sizes.get(name), seed, memory_mib) if is_taken else dataset
        counts = [length(given[name], name) for _ in range(2)]
        if counts[0] != counts[1]:
            raise BadInputError(
                f"data: the {name} split has {counts[0]} samples, then {counts[1]}; its length must not change"
            )
        read(given[name], [0], name)  # what is no dataset of pairs is said before sizes that do not fit it
    _check_disjoint(given)
    return given


def _check_disjoint(given: Mapping[str, Samples]) -> None:
    inner = {name: x.samples if isinstance(x, Items) else x for name, x in given.items()}
    subsets = {name: x for name, x in inner.items() if type(x) is Subset}
    for first, second in (("search", "train"), ("search", "calibration"), ("search", "test"), ("test", "train")):
        if first in subsets and second in subsets and subsets[first].dataset is subsets[second].dataset:
            shared = len(set(subsets[first].indices) & set(subsets[second].indices))
            if shared:
                raise BadInputError(f"data: {first} and {second} share {shared} samples, expected disjoint splits")


def _cut_sizes(
    given: Mapping[str, Samples], sizes: Mapping[str, int], total: int, streams: Collection[str]
) -> dict[str, int]:
    for name, size in sizes.items():
        if name not in SPLITS[1:] or size < 1:
            raise BadInputError(f"data.splits.{name} = {size}, expected at least 1 for one of {', '.join(SPLITS[1:])}")
        if name in given and name not in streams:
            _log.warning("data.splits.%s = %d is not used: the data has a %s split of its own", name, size, name)
    share = max(1, round(DEFAULT_SHARE * total))
    usual = {name: min(share, DEFAULT_SIZES.get(name, share)) for name in SPLITS[1:]}
    wanted = {name: sizes.get(name, usual[name]) for name in SPLITS[1:] if name not in given}
    leaving = sum(size for name, size in wanted.items() if name != "calibration")
    if leaving + wanted.get("calibration", 1) > total:
        sizes_given = ", ".join(f"{name} {size}" for name, size in wanted.items())
        raise BadInputError(
            f"data.splits: {sizes_given} do not fit into {total} train samples "
            "(search and test leave the train split, calibration is drawn from the rest); ask for fewer"
        )
    return wanted
