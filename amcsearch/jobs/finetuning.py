"""Fine-tuning with the dense network as the teacher, and batch-norm statistics taken anew."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from torch import nn

from amcsearch.config import Config, FinetuneConfig, RecipeConfig, import_named
from amcsearch.core import BadInputError, DivergedError, at_worst
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.user_training import train_by_user, user_training
from amcsearch.jobs.workload import (
    CONFIGURED,
    InMemory,
    Workload,
    diverging,
    judged_batches,
    training_recipe,
)
from amcsearch.recovery import keeps_statistics, recalibrate_batch_norm
from amcsearch.training import (
    Distillation,
    StateStore,
    TrainingHook,
    TrainingRecipe,
    Watch,
    batches_of,
    check_recipe,
    evaluate,
    fit,
    guess_on,
)

__all__ = ["check_trainable", "check_trainings", "fine_tune", "finetuning_recipe", "one_step", "recalibrate"]

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


def check_trainings(config: Config, given: InMemory, *, sparsifies: bool = False) -> None:
    """Refuse trainings that cannot be done, before anything is done; ``sparsifies``: masks or gates are among them.

    Raises:
        BadInputError: as ``finetuning_recipe``, ``user_training``, ``import_named`` and ``check_recipe``; names the
            section.
    """
    has_masks = sparsifies and config.sparsify.granularity != "channels"
    recipe, _ = finetuning_recipe(config, config.recovery.finetune)
    if user_training(config, given) is None:
        _check_training("recovery.finetune", config.recovery.finetune, recipe, config, is_hooked=has_masks)
    if config.model.pretrain is not None:
        pretrain = config.model.pretrain
        _check_training("model.pretrain", pretrain, training_recipe(pretrain), config)
    if sparsifies:
        training = config.sparsify.training
        _check_training("sparsify.training", training, training_recipe(training), config, is_hooked=True)


def _check_training(
    section: str, written: RecipeConfig | None, recipe: TrainingRecipe, config: Config, *, is_hooked: bool = False
) -> None:
    try:
        import_named(None if written is None else written.augmentation)
        check_recipe(recipe, config.evaluation.torch_device, is_hooked=is_hooked)
    except BadInputError as error:
        raise BadInputError(f"{section}: {error}") from error


def fine_tune(
    config: Config,
    finetune: FinetuneConfig | None,
    workload: Workload,
    model: nn.Module,
    observer: Observer,
    hook: TrainingHook | None = None,
    store: StateStore | None = None,
    *,
    given: InMemory = CONFIGURED,
    folder: Path | None = None,
) -> nn.Module:
    """Train ``model`` in place by ``finetune``, or by a training of the user's own; return it in eval mode on the CPU.

    ``folder`` is for files of the user's own training; None gives it one that goes.

    Raises:
        DivergedError: the training diverged, or the loss of the calibration split ended above 10 times what it was (or
            what guessing gives); names ``recovery.finetune``.
        BadInputError: as ``finetuning_recipe`` and ``train_by_user``.
    """
    training = user_training(config, given)
    if training is not None:
        with tempfile.TemporaryDirectory() as temporary:
            train_by_user(training, config, workload, model, Path(temporary) if folder is None else folder)
        return model.eval()
    if finetune is not None:
        _by_recipe(config, finetune, workload, model, observer, hook, store)
    return model.cpu().eval()


def one_step(config: Config, workload: Workload, model: nn.Module, given: InMemory = CONFIGURED) -> None:
    """Train ``model`` in place for one epoch as ``recovery.finetune`` would.

    Nothing where it is null, or where a training of the user's own takes its place.

    Raises:
        BadInputError: a network of which nothing can be trained, or as the training itself would.
    """
    finetune = config.recovery.finetune
    if finetune is None or user_training(config, given) is not None:
        return
    recipe, first_epoch = finetuning_recipe(config, finetune)
    if first_epoch < recipe.epochs:
        check_trainable(model, "recovery.finetune")
        with diverging("recovery.finetune"):
            _fit(config, finetune, workload)(model, workload.splits.train, replace(recipe, epochs=1))


def check_trainable(model: nn.Module, key: str) -> None:
    """Refuse to train a network that was loaded for inference; ``key`` is the section that trains.

    Raises:
        BadInputError: no parameter requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInputError(
            f"{key}: no parameter of {type(model).__name__} requires a gradient, so there is nothing to train; call "
            "requires_grad_(True) on the network where it is made"
        )


def _fit(config: Config, finetune: FinetuneConfig, workload: Workload) -> Callable[..., list[float]]:
    """Return ``fit`` with all that the configuration and the workload decide."""
    learned = finetune.distillation
    return partial(
        fit,
        seed=config.seed,
        teacher=workload.model if learned else None,
        distillation=Distillation(learned.temperature, learned.alpha) if learned else None,
        torch_device=config.evaluation.torch_device,
        task=workload.task,
        augmentation=import_named(finetune.augmentation),
    )


def _by_recipe(
    config: Config,
    finetune: FinetuneConfig,
    workload: Workload,
    model: nn.Module,
    observer: Observer,
    hook: TrainingHook | None,
    store: StateStore | None,
) -> None:
    recipe, first_epoch = finetuning_recipe(config, finetune)
    if first_epoch >= recipe.epochs:
        return
    watch = _watch(finetune, workload)
    calibration = batches_of(workload.splits.calibration, name="calibration")
    guess = guess_on(model, calibration, workload.task)
    began, _ = evaluate(model, calibration, workload.task)

    def check(trained: nn.Module) -> None:
        ended, _ = evaluate(trained.cpu(), calibration, workload.task)
        _check_loss(began, ended, 0.0 if guess is None else guess.loss, recipe)

    with diverging("recovery.finetune"):
        _fit(config, finetune, workload)(
            model,
            workload.splits.train,
            recipe,
            progress=observer.epoch,
            hook=hook,
            store=store,
            first_epoch=first_epoch,
            watch=watch,
            check=check,
        )
    if watch is not None and finetune.keep == "best" and watch.best_epoch == 0:
        observer.warn(
            "recovery.finetune: no epoch did better on the search split than the pruned network before it, which is "
            "kept; lower the learning rate, or train for longer"
        )


def _watch(finetune: FinetuneConfig, workload: Workload) -> Watch | None:
    """Return what judges every epoch on the search split: by the metric, and among equal ones by the loss."""
    if finetune.keep == "last" and finetune.patience is None:
        return None
    batches = batches_of(workload.splits.search, name="search")

    def judge(model: nn.Module) -> tuple[float, ...]:
        loss, value = evaluate(model, batches, workload.task)
        return workload.task.metric.better_first(value), at_worst(loss)

    return Watch(judge, keep_best=finetune.keep == "best", patience=finetune.patience)


def _check_loss(began: float, ended: float, guessing: float, recipe: TrainingRecipe) -> None:
    """Compare losses of the calibration split; ``guessing`` is that of guessing, 0 where it is not known."""
    most = MOST_LOSS * max(guessing, began)  # in this order a NaN at the beginning counts as guessing
    if not ended <= most:
        raise DivergedError(
            f"the training diverged in epoch {recipe.epochs} at learning_rate = "
            f"{recipe.learning_rate:.3g}: the loss of the calibration split is {ended:.4g}, before it was "
            f"{began:.4g}, must be at most {most:.4g}; lower the learning rate, or lengthen the warm-up"
        )


def recalibrate(config: Config, workload: Workload, model: nn.Module) -> None:
    """Take the statistics of batch norms anew from the calibration split, where the configuration asks for it.

    Under ``auto`` they go back where the metric on the search split is worse for it.
    """
    asked = config.recovery.bn_recalibration
    if not asked or not keeps_statistics(model):
        return
    search, task = judged_batches(config, workload, "search"), workload.task
    kept = evaluate(model, search, task)[1] if asked == "auto" else None
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recalibrate_batch_norm(model, judged_batches(config, workload, "calibration"))
    if kept is not None and not task.metric.gain(evaluate(model, search, task)[1], kept) >= 0.0:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
