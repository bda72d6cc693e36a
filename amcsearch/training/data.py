"""Data: factories that need no download, checks of samples, and targets from the dense network.

``with_dense_targets`` serves data without labels: the dense network's own outputs become the targets.

    loss = 1 - mean cos(f(x), f_dense(x)),  accuracy = mean cos(f(x), f_dense(x))

These are the targets of knowledge distillation (Hinton, Vinyals & Dean 2015, arXiv 1503.02531), taken once. An
embedding is used for its direction, so its length is left free. At the dense network the loss and its gradient are
exactly 0 for every sample: criteria of that gradient (Taylor, the empirical Fisher) order nothing. The second
derivatives there are J' P J / |f|^2, J the outputs' Jacobian and P the projection across f: positive, and given by
``obd`` as well as by ``true_fisher``, whose drawn labels are outputs with noise.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from amcsearch.core import BadInputError
from amcsearch.graph import evaluating, first_tensor
from amcsearch.training.splits import (
    SPLITS,
    DataSplits,
    Samples,
    fetch,
    length,
    make_splits,
    source_rows,
    stacked,
    stratified,
)
from amcsearch.training.task import Task
from amcsearch.training.tasks.class_ids import IGNORED_TARGET

__all__ = [
    "DATASETS",
    "DataSplits",
    "SplitSurvey",
    "check_samples",
    "check_splits",
    "dense_outputs",
    "digits",
    "fetch",
    "make_splits",
    "stacked",
    "text",
    "with_dense_targets",
]


def dense_outputs(model: nn.Module, inputs: Tensor, batch_size: int = 128, task: Task | None = None) -> Tensor:
    """Return the model's outputs (N, …, D) for inputs (N, …), on the CPU; it runs in eval mode where it is."""
    torch_device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        trees = (model(batch.to(torch_device)) for batch in torch.split(inputs, batch_size))
        outputs = [(task.dense_targets(tree) if task else first_tensor(tree)).cpu() for tree in trees]
    return torch.cat(outputs)


def with_dense_targets(splits: DataSplits, model: nn.Module, task: Task | None = None) -> DataSplits:
    """Return the splits, in memory, with the outputs of ``model`` that the task judges in place of their targets.

    Raises:
        BadInputError: as ``stacked``.
    """
    inputs = {name: stacked(getattr(splits, name))[0] for name in SPLITS}
    return DataSplits(**{name: TensorDataset(x, dense_outputs(model, x, task=task)) for name, x in inputs.items()})


def check_samples(
    inputs: Tensor,
    targets: Tensor,
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
    ``numbers`` (N,) are those of the samples, for errors; None counts from 0. With ``are_class_ids`` false targets are
    a task's own, and numbers among them must be finite.

    Raises:
        BadInputError: no samples, another shape, a value that is not finite, or a target out of range.
    """
    where, numbers = f"data: the {name} split", range(len(inputs)) if numbers is None else numbers
    if len(inputs) == 0:
        raise BadInputError(f"{where} has no samples, expected at least 1")
    if input_shape is not None and tuple(inputs.shape[1:]) != tuple(input_shape):
        raise BadInputError(
            f"{where} gives inputs of shape {tuple(inputs.shape[1:])}, expected {tuple(input_shape)}; "
            "set model.input_shape or change the data factory"
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        sample = numbers[_first_row(~torch.isfinite(inputs))]
        raise BadInputError(f"{where} holds NaN or infinity (first in sample {sample}), expected finite inputs")
    if (targets.is_floating_point() and targets.ndim > 1) or not are_class_ids:
        _check_vectors(targets, where, num_classes if are_class_ids else None, numbers)
        return
    if targets.is_floating_point() or (targets.dtype == torch.bool and targets.ndim == 1) or targets.ndim not in (1, 2):
        raise BadInputError(
            f"{where} gives targets of {targets.dtype} and shape {tuple(targets.shape[1:])}, "
            "expected class ids (one integer, or one a position), or vectors to match; convert ids by .long(), or "
            "name the task that they are for (task: {name: regression}, or another of `amcsearch list tasks`)"
        )
    if num_classes is not None and targets.dtype != torch.bool:
        _check_class_ids(targets, where, num_classes, numbers)


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
            f"the network gives {num_classes} classes"
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


CHUNK: Final = 1024  # samples in memory at a time
CLASSES: Final = 2  # more are not told apart


@dataclass(frozen=True)
class SplitSurvey:
    """What all samples of a split are.

    ``hashes`` (N,) of the inputs' bytes tell samples apart; ``classes`` are up to two of the classes that are there.
    ``is_one_hot`` where every target is a row of zeros with a single 1; ``is_vector`` where targets are no integers.
    """

    hashes: NDArray[np.uint64]
    target_shape: tuple[int, ...]
    is_vector: bool
    is_one_hot: bool
    has_targets: bool
    classes: frozenset[int]


def check_splits(
    splits: DataSplits,
    *,
    input_shape: Sequence[int] | None,
    num_classes: int | None,
    limit: int | None = 1024,
    cut: DataSplits | None = None,
    are_class_ids: bool = True,
) -> dict[str, SplitSurvey]:
    """Run ``check_samples`` on the first ``limit`` samples of every split, and survey them; None takes all.

    Errors number samples as the data set does that a split is cut from: of ``cut``, where ``splits`` are copies of it.

    Raises:
        BadInputError: as ``fetch`` and ``check_samples``.
    """
    surveys = {}
    for name in SPLITS:
        dataset = getattr(splits, name)
        count = length(dataset, name) if limit is None else min(limit, length(dataset, name))
        parts = []
        for start in range(0, count, CHUNK):
            rows = range(start, min(start + CHUNK, count))
            inputs, targets = fetch(dataset, rows, name)
            numbers = source_rows(getattr(cut or splits, name), rows)
            check_samples(
                inputs,
                targets,
                name=name,
                input_shape=input_shape,
                num_classes=num_classes,
                numbers=numbers,
                are_class_ids=are_class_ids,
            )
            parts.append(_surveyed(inputs, targets))
        surveys[name] = _joined(parts, name)
    return surveys


def _surveyed(inputs: Tensor, targets: Tensor) -> SplitSurvey:
    rows = inputs.cpu().reshape(len(inputs), -1).numpy()
    hashes = [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest()) for row in rows]
    known = targets[targets != IGNORED_TARGET]
    is_binary = targets.ndim > 1 and bool(((targets == 0) | (targets == 1)).all())
    is_one_hot = is_binary and bool((targets.sum(-1) == 1).all())
    ids = targets.long().argmax(-1) if is_one_hot else known.long()
    return SplitSurvey(
        np.array(hashes, dtype=np.uint64),
        tuple(targets.shape[1:]),
        is_vector=targets.is_floating_point() or targets.dtype == torch.bool,
        is_one_hot=is_one_hot,
        has_targets=len(known) > 0,
        classes=frozenset(np.unique(ids.numpy(force=True))[:CLASSES].tolist()),
    )


def _joined(parts: Sequence[SplitSurvey], name: str) -> SplitSurvey:
    shapes = sorted({part.target_shape for part in parts})
    if len(shapes) > 1:
        raise BadInputError(f"data: the {name} split has targets of the shapes {shapes}; make all of one shape")
    return SplitSurvey(
        np.concatenate([part.hashes for part in parts]),
        shapes[0],
        is_vector=any(part.is_vector for part in parts),
        is_one_hot=all(part.is_one_hot for part in parts),
        has_targets=any(part.has_targets for part in parts),
        classes=frozenset(sorted(frozenset.union(*(part.classes for part in parts)))[:CLASSES]),
    )


BYTES: Final = 256


def digits(
    size: int = 32, interpolation: Literal["bilinear", "nearest"] = "bilinear", test_share: float = 0.2, seed: int = 0
) -> dict[str, Samples]:
    """Scikit-learn's 1,797 handwritten digits (8x8, 16 grey levels) as float32 images (1, size, size), 10 classes.

    Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI repository. Pixels are standardised by the
    mean and deviation of the train split; both splits keep the class shares.

    Args:
        size: side of the image in pixels.
        interpolation: how 8x8 becomes size x size.
        test_share: share of the samples in the test split.
        seed: of the split.

    Returns:
        ``train`` and ``test``.

    Raises:
        BadInputError: a size below 8, an unknown interpolation, or a share outside (0, 1).
    """
    if size < 8 or interpolation not in ("bilinear", "nearest"):
        raise BadInputError(
            f"size = {size}, interpolation = {interpolation!r}: expected at least 8, and bilinear or nearest"
        )
    if not 0.0 < test_share < 1.0:
        raise BadInputError(f"test_share = {test_share}, must be between 0 and 1")
    from sklearn.datasets import load_digits  # more than a second, only for those who ask for these data

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)  # (N, 1, 8, 8)
    images = F.interpolate(images, (size, size), mode=interpolation)
    labels = torch.from_numpy(bunch.target).long()
    order = np.arange(len(labels), dtype=np.int64)
    chosen = stratified(order, labels.numpy(), round(test_share * len(labels)), np.random.default_rng(seed))
    remaining = np.setdiff1d(order, chosen)
    images = (images - images[remaining].mean()) / images[remaining].std()
    return {name: TensorDataset(images[i], labels[i]) for name, i in (("train", remaining), ("test", chosen))}


def text(context: int = 64, search_share: float = 0.1, test_share: float = 0.1) -> dict[str, Samples]:
    """The Python manual that ships with Python (``pydoc_data.topics``), as byte windows for a language model.

    A sample is ``context`` bytes as int64 and the ``context`` bytes that follow each of them. The splits are contiguous
    regions of the text and windows do not overlap. A paragraph that appears under several topics is kept once, or a
    fifth of the text would stand on both sides of a cut. The text differs a little between Python versions.

    Args:
        context: bytes in a window.
        search_share: share of the text, the last but one region.
        test_share: share of the text, the last region.

    Returns:
        ``train``, ``search`` and ``test``.

    Raises:
        BadInputError: shares outside (0, 1) or leaving no train split, or a context longer than a region.
    """
    if min(search_share, test_share) <= 0.0 or search_share + test_share >= 1.0:
        raise BadInputError(
            f"search_share = {search_share}, test_share = {test_share}: "
            "both must be above 0 and leave a share for the train split"
        )
    from pydoc_data.topics import topics  # half a megabyte of text, read only when asked for

    paragraphs = [part for name in sorted(topics) for part in re.split(r"\n{2,}", topics[name].strip("\n"))]
    once = "\n\n".join(dict.fromkeys(paragraphs))
    data = np.frombuffer(once.encode(), dtype=np.uint8)
    cuts = [round(len(data) * share) for share in (1.0 - search_share - test_share, 1.0 - test_share)]
    regions = np.split(data, cuts)
    return {name: _windows(region, context) for name, region in zip(("train", "search", "test"), regions, strict=True)}


def _windows(region: np.ndarray[tuple[int], np.dtype[np.uint8]], context: int) -> TensorDataset:
    """Cut N = (bytes - 1) // context windows: inputs (N, context) and targets one byte later, both int64."""
    count = (len(region) - 1) // context if context >= 1 else 0
    if count < 1:
        raise BadInputError(f"context = {context}, must be from 1 to {len(region) - 1}, the bytes of a split")
    tokens = torch.from_numpy(region[: count * context + 1].astype(np.int64))
    return TensorDataset(tokens[:-1].view(count, context), tokens[1:].view(count, context))


DATASETS: Final = {"digits": digits, "text": text}
