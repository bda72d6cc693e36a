"""Whether a delivered file gives the outputs of the network in memory: differences by sample, and predictions changed.

The difference of a sample is max |a - b| over its outputs, as a share of its scale: the largest |a| among its outputs,
or the median of that over all samples where it is larger, so that outputs near 0 are not held to their own size. NaN is
never equal, and an infinity is equal to itself alone.

``OUTPUTS`` bounds the difference in float32. Five reference networks in batches of 1 and 8 (ResNet-20, MobileNetV2,
VGG, ViT, language model) differ between torch and ONNX Runtime by 3e-7 to 1e-6 of their scale, and no prediction
changes; the wrong side of a branch differs by 0.1 and more. ``PREDICTIONS`` bounds the share of predictions that change
(one change always passes: two logits may be equal but for rounding).
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import evaluating, first_tensor

__all__ = ["OUTPUTS", "PREDICTIONS", "Agreement", "Compared", "InBatches", "compare"]

OUTPUTS: Final = 1e-3
PREDICTIONS: Final = 0.01
BATCH: Final = 256


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two networks agree.

    ``max_abs`` is the largest difference and ``relative`` the largest as a share of its sample's scale, both infinite
    where one side alone is NaN or infinite, or shapes differ. ``beyond`` counts the samples whose difference is above
    ``OUTPUTS``, ``not_finite`` those for which the second network gives NaN or infinity, ``changed`` those of
    ``predictions`` (the largest along the last axis) that differ.
    """

    samples: int
    max_abs: float
    relative: float
    beyond: int
    not_finite: int
    changed: int
    predictions: int

    @property
    def problem(self) -> str | None:
        """What is beyond its bound, in words; None where nothing is."""
        if self.not_finite:
            return f"gives NaN or infinity for {self.not_finite} of {self.samples} samples"
        if not self.relative <= OUTPUTS:
            return (
                f"differs by {self.relative:.3g} of the outputs' scale, at most {OUTPUTS:g} is allowed, "
                f"for {self.beyond} of {self.samples} samples"
            )
        if self.changed > max(1.0, PREDICTIONS * self.predictions):
            return f"changes {self.changed} of {self.predictions} predictions, at most {PREDICTIONS:.0%} is allowed"
        return None


class Compared(nn.Module):
    """Gives the outputs of ``candidate`` and notes how they agree with those of ``reference``.

    What is kept of a sample is four numbers, so any number of samples can be compared. ``labels`` false says that the
    last axis is a vector, not the logits of classes: it has no predictions.
    """

    def __init__(self, reference: nn.Module, candidate: nn.Module, *, labels: bool = True) -> None:
        super().__init__()
        self.reference, self.candidate, self.labels = reference, candidate, labels
        self._rows: list[Tensor] = []  # (N, 4) float64 each: difference, scale, whether not finite, changes
        self._predictions = 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) → the candidate's first float tensor (N, …)."""
        ours, theirs = first_tensor(self.reference(x)), first_tensor(self.candidate(x))
        has_logits = self.labels and ours.ndim > 1
        self._rows.append(_compared(ours, theirs, has_logits))
        self._predictions += ours[..., 0].numel() if has_logits else 0
        return theirs

    def agreement(self) -> Agreement:
        """Return how all samples so far agree.

        Raises:
            BadInputError: there was none.
        """
        if not self._rows:
            raise BadInputError("0 samples were compared, at least 1 is needed; give the split samples")
        difference, scale, not_finite, changed = torch.cat(self._rows).unbind(1)
        known = scale[scale.isfinite()]
        scale = torch.maximum(scale, known.median()) if len(known) else scale
        relative = torch.where(difference == 0.0, 0.0, difference / scale).nan_to_num(nan=math.inf, posinf=math.inf)
        return Agreement(
            samples=len(difference),
            max_abs=float(difference.max()),
            relative=float(relative.max()),
            beyond=int((relative > OUTPUTS).sum()),
            not_finite=int(not_finite.sum()),
            changed=int(changed.sum()),
            predictions=self._predictions,
        )


class InBatches(nn.Module):
    """A network that is run on so many samples at a time, None for all at once.

    The last call is filled up with samples from the beginning, as that of an ONNX file is.
    """

    def __init__(self, network: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.network, self.batch = network, batch

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) → (N, …)."""
        batch = self.batch or len(x)
        rows = torch.arange(-(-len(x) // batch) * batch) % len(x)
        return torch.cat([first_tensor(self.network(x[part])) for part in torch.split(rows, batch)])[: len(x)]


def compare(
    reference: nn.Module, candidate: nn.Module, inputs: Tensor, batch_size: int = BATCH, *, labels: bool = True
) -> Agreement:
    """Compare two networks in eval mode on ``inputs`` (N, …), ``batch_size`` at a time.

    Raises:
        BadInputError: no inputs, or a network that cannot run on them.
    """
    compared = Compared(reference, candidate, labels=labels)
    with evaluating(compared), torch.inference_mode():
        for start in range(0, len(inputs), batch_size):
            compared(inputs[start : start + batch_size])
    return compared.agreement()


def _compared(ours: Tensor, theirs: Tensor, has_logits: bool) -> Tensor:
    """(N, …) twice → (N, 4): difference, scale, whether the second is not finite, and how many predictions change."""
    count = len(ours)
    if ours.shape != theirs.shape:
        predictions = float(ours[0, ..., 0].numel()) if has_logits else 0.0
        return torch.tensor([[math.inf, 1.0, 0.0, predictions]], dtype=torch.float64).repeat(count, 1)
    a, b = (output.detach().cpu().double().reshape(count, -1) for output in (ours, theirs))
    difference = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    changed = (ours.argmax(-1) != theirs.argmax(-1)).reshape(count, -1).sum(1) if has_logits else torch.zeros(count)
    columns = (difference.amax(1), a.abs().amax(1), ~b.isfinite().all(1), changed)
    return torch.stack([column.cpu().double() for column in columns], dim=1)
