"""Fine-tuning with the dense network as the teacher, and batch-norm statistics taken anew."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from amcsearch.config import Config, FinetuneConfig
from amcsearch.core import BadInputError, DivergedError
from amcsearch.graph import evaluating
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.workload import Workload, diverging, judged_batches, training_recipe
from amcsearch.recovery import recalibrate_batch_norm
from amcsearch.training import Distillation, StateStore, TrainingHook, TrainingRecipe, batches_of, evaluate, fit

__all__ = ["fine_tune", "finetuning_recipe", "recalibrate"]

MOST_LOSS: Final = 10.0  # times the loss before fine-tuning, or that of guessing


def finetuning_recipe(config: Config, recipe: FinetuneConfig | None) -> tuple[TrainingRecipe, int]:
    """Return the training loop's recipe for ``recovery.finetune`` or a share of it, and the epoch that comes first.

    Raises:
        BadInputError: a learning rate is to be rewound without a training to rewind, or by more than all of it.
    """
    original = config.model.pretrain
    if recipe is None:
        return TrainingRecipe(0, 1.0), 0
    if recipe.schedule != "rewound":
        return training_recipe(recipe), 0
    if original is None or original.epochs < recipe.epochs:
        length = "null" if original is None else f"{original.epochs} epochs"
        raise BadInputError(
            f"recovery.finetune.schedule = 'rewound' replays the last {recipe.epochs} epochs of model.pretrain, which "
            f"is {length}; choose cosine or constant, or fewer epochs"
        )
    return training_recipe(original), original.epochs - recipe.epochs


def fine_tune(
    config: Config,
    finetune: FinetuneConfig | None,
    workload: Workload,
    model: nn.Module,
    observer: Observer,
    hook: TrainingHook | None = None,
    store: StateStore | None = None,
) -> nn.Module:
    """Train ``model`` in place by ``finetune`` and return it, in eval mode on the CPU.

    Raises:
        DivergedError: the training diverged, or the loss of the calibration split ended above 10 times what it was (or
            what guessing gives); names ``recovery.finetune``.
        BadInputError: as ``finetuning_recipe``.
    """
    recipe, first_epoch = finetuning_recipe(config, finetune)
    if first_epoch < recipe.epochs:
        learned = finetune.distillation if finetune else None
        began = _calibration_loss(workload, model)
        with diverging("recovery.finetune"):
            fit(
                model,
                workload.splits.train,
                recipe,
                seed=config.seed,
                teacher=workload.model if learned else None,
                distillation=Distillation(learned.temperature, learned.alpha) if learned else None,
                torch_device=config.evaluation.torch_device,
                progress=observer.epoch,
                hook=hook,
                store=store,
                first_epoch=first_epoch,
                task=workload.task,
            )
        _check_loss(began, _calibration_loss(workload, model.cpu()), recipe)
    return model.cpu().eval()


@dataclass(frozen=True)
class _Loss:
    """Loss of the calibration split in eval mode, and what guessing gives: 0 where that is not known."""

    value: float
    guessing: float


def _calibration_loss(workload: Workload, model: nn.Module) -> _Loss:
    batches = batches_of(workload.splits.calibration, name="calibration")
    with evaluating(model), torch.inference_mode():
        guess = workload.task.guess(next(iter(batches.batched(1))).through(model), batches.whole.targets)
    loss, _ = evaluate(model, batches, workload.task)
    return _Loss(loss, 0.0 if guess is None else guess.loss)


def _check_loss(began: _Loss, ended: _Loss, recipe: TrainingRecipe) -> None:
    most = MOST_LOSS * max(began.guessing, began.value)  # in this order a NaN at the beginning counts as guessing
    if not ended.value <= most:
        raise DivergedError(
            f"recovery.finetune: the training diverged in epoch {recipe.epochs} at learning_rate = "
            f"{recipe.learning_rate:.3g}: the loss of the calibration split is {ended.value:.4g}, before it was "
            f"{began.value:.4g}, must be at most {most:.4g}; lower the learning rate, or lengthen the warm-up"
        )


def recalibrate(config: Config, workload: Workload, model: nn.Module) -> None:
    """Take the statistics of batch norms anew from the calibration split, where the configuration asks for it."""
    if config.recovery.bn_recalibration:
        recalibrate_batch_norm(model, judged_batches(config, workload, "calibration"))
