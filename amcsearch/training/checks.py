"""Checks that stop unusable data before any training or search begins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.training.losses import IGNORED_TARGET
from amcsearch.training.splits import SPLITS, DataSplits, stacked

__all__ = ["check_samples", "check_splits"]


def check_samples(
    inputs: Tensor, targets: Tensor, *, name: str, input_shape: Sequence[int] | None, num_classes: int | None
) -> None:
    """Check stacked samples of the split ``name``: inputs (N, …), targets (N,) or (N, T) of class ids.

    ``input_shape`` is that of one input, without N; None for either bound leaves it unchecked. A target of -100 marks a
    position without one. Targets (N, …, num_classes) of floating point are vectors to match, and must be finite.

    Raises:
        BadInputError: no samples, another shape, a value that is not finite, or a target out of range.
    """
    where = f"data: the {name} split"
    if len(inputs) == 0:
        raise BadInputError(f"{where} has no samples, expected at least 1")
    if input_shape is not None and tuple(inputs.shape[1:]) != tuple(input_shape):
        raise BadInputError(
            f"{where} gives inputs of shape {tuple(inputs.shape[1:])}, expected {tuple(input_shape)}; "
            "set model.input_shape or change the data factory"
        )
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        first = int((~torch.isfinite(inputs)).flatten(1).any(1).nonzero()[0])
        raise BadInputError(f"{where} holds NaN or infinity (first in sample {first}), expected finite inputs")
    if targets.is_floating_point() and targets.ndim > 1:
        _check_vectors(targets, where, num_classes)
        return
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim not in (1, 2):
        raise BadInputError(
            f"{where} gives targets of {targets.dtype} and shape {tuple(targets.shape[1:])}, "
            "expected class ids (one integer, or one a position), or vectors to match"
        )
    known = targets[targets != IGNORED_TARGET]
    if num_classes is not None and known.numel() and not 0 <= int(known.min()) <= int(known.max()) < num_classes:
        raise BadInputError(
            f"{where} has targets from {int(known.min())} to {int(known.max())}, expected 0 to {num_classes - 1}: "
            f"the network gives {num_classes} classes"
        )


def _check_vectors(targets: Tensor, where: str, width: int | None) -> None:
    if width is not None and targets.shape[-1] != width:
        raise BadInputError(
            f"{where} gives vectors of {targets.shape[-1]} numbers to match, the network gives {width} a sample"
        )
    if not bool(torch.isfinite(targets).all()):
        first = int((~torch.isfinite(targets)).flatten(1).any(1).nonzero()[0])
        raise BadInputError(f"{where} has targets with NaN or infinity (first in sample {first}), expected finite ones")


def check_splits(
    splits: DataSplits, *, input_shape: Sequence[int] | None, num_classes: int | None, limit: int | None = 1024
) -> None:
    """Run ``check_samples`` on the first ``limit`` samples of every split; None checks all.

    Raises:
        BadInputError: as ``fetch`` and ``check_samples``.
    """
    for name in SPLITS:
        inputs, targets = stacked(getattr(splits, name), limit)
        check_samples(inputs, targets, name=name, input_shape=input_shape, num_classes=num_classes)
