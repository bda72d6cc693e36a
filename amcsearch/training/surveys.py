"""Checks of samples, and surveys of splits: what the samples of a split are, read once and none of them held.

Of a train split that is not in memory some samples are read, spread evenly; of an iterable one the first.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Tree, tensors_of_tree
from amcsearch.training.identity import (
    TRAIN_SAMPLES,
    SplitRecord,
    SplitRecorder,
    read_parts,
    repeats_by_seed,
    rows_that_count,
)
from amcsearch.training.splits import SPLITS, DataSplits, is_stackable, length, source_rows
from amcsearch.training.tasks.class_ids import IGNORED_TARGET

__all__ = ["SplitSurvey", "check_samples", "check_splits", "sample_digests"]

CLASSES: Final = 2  # more are not told apart

_log = logging.getLogger(__name__)


def check_samples(
    inputs: Tensor | Mapping[str, Tensor],
    targets: Tree,
    *,
    name: str,
    input_shape: Sequence[int] | None,
    num_classes: int | None,
    numbers: Sequence[int] | None = None,
    are_class_ids: bool = True,
) -> None:
    """Check stacked samples of the split ``name``: inputs (N, …), targets (N,) or (N, T) of class ids.

    ``input_shape`` is that of one input, without N; None for either bound leaves it unchecked. A target of -100 marks a
    position without one. Targets (N, …, num_classes) of floating point are vectors to match, and must be finite.
    ``numbers`` (N,) are those of the samples, for errors; None counts from 0. With ``are_class_ids`` false
    targets are a task's own, and numbers among them must be finite.

    Raises:
        BadInputError: no samples, another shape, a value that is not finite, or a target out of range.
    """
    where = f"data: the {name} split"
    tensors = {"0": inputs} if isinstance(inputs, Tensor) else inputs
    count = len(next(iter(tensors.values()), ())) if numbers is None else len(numbers)
    numbers = range(count) if numbers is None else numbers
    if count == 0:
        raise BadInputError(f"{where} has no samples, expected at least 1")
    for path, tensor in tensors.items():
        is_wrong = len(tensors) == 1 and input_shape is not None and tuple(tensor.shape[1:]) != tuple(input_shape)
        if is_wrong and input_shape is not None:
            raise BadInputError(
                f"{where} gives inputs of shape {tuple(tensor.shape[1:])}, expected {tuple(input_shape)}; "
                "set model.input_shape or change the data factory"
            )
        _check_finite(tensor, where, f" in input {path}" if len(tensors) > 1 else "", "inputs", numbers)
    if are_class_ids and isinstance(targets, Tensor):
        _check_targets(targets, where, num_classes, numbers)
    for path, tensor in tensors_of_tree(targets, "target"):
        _check_finite(tensor, where, f" in {path}", "targets", numbers)


def _check_finite(tensor: Tensor, where: str, part: str, expected: str, numbers: Sequence[int]) -> None:
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return
    is_of_samples = tensor.ndim > 0 and len(tensor) == len(numbers)
    sample = numbers[_first_row(~torch.isfinite(tensor)) if is_of_samples else 0]
    raise BadInputError(f"{where} holds NaN or infinity{part} (first in sample {sample}), expected finite {expected}")


def _check_targets(targets: Tensor, where: str, num_classes: int | None, numbers: Sequence[int]) -> None:
    if targets.is_floating_point() and targets.ndim > 1:
        _check_vectors(targets, where, num_classes, numbers)
        return
    if targets.is_floating_point() or (targets.dtype == torch.bool and targets.ndim == 1) or targets.ndim not in (1, 2):
        convert = "convert ids by .long(), or " if targets.is_floating_point() else ""
        raise BadInputError(
            f"{where} gives targets of {targets.dtype} and shape {tuple(targets.shape[1:])}, "
            f"expected class ids (one integer, or one a position), or vectors to match; {convert}name the task that "
            f"they are for (task: {{name: {_likely_task(targets)}}}, or another of `amcsearch list tasks`)"
        )
    if num_classes is not None and targets.dtype != torch.bool:
        _check_class_ids(targets, where, num_classes, numbers)


def _likely_task(targets: Tensor) -> str:
    """Name the task that numbers or truth values are most often of."""
    if targets.dtype == torch.bool:
        return "binary" if targets.ndim == 1 else "multilabel"
    return "regression" if targets.is_floating_point() else "segmentation"


def _first_row(wrong: Tensor) -> int:
    """Number of the first sample of (n, …) with anything wrong in it."""
    return int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])


def _check_class_ids(targets: Tensor, where: str, num_classes: int, numbers: Sequence[int]) -> None:
    known = targets != IGNORED_TARGET
    wrong = known & ((targets < 0) | (targets >= num_classes))
    if bool(wrong.any()):
        sample = numbers[_first_row(wrong)]
        low, high = int(targets[known].min()), int(targets[known].max())
        raise BadInputError(
            f"{where} has targets from {low} to {high}, expected 0 to {num_classes - 1} (first in sample {sample}): "
            f"the network gives {num_classes} classes; mend the ids ({IGNORED_TARGET} marks what has no target), or "
            "name the task if they are no class ids (`amcsearch list tasks`)"
        )


def _check_vectors(targets: Tensor, where: str, width: int | None, numbers: Sequence[int]) -> None:
    if width is not None and targets.shape[-1] != width:
        raise BadInputError(
            f"{where} gives vectors of {targets.shape[-1]} numbers to match, the network gives {width} a sample"
        )
    if not bool(torch.isfinite(targets).all()):
        sample = numbers[_first_row(~torch.isfinite(targets))]
        raise BadInputError(
            f"{where} has targets with NaN or infinity (first in sample {sample}), expected finite ones"
        )


@dataclass(frozen=True)
class SplitSurvey:
    """What the samples of a split are that were read.

    ``hashes`` (n,) of the inputs' bytes tell samples apart; ``classes`` are up to two of the classes that are there.
    ``is_one_hot`` where every target is a row of zeros with a single 1, ``is_binary`` where rows hold 0 and 1 alone;
    ``is_vector`` where targets are no integers.
    ``target_shape`` is None where targets are no one tensor, and has None for an axis whose length differs between
    batches; ``is_padded`` says that a ``collate`` may pad each batch to a length of its own. ``record`` describes the
    split for a run's identity.
    """

    hashes: NDArray[np.uint64]
    target_shape: tuple[int | None, ...] | None
    is_vector: bool
    is_one_hot: bool
    has_targets: bool
    classes: frozenset[int]
    record: SplitRecord
    is_padded: bool = False
    is_binary: bool = False


def check_splits(
    splits: DataSplits,
    *,
    input_shape: Sequence[int] | None,
    num_classes: int | None,
    limit: int = TRAIN_SAMPLES,
    cut: DataSplits | None = None,
    are_class_ids: bool = True,
    seed: int = 0,
) -> dict[str, SplitSurvey]:
    """Run ``check_samples`` on every split, and survey them; of a train split not in memory, ``limit`` samples.

    Errors number samples as the data set does that a split is cut from: of ``cut``, where ``splits`` are copies of it.

    Args:
        splits: what is read.
        input_shape: as for ``check_samples``.
        num_classes: as for ``check_samples``.
        limit: samples of a train split that is not in memory.
        cut: the data sets that errors name samples by.
        are_class_ids: as for ``check_samples``.
        seed: of random transforms.

    Raises:
        BadInputError: as ``read`` and ``check_samples``.
    """
    surveys = {}
    for name in SPLITS:
        dataset, origin = getattr(splits, name), getattr(cut or splits, name)
        rows = rows_that_count(dataset, name, limit)
        if len(rows) < length(dataset, name):
            _log.info("data: %d of the %d samples of the %s split are checked", len(rows), length(dataset, name), name)
        recorder, parts = SplitRecorder(length(dataset, name)), []
        for numbers, batch in read_parts(dataset, rows, name, seed):
            check_samples(
                batch.inputs,
                batch.targets,
                name=name,
                input_shape=input_shape,
                num_classes=num_classes,
                numbers=source_rows(origin, numbers),
                are_class_ids=are_class_ids,
            )
            recorder.add(batch)
            parts.append(_surveyed(batch))
        record = recorder.record(repeats=repeats_by_seed(dataset, rows, name, seed))
        surveys[name] = _joined(parts, name, record, is_padded=not is_stackable(dataset))
    return surveys


def _surveyed(batch: Batch) -> SplitSurvey:
    targets = batch.targets if isinstance(batch.targets, Tensor) else None
    if targets is None:
        held = any(True for _ in tensors_of_tree(batch.targets))
        return SplitSurvey(_hashes(batch), None, True, False, held, frozenset(), EMPTY)
    known = targets[targets != IGNORED_TARGET]
    is_binary = targets.ndim > 1 and bool(((targets == 0) | (targets == 1)).all())
    is_one_hot = is_binary and bool((targets.sum(-1) == 1).all())
    ids = targets.long().argmax(-1) if is_one_hot else known.long()
    return SplitSurvey(
        _hashes(batch),
        tuple(targets.shape[1:]),
        is_vector=targets.is_floating_point() or targets.dtype == torch.bool,
        is_one_hot=is_one_hot,
        has_targets=len(known) > 0,
        classes=frozenset(np.unique(ids.numpy(force=True))[:CLASSES].tolist()),
        record=EMPTY,
        is_binary=is_binary,
    )


EMPTY: Final = SplitRecorder(0).record(repeats=True)


def _hashes(batch: Batch) -> NDArray[np.uint64]:
    """Hashes (n,) of the inputs of each sample; one of all where they are not along the first axis."""
    digests = sample_digests(batch)
    if digests is None:
        digests = sample_digests(Batch(tuple(x[None] for x in batch.inputs.values()))) or []
    return np.array([int.from_bytes(digest[:8]) for digest in digests], dtype=np.uint64)


def sample_digests(batch: Batch) -> list[bytes] | None:
    """Digests (16 bytes) of each sample's inputs, by their shapes, types and bytes.

    None where the inputs of a sample are not along the first axis of every tensor.
    """
    tensors = [tensor.detach().cpu().contiguous() for tensor in batch.inputs.values()]
    if any(tensor.ndim < 1 or len(tensor) != batch.size for tensor in tensors):
        return None
    shapes = " ".join(f"{tensor.dtype} {tuple(tensor.shape[1:])}" for tensor in tensors).encode()
    rows = [tensor.reshape(len(tensor), -1).view(torch.uint8).numpy() for tensor in tensors]
    digests = []
    for parts in zip(*rows, strict=True):
        digest = hashlib.blake2b(shapes, digest_size=16)
        for part in parts:
            digest.update(part.data)
        digests.append(digest.digest())
    return digests


def _joined(parts: Sequence[SplitSurvey], name: str, record: SplitRecord, *, is_padded: bool) -> SplitSurvey:
    return SplitSurvey(
        np.concatenate([part.hashes for part in parts]),
        _common_shape({part.target_shape for part in parts}, name, is_padded=is_padded),
        is_vector=any(part.is_vector for part in parts),
        is_one_hot=all(part.is_one_hot for part in parts),
        has_targets=any(part.has_targets for part in parts),
        classes=frozenset(sorted(frozenset.union(*(part.classes for part in parts)))[:CLASSES]),
        record=record,
        is_padded=is_padded,
        is_binary=all(part.is_binary for part in parts),
    )


def _common_shape(
    shapes: Set[tuple[int | None, ...] | None], name: str, *, is_padded: bool
) -> tuple[int | None, ...] | None:
    """The shape of the targets of all batches, with None for axes that are padded to various lengths."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    if len(known) > 1 and not (is_padded and len(set(map(len, known))) == 1):
        raise BadInputError(
            f"data: the {name} split has targets of the shapes {sorted(known, key=str)}; make all of one shape"
        )
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*known, strict=True))
