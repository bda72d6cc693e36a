"""Splits as a job uses them: held or streamed, the same at every reading, checked, converted, and compared.

A random transform gives other samples at every reading. That is right for ``train``; on the other splits every network
is to be judged on the same samples, so their random numbers follow the seed and the sample's number. These splits are
held in memory where they fit a limit, and are read at every use where they do not. What is converted is unambiguous:
floating-point inputs become float32, class ids of any size int64, and one-hot rows class ids.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from amcsearch.core import MIB, BadInputError
from amcsearch.graph import Batch, tensors_of_tree
from amcsearch.training.identity import TRAIN_SAMPLES, SplitRecord, same_bytes
from amcsearch.training.splits import (
    MEMORY_MIB,
    SPLITS,
    Changed,
    DataSplits,
    Held,
    Samples,
    held,
    is_in_memory,
    length,
    read,
)
from amcsearch.training.surveys import SplitSurvey, check_splits

__all__ = ["checked_splits", "fixed_splits"]

REREAD: Final = 8  # samples at most that are read again, to see whether they change

_log = logging.getLogger(__name__)


def fixed_splits(
    splits: DataSplits, seed: int, *, memory_mib: float = MEMORY_MIB, limit: int | None = None
) -> tuple[DataSplits, tuple[str, ...]]:
    """Return the splits with ``calibration``, ``search`` and ``test`` the same at every reading, and warnings.

    Args:
        splits: as they were cut.
        seed: of random transforms.
        memory_mib: MiB that each of the three may hold; larger ones are read whenever they are used.
        limit: the first samples alone of those that are not in memory (for a plan); None takes all.

    Raises:
        BadInputError: as ``read``.
    """
    fixed, changing, unseeded = {"train": splits.train}, [], []
    for name in SPLITS[1:]:
        dataset = getattr(splits, name)
        in_memory = is_in_memory(dataset)
        if limit is not None and not in_memory and length(dataset, name) > limit:
            dataset = Subset(dataset, range(limit))
        steady = dataset if in_memory else Changed(dataset, seed=seed)
        fixed[name] = _held_or_read(steady, name, memory_mib)
        if not in_memory and _changes(dataset, fixed[name], name):
            changing.append(name)
            unseeded += [name] if _changes(steady, fixed[name], name) else []
    return DataSplits(**fixed), (_about_changes(changing, unseeded),) if changing else ()


def _held_or_read(dataset: Samples, name: str, memory_mib: float) -> Samples:
    """Return samples in memory if they fit, else the data set as it is."""
    in_memory = held(dataset, name, memory_mib * MIB)
    if in_memory is None:
        _log.info("data: the %s split is over data.memory_mib = %g and is read at every use", name, memory_mib)
    return dataset if in_memory is None else in_memory


def _changes(dataset: Samples, copy: Samples, name: str) -> bool:
    """Whether another reading gives other samples than the copy's."""
    count = length(copy, name)
    rows = range(max(1, min(REREAD, count // 4)))
    trees = [
        (batch.args, dict(batch.kwargs), batch.targets) for batch in (read(d, rows, name) for d in (dataset, copy))
    ]
    pairs = zip(*(tensors_of_tree(tree) for tree in trees), strict=False)
    return not all(same_bytes(a, b) for (_, a), (_, b) in pairs)


def _about_changes(changing: Sequence[str], unseeded: Sequence[str]) -> str:
    text = (
        f"data: {', '.join(changing)} give other samples at every reading (a random transform?); all networks are "
        "judged on the same ones; give these splits without a random transform"
    )
    return text if not unseeded else f"{text}; it follows no seed, so results will not repeat and cannot be resumed"


def checked_splits(
    splits: DataSplits,
    *,
    input_shape: Sequence[int] | None,
    output_shape: Sequence[int],
    targets: Literal["given", "dense"],
    labelled: Sequence[str] = SPLITS,
    cut: DataSplits | None = None,
    seed: int,
    are_class_ids: bool = True,
    limit: int = TRAIN_SAMPLES,
) -> tuple[DataSplits, tuple[str, ...], dict[str, SplitRecord]]:
    """Return the splits with class ids as targets, warnings about samples that two of them share, and their records.

    Args:
        splits: of ``fixed_splits``.
        input_shape: of one input; None where there are several.
        output_shape: of the network's output for it: (C,), or (T, V) for a sequence.
        targets: ``given`` asks for class ids or one-hot rows; with ``dense`` vectors of numbers may stand as well.
        labelled: names of the splits whose targets are read.
        cut: the splits before ``fixed_splits``, by which errors name samples.
        seed: for random transforms.
        are_class_ids: false leaves the targets to a task, which checks them itself.
        limit: samples of a train split that is not in memory.

    Raises:
        BadInputError: as ``check_splits``, or targets that do not fit the outputs, or none at all.
    """
    surveys = check_splits(
        splits,
        input_shape=input_shape,
        num_classes=output_shape[-1] if are_class_ids else None,
        limit=limit,
        cut=cut,
        are_class_ids=are_class_ids,
        seed=seed,
    )
    records = {name: survey.record for name, survey in surveys.items()}
    read_ones = {name: surveys[name] for name in labelled} if are_class_ids else {}
    for name, survey in read_ones.items():
        _check_targets(name, survey, tuple(output_shape), targets)
    warnings: list[str] = []
    if read_ones and all(_is_one_hot(survey, output_shape) for survey in read_ones.values()):
        splits = DataSplits(**{name: _without_one_hot(getattr(splits, name), name in read_ones) for name in SPLITS})
        warnings = ["data: the targets are one-hot rows and were converted to class ids"]
    return splits, (*warnings, *_about_overlaps(surveys), *_about_sameness(surveys, _whole(read_ones, cut))), records


def _is_one_hot(survey: SplitSurvey, output_shape: Sequence[int]) -> bool:
    return survey.is_one_hot and survey.target_shape == tuple(output_shape)


def _without_one_hot(dataset: Samples, is_read: bool) -> Samples:
    if not is_read:
        return dataset
    if isinstance(dataset, Held):
        return Held(class_ids(dataset.whole))
    return Changed(dataset, class_ids)


def class_ids(batch: Batch) -> Batch:
    """Return a batch whose one-hot targets (n, …, C) are class ids (n, …)."""
    return replace(batch, targets=batch.targets.long().argmax(-1))


def _check_targets(name: str, survey: SplitSurvey, output_shape: tuple[int, ...], targets: str) -> None:
    """Check that the targets of a split fit the outputs, as the loss will ask for it."""
    where, shape = f"data: the {name} split", survey.target_shape
    if shape is None:
        raise BadInputError(
            f"{where} has targets that are no one tensor, expected class ids; name one of them by data.target, or set "
            "the task"
        )
    if not survey.has_targets:
        raise BadInputError(f"{where} has no targets: every one is -100 (ignored); give at least one class id")
    if survey.is_vector and not survey.is_one_hot and targets == "given":
        raise BadInputError(
            f"{where} has targets of shape {shape} that are neither class ids nor one-hot rows; give class ids as "
            "integers (.argmax(-1) of the probabilities of classes), name the task that they are of (task: {name: "
            f"{_likely_task(survey)}}}, or one of `amcsearch list tasks`), or set data.targets: dense to keep the "
            "outputs of the dense network"
        )
    wanted = output_shape if survey.is_vector or _is_one_hot(survey, output_shape) else output_shape[:-1]
    if shape != wanted and not (survey.is_padded and len(shape) == len(wanted)):
        raise BadInputError(
            f"{where} has targets of shape {shape} a sample, the network gives outputs of shape {output_shape}; "
            f"expected class ids of shape {output_shape[:-1]}, or name the task (task: {{name: "
            f"{_likely_task(survey) if shape == output_shape else 'segmentation'}}}, …)"
        )


def _likely_task(survey: SplitSurvey) -> str:
    """Name the task that rows of numbers are most often of."""
    return "multilabel" if survey.is_binary else "regression"


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


def _whole(surveys: Mapping[str, SplitSurvey], cut: DataSplits | None) -> dict[str, SplitSurvey]:
    """Return those that read every sample: the first of data in the order of their classes are of one class."""
    if cut is None:
        return dict(surveys)
    return {name: each for name, each in surveys.items() if len(each.hashes) >= length(getattr(cut, name), name)}


def _about_sameness(surveys: Mapping[str, SplitSurvey], read: Mapping[str, SplitSurvey]) -> list[str]:
    alike = [n for n, survey in surveys.items() if len(survey.hashes) > 1 and len(np.unique(survey.hashes)) == 1]
    single = [n for n, survey in read.items() if len(survey.hashes) > 1 and len(survey.classes) == 1]
    warnings = [f"data: all inputs of {', '.join(alike)} are the same"] if alike else []
    return warnings + ([f"data: all targets of {', '.join(single)} are of one class"] if single else [])
