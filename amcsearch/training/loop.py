"""The training loop and the evaluation of a network.

The same seed, data and recipe give the same weights on a CPU with the same number of threads, also where a killed
training goes on from its last whole epoch.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core import BadInputError, DivergedError, UserCode
from amcsearch.graph import Batch, Batches, channels_first, duplicate, evaluating, make_channels_first
from amcsearch.training.hook import PlainTraining, StateStore, TrainingHook, Watch
from amcsearch.training.reading import StepParts, TrainReader, all_targets
from amcsearch.training.recipe import Distillation, TrainingRecipe, learning_rate_at
from amcsearch.training.seeding import reseed, seeded
from amcsearch.training.splits import Samples, length
from amcsearch.training.task import Guess, Task
from amcsearch.training.tasks.class_ids import Classification
from amcsearch.training.updates import (
    Averages,
    LossScale,
    check_recipe,
    check_weights,
    clip,
    freeze_statistics,
    largest,
    make_optimizer,
    precision_of,
)

__all__ = ["CLASS_IDS", "Augmentation", "Progress", "evaluate", "fit", "guess_on", "random_shift"]


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

Augmentation = Callable[[Batch], Batch]
"""Changes a batch of the training split, on the CPU: random numbers of torch, numpy and Python repeat by the seed."""


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
    augmentation: Augmentation | None = None,
    watch: Watch | None = None,
    check: Callable[[nn.Module], None] | None = None,
    updates: bool = True,
) -> list[float]:
    """Train ``model`` in place on the samples of a data set; it ends on ``torch_device`` in eval mode.

    With a ``teacher`` the loss is the task's ``distillation``, with ``Distillation()`` by default; the teacher is
    copied, never changed. Each epoch is shuffled by the seed and cut into batches of nearly equal size, at most
    ``batch_size``.

    A training may diverge in its last step, which no loss follows: parameters and buffers are to be finite at its end,
    and no parameter above 1,000 times the largest one before (or 1,000).

    Args:
        model: gives what the task judges.
        dataset: the train split.
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
        augmentation: changes every batch.
        watch: judges the network after every epoch; None keeps the last one.
        check: called with the network as the training left it, before the best one takes its place.
        updates: false computes the gradients of one batch, and nothing else: does a training run at all?

    Returns:
        Mean loss of every epoch.

    Raises:
        DivergedError: a loss that is not finite, or weights that diverged; names epoch, loss and learning rate.
        BadInputError: data that does not fit the model; or as ``check_recipe``.
    """
    check_recipe(recipe, torch_device, is_hooked=hook is not None and type(hook) is not PlainTraining)
    model.to(torch_device).train()
    if recipe.batch_norm == "freeze":
        freeze_statistics(model)
    make_channels_first(model)
    guide = duplicate(teacher).to(torch_device).eval() if teacher is not None else None
    objective = _Objective(task, recipe.label_smoothing, guide, distillation or Distillation())
    training = _Training(model, dataset, recipe, objective, hook or PlainTraining(), seed, torch_device, augmentation)
    began = largest(model)
    with seeded(seed):
        losses = training.run(first_epoch, store, watch, progress) if updates else training.attempt()
    model.eval()
    if losses:
        check_weights(model, began, recipe, losses[-1])
        training.finish()
        if check is not None:
            check(model)
    if watch is not None:
        watch.finish(model)
    return losses


def evaluate(
    model: nn.Module, batches: Batches, task: Task = CLASS_IDS, stop: Callable[[Any, Batch], bool] | None = None
) -> tuple[float, float]:
    """The task's mean loss and its metric of a model in eval mode, on the device it is on.

    Args:
        model: left in the modes it was in.
        batches: samples with what the task judges by.
        task: the loss and the metric; class ids by default.
        stop: looks at every batch's output and says whether it was the last; both numbers are then of those so far.

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
            if stop is not None and stop(output, batch):
                break
    if not count:
        raise BadInputError(f"evaluation of {batches.samples} samples found no targets, expected at least 1")
    return loss / count, meter.value()


def guess_on(model: nn.Module, batches: Batches, task: Task) -> Guess | None:
    """What guessing comes to on some samples; the model, in eval mode, shows on one of them what its outputs are."""
    with evaluating(model), torch.inference_mode():
        return task.guess(next(iter(batches.batched(1))).through(model), all_targets(batches))


@dataclass(frozen=True)
class _Objective:
    task: Task
    label_smoothing: float
    teacher: nn.Module | None
    distillation: Distillation

    def __call__(self, output: Any, batch: Batch) -> Tensor:
        if self.teacher is None:
            return self.task.training_loss(output, batch.targets, self.label_smoothing)
        with torch.no_grad():
            guide = batch.through(self.teacher)
        return self.task.distillation(
            output, guide, batch.targets, self.distillation.temperature, self.distillation.alpha
        )


def _restored(training: "_Training", watch: Watch | None, stored: dict[str, Any]) -> tuple[list[float], int]:
    try:
        if watch is not None and stored:
            watch.restore(stored["watch"])
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
        seed: int,
        torch_device: str,
        augmentation: Augmentation | None,
    ) -> None:
        self.model, self.recipe, self.seed, self.torch_device = model, recipe, seed, torch_device
        self.objective, self.hook, self.augmentation = objective, hook, augmentation
        self.averages = None if recipe.ema is None else Averages(model, recipe.ema)
        self.scale = LossScale() if recipe.precision == "float16" else None
        self.generator = torch.Generator().manual_seed(seed)
        self.reader = TrainReader(dataset, seed, pinned=torch.device(torch_device).type == "cuda")
        self.count = length(dataset, "train")
        self.steps = recipe.steps(self.count)  # an epoch

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made when it is first needed: torch imports its compiler then, for a second of processor time."""
        return make_optimizer(self.model, self.recipe)

    def attempt(self) -> list[float]:
        """Compute the gradients of one batch; update only by sparse ones, which optimisers may refuse. No losses."""
        rows = np.arange(min(self.recipe.batch_size, self.count))
        with UserCode(f"training {type(self.model).__name__} in epoch 1"):
            loss = self._gradients(self.reader.epoch([rows], 0), len(rows), 0)
            if any(p.grad is not None and p.grad.is_sparse for p in self.model.parameters()):
                self.hook.update(self.optimizer, 0)
        _check_finite(loss, 1, self.recipe.learning_rate)
        return []

    def run(
        self, first_epoch: int, store: StateStore | None, watch: Watch | None, progress: Progress | None
    ) -> list[float]:
        """Train for all epochs, or go on with what the store holds; return the mean loss of each."""
        losses: list[float] = []
        stored = None if store is None else store.load()
        if stored is not None:
            losses, first_epoch = _restored(self, watch, stored)
        elif watch is not None and first_epoch < self.recipe.epochs:
            self._show(watch, 0)
        for epoch in range(first_epoch, self.recipe.epochs):
            if watch is not None and watch.is_over:
                break
            reseed(self.seed + epoch)  # random transforms go on as they would have, had nothing been interrupted
            with UserCode(f"training {type(self.model).__name__} in epoch {epoch + 1}"):
                losses.append(self.epoch(epoch))
            if watch is not None:
                self._show(watch, epoch + 1)
            if store is not None:
                store.save({**self.state(losses, epoch + 1), "watch": None if watch is None else watch.state()})
            if progress is not None:
                progress(epoch + 1, losses[-1])
        return losses

    def _show(self, watch: Watch, epoch: int) -> None:
        """Show the network with its averaged weights, if there are any; random numbers go on as without it."""
        with seeded(self.seed), nullcontext() if self.averages is None else self.averages.in_place(self.model):
            watch.see(self.model, epoch)

    def epoch(self, epoch: int) -> float:
        """Train for one epoch and return its mean loss."""
        total = 0.0
        parts = StepParts(
            torch.randperm(self.count, generator=self.generator).numpy(), self.steps, self.recipe.accumulation
        )
        batches = self.reader.epoch(parts, epoch)
        for i in range(self.steps):
            step, samples = epoch * self.steps + i, parts.samples(i)
            rate = learning_rate_at(self.hook.clock(step), self.steps, self.recipe)
            loss = self._step(islice(batches, parts.count(i)), samples, step, rate)
            _check_finite(loss, epoch + 1, rate)
            total += loss * samples
        return total / self.count

    def _step(self, batches: Iterable[Batch], samples: int, step: int, learning_rate: float) -> float:
        """Follow the mean gradient of some samples; return their mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        total = self._gradients(batches, samples, step)
        if self._gradients_ready():
            self.hook.update(self.optimizer, step)
            if self.averages is not None:
                self.averages.update(self.model)
        return total

    def _gradients(self, batches: Iterable[Batch], samples: int, step: int) -> float:
        """Add up the mean gradient of some samples, a batch at a time; return their mean loss."""
        total, scale = 0.0, 1.0 if self.scale is None else self.scale.value
        for batch in map(self._prepared, batches):
            share = batch.size / samples
            with precision_of(self.recipe, self.torch_device):
                loss = self.objective(self.hook.forward(self.model, batch, step), batch)
            torch.autograd.backward((loss + self.hook.penalty()) * (share * scale))
            total += float(loss.detach()) * share
        return total

    def _prepared(self, batch: Batch) -> Batch:
        """Return a batch augmented, with its images moved at random, where and as torch computes gradients."""
        if self.augmentation is not None:
            with UserCode("the augmentation"):
                changed = self.augmentation(batch)
                if not isinstance(changed, Batch):
                    kind = type(changed).__name__
                    raise BadInputError(f"the augmentation returned a {kind}, must return the Batch, changed")
                batch = changed
        if self.recipe.max_shift:
            if len(batch.inputs) > 1:
                raise BadInputError(
                    f"max_shift = {self.recipe.max_shift} moves the images of a network of one input, this one has "
                    f"{len(batch.inputs)}; set it to 0"
                )
            batch = batch.map(lambda x: random_shift(x, self.recipe.max_shift, self.generator))
        return batch.to(self.torch_device).map(channels_first)

    def _gradients_ready(self) -> bool:
        """Scale and clip the gradients; false where they are infinite in float16, and the step is left out."""
        if self.scale is not None and not self.scale.unscale(self.model.parameters()):
            return False
        if self.recipe.clip_norm is not None:
            clip(self.model.parameters(), self.recipe.clip_norm)
        return True

    def finish(self) -> None:
        """Give the network its averaged weights, if there are any."""
        if self.averages is not None:
            self.model.load_state_dict(self.averages.tensors)

    def state(self, losses: list[float], epochs: int) -> dict[str, Any]:
        """Return what the next epoch depends on."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hook": self.hook.state(),
            "drawn": self.reader.drawn,
            "random": [self.generator.get_state(), torch.get_rng_state(), cuda],
            "averages": None if self.averages is None else self.averages.state(),
            "scale": None if self.scale is None else [self.scale.value, self.scale.good],
            "losses": losses,
            "epochs": epochs,
        }

    def restore(self, state: dict[str, Any]) -> tuple[list[float], int]:
        """Take a state up; return the losses so far and the epoch that comes next."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hook.restore(state["hook"])
        self.reader.drawn = int(state["drawn"])
        if self.averages is not None:
            self.averages.restore(state["averages"])
        if self.scale is not None:
            self.scale.value, self.scale.good = float(state["scale"][0]), int(state["scale"][1])
        shuffles, everything, cuda = state["random"]
        self.generator.set_state(shuffles)
        torch.set_rng_state(everything)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
        return list(state["losses"]), int(state["epochs"])


def _check_finite(loss: float, epoch: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"loss is {loss} in epoch {epoch} at learning_rate = {learning_rate:.3g}, must be finite; "
            "lower the learning rate, lengthen the warm-up, or look for NaN in the data"
        )
