"""The task of a network: what its outputs are judged by, in training and in every evaluation.

A task says how a batch goes through the model, what the loss is, and what the metric is with its unit and direction.
Nothing else knows of classes, labels or boxes. Outputs and targets are trees (see ``graph.batch``): a task of one's own
gets them as the model and the data set give them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import Tensor

from amcsearch.core import BadInputError, Metric
from amcsearch.graph import Tree, first_tensor, map_tensors, tensors_of_tree

__all__ = ["Guess", "Meter", "Task", "judged_tensor", "others_apart"]

MOST_SHARE: Final = 1.0 + 1e-6  # with rounding


class Meter(Protocol):
    """Collects batches and gives the value of a metric over all of them."""

    def update(self, output: Any, targets: Any, /) -> None:
        """Take up what a model gave for a batch and the targets of the batch."""

    def value(self) -> float:
        """The metric over all batches taken up so far, in its own unit."""


@dataclass(frozen=True)
class Guess:
    """What a network that always says the same comes to: its loss, its metric, and in words what it says.

    A metric within ``margin`` of it is chance.
    """

    loss: float
    metric: float
    margin: float
    words: str


class Task(ABC):
    """What good means for a network.

    Outputs are what the model returns and targets what the data set holds, a batch of each. A subclass defines
    ``metric``, ``loss`` and ``meter``; the other methods have defaults, and those that a task cannot serve raise a
    ``BadInputError`` that says so.
    """

    output: str | None = None
    """Path of the output that is judged (``logits``, ``heads.scores``, ``0``); None is the first tensor."""

    is_reference: ClassVar[bool] = False
    """Whether targets may be a model's own outputs (``data.targets: dense``)."""

    is_argmax: ClassVar[bool] = False
    """Whether the prediction is the largest value along the last axis of the outputs."""

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """The metric that reports, rewards and tolerances speak of."""

    @abstractmethod
    def loss(self, output: Tree, targets: Tree) -> Tensor:
        """The mean loss of a batch, a scalar that can be differentiated.

        Raises:
            BadInputError: outputs that do not fit the targets.
        """

    def __call__(self, output: Tree, targets: Tree) -> Tensor:
        """As ``loss``: a task is the loss function that criteria and selectors are given."""
        return self.loss(output, targets)

    @abstractmethod
    def meter(self) -> Meter:
        """A new meter of the metric."""

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:  # noqa: ARG002 (the default looks at nothing)
        """Value of the metric of every sample, (N,) float64, NaN of a sample without a target.

        None where the metric is no mean over samples (mIoU, F1, R², perplexity).
        """
        return None

    def count(self, targets: Tree, size: int) -> int:  # noqa: ARG002 (as above)
        """How many targets the loss of a batch of ``size`` samples is the mean of; 0 where there are none."""
        return size

    def training_loss(self, output: Tree, targets: Tree, label_smoothing: float = 0.0) -> Tensor:
        """The loss to train by without a teacher.

        Raises:
            BadInputError: label smoothing where there are no labels to smooth.
        """
        if label_smoothing:
            raise BadInputError(
                f"label_smoothing = {label_smoothing:g}: {type(self).__name__} has no labels to smooth; set it to 0"
            )
        return self.loss(output, targets)

    def distillation(self, student: Tree, teacher: Tree, targets: Tree, temperature: float, alpha: float) -> Tensor:
        """The loss to train by with a teacher: (1 - a)·loss + a·(how far outputs are from the teacher's).

        By default the distance is the mean over outputs of |s - t|² / |t|²; ``temperature`` has no part in it.
        """
        del temperature
        soft = alpha * outputs_apart(student, teacher)
        return soft if alpha == 1.0 else (1.0 - alpha) * self.loss(student, targets) + soft

    def draw(self, output: Tree, targets: Tree, generator: torch.Generator) -> Tree:
        """Targets drawn from the model's own prediction, of the shape of ``targets`` (for the true Fisher).

        Raises:
            BadInputError: the loss is that of no distribution that can be drawn from.
        """
        del output, targets, generator
        raise BadInputError(
            f"{type(self).__name__} draws no targets from the model's prediction, which true_fisher asks for; "
            "define Task.draw, or choose another selection.criterion"
        )

    def labels(self, targets: Tree) -> Tensor | None:  # noqa: ARG002 (as above)
        """Class ids (N,) int64 of a batch, by which samples are spread evenly; None where there are no classes."""
        return None

    def guess(self, output: Tree, targets: Tree) -> Guess | None:  # noqa: ARG002 (as above)
        """What guessing comes to on these targets; ``output`` is of one batch. None where that is not known."""
        return None

    def doubt(self, output: Tree) -> str | None:  # noqa: ARG002 (as above)
        """What is doubtful about outputs that can be judged, in words, with the cure; None where nothing is."""
        return None

    def fitted(self, targets: Tree) -> "Task":  # noqa: ARG002 (as above)
        """The task as training on such targets needs it, so that learning rates mean the same whatever their unit."""
        return self

    def dense_targets(self, output: Tree) -> Tensor:
        """What ``data.targets: dense`` puts in place of the targets: the output that is judged."""
        return judged_tensor(output, self.output)

    def check(self, output: Tree, targets: Tree) -> None:
        """Refuse outputs and targets that do not fit each other, by the loss and the metric of a batch.

        Raises:
            BadInputError: as ``loss`` and the meter, a loss or metric that is no number, or a loss without a gradient.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            loss = self.loss(map_tensors(output, _with_gradient), map_tensors(targets, torch.clone))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
            raise BadInputError(f"the loss is of {shape}, must be a tensor of one number; take the mean over the batch")
        if not loss.requires_grad:
            raise BadInputError(
                "the loss has no gradient, by which channels are ranked and networks trained; compute it from the "
                "outputs by operations of torch, without .detach(), .item(), .numpy(), argmax or comparisons"
            )
        meter = self.meter()
        meter.update(output, targets)
        value = meter.value()
        if not isinstance(value, int | float):
            raise BadInputError(f"metric {self.metric.name} is a {type(value).__name__}, must be a float")
        if math.isnan(value):
            raise BadInputError(
                f"metric {self.metric.name} is NaN for these samples, must be a number; look at their targets"
            )
        if self.metric.is_share and abs(value) > MOST_SHARE:
            raise BadInputError(
                f"metric {self.metric.name} is {value:.4g}, and its unit % marks a share of at most 1, printed times "
                "100; divide it by 100, or write its unit as percent"
            )


def _with_gradient(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()  # outside of inference mode: one that autograd can follow
    return copied.requires_grad_() if tensor.is_floating_point() or tensor.is_complex() else copied


def judged_tensor(output: Tree, path: str | None) -> Tensor:
    """Return the output of that path, or the first floating-point tensor for None.

    Raises:
        BadInputError: there is none; names those there are.
    """
    if path is None:
        return first_tensor(output)
    tensors = dict(tensors_of_tree(output))
    if path not in tensors:
        there = ", ".join(map(repr, tensors)) or "none"
        raise BadInputError(f"output = {path!r} is no output of the model; its outputs are {there}")
    return tensors[path]


def outputs_apart(student: Tree, teacher: Tree) -> Tensor:
    """Mean over the floating-point outputs of |s - t|² / |t|², a scalar.

    Outputs that the teacher, in eval mode, does not have are left out.

    Raises:
        BadInputError: no output of the same name and shape.
    """
    terms = _distances(student, teacher)
    if not terms:
        raise BadInputError("distillation: student and teacher have no output of one name and shape in common")
    return torch.stack(list(terms.values())).mean()


def others_apart(student: Tree, teacher: Tree, path: str | None) -> Tensor:
    """As ``outputs_apart``, of the outputs beside the one that a task judges; 0 where there are none."""
    judged = judged_tensor(student, path)
    tensors = dict(tensors_of_tree(student))
    terms = [term for name, term in _distances(student, teacher).items() if tensors[name] is not judged]
    return torch.stack(terms).mean() if terms else judged.new_zeros(())


def _distances(student: Tree, teacher: Tree) -> dict[str, Tensor]:
    guides = {path: tensor for path, tensor in tensors_of_tree(teacher) if tensor.is_floating_point()}
    pairs = {path: (tensor, guides[path]) for path, tensor in tensors_of_tree(student) if path in guides}
    return {
        path: (s - t).square().sum() / t.square().sum().clamp_min(1e-12)
        for path, (s, t) in pairs.items()
        if s.shape == t.shape
    }
