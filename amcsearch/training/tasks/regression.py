"""Regression: outputs are numbers, and targets of the same shape are the numbers they should be.

A mean over B samples of D numbers each; r = output - target:

    mse    mean r²                         l1   mean |r|
    huber  mean r²/2 where |r| <= delta, else delta·(|r| - delta/2)     (Huber 1964, Ann. Math. Statist. 35:73)

Targets (N,) fit outputs (N, 1). Labels for the true Fisher come from the density p(r) ~ exp(-loss of one sample): a
normal of variance D/2 (mse), a Laplace of scale D (l1), or Huber's density; so the Fisher information of ``mse`` is the
Gauss-Newton matrix of the loss itself.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.core import METRICS, BadInputError, Metric
from amcsearch.graph import Tree
from amcsearch.training.task import Guess, Meter, Task, judged_tensor, others_apart
from amcsearch.training.tasks.meters import Mean, TorchMeter

if TYPE_CHECKING:
    import torchmetrics

__all__ = ["Regression", "aligned", "regression"]

Loss = Literal["mse", "l1", "huber"]
MARGIN: Final = 0.05  # a network that explains less than this share of the variance guesses


@dataclass(frozen=True)
class Regression(Task):
    """Numbers to predict, of the shape of the outputs.

    ``delta`` is Huber's, in the targets' unit. Training divides the loss by ``scale``: ``fitted`` takes the loss of
    guessing the mean, so that a learning rate means the same for prices as for shares of one.

    Raises:
        BadInputError: a delta that is not positive.
    """

    metric: Metric = METRICS["mse"]
    loss_name: Loss = "mse"
    delta: float = 1.0
    output: str | None = None
    scale: float = 1.0
    is_reference = True

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < math.inf:
            raise BadInputError(f"task.params.delta = {self.delta}, must be above 0")

    def loss(self, output: Tree, targets: Tree) -> Tensor:
        """See ``Task.loss``."""
        predicted, wanted = self._pair(output, targets)
        return self._distance(predicted, wanted)

    def _distance(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        if self.loss_name == "l1":
            return F.l1_loss(predicted, wanted)
        return (
            F.mse_loss(predicted, wanted)
            if self.loss_name == "mse"
            else F.huber_loss(predicted, wanted, delta=self.delta)
        )

    def training_loss(self, output: Tree, targets: Tree, label_smoothing: float = 0.0) -> Tensor:
        """The loss as a share of that of guessing the mean; raises as ``Task.training_loss``."""
        return super().training_loss(output, targets, label_smoothing) / self.scale

    def fitted(self, targets: Tree) -> "Regression":
        """Take the loss of guessing the mean of ``targets`` as the scale; 1 where all targets are the same."""
        guess = self.guess(targets, targets)
        return replace(self, scale=guess.loss if guess is not None and guess.loss > 0.0 else 1.0)

    def distillation(self, student: Tree, teacher: Tree, targets: Tree, temperature: float, alpha: float) -> Tensor:
        """(1 - a)·loss to the targets + a·loss to the teacher's outputs, divided by ``scale``; no temperature."""
        del temperature
        predicted, wanted = self._pair(student, targets)
        guide = judged_tensor(teacher, self.output)
        judged = (1.0 - alpha) * self._distance(predicted, wanted) + alpha * self._distance(predicted, guide)
        return judged / self.scale + alpha * others_apart(student, teacher, self.output)

    def meter(self) -> Meter:
        """See ``Task.meter``."""
        if self.metric.name == "r2":
            return TorchMeter(_r2, self._flat)
        return Mean(self._errors, root=self.metric.name == "rmse")

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:
        """See ``Task.sample_values``."""
        if self.metric.name not in ("mse", "mae"):
            return None
        errors, _ = self._errors(output, targets)
        return errors.reshape(len(errors), -1).mean(1)

    def draw(self, output: Tree, targets: Tree, generator: torch.Generator) -> Tensor:
        """See ``Task.draw``."""
        predicted, _ = self._pair(output, targets)
        width = predicted[0].numel()
        noise = _noise(self.loss_name, width, self.delta, tuple(predicted.shape), generator)
        drawn = predicted.detach() + noise.to(predicted)
        return drawn.reshape(targets.shape)

    def guess(self, output: Tree, targets: Tree) -> Guess | None:
        """The mean of the targets, said of every sample."""
        del output
        wanted = targets.double()
        mean = wanted.mean(0, keepdim=True).expand_as(wanted)
        value = {"r2": 0.0}.get(self.metric.name)
        if value is None:
            errors = _error(mean, wanted, self.metric.name)
            value = float(errors.mean().sqrt() if self.metric.name == "rmse" else errors.mean())
        margin = MARGIN * (value or 1.0)
        words = f"the mean of the targets has {self.metric.text(value)}"
        return Guess(float(self._distance(mean, wanted)), value, margin, words)

    def _errors(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        predicted, wanted = self._pair(output, targets)
        errors = _error(predicted.double(), wanted.double(), self.metric.name)
        return errors, torch.ones_like(errors, dtype=torch.bool)

    def _flat(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        predicted, wanted = self._pair(output, targets)
        flat = (predicted.double().reshape(len(predicted), -1), wanted.double().reshape(len(wanted), -1))
        return flat if flat[0].shape[1] > 1 else (flat[0].squeeze(1), flat[1].squeeze(1))

    def _pair(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        return aligned(judged_tensor(output, self.output), targets, "regression")


def _error(predicted: Tensor, wanted: Tensor, metric: str) -> Tensor:
    return (predicted - wanted).abs() if metric == "mae" else (predicted - wanted).square()


def _r2(predicted: Tensor, wanted: Tensor) -> "torchmetrics.Metric":
    from torchmetrics.regression import R2Score

    del predicted, wanted
    return R2Score()


def aligned(output: Tensor, targets: Tree, task: str) -> tuple[Tensor, Tensor]:
    """Return outputs (N, …) and targets of the same shape and type.

    One of them may have an axis of one that the other lacks, the last or the one after the samples: (N, …) fit
    (N, …, 1) and (N, 1, …).

    Raises:
        BadInputError: other shapes, or targets that are no tensor of numbers.
    """
    if not isinstance(targets, Tensor) or targets.is_complex():
        raise BadInputError(
            f"targets are a {type(targets).__name__}, {task} expects a tensor of numbers; name the one that is meant "
            "by data.target, or judge them by a task of your own"
        )
    fits = targets.shape == output.shape or any(
        shape in _without_one(other)
        for shape, other in ((tuple(targets.shape), output), (tuple(output.shape), targets))
    )
    if not fits:
        raise BadInputError(
            f"outputs of shape {tuple(output.shape)} do not fit targets of shape {tuple(targets.shape)}; "
            f"{task} expects targets of the outputs' shape: reshape one of them, or name the task that fits "
            "(two or more logits of one class each: task: {name: classification})"
        )
    return output, targets.reshape(output.shape).to(output.dtype)


def _without_one(tensor: Tensor) -> list[tuple[int, ...]]:
    """Shapes without an axis of one: the last, and the one after the samples."""
    shape = tuple(tensor.shape)
    axes = [axis for axis in {1, len(shape) - 1} if 0 < axis < len(shape) and shape[axis] == 1]
    return [(*shape[:axis], *shape[axis + 1 :]) for axis in axes]


def _noise(loss: Loss, width: int, delta: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw residuals r from p(r) ~ exp(-loss(r) / width), float64."""
    if loss == "mse":
        return math.sqrt(width / 2.0) * torch.randn(shape, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, shape, generator=generator).double() * 2.0 - 1.0
    tail = torch.empty(shape, dtype=torch.float64).exponential_(1.0, generator=generator)
    if loss == "l1":
        return sign * width * tail
    # Huber: a normal of variance ``width`` within delta, beyond it an exponential of rate delta / width
    edge = math.erf(delta / math.sqrt(2.0 * width))
    core = math.sqrt(2.0 * math.pi * width) * edge
    tails = 2.0 * width / delta * math.exp(-delta * delta / (2.0 * width))
    chance, place = torch.rand((2, *shape), generator=generator, dtype=torch.float64)
    within = math.sqrt(2.0 * width) * torch.erfinv(place * edge)
    return sign * torch.where(chance * (core + tails) < core, within, delta + width / delta * tail)


def regression(
    loss: Loss = "mse",
    metric: Literal["mse", "mae", "rmse", "r2"] = "mse",
    delta: float = 1.0,
    unit: str = "",
    output: str | None = None,
) -> Regression:
    """The task of predicting numbers.

    Args:
        loss: ``mse``, ``l1`` or ``huber``.
        metric: ``mse``, ``mae``, ``rmse``, or ``r2``, the share of variance explained (the mean over outputs).
        delta: where Huber's loss goes over from a square to a line, in the targets' unit.
        unit: of the targets, for reports.
        output: path of the output that is judged; null is the first tensor.

    Raises:
        BadInputError: the unit ``%``, which marks shares.
    """
    if unit == "%":
        raise BadInputError("task.params.unit = '%', which marks shares of at most 1, printed times 100; write percent")
    of_metric = {"mse": f"{unit}²" if unit else "", "r2": ""}.get(metric, unit)
    return Regression(replace(METRICS[metric], unit=of_metric), loss, delta, output)
