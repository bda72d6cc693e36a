"""Losses and accuracy, as pure functions of a model's output and its targets.

Outputs are logits (N, C) with targets (N,), or (B, T, V) with targets (B, T); a target of -100 marks a position
without one (cross-entropy's own convention) and counts nowhere. Targets of the outputs' own shape (…, D), floating
point, are vectors to match: the loss is 1 - cos, and the cosine stands for the share of right predictions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from amcsearch.core import BadInputError
from amcsearch.graph import first_tensor

__all__ = ["IGNORED_TARGET", "accuracy", "correct", "distillation", "logits", "rightness", "task_loss"]

IGNORED_TARGET: Final = -100

Output = Tensor | Sequence[Any] | Mapping[str, Any]


def logits(output: Output) -> Tensor:
    """Return the first float tensor of a model's output: a tensor, a tuple, or a mapping.

    Raises:
        BadInputError: there is none.
    """
    return first_tensor(output)


def task_loss(output: Output, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats, a scalar; (N, C) against (N,), or (B, T, V) against (B, T); 0 of no target at all.

    Against vectors, (…, D) both, 1 minus the mean cosine; labels to smooth there are none.

    Raises:
        BadInputError: shapes that do not fit.
    """
    if target.is_floating_point():
        return 1.0 - _cosines(output, target).mean()
    scores, flat = _flat(logits(output), target)
    if bool((flat == IGNORED_TARGET).all()):  # a batch of a data set where some targets are ignored
        return 0.0 * scores.sum()
    return F.cross_entropy(scores, flat, label_smoothing=label_smoothing, ignore_index=IGNORED_TARGET)


def rightness(output: Output, target: Tensor) -> tuple[Tensor, Tensor]:
    """How right each prediction is, and whether it has a target: two tensors, (…,) as labels are, or vectors without D.

    1 or 0 of a label, several logits sharing the maximum counting as the first, and a NaN among the logits as wrong;
    the cosine of a vector, NaN where the vector has one.

    Raises:
        BadInputError: shapes that do not fit.
    """
    if target.is_floating_point():
        cosines = _cosines(output, target)
        return cosines, torch.ones_like(cosines, dtype=torch.bool)
    scores, flat = _flat(logits(output), target)
    known = flat != IGNORED_TARGET
    right = (scores.argmax(-1) == flat) & known & ~scores.isnan().any(-1)
    return right.reshape(target.shape).double(), known.reshape(target.shape)


def correct(output: Output, target: Tensor) -> tuple[float, int]:
    """Add up how right predictions are, and count the targets.

    Raises:
        BadInputError: as ``rightness``.
    """
    right, known = rightness(output, target)
    return float(right.sum(dtype=torch.float64)), int(known.sum())


def accuracy(output: Output, target: Tensor) -> float:
    """Share of right predictions, in [0, 1]; of vectors the mean cosine, in [-1, 1].

    Raises:
        BadInputError: shapes that do not fit, or no target at all.
    """
    right, count = correct(output, target)
    if not count:
        raise BadInputError("accuracy of no targets: every target is -100 or there is no sample")
    return right / count


def distillation(student: Output, teacher: Output, target: Tensor, temperature: float, alpha: float) -> Tensor:
    """Cross-entropy on the targets mixed with the teacher's softened distribution, a scalar in nats.

    (1 - a)·CE(y, z_s) + a·T²·KL(softmax(z_t / T) ‖ softmax(z_s / T)), the divergence summed over classes and averaged
    over samples (positions of a sequence are samples). T² keeps the gradient's size independent of T. Hinton, Vinyals &
    Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Departures: positions without a target
    are left out of both terms; where vectors are to be matched both terms are 1 - cos, and T has no part.

    Raises:
        BadInputError: shapes that do not fit.
    """
    if target.is_floating_point():
        return (1.0 - alpha) * task_loss(student, target) + alpha * task_loss(student, logits(teacher))
    scores, flat = _flat(logits(student), target)
    guide, _ = _flat(logits(teacher), target)
    if scores.shape != guide.shape:
        raise BadInputError(f"distillation: student logits {tuple(scores.shape)}, teacher {tuple(guide.shape)}")
    known = flat != IGNORED_TARGET
    if not bool(known.any()):
        return 0.0 * scores.sum()
    return distilled(scores[known], guide[known], flat[known], temperature, alpha)


def distilled(scores: Tensor, guide: Tensor, ids: Tensor, temperature: float, alpha: float) -> Tensor:
    """As ``distillation``, of logits (P, C) of student and teacher and class ids (P,), all of them known."""
    log_student = F.log_softmax(scores / temperature, dim=-1)
    log_teacher = F.log_softmax(guide / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    soft = alpha * temperature**2 * divergence
    return soft if alpha == 1.0 else (1.0 - alpha) * F.cross_entropy(scores, ids) + soft


def _cosines(output: Output, target: Tensor) -> Tensor:
    """(…, D) and (…, D) → (…,)."""
    vectors = logits(output)
    if vectors.ndim < 2 or vectors.shape != target.shape:
        raise BadInputError(
            f"outputs of shape {tuple(vectors.shape)} do not fit targets of shape {tuple(target.shape)}; "
            "vectors are matched with vectors of the same shape"
        )
    return F.cosine_similarity(vectors, target, dim=-1)


def _flat(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(…, C) and (…) → (N, C) and (N,)."""
    if scores.ndim < 2 or scores.shape[:-1] != target.shape:
        raise BadInputError(
            f"logits of shape {tuple(scores.shape)} do not fit targets of shape {tuple(target.shape)}; "
            "expected (N, C) with (N,), or (B, T, V) with (B, T)"
        )
    return scores.flatten(0, -2), target.flatten()
