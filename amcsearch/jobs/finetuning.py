"""Fine-tuning with the dense network as the teacher, and batch-norm statistics taken anew."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

from torch import nn

from amcsearch.config import Config, FinetuneConfig, RecipeConfig, import_named
from amcsearch.core import BadInputError, DivergedError, Metric, at_worst, counted
from amcsearch.graph import duplicate
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.restarts import LossCheck, restarting
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
    length,
)

__all__ = [
    "Finetuned",
    "check_trainable",
    "check_trainings",
    "fine_tune",
    "finetuning_recipe",
    "one_step",
    "recalibrate",
    "steps_that_diverge",
]

FEWEST: Final = 16
"""Samples of a batch by which batch norms normalise; fewer say too little of all."""


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning came to.

    ``training`` says how long it was, which epoch is kept, and why; empty where nothing was trained. ``notes`` are what
    the user should know of the delivered network: that the learning rate is too high, or that a training of the user's
    own made it worse.
    """

    notes: tuple[str, ...] = ()
    training: str = ""


def finetuning_recipe(config: Config, recipe: FinetuneConfig | None) -> tuple[TrainingRecipe, int]:
    """Return the training loop's recipe for ``recovery.finetune`` or a share of it, and the epoch that comes first.

    Raises:
        BadInputError: a learning rate is to be rewound without a training to rewind, or by more than all of it.
    """
    original = config.model.pretrain
    if recipe is None:
        return TrainingRecipe(0, 1.0), 0
    batch_norm = _batch_norm(config, recipe)
    if recipe.schedule != "rewound":
        return replace(training_recipe(recipe), batch_norm=batch_norm), 0
    if original is None or original.epochs < recipe.epochs:
        length = "null" if original is None else counted(original.epochs, "epoch")
        raise BadInputError(
            f"recovery.finetune.schedule = 'rewound' replays the last {counted(recipe.epochs, 'epoch')} of "
            f"model.pretrain, which is {length}; choose cosine or constant, or fewer epochs"
        )
    return replace(training_recipe(original), batch_norm=batch_norm), original.epochs - recipe.epochs


def _batch_norm(config: Config, finetune: FinetuneConfig) -> Literal["train", "freeze"]:
    """What becomes of the statistics of batch norms: as configured, or ``auto`` as its key says."""
    if finetune.batch_norm != "auto":
        return finetune.batch_norm
    return "freeze" if not config.recovery.bn_recalibration or finetune.batch_size < FEWEST else "train"


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
) -> Finetuned:
    """Train ``model`` in place by ``finetune``, or by a training of the user's own; it ends in eval mode on the CPU.

    A training diverged where the loss of the calibration split ended above 10 times what it was (or what guessing
    gives), too. It begins anew at lower learning rates, as ``restarting`` says; where it diverges at all of them, the
    network is as it was given. ``folder`` is for files of the user's own training; None gives it one that goes.

    Raises:
        BadInputError: as ``finetuning_recipe`` and ``train_by_user``.
    """
    done, training = Finetuned(), user_training(config, given)
    if training is not None:
        search, task = batches_of(workload.splits.search, name="search"), workload.task
        before = evaluate(model, search, task)[1]
        with tempfile.TemporaryDirectory() as temporary:
            train_by_user(training, config, workload, model, Path(temporary) if folder is None else folder)
        notes = _worse(task.metric, before, evaluate(model, search, task)[1])
        for note in notes:
            observer.warn(note)
        done = Finetuned(notes, "by a function of yours, which decides what it returns")
    elif finetune is not None:
        done = _by_recipe(config, finetune, workload, model, observer, hook, store)
    model.cpu().eval()
    return done


def _worse(metric: Metric, before: float, after: float) -> tuple[str, ...]:
    if metric.gain(after, before) >= 0.0:
        return ()
    return (
        "recovery.finetune.factory: the training made the network worse, and what it returned is delivered: "
        f"{metric.word} went from {metric.text(before)} to {metric.text(after)} on the search split",
    )


def one_step(config: Config, workload: Workload, model: nn.Module, given: InMemory = CONFIGURED) -> None:
    """Compute the gradients of a batch of the training split as ``recovery.finetune`` would.

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
            _fit(config, finetune, workload)(model, workload.splits.train, recipe, updates=False)


def steps_that_diverge(
    config: Config, workload: Workload, model: nn.Module, steps: int, given: InMemory = CONFIGURED
) -> str | None:
    """Say that so many steps of the fine-tuning diverge on the training split, a copy of ``model`` being trained.

    None where they do not, and where nothing is trained by ``recovery.finetune.learning_rate``.
    """
    finetune = config.recovery.finetune
    if finetune is None or user_training(config, given) is not None or finetune.schedule == "rewound":
        return None
    recipe, _ = finetuning_recipe(config, finetune)
    recipe = replace(recipe, schedule="constant", warmup_epochs=0, warmup_steps=None, max_shift=0)
    samples = length(workload.splits.train, "train")
    if recipe.epochs == 0:
        return None
    recipe = replace(recipe, epochs=-(-steps // recipe.steps(samples)))
    key, train = "recovery.finetune.learning_rate", _fit(config, finetune, workload)

    def attempt(lowered: TrainingRecipe, _: StateStore | None) -> list[float]:
        return train(duplicate(model), workload.splits.train, lowered)

    done = restarting(key, recipe, None, lambda _: None, attempt)
    problem = f"{key} = {recipe.learning_rate:.3g}: {steps} steps of fine-tuning diverge on a pruned copy"
    if done.result is None:
        return (
            f"{problem}, at every lower rate that was tried too ({done.error}); look at the targets and their scale, "
            "and at what the forward does in training mode"
        )
    if done.error is None:
        return None
    return (
        f"{problem} ({done.error}), and do not at {done.rate:.3g}; a training that diverges begins anew at lower rates"
    )


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
) -> Finetuned:
    recipe, first_epoch = finetuning_recipe(config, finetune)
    if first_epoch >= recipe.epochs:
        return Finetuned()
    begun, hook_begun = duplicate(model), None if hook is None else hook.state()
    check, metric = LossCheck(workload, model), workload.task.metric

    def attempt(lowered: TrainingRecipe, kept: StateStore | None) -> str:
        """Train from the weights as they were given; say which epoch is kept."""
        model.load_state_dict(begun.state_dict())
        if hook is not None and hook_begun is not None:
            hook.restore(hook_begun)
        watch = _watch(finetune, workload)
        train = partial(_fit(config, finetune, workload), progress=observer.epoch, first_epoch=first_epoch)
        check_loss = partial(check, recipe=lowered)
        epochs = train(model, workload.splits.train, lowered, hook=hook, store=kept, watch=watch, check=check_loss)
        if watch is not None and watch.keep_best and watch.best_epoch == 0:
            warning = _no_better(watch, metric, workload.samples["search"])
            if warning is not None:
                observer.warn(warning)
        return _kept(watch, len(epochs), metric)

    key = "model.pretrain.learning_rate" if finetune.schedule == "rewound" else "recovery.finetune.learning_rate"
    done = restarting(key, recipe, store, observer.warn, attempt, clips=hook is None)
    if done.result is None:
        assert done.error is not None
        model.load_state_dict(begun.state_dict())
        observer.warn(_not_tuned(key, recipe, done.error))
        return Finetuned((_not_tuned(key, recipe, done.error),))
    return Finetuned(done.notes, done.result)


def _not_tuned(key: str, recipe: TrainingRecipe, error: DivergedError) -> str:
    return (
        f"{key}: the fine-tuning diverged at {recipe.learning_rate:.3g} and at every lower rate that was tried, so the "
        f"pruned network is delivered as it was before, NOT fine-tuned ({error})"
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


def _kept(watch: Watch | None, epochs: int, metric: Metric) -> str:
    """Say how long a training was, which epoch is kept, and why."""
    trained = counted(epochs, "epoch")
    if watch is None or not watch.keep_best:
        return f"{trained}, the last is kept"
    best = f"{metric.word} {_score(watch, watch.best_epoch, metric)}"
    if watch.best_epoch == 0:
        return f"{trained}, none is kept: the network before them is the best on the search split ({best})"
    before = f"before the first {_score(watch, 0, metric)}"
    return f"{trained}, epoch {watch.best_epoch} is kept, the best on the search split ({best}, {before})"


def _score(watch: Watch, epoch: int, metric: Metric) -> str:
    value = watch.values[epoch][0]  # infinite where it is no number
    return metric.text(-value if metric.higher_is_better else value)


def _no_better(watch: Watch, metric: Metric, samples: int) -> str | None:
    """Say that the training made the network worse, and what to do; None where it was by no more than chance.

    That is a standard error of a share of so many samples.
    """
    score = f"{metric.word} {_score(watch, 0, metric)} on the search split"
    before, after = watch.values[0][0], min(values[0] for epoch, values in watch.values.items() if epoch)
    share = abs(before)
    if metric.is_share and share == 1.0 - metric.worst:
        return (
            f"recovery.finetune: the pruned network had {score} before any epoch, which cannot be better, and no epoch "
            "had a lower loss with it; its weights are kept"
        )
    if metric.is_share and math.isfinite(before) and after - before <= math.sqrt(share * (1.0 - share) / samples):
        return None
    return (
        f"recovery.finetune: no epoch did better than the pruned network before it ({score}), whose weights are kept; "
        "lower recovery.finetune.learning_rate, or train for longer"
    )


def recalibrate(config: Config, workload: Workload, model: nn.Module) -> None:
    """Take the statistics of batch norms anew from the calibration split, where the configuration asks for it.

    Under ``auto`` they go back where the metric on the search split is worse for it.
    """
    setting = config.recovery.bn_recalibration
    if not setting or not keeps_statistics(model):
        return
    search, task = judged_batches(config, workload, "search"), workload.task
    kept = evaluate(model, search, task)[1] if setting == "auto" else None
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recalibrate_batch_norm(model, judged_batches(config, workload, "calibration"))
    if kept is not None and not task.metric.gain(evaluate(model, search, task)[1], kept) >= 0.0:
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
