"""Tasks of yes or no: one logit (binary), or one for each of several labels that may hold together (multilabel).

Loss: mean binary cross-entropy of the logits z against targets y in [0, 1], in nats. A logit above 0 says yes. Targets
are 0 and 1 as numbers or truth values; (N,) fit logits (N, 1). Of a network that ends in a sigmoid the logits are
z = log(p / (1 - p)), p kept 1e-6 away from 0 and 1.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.core import ACCURACY, METRICS, BadInputError, Metric
from amcsearch.graph import Tree
from amcsearch.training.task import Guess, Meter, Task, judged_tensor, others_apart
from amcsearch.training.tasks.meters import Mean, TorchMeter
from amcsearch.training.tasks.regression import aligned

if TYPE_CHECKING:
    import torchmetrics

__all__ = ["Binary", "Multilabel", "binary", "multilabel"]

LEAST_CHANCE: Final = 1e-6  # float32 tells it from 0, and 1 minus it from 1
SPREAD: Final = 0.5  # of outputs from 0 to 1 that can hardly be logits: those of a random network are close together


@dataclass(frozen=True)
class YesOrNo(Task):
    """What the two have in common."""

    metric: Metric = ACCURACY
    output: str | None = None
    probabilities: bool = False
    name: ClassVar[str]

    def loss(self, output: Tree, targets: Tree) -> Tensor:
        return self.training_loss(output, targets)

    def training_loss(self, output: Tree, targets: Tree, label_smoothing: float = 0.0) -> Tensor:
        logits, wanted = self.pair(output, targets)
        return F.binary_cross_entropy_with_logits(logits, wanted * (1.0 - label_smoothing) + 0.5 * label_smoothing)

    def distillation(self, student: Tree, teacher: Tree, targets: Tree, temperature: float, alpha: float) -> Tensor:
        """(1 - a)·BCE(y, z_s) + a·T²·KL(Bernoulli(z_t / T) ‖ Bernoulli(z_s / T)), the mean over logits."""
        logits, wanted = self.pair(student, targets)
        soft, guide = logits / temperature, self.logits(teacher) / temperature
        chances = torch.sigmoid(guide)
        divergence = F.binary_cross_entropy_with_logits(soft, chances) - F.binary_cross_entropy_with_logits(
            guide, chances
        )
        judged = alpha * (temperature**2 * divergence + others_apart(student, teacher, self.output))
        return judged + (1.0 - alpha) * F.binary_cross_entropy_with_logits(logits, wanted)

    def draw(self, output: Tree, targets: Tree, generator: torch.Generator) -> Tensor:
        """Each answer drawn with the chance sigmoid(z)."""
        logits, _ = self.pair(output, targets)
        chances = torch.sigmoid(logits.detach().double().cpu())
        return torch.bernoulli(chances, generator=generator).reshape(targets.shape).to(targets)

    def meter(self) -> Meter:
        return Mean(self._right) if self.metric.name == "accuracy" else TorchMeter(self.torch_metric, self._chances)

    @abstractmethod
    def torch_metric(self, chances: Tensor, answers: Tensor) -> "torchmetrics.Metric":
        """Make the metric that is no share of right answers."""

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:
        if self.metric.name != "accuracy":
            return None
        right, _ = self._right(output, targets)
        return right.reshape(len(right), -1).mean(1)

    def guess(self, output: Tree, targets: Tree) -> Guess | None:
        """What is more frequent, said of every sample, label by label."""
        del output
        answers = targets.double().reshape(len(targets), -1)
        yes = answers.mean(0)
        loss = float(F.binary_cross_entropy(yes.expand_as(answers), answers))
        if self.metric.name != "accuracy":
            return Guess(loss, 0.0, 0.0, "saying no to all has 0")
        chance = float(torch.maximum(yes, 1.0 - yes).mean())
        margin = 2.0 * math.sqrt(chance * (1.0 - chance) / answers.numel())
        return Guess(
            loss,
            chance,
            margin,
            f"the more frequent answer, said of every sample, is right for {chance:.1%} (a logit above 0 is yes)",
        )

    def logits(self, output: Tree) -> Tensor:
        """Return the logits among the outputs."""
        judged = judged_tensor(output, self.output)
        return torch.logit(judged, LEAST_CHANCE) if self.probabilities else judged

    def check(self, output: Tree, targets: Tree) -> None:
        """As ``Task.check``; also refuses probabilities that are not said to be some.

        Raises:
            BadInputError: as ``Task.check``; outputs from 0 to 1 that are far apart, or ``probabilities`` beyond that.
        """
        judged = judged_tensor(output, self.output)
        low, high = float(judged.min()), float(judged.max())
        is_within = low >= 0.0 and high <= 1.0
        if is_within and not self.probabilities and high - low > SPREAD:
            raise BadInputError(
                f"the outputs lie from {low:g} to {high:g}, as after a sigmoid, and are taken for logits, all of which "
                "would say yes; write params: {probabilities: true}, or end the network before its sigmoid"
            )
        if self.probabilities and not is_within:
            raise BadInputError(
                f"params: {{probabilities: true}}, and the outputs lie from {low:g} to {high:g}, not from 0 to 1; "
                "leave it out for logits"
            )
        super().check(output, targets)

    def pair(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        """Return logits and answers of one shape.

        Raises:
            BadInputError: other shapes, or answers outside [0, 1].
        """
        logits, answers = aligned(self.logits(output), targets, self.name)
        low, high = answers.min(), answers.max()
        if not bool((low >= 0.0) & (high <= 1.0)):
            raise BadInputError(
                f"targets from {float(low):g} to {float(high):g}, {self.name} expects 0 and 1; mend them, or "
                "judge answers that are not known by a task of your own"
            )
        return logits, answers

    def _right(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        logits, answers = self.pair(output, targets)
        right = ((logits > 0.0) == (answers > 0.5)) & ~logits.isnan()
        return right.double(), torch.ones_like(right)

    def _chances(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        logits, answers = self.pair(output, targets)
        return torch.sigmoid(logits.double()), (answers > 0.5).long()


class Binary(YesOrNo):
    """One logit a sample, or a pixel: above 0 is yes."""

    name = "binary"

    def torch_metric(self, chances: Tensor, answers: Tensor) -> "torchmetrics.Metric":
        """See ``YesOrNo.torch_metric``."""
        from torchmetrics.classification import BinaryF1Score

        del chances, answers
        return BinaryF1Score()

    def labels(self, targets: Tree) -> Tensor | None:
        """See ``Task.labels``."""
        return (targets.reshape(-1) > 0.5).long() if targets.numel() == len(targets) else None


class Multilabel(YesOrNo):
    """One logit a label, (N, L); labels do not exclude each other."""

    name = "multilabel"

    def torch_metric(self, chances: Tensor, answers: Tensor) -> "torchmetrics.Metric":
        """See ``YesOrNo.torch_metric``."""
        from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

        del answers
        make = MultilabelF1Score if self.metric.name == "f1" else MultilabelAveragePrecision
        return make(chances.shape[1])


def binary(
    metric: Literal["accuracy", "f1"] = "accuracy", output: str | None = None, probabilities: bool = False
) -> Binary:
    """The task of one yes or no.

    Args:
        metric: ``accuracy``, or ``f1`` of yes.
        output: path of the logit among the model's outputs; null is the first tensor.
        probabilities: whether the network ends in a sigmoid; above 0.5 is yes.
    """
    return Binary(METRICS[metric], output, probabilities)


def multilabel(
    metric: Literal["f1", "accuracy", "map"] = "f1", output: str | None = None, probabilities: bool = False
) -> Multilabel:
    """The task of several labels.

    Args:
        metric: ``f1``, the mean over labels; ``accuracy``, the share of right answers; or ``map``, the mean average
            precision over labels.
        output: path of the logits among the model's outputs; null is the first tensor.
        probabilities: whether the network ends in a sigmoid; above 0.5 is yes.
    """
    return Multilabel(METRICS[metric], output, probabilities)
