"""Splits as a job uses them: read once where networks are judged on them, checked, converted, and compared.

A random transform gives other samples at every reading. That is right for ``train``; the other splits are read once, by
the seed, so that every network is judged on the same samples. What is converted is unambiguous: floating-point inputs
become float32, integers of any size int64, and one-hot rows class ids.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset, TensorDataset

from amcsearch.core import BadInputError
from amcsearch.training.data import SplitSurvey, check_splits
from amcsearch.training.seeding import seeded
from amcsearch.training.splits import SPLITS, Converted, DataSplits, Samples, fetch, length, stacked

__all__ = ["checked_splits", "fixed_splits"]

REREAD: Final = 16  # samples that are read again, to see whether they change

_log = logging.getLogger(__name__)


def fixed_splits(splits: DataSplits, seed: int) -> tuple[DataSplits, tuple[str, ...]]:
    """Return the splits with ``calibration``, ``search`` and ``test`` in memory, and warnings about what changes.

    Floating-point inputs of every split are float32.

    Raises:
        BadInputError: as ``stacked``.
    """
    fixed, changing, unseeded = {"train": _as_float32(splits.train)}, [], []
    for name in SPLITS[1:]:
        dataset = getattr(splits, name)
        with seeded(seed):
            fixed[name] = _as_float32(TensorDataset(*stacked(dataset, name=name)))
            changes = not _repeats(dataset, fixed[name], name)
        with seeded(seed):
            follows_seed = not changes or _repeats(dataset, fixed[name], name)
        changing += [name] if changes else []
        unseeded += [] if follows_seed else [name]
    return DataSplits(**fixed), (_about_changes(changing, unseeded),) if changing else ()


def _as_float32(dataset: Samples) -> Samples:
    inputs, _ = fetch(dataset, [0], "train")
    if not inputs.is_floating_point() or inputs.dtype == torch.float32:
        return dataset
    _log.info("inputs of %s are converted to float32", inputs.dtype)
    converted = Converted(dataset, is_one_hot=False)
    return TensorDataset(*stacked(converted)) if type(dataset) is TensorDataset else converted


def _repeats(dataset: Samples, copy: Samples, name: str) -> bool:
    """Whether another reading gives the samples of the copy."""
    if _is_in_memory(dataset):
        return True
    rows = range(min(REREAD, length(copy, name)))
    again = _as_float32(TensorDataset(*fetch(dataset, rows, name)))
    return all(_same_bytes(a, b) for a, b in zip(fetch(again, rows), fetch(copy, rows), strict=True))


def _is_in_memory(dataset: Samples) -> bool:
    return _is_in_memory(dataset.dataset) if type(dataset) is Subset else type(dataset) is TensorDataset


def _same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors hold the same; NaN is the same as NaN."""
    bytes_of = [tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.shape == right.shape and torch.equal(*bytes_of)


def _about_changes(changing: Sequence[str], unseeded: Sequence[str]) -> str:
    text = (
        f"data: {', '.join(changing)} give other samples at every reading (a random transform?); each was read "
        "once, and all networks are judged on these copies; give these splits without a random transform"
    )
    return text if not unseeded else f"{text}; it follows no seed, so results will not repeat and cannot be resumed"


def checked_splits(
    splits: DataSplits,
    *,
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    targets: Literal["given", "dense"],
    labelled: Sequence[str] = SPLITS,
    cut: DataSplits | None = None,
    seed: int,
    are_class_ids: bool = True,
) -> tuple[DataSplits, tuple[str, ...]]:
    """Return the splits with class ids as targets, and warnings about samples that two of them share and the like.

    Args:
        splits: of ``fixed_splits``.
        input_shape: of one input.
        output_shape: of the network's output for it: (C,), or (T, V) for a sequence.
        targets: ``given`` asks for class ids or one-hot rows; with ``dense`` vectors of numbers may stand as well.
        labelled: names of the splits whose targets are read.
        cut: the splits before ``fixed_splits``, by which errors name samples.
        seed: for random transforms.
        are_class_ids: false leaves the targets to a task, which checks them itself.

    Raises:
        BadInputError: as ``check_splits``, or targets that do not fit the outputs, or none at all.
    """
    with seeded(seed):
        surveys = check_splits(
            splits,
            input_shape=input_shape,
            num_classes=output_shape[-1],
            limit=None,
            cut=cut,
            are_class_ids=are_class_ids,
        )
    read = {name: surveys[name] for name in labelled if are_class_ids}
    for name, survey in read.items():
        _check_targets(name, survey, tuple(output_shape), targets)
    said: list[str] = []
    if read and all(_is_one_hot(survey, output_shape) for survey in read.values()):
        splits = DataSplits(**{name: _without_one_hot(getattr(splits, name), name in read) for name in SPLITS})
        said = ["data: the targets are one-hot rows and were converted to class ids"]
    return splits, (*said, *_about_overlaps(surveys), *_about_sameness(surveys, read))


def _is_one_hot(survey: SplitSurvey, output_shape: Sequence[int]) -> bool:
    return survey.is_one_hot and survey.target_shape == tuple(output_shape)


def _without_one_hot(dataset: Samples, is_read: bool) -> Samples:
    if not is_read:
        return dataset
    converted = Converted(dataset, is_one_hot=True)
    return TensorDataset(*stacked(converted)) if type(dataset) is TensorDataset else converted


def _check_targets(name: str, survey: SplitSurvey, output_shape: tuple[int, ...], targets: str) -> None:
    """Check that the targets of a split fit the outputs, as the loss will ask for it."""
    where, shape = f"data: the {name} split", survey.target_shape
    if not survey.has_targets:
        raise BadInputError(f"{where} has no targets: every one is -100 (ignored); give at least one class id")
    if survey.is_vector and not survey.is_one_hot and targets == "given":
        raise BadInputError(
            f"{where} has targets of shape {shape} that are neither class ids nor one-hot rows; give class ids as "
            "integers, name the task that they are of (task: {name: regression}, or one of `amcsearch list tasks`), "
            "or set data.targets: dense to keep the outputs of the dense network"
        )
    if shape != (output_shape if survey.is_vector or _is_one_hot(survey, output_shape) else output_shape[:-1]):
        raise BadInputError(
            f"{where} has targets of shape {shape} a sample, the network gives outputs of shape {output_shape}; "
            f"expected class ids of shape {output_shape[:-1]}, or name the task (task: {{name: segmentation}}, …)"
        )


_PAIRS: Final = (("search", ("train", "calibration")), ("test", ("train", "calibration")), ("test", ("search",)))


def _about_overlaps(surveys: Mapping[str, SplitSurvey]) -> list[str]:
    warnings = []
    for name, others in _PAIRS:
        samples = surveys[name].hashes
        if len(samples) > 1 and len(np.unique(samples)) == 1:
            continue  # constant inputs, which are said elsewhere
        shared = {other: np.isin(samples, surveys[other].hashes) for other in others}
        either: NDArray[np.bool_] = np.logical_or.reduce(list(shared.values()))
        count = int(either.sum())
        if count:
            which = " or ".join(other for other, each in shared.items() if each.any())
            warnings.append(
                f"data: {count} of {len(samples)} samples of the {name} split ({count / len(samples):.1%}) are also in "
                f"{which}; accuracy there says little about new data, so give splits that share no samples"
            )
    return warnings


def _about_sameness(surveys: Mapping[str, SplitSurvey], read: Mapping[str, SplitSurvey]) -> list[str]:
    alike = [n for n, survey in surveys.items() if len(survey.hashes) > 1 and len(np.unique(survey.hashes)) == 1]
    single = [n for n, survey in read.items() if len(survey.hashes) > 1 and len(survey.classes) == 1]
    warnings = [f"data: all inputs of {', '.join(alike)} are the same"] if alike else []
    return warnings + ([f"data: all targets of {', '.join(single)} are of one class"] if single else [])
