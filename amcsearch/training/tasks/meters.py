"""Meters: shares and means kept as sums, and metrics of torchmetrics for those that are no mean over samples.

torchmetrics: Detlefsen et al. 2022, "TorchMetrics - Measuring Reproducibility in PyTorch", JOSS 7(70):4101.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amcsearch.core import BadInputError, UserCode
from amcsearch.graph import Tree

if TYPE_CHECKING:
    import torchmetrics

__all__ = ["Mean", "Parts", "TorchMeter", "from_torchmetrics"]

Parts = Callable[[Tree, Tree], tuple[Tensor, Tensor]]
"""From outputs and targets to two tensors of one shape, or to the predictions and targets of a metric."""


class Mean:
    """Mean of values over those that are known; ``root`` takes its square root (RMSE).

    ``parts`` gives the values and whether each is known, two tensors of one shape.
    """

    def __init__(self, parts: Parts, *, root: bool = False) -> None:
        self.parts, self.root = parts, root
        self.total, self.known = 0.0, 0

    def update(self, output: Tree, targets: Tree) -> None:
        """Add a batch."""
        values, known = self.parts(output, targets)
        self.total += float(torch.where(known, values, 0.0).sum(dtype=torch.float64))
        self.known += int(known.sum())

    def value(self) -> float:
        """The mean so far.

        Raises:
            BadInputError: nothing is known.
        """
        if not self.known:
            raise BadInputError("the metric of no targets: every target is ignored, or there is no sample")
        mean = self.total / self.known
        return math.sqrt(mean) if self.root else mean


class TorchMeter:
    """A metric of torchmetrics.

    ``parts`` gives what it compares; ``make`` makes it from those of the first batch, which tell the number of classes.
    """

    def __init__(self, make: "Callable[[Tensor, Tensor], torchmetrics.Metric]", parts: Parts) -> None:
        self.make, self.parts = make, parts
        self.metric: torchmetrics.Metric | None = None

    def update(self, output: Tree, targets: Tree) -> None:
        """Add a batch."""
        predictions, wanted = self.parts(output, targets)
        if self.metric is None:
            with from_torchmetrics():
                self.metric = self.make(predictions, wanted).to(predictions.device).set_dtype(torch.float64)
        self.metric.update(predictions, wanted)

    def value(self) -> float:
        """The metric so far.

        Raises:
            BadInputError: no batch.
        """
        if self.metric is None:
            raise BadInputError("the metric of no sample; give at least 1")
        return float(self.metric.compute())


def from_torchmetrics() -> UserCode:
    """Turn an import of torchmetrics that fails into one line; a torchvision that does not fit torch breaks it."""
    return UserCode("torchmetrics; reinstall torchvision for this torch, or uninstall it, where it is named here:")
