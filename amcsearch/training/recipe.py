"""The recipe of a training: optimiser, learning rate of every step, precision, averaging, and the teacher's share."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from amcsearch.core import BadInputError

__all__ = ["Distillation", "TrainingRecipe", "learning_rate_at"]

_NO_DECAY: Final = ("vectors", "biases", "norms", "embeddings")


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How to train.

    ``learning_rate`` is the peak: a linear warm-up over ``warmup_epochs`` (fractions count) or, where they are given,
    ``warmup_steps`` reaches it, then it stays (``constant``) or falls to zero along half a cosine (Loshchilov & Hutter
    2017, SGDR, arXiv 1608.03983). ``sgd`` has Nesterov momentum; ``adamw`` (Loshchilov & Hutter 2019, arXiv 1711.05101)
    takes ``momentum`` as its first beta.

    ``weight_decay`` spares the kinds of parameters in ``no_decay``: ``vectors`` (tensors of fewer than two axes, so
    biases and scales of norms), ``biases``, ``norms`` (all of normalisation layers) and ``embeddings``.

    A step sees ``accumulation`` batches of at most ``batch_size`` samples and follows the mean of their gradients,
    shortened to the length ``clip_norm``. Networks compute in ``precision`` (autocast), weights stay float32; float16
    needs CUDA. ``ema`` is the decay of an exponential moving average of the weights and buffers, which takes
    their place at the end. ``label_smoothing`` is for training without a teacher. ``max_shift`` moves images at random
    by up to so many pixels. ``batch_norm: freeze`` leaves the running statistics of batch norms as they are and
    normalises by them, while their scales and shifts are trained; ``train`` normalises by those of each batch.

    Raises:
        BadInputError: a value out of its bound.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 64
    accumulation: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    no_decay: tuple[Literal["vectors", "biases", "norms", "embeddings"], ...] = ("vectors",)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 0
    warmup_steps: int | None = None
    clip_norm: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    ema: float | None = None
    label_smoothing: float = 0.0
    max_shift: int = 0
    batch_norm: Literal["train", "freeze"] = "train"

    def __post_init__(self) -> None:
        bounds = {
            "epochs": (self.epochs >= 0, "at least 0"),
            "learning_rate": (0.0 < self.learning_rate < math.inf, "above 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "accumulation": (self.accumulation >= 1, "at least 1"),
            "optimizer": (self.optimizer in ("sgd", "adamw"), "sgd or adamw"),
            "momentum": (0.0 <= self.momentum < 1.0, "in [0, 1)"),
            "weight_decay": (0.0 <= self.weight_decay < math.inf, "at least 0"),
            "no_decay": (set(self.no_decay) <= {*_NO_DECAY}, f"of {', '.join(_NO_DECAY)}"),
            "schedule": (self.schedule in ("cosine", "constant"), "cosine or constant"),
            "warmup_epochs": (0.0 <= self.warmup_epochs < math.inf, "at least 0"),
            "warmup_steps": (self.warmup_steps is None or self.warmup_steps >= 0, "at least 0"),
            "clip_norm": (self.clip_norm is None or 0.0 < self.clip_norm < math.inf, "above 0"),
            "precision": (self.precision in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16"),
            "ema": (self.ema is None or 0.0 < self.ema < 1.0, "in (0, 1)"),
            "label_smoothing": (0.0 <= self.label_smoothing < 1.0, "in [0, 1)"),
            "max_shift": (self.max_shift >= 0, "at least 0"),
            "batch_norm": (self.batch_norm in ("train", "freeze"), "train or freeze"),
        }
        for field, (holds, bound) in bounds.items():
            if not holds:
                raise BadInputError(f"{field} = {getattr(self, field)!r}, must be {bound}")

    def steps(self, samples: int) -> int:
        """Steps of the optimiser in an epoch of so many samples."""
        return math.ceil(samples / (self.batch_size * self.accumulation))


@dataclass(frozen=True, slots=True)
class Distillation:
    """Learn from a teacher: see ``Task.distillation``.

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
    peak, total = recipe.learning_rate, recipe.epochs * steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch if recipe.warmup_steps is None else recipe.warmup_steps
    if step < warmup:
        return min(peak, peak * (step + 1) / warmup)
    if recipe.schedule == "constant":
        return peak
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
