"""A task of one's own: a network of two heads that says what is in an image, and where.

It returns ``{"classes": (N, C) logits, "boxes": (N, 4)}`` for targets ``{"class": (N,), "box": (N, 4)}``. A sample is
right where its class is, and its box is off by less than ``tolerance`` at every edge. Name it in a configuration:

    task: {name: "examples/my_task.py:ClassAndBox", params: {tolerance: 0.1}}

and hold it to the promise in a test:

    class TestClassAndBox(TaskContract):
        def make(self): return ClassAndBox()
        def example(self): return TaskExample(outputs, targets, perfect_outputs, size)
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.core import Metric
from amcsearch.training import Meter, Task

Tensors = dict[str, Tensor]


class MeanOfSamples:
    """The mean of what a task gives for every sample."""

    def __init__(self, task: "ClassAndBox") -> None:
        self.task = task
        self.values: list[Tensor] = []

    def update(self, output: Tensors, targets: Tensors) -> None:
        """Add a batch."""
        self.values.append(self.task.sample_values(output, targets))

    def value(self) -> float:
        """Return the share of samples that are right so far."""
        return float(torch.cat(self.values).mean())


@dataclass(frozen=True)
class ClassAndBox(Task):
    """Cross-entropy of the class, plus ``weight`` times the smooth distance of the box."""

    weight: float = 1.0
    tolerance: float = 0.1
    metric = Metric("localised", "%")

    def loss(self, output: Tensors, targets: Tensors) -> Tensor:
        """Return the mean over samples."""
        boxes = F.smooth_l1_loss(output["boxes"], targets["box"])
        return F.cross_entropy(output["classes"], targets["class"]) + self.weight * boxes

    def sample_values(self, output: Tensors, targets: Tensors) -> Tensor:
        """Return 1.0 for every sample that is right, else 0.0: the search compares networks sample by sample."""
        near = ((output["boxes"] - targets["box"]).abs() < self.tolerance).all(1)
        return (near & (output["classes"].argmax(1) == targets["class"])).double()

    def meter(self) -> Meter:
        """Return a meter of the share of samples that are right."""
        return MeanOfSamples(self)
