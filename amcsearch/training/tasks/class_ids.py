"""Tasks whose targets are class ids: classification, language modelling, segmentation.

Logits are (N, C) with targets (N,), (B, T, V) with (B, T), or (N, C, …) with (N, …) where classes come second. Every
position is a prediction; one whose target is the ignored id counts nowhere. Loss: mean cross-entropy in nats.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.core import ACCURACY, METRICS, BadInputError, Metric
from amcsearch.graph import Tree
from amcsearch.methods import drawn_classes
from amcsearch.training.task import Guess, Meter, Task, judged_tensor, others_apart
from amcsearch.training.tasks.meters import Mean, TorchMeter

if TYPE_CHECKING:
    import torchmetrics

__all__ = ["Classification", "LanguageModelling", "Segmentation", "language_modelling", "segmentation"]

IGNORED_TARGET: Final = -100
"""Cross-entropy's own convention."""
SIGMAS: Final = 2.0  # of chance
SUMS_TO_1: Final = 1e-3


class ClassIds(Task):
    """What tasks of class ids share; ``rows`` says where the classes are."""

    output: str | None = None
    ignored: int = IGNORED_TARGET
    class_axis: ClassVar[int] = -1

    @abstractmethod
    def rows(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        """Return logits (P, C) and class ids (P,) of all positions.

        Raises:
            BadInputError: shapes that do not fit, or targets that are no class ids.
        """

    def _checked(self, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (P, C) and class ids (P,), all of them from 0 to C - 1 or ignored."""
        wrong = (ids != self.ignored) & ((ids < 0) | (ids >= logits.shape[-1]))
        if bool(wrong.any()):
            raise BadInputError(
                f"a target is {int(ids[wrong][0])}, the network gives {logits.shape[-1]} classes from 0 on; targets of "
                f"{self.ignored} are ignored; {self._cure_of(int(ids[wrong][0]))}"
            )
        return logits, ids

    def _cure_of(self, wrong: int) -> str:  # noqa: ARG002 (a task with another ignored id names it)
        return f"mend the targets, or give {self.ignored} in place of this id"

    def loss(self, output: Tree, targets: Tree) -> Tensor:
        return self.training_loss(output, targets)

    def training_loss(self, output: Tree, targets: Tree, label_smoothing: float = 0.0) -> Tensor:
        logits, ids = self.rows(output, targets)
        if bool((ids == self.ignored).all()):  # a batch of a data set where some targets are ignored
            return 0.0 * logits.sum()
        return F.cross_entropy(logits, ids, label_smoothing=label_smoothing, ignore_index=self.ignored)

    def distillation(self, student: Tree, teacher: Tree, targets: Tree, temperature: float, alpha: float) -> Tensor:
        """Cross-entropy on the targets mixed with the teacher's softened distribution, a scalar in nats.

        (1 - a)·CE(y, z_s) + a·T²·KL(softmax(z_t / T) ‖ softmax(z_s / T)), the divergence summed over classes and
        averaged over positions. T² keeps the gradient's size independent of T. Hinton, Vinyals & Dean 2015,
        "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Departures: positions without a target are
        left out of both terms, and outputs that are not judged are kept near the teacher's (``others_apart``).
        """
        logits, ids = self.rows(student, targets)
        guide, _ = self.rows(teacher, targets)
        if logits.shape != guide.shape:
            raise BadInputError(f"distillation: student logits {tuple(logits.shape)}, teacher {tuple(guide.shape)}")
        known = ids != self.ignored
        none = not bool(known.any())
        judged = 0.0 * logits.sum() if none else distilled(logits[known], guide[known], ids[known], temperature, alpha)
        return judged + alpha * others_apart(student, teacher, self.output)

    def count(self, targets: Tree, size: int) -> int:  # noqa: ARG002 (targets know better)
        return int((_ids(targets) != self.ignored).sum())

    def right(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        """Whether predictions are right, and which have a target: (N, positions) each.

        Several logits sharing the maximum count as the first; a NaN among the logits is wrong.
        """
        logits, ids = self.rows(output, targets)
        known = ids != self.ignored
        right = (logits.argmax(-1) == ids) & known & ~logits.isnan().any(-1)
        samples = len(_ids(targets))
        return right.reshape(samples, -1).double(), known.reshape(samples, -1)

    def shares_right(self, output: Tree, targets: Tree) -> Tensor:
        """Share of the predictions of each sample that are right, (N,); NaN of a sample without a target."""
        right, known = self.right(output, targets)
        return right.sum(1) / known.sum(1)

    def draw(self, output: Tree, targets: Tree, generator: torch.Generator) -> Tensor:
        """Classes drawn from softmax(logits); ignored positions stay ignored."""
        logits, ids = self.rows(output, targets)
        return drawn_classes(logits, ids, self.ignored, generator).reshape(_ids(targets).shape)

    def labels(self, targets: Tree) -> Tensor | None:
        ids = _ids(targets)
        return ids.long() if ids.ndim == 1 else None

    def doubt(self, output: Tree) -> str | None:
        """That of a softmax at the end, whose probabilities cross-entropy takes for logits."""
        logits = judged_tensor(output, self.output).movedim(self.class_axis, -1)
        sums = logits.sum(-1)
        if logits.shape[-1] < 2 or not bool((logits >= 0.0).all() & ((sums - 1.0).abs() < SUMS_TO_1).all()):
            return None
        return (
            "the outputs are probabilities that sum to 1, and cross-entropy takes logits: the accuracy is right, the "
            "losses are not, and training learns little; end the network before its softmax"
        )

    def guess(self, output: Tree, targets: Tree) -> Guess | None:
        classes = judged_tensor(output, self.output).shape[self.class_axis]
        return _one_class_in(classes, _ids(targets).numel())


def distilled(logits: Tensor, guide: Tensor, ids: Tensor, temperature: float, alpha: float) -> Tensor:
    """As ``ClassIds.distillation``, of logits (P, C) of student and teacher and class ids (P,), all of them known."""
    log_student = F.log_softmax(logits / temperature, dim=-1)
    log_teacher = F.log_softmax(guide / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    soft = alpha * temperature**2 * divergence
    return soft if alpha == 1.0 else (1.0 - alpha) * F.cross_entropy(logits, ids) + soft


def _one_class_in(classes: int, positions: int) -> Guess:
    chance = 1.0 / classes
    margin = SIGMAS * math.sqrt(chance * (1.0 - chance) / max(1, positions))
    words = f"one of {classes} classes (the network's outputs), said of every sample, is right for {chance:.1%}"
    return Guess(math.log(max(2, classes)), chance, margin, words)


def _ids(targets: Tree) -> Tensor:
    if not isinstance(targets, Tensor):
        raise BadInputError(f"targets are a {type(targets).__name__}, expected a tensor of class ids")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise BadInputError(
            f"targets are {targets.dtype}, expected class ids as integers; convert them by .long(), or choose another "
            "task for them (regression, binary, multilabel, embedding)"
        )
    return targets.long()


@dataclass(frozen=True)
class Classification(ClassIds):
    """One class a sample, or a position: logits (N, C) with class ids (N,), or (B, T, V) with (B, T).

    Args:
        output: path of the logits among the model's outputs; null is the first tensor.
    """

    output: str | None = None
    is_argmax = True

    @property
    def metric(self) -> Metric:
        """See ``Task.metric``."""
        return ACCURACY

    def rows(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        """See ``ClassIds.rows``."""
        logits, ids = judged_tensor(output, self.output), _ids(targets)
        if logits.ndim < 2 or logits.shape[:-1] != ids.shape:
            raise BadInputError(
                f"logits of shape {tuple(logits.shape)} do not fit targets of shape {tuple(ids.shape)}; "
                "expected (N, C) with (N,), or (B, T, V) with (B, T)"
            )
        return self._checked(logits.flatten(0, -2), ids.flatten())

    def meter(self) -> Meter:
        """See ``Task.meter``."""
        return Mean(self.right)

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:
        """See ``Task.sample_values``."""
        return self.shares_right(output, targets)


@dataclass(frozen=True)
class LanguageModelling(Classification):
    """The next token of every position: logits (B, T, V) with token ids (B, T), -100 where there is none."""

    metric: Metric = ACCURACY

    def meter(self) -> Meter:
        """See ``Task.meter``."""
        if self.metric is ACCURACY:
            return super().meter()
        return TorchMeter(self._perplexity, self._positions)

    def _perplexity(self, logits: Tensor, ids: Tensor) -> "torchmetrics.Metric":
        from torchmetrics.text import Perplexity

        del logits, ids
        return Perplexity(ignore_index=self.ignored)

    def _positions(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        logits, ids = self.rows(output, targets)
        return logits[None].double(), ids[None]  # (1, P, V) and (1, P)

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:
        """See ``Task.sample_values``."""
        return super().sample_values(output, targets) if self.metric is ACCURACY else None

    def guess(self, output: Tree, targets: Tree) -> Guess | None:
        """See ``Task.guess``."""
        guess = super().guess(output, targets)
        if guess is None or self.metric is ACCURACY:
            return guess
        classes = round(1.0 / guess.metric)
        return Guess(guess.loss, float(classes), 0.0, f"all of {classes} tokens being as likely has {classes}")


def language_modelling(
    metric: Literal["accuracy", "perplexity"] = "accuracy", output: str | None = None
) -> LanguageModelling:
    """The task of predicting the next token.

    Args:
        metric: ``accuracy``, the share of tokens that are right, or ``perplexity``, exp of the mean loss.
        output: path of the logits among the model's outputs; null is the first tensor.
    """
    return LanguageModelling(output, METRICS[metric])


@dataclass(frozen=True)
class Segmentation(ClassIds):
    """One class a pixel: logits (N, C, H, W) with class ids (N, H, W), or voxels (N, C, D, H, W) with (N, D, H, W)."""

    output: str | None = None
    ignored: int = IGNORED_TARGET
    metric: Metric = METRICS["miou"]
    class_axis: ClassVar[int] = 1

    def rows(self, output: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        """See ``ClassIds.rows``."""
        logits, ids = judged_tensor(output, self.output), _ids(targets)
        if logits.ndim < 3 or (len(logits), *logits.shape[2:]) != tuple(ids.shape):
            raise BadInputError(
                f"logits of shape {tuple(logits.shape)} do not fit targets of shape {tuple(ids.shape)}; "
                "segmentation expects (N, C, H, W) with (N, H, W)"
            )
        return self._checked(logits.movedim(1, -1).flatten(0, -2), ids.flatten())

    def _cure_of(self, wrong: int) -> str:
        return f"mend the targets, or leave this id out by the task's params: {{ignored: {wrong}}}"

    def meter(self) -> Meter:
        """See ``Task.meter``."""
        return Mean(self.right) if self.metric.name == "pixel_accuracy" else TorchMeter(self._jaccard, self.rows)

    def _jaccard(self, logits: Tensor, ids: Tensor) -> "torchmetrics.Metric":
        from torchmetrics.classification import MulticlassJaccardIndex

        del ids
        return MulticlassJaccardIndex(logits.shape[-1], ignore_index=self.ignored)

    def sample_values(self, output: Tree, targets: Tree) -> Tensor | None:
        """See ``Task.sample_values``."""
        return self.shares_right(output, targets) if self.metric.name == "pixel_accuracy" else None

    def guess(self, output: Tree, targets: Tree) -> Guess | None:
        """See ``Task.guess``."""
        guess = super().guess(output, targets)
        return (
            guess if guess is None or self.metric.name == "pixel_accuracy" else replace(guess, metric=0.0, margin=0.0)
        )


def segmentation(
    metric: Literal["miou", "pixel_accuracy"] = "miou", ignored: int = IGNORED_TARGET, output: str | None = None
) -> Segmentation:
    """The task of one class a pixel.

    Args:
        metric: ``miou``, the mean over classes of intersection over union, or ``pixel_accuracy``.
        ignored: class id of pixels that count nowhere, such as 255.
        output: path of the logits among the model's outputs (``out`` of torchvision's); null is the first tensor.
    """
    return Segmentation(output, ignored, METRICS[metric])
