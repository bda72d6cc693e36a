"""Fine-tuning with the dense network as the teacher, and batch-norm statistics taken anew."""

from torch import nn

from amcsearch.config import Config, FinetuneConfig
from amcsearch.core import BadInputError
from amcsearch.evaluation import default_batch_size
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.workload import Workload, training_recipe
from amcsearch.recovery import recalibrate_batch_norm
from amcsearch.training import Distillation, StateStore, TrainingHook, TrainingRecipe, fit, stacked

__all__ = ["fine_tune", "finetuning_recipe", "recalibrate"]


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
        BadInputError: the training diverges, or as ``finetuning_recipe``.
    """
    recipe, first_epoch = finetuning_recipe(config, finetune)
    if first_epoch < recipe.epochs:
        learned = finetune.distillation if finetune else None
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
        )
    return model.cpu().eval()


def recalibrate(config: Config, workload: Workload, model: nn.Module) -> None:
    """Take the statistics of batch norms anew from the calibration split, where the configuration asks for it."""
    if config.recovery.bn_recalibration:
        inputs, _ = stacked(workload.splits.calibration)
        recalibrate_batch_norm(model, inputs, config.evaluation.batch_size or default_batch_size(inputs))
