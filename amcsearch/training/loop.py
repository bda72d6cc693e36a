"""The training loop, its recipe, and the evaluation of a network.

The same seed, data and recipe give the same weights on a CPU with the same number of threads. A recipe holds the
optimiser, the learning rate of every step, the teacher, and a light augmentation of image batches.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core import BadInputError, DivergedError, UserCode
from amcsearch.graph import Batches, channels_first, evaluating, make_channels_first
from amcsearch.training.hook import PlainTraining, StateStore, TrainingHook
from amcsearch.training.seeding import reseed, seeded
from amcsearch.training.splits import Samples, fetch, length
from amcsearch.training.task import Task
from amcsearch.training.tasks.class_ids import Classification

__all__ = ["Distillation", "Progress", "TrainingRecipe", "evaluate", "fit", "learning_rate_at", "random_shift"]


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
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def random_shift(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Move each image of (B, C, H, W) by up to ``max_shift`` pixels along both axes; edge pixels fill the gap.

    Raises:
        BadInputError: the inputs are no images.
    """
    if max_shift == 0:
        return images
    if images.ndim != 4:
        raise BadInputError(
            f"max_shift = {max_shift} needs images (B, C, H, W), inputs are {tuple(images.shape)}; set it to 0"
        )
    batch, _, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    offset = torch.randint(0, 2 * max_shift + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = offset[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = offset[1] + torch.arange(width, device=images.device)  # (B, W)
    sample = torch.arange(batch, device=images.device)[:, None, None]
    # advanced indices around the channel axis put it last: (B, H, W, C)
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


Progress = Callable[[int, float], None]

CLASS_IDS: Final = Classification()
"""The task of class ids, where no other is given."""

MOST_GROWTH: Final = 1e3  # times the largest parameter before the training, or 1


def fit(
    model: nn.Module,
    dataset: Samples,
    recipe: TrainingRecipe,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    distillation: Distillation | None = None,
    torch_device: str = "cpu",
    progress: Progress | None = None,
    hook: TrainingHook | None = None,
    store: StateStore | None = None,
    first_epoch: int = 0,
    task: Task = CLASS_IDS,
) -> list[float]:
    """Train ``model`` in place on (input, target) samples; it ends on ``torch_device`` in eval mode.

    With a ``teacher`` the loss is the task's ``distillation``, with ``Distillation()`` by default; the teacher is
    copied, never changed. Each epoch is shuffled by the seed and cut into batches of nearly equal size, at most
    ``batch_size``.

    A training may diverge in its last step, which no loss follows: parameters and buffers are to be finite at its end,
    and no parameter above 1,000 times the largest one before (or 1,000).

    Args:
        model: gives what the task judges.
        dataset: map-style, of (input, target).
        recipe: how to train.
        seed: of shuffles, shifts and dropout; the global generators are left as they were.
        teacher: the network to learn from.
        distillation: temperature and weight of the teacher.
        torch_device: where to train.
        progress: called after every epoch with its number from 1 and its mean loss.
        hook: takes part in every step (masks, gates).
        store: keeps the state after every epoch; what it holds already is taken up.
        first_epoch: begin at this epoch of the recipe, so that its tail is replayed (learning-rate rewinding).
        task: the loss.

    Returns:
        Mean loss of every epoch.

    Raises:
        DivergedError: a loss that is not finite, or weights that diverged; names epoch, loss and learning rate.
        BadInputError: data that does not fit the model.
    """
    model.to(torch_device).train()
    make_channels_first(model)
    guide = copy.deepcopy(teacher).to(torch_device).eval() if teacher is not None else None
    objective = _Objective(task, recipe.label_smoothing, guide, distillation or Distillation())
    training = _Training(model, dataset, recipe, objective, hook or PlainTraining(), _optimizer(model, recipe), seed)
    losses: list[float] = []
    began = _largest(model)
    with seeded(seed):
        stored = store.load() if store is not None else None
        if stored is not None:
            losses, first_epoch = _restored(training, stored)
        for epoch in range(first_epoch, recipe.epochs):
            reseed(seed + epoch)  # so that random transforms go on as they would have, had nothing been interrupted
            with UserCode(f"training {type(model).__name__} in epoch {epoch + 1}"):
                losses.append(training.epoch(epoch, torch_device))
            if store is not None:
                store.save(training.state(losses, epoch + 1))
            if progress is not None:
                progress(epoch + 1, losses[-1])
    model.eval()
    if losses:
        _check_weights(model, began, recipe, losses[-1])
    return losses


def evaluate(model: nn.Module, batches: Batches, task: Task = CLASS_IDS) -> tuple[float, float]:
    """The task's mean loss and its metric of a model in eval mode, on the device it is on.

    Args:
        model: left in the modes it was in.
        batches: samples with what the task judges by.
        task: the loss and the metric; class ids by default.

    Raises:
        BadInputError: no targets, or shapes that do not fit.
    """
    parameter = next(model.parameters(), None)
    torch_device = "cpu" if parameter is None else parameter.device
    loss, count, meter = 0.0, 0, task.meter()
    with UserCode(f"evaluating {type(model).__name__}"), evaluating(model), torch.inference_mode():
        for batch in (each.to(torch_device) for each in batches):
            output, known = batch.through(model), task.count(batch.targets, batch.size)
            if known:
                loss += float(task.loss(output, batch.targets)) * known
                meter.update(output, batch.targets)
            count += known
    if not count:
        raise BadInputError(f"evaluation of {batches.samples} samples found no targets, expected at least 1")
    return loss / count, meter.value()


@dataclass(frozen=True)
class _Objective:
    task: Task
    label_smoothing: float
    teacher: nn.Module | None
    distillation: Distillation

    def __call__(self, output: Any, x: Tensor, y: Tensor) -> Tensor:
        if self.teacher is None:
            return self.task.training_loss(output, y, self.label_smoothing)
        with torch.no_grad():
            guide = self.teacher(x)
        return self.task.distillation(output, guide, y, self.distillation.temperature, self.distillation.alpha)


def _restored(training: "_Training", stored: dict[str, Any]) -> tuple[list[float], int]:
    try:
        return training.restore(stored)
    except Exception as error:  # a damaged file may hold anything
        raise BadInputError(
            f"the stored state of the training does not fit it ({type(error).__name__}: {error}); delete the file, "
            ".training.pt, .finetuning.pt or .round-N.pt in the run folder, to train anew"
        ) from error


class _Training:
    """A training on its way: everything that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Samples,
        recipe: TrainingRecipe,
        objective: _Objective,
        hook: TrainingHook,
        optimizer: torch.optim.Optimizer,
        seed: int,
    ) -> None:
        self.model, self.dataset, self.recipe = model, dataset, recipe
        self.objective, self.hook, self.optimizer = objective, hook, optimizer
        self.generator = torch.Generator().manual_seed(seed)
        self.count = length(dataset, "train")
        self.steps = math.ceil(self.count / recipe.batch_size)  # an epoch

    def epoch(self, epoch: int, torch_device: str) -> float:
        """Train for one epoch and return its mean loss."""
        total = 0.0
        for i, rows in enumerate(torch.randperm(self.count, generator=self.generator).tensor_split(self.steps)):
            step = epoch * self.steps + i
            rate = learning_rate_at(self.hook.clock(step), self.steps, self.recipe)
            x, y = fetch(self.dataset, rows.numpy())
            x = channels_first(random_shift(x, self.recipe.max_shift, self.generator).to(torch_device))
            loss = self._step(x, y.to(torch_device), step, rate)
            _check_finite(loss, epoch + 1, rate)
            total += loss * len(rows)
        return total / self.count

    def _step(self, x: Tensor, y: Tensor, step: int, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(self.hook.forward(self.model, x, step), x, y)
        torch.autograd.backward(loss + self.hook.penalty())
        self.hook.update(self.optimizer, step)
        return float(loss.detach())

    def state(self, losses: list[float], epochs: int) -> dict[str, Any]:
        """Return what the next epoch depends on."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hook": self.hook.state(),
            "random": [self.generator.get_state(), torch.get_rng_state(), cuda],
            "losses": losses,
            "epochs": epochs,
        }

    def restore(self, state: dict[str, Any]) -> tuple[list[float], int]:
        """Take a state up; return the losses so far and the epoch that comes next."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hook.restore(state["hook"])
        shuffles, everything, cuda = state["random"]
        self.generator.set_state(shuffles)
        torch.set_rng_state(everything)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
        return list(state["losses"]), int(state["epochs"])


def _optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise BadInputError("the network has no parameter that requires a gradient; there is nothing to train")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.learning_rate, betas=(recipe.momentum, 0.999))
    return torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.momentum > 0.0)


def _check_finite(loss: float, epoch: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"loss is {loss} in epoch {epoch} at learning_rate = {learning_rate:.3g}, must be finite; "
            "lower the learning rate, lengthen the warm-up, or look for NaN in the data"
        )


def _largest(model: nn.Module) -> float:
    """Largest absolute value of a parameter; NaN where one is."""
    peaks = [parameter.detach().abs().max() for parameter in model.parameters() if parameter.numel()]
    return float(torch.stack([peak.double().cpu() for peak in peaks]).max()) if peaks else 0.0


def _check_weights(model: nn.Module, began: float, recipe: TrainingRecipe, loss: float) -> None:
    bad = next((name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()), None)
    ended, most = _largest(model), MOST_GROWTH * max(1.0, began)
    if bad is None and ended <= most:
        return
    what = f"{bad} is not finite" if bad else f"the largest weight is {ended:.3g}, must be at most {most:.3g}"
    raise DivergedError(
        f"the training diverged in epoch {recipe.epochs}, whose mean loss was {loss:.4g}, at learning_rate = "
        f"{recipe.learning_rate:.3g}: {what}; lower the learning rate, or lengthen the warm-up"
    )
