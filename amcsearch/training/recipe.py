"""What a training is asked to do: its recipe, its teacher, and the learning rate of every step."""

import math
from dataclasses import dataclass
from typing import Literal

from amcsearch.core import BadInputError

__all__ = ["Distillation", "TrainingRecipe", "learning_rate_at"]


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How to train.

    ``learning_rate`` is the peak: a linear warm-up over ``warmup_epochs`` reaches it, then it stays (``constant``) or
    falls to zero along half a cosine (Loshchilov & Hutter 2017, SGDR, arXiv 1608.03983). ``sgd`` has Nesterov momentum;
    ``adamw`` takes ``momentum`` as its first beta. ``weight_decay`` applies to tensors of two or more axes, so not to
    biases and normalisation. ``label_smoothing`` is for training without a teacher. ``max_shift`` moves images at
    random by up to so many pixels.

    Raises:
        BadInputError: a value out of its bound.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    max_shift: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "learning_rate": (0.0 < self.learning_rate < math.inf, "above 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "optimizer": (self.optimizer in ("sgd", "adamw"), "sgd or adamw"),
            "momentum": (0.0 <= self.momentum < 1.0, "in [0, 1)"),
            "weight_decay": (0.0 <= self.weight_decay < math.inf, "at least 0"),
            "schedule": (self.schedule in ("cosine", "constant"), "cosine or constant"),
            "warmup_epochs": (self.warmup_epochs >= 0, "at least 0"),
            "label_smoothing": (0.0 <= self.label_smoothing < 1.0, "in [0, 1)"),
            "max_shift": (self.max_shift >= 0, "at least 0"),
        }
        for field, (holds, bound) in bounds.items():
            if not holds:
                raise BadInputError(f"{field} = {getattr(self, field)!r}, must be {bound}")


@dataclass(frozen=True, slots=True)
class Distillation:
    """Learn from a teacher: see ``losses.distillation``.

    Raises:
        BadInputError: a temperature that is not positive, or an alpha outside [0, 1].
    """

    temperature: float = 4.0
    alpha: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf or not 0.0 <= self.alpha <= 1.0:
            raise BadInputError(
                f"distillation: temperature = {self.temperature} must be above 0, alpha = {self.alpha} in [0, 1]"
            )


def learning_rate_at(step: int, steps_per_epoch: int, recipe: TrainingRecipe) -> float:
    """Learning rate of one optimiser step, counted from 0 over the whole training."""
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
