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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from amcsearch.core import BadInputError
from amcsearch.graph import Batch, Tree, evaluating
from amcsearch.runtime.signature import Signature, call_of, calls, filled, joined, outputs_of, sample_axis

__all__ = ["OUTPUTS", "PREDICTIONS", "Agreement", "Compared", "InBatches", "compare"]

OUTPUTS: Final = 1e-3
PREDICTIONS: Final = 0.01
BATCH: Final = 256
_AT_ONCE: Final = 2**22  # numbers that are compared at a time


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two networks agree.

    ``max_abs`` is the largest difference and ``relative`` the largest as a share of its sample's scale, both infinite
    where one side alone is NaN or infinite, or shapes differ. ``beyond`` counts the samples whose difference is above
    ``OUTPUTS``, ``not_finite`` those for which the second network gives NaN or infinity. ``changed`` counts those of
    ``predictions`` that differ: the largest along the last axis of the first output of floating point, and every number
    of outputs of integers. ``output`` is the path of the output that differs most, empty where there is one.
    """

    samples: int
    max_abs: float
    relative: float
    beyond: int
    not_finite: int
    changed: int
    predictions: int
    output: str = ""

    @property
    def problem(self) -> str | None:
        """What is beyond its bound, in words; None where nothing is."""
        where = f" (output {self.output})" if self.output else ""
        if self.not_finite:
            return f"gives NaN or infinity for {self.not_finite} of {self.samples} samples"
        if not self.relative <= OUTPUTS:
            return (
                f"differs by {self.relative:.3g} of the outputs' scale{where}, at most {OUTPUTS:g} is allowed, "
                f"for {self.beyond} of {self.samples} samples"
            )
        if self.changed > max(1.0, PREDICTIONS * self.predictions):
            return f"changes {self.changed} of {self.predictions} predictions, at most {PREDICTIONS:.0%} is allowed"
        return None


class Compared(nn.Module):
    """Gives the outputs of ``candidate`` and notes how they agree with those of ``reference``, every tensor of them.

    What is kept of a sample is four numbers an output, so any number of samples can be compared. ``labels`` false says
    that the last axis is a vector, not the logits of classes: it has no predictions.
    """

    def __init__(self, reference: nn.Module, candidate: nn.Module, *, labels: bool = True) -> None:
        super().__init__()
        self.reference, self.candidate, self.labels = reference, candidate, labels
        self._rows: dict[str, list[Tensor]] = {}  # (N, 4) float64 each: difference, scale, whether not finite, changes
        self._predictions = 0

    def forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Samples → the candidate's outputs.

        Raises:
            BadInputError: a network that gives no tensor.
        """
        whole = call_of(args, kwargs)
        ours = outputs_of(whole.through(self.reference), type(self.reference).__name__)
        output = whole.through(self.candidate)
        theirs = [tensor for _, tensor in outputs_of(output, type(self.candidate).__name__)]
        logits = next((path for path, tensor in ours if tensor.is_floating_point() and tensor.ndim > 1), None)
        for index, (path, tensor) in enumerate(ours):
            has_logits = self.labels and path == logits
            self._predictions += _predictions(tensor, has_logits)
            other = theirs[index] if len(theirs) == len(ours) else tensor.new_empty(0)
            self._rows.setdefault(path, []).append(_compared(tensor, other, whole.size, has_logits))
        return output

    def agreement(self) -> Agreement:
        """Return how all samples so far agree.

        Raises:
            BadInputError: there was none.
        """
        if not self._rows:
            raise BadInputError("0 samples were compared, at least 1 is needed; give the split samples")
        outputs = {path: torch.cat(rows) for path, rows in self._rows.items()}
        relative = torch.stack([_relative(rows) for rows in outputs.values()])  # (outputs, N)
        rows = torch.stack(list(outputs.values()))  # (outputs, N, 4)
        worst = list(outputs)[int(relative.amax(1).argmax())]
        return Agreement(
            samples=rows.shape[1],
            max_abs=float(rows[..., 0].max()),
            relative=float(relative.max()),
            beyond=int((relative > OUTPUTS).any(0).sum()),
            not_finite=int((rows[..., 2] > 0).any(0).sum()),
            changed=int(rows[..., 3].sum()),
            predictions=self._predictions,
            output=worst if len(outputs) > 1 else "",
        )


def _relative(rows: Tensor) -> Tensor:
    """Difference of each sample as a share of its scale: (N, 4) → (N,)."""
    difference, scale, _, _ = rows.unbind(1)
    known = scale[scale.isfinite()]
    scale = torch.maximum(scale, known.median()) if len(known) else scale
    return torch.where(difference == 0.0, 0.0, difference / scale).nan_to_num(nan=math.inf, posinf=math.inf)


class InBatches(nn.Module):
    """A network that is run on so many samples at a time, None for all at once.

    The last call is filled up with samples from the beginning, as that of an ONNX file is. ``signature`` says where
    outputs have their samples; without one, that is the first axis that is as long as a call.
    """

    def __init__(self, network: nn.Module, batch: int | None, signature: Signature | None = None) -> None:
        super().__init__()
        self.network, self.batch, self.signature = network, batch, signature

    def forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Samples → the network's outputs.

        Raises:
            BadInputError: a network that gives no tensor.
        """
        whole = call_of(args, kwargs)
        size = self.batch or whole.size
        outputs = [call.through(self.network) for call in calls(whole, size)]
        tensors = [[tensor for _, tensor in outputs_of(output, type(self.network).__name__)] for output in outputs]
        axes = self.signature.axes if self.signature else [sample_axis(tensor, size) for tensor in tensors[0]]
        return filled(outputs[0], joined(tensors, axes, whole.size))


def compare(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Tensor | Iterable[Batch],
    batch_size: int = BATCH,
    *,
    labels: bool = True,
) -> Agreement:
    """Compare two networks in eval mode on samples: batches of them, or a tensor (N, …), ``batch_size`` at a time.

    Raises:
        BadInputError: no inputs, or a network that cannot run on them.
    """
    compared = Compared(reference, candidate, labels=labels)
    batches = map(Batch.of, torch.split(inputs, batch_size)) if isinstance(inputs, Tensor) else inputs
    with evaluating(compared), torch.inference_mode():
        for batch in batches if not isinstance(inputs, Tensor) or len(inputs) else ():
            batch.through(compared)
    return compared.agreement()


def _predictions(output: Tensor, has_logits: bool) -> int:
    """How many predictions an output holds."""
    if not output.is_floating_point():
        return output.numel()
    return output[..., 0].numel() if has_logits else 0


def _compared(ours: Tensor, theirs: Tensor, count: int, has_logits: bool) -> Tensor:
    """(count, 4): largest difference, scale, whether the second is not finite, and how many predictions change.

    What has no axis of samples counts for each of them, its predictions once; it is left out where the second network
    was run in more calls, for each of which it gives another.
    """
    axis = sample_axis(ours, count)
    if axis is None and theirs.ndim == ours.ndim + 1 and theirs.shape[1:] == ours.shape:
        return torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64).repeat(count, 1)
    if ours.shape != theirs.shape:
        row = torch.tensor([[math.inf, 1.0, 0.0, 0.0]], dtype=torch.float64).repeat(count, 1)
        row[0, 3] = _predictions(ours, has_logits)
        return row
    rows = 1 if axis is None else count
    a, b = ((t if axis is None else t.movedim(axis, 0)).detach().cpu() for t in (ours, theirs))
    columns = torch.zeros(rows, 4, dtype=torch.float64)
    if ours.is_floating_point() or ours.is_complex():
        columns[:, :3] = _differences(a.reshape(rows, -1), b.reshape(rows, -1))
        if has_logits:
            columns[:, 3] = (a.argmax(-1) != b.argmax(-1)).reshape(rows, -1).sum(1)
    else:
        columns[:, 3] = (a != b).reshape(rows, -1).sum(1)
    if axis is None:
        columns = columns.repeat(count, 1)
        columns[1:, 3] = 0.0
    return columns


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference, scale, and whether the second is not finite: (N, D) twice → (N, 3)."""
    if not a.numel():
        return torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).repeat(len(a), 1)
    rows = max(1, _AT_ONCE // a.shape[1])  # copies of a whole output may take many times its memory
    return torch.cat([_of_rows(*pair) for pair in zip(torch.split(a, rows), torch.split(b, rows), strict=True)])


def _of_rows(a: Tensor, b: Tensor) -> Tensor:
    a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    difference = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    return torch.stack([difference.amax(1), a.abs().amax(1), (~b.isfinite().all(1)).double()], dim=1)
