"""What the benchmarks of methods share: trained reference networks by seed, cheap enough for every method to have a go.

Networks, data and recipes are the configurations', with these changes. Digits are 8x8 images: the residual network sees
them so, the others as 16x16, in place of 32x32. The language model is trained for one epoch, not four. Training after
pruning (``recovery.finetune``) takes 4 epochs of 512 samples, without the teacher, which training-time methods do not
have.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Final

from torch.utils.data import Subset

from amcsearch.config import Config, RecipeConfig
from amcsearch.config.loading import load
from amcsearch.core.errors import BadInputError
from amcsearch.jobs.workload import Workload, load_workload
from amcsearch.training.recipe import TrainingRecipe
from amcsearch.training.splits import length

__all__ = ["SCENES", "Scene", "configured", "loaded", "seeded"]

CHANGES: Final = (
    *("device.profile=null", "device.table=null", "device.channel_multiple=1"),
    *("budget={macs: 1x}", "recovery.finetune.distillation=null", "recovery.finetune.epochs=4"),
)
SAMPLES: Final = 512


@dataclass(frozen=True)
class Scene:
    """A reference network: its configuration, what is changed in it, and the sparsities that are asked for."""

    path: str
    overrides: tuple[str, ...]
    channels: float = 0.5
    weights: float = 0.9


SCENES: Final = {
    "resnet20": Scene("configs/searches/digits.yaml", ("data.kwargs.size=8",)),
    "mobilenetv2": Scene("configs/searches/digits-mobilenetv2.yaml", ("data.kwargs.size=16",)),
    "vgg": Scene("configs/searches/digits-vgg.yaml", ("data.kwargs.size=16", "model.kwargs.input_size=16")),
    "vit": Scene("configs/searches/digits-vit.yaml", ("data.kwargs.size=16", "model.kwargs.image_size=16")),
    "language_model": Scene(
        "configs/searches/topics-language-model.yaml",
        ("model.pretrain.epochs=1", "model.pretrain.warmup_epochs=0"),
        weights=0.7,
    ),
}


def seeded(path: str, seed: int, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration under a seed: of the data split where the data are digits, of every training."""
    config = load(path, [f"seed={seed}", *overrides])
    if not config.data.factory.endswith(":digits"):  # the text's splits are regions, the same for every seed
        return config
    return load(path, [f"seed={seed}", f"data.kwargs.seed={seed}", *overrides])


def configured(scene: Scene, seed: int, overrides: Sequence[str] = ()) -> Config:
    """Return a scene's configuration, in which training-time methods get the epochs of fine-tuning but one.

    The last epoch is theirs too: fine-tuning of what they left. So all methods train for equally many epochs.
    """
    config = seeded(scene.path, seed, [*scene.overrides, *CHANGES, *overrides])
    tuning = config.recovery.finetune
    if tuning is None or tuning.epochs < 2:
        raise BadInputError(f"{scene.path}: recovery.finetune needs at least 2 epochs to be shared out")
    recipe = {field.name: getattr(tuning, field.name) for field in fields(TrainingRecipe)}
    training = RecipeConfig(**{**recipe, "epochs": tuning.epochs - 1})
    return config.model_copy(update={"sparsify": config.sparsify.model_copy(update={"training": training})})


@lru_cache(maxsize=1)
def loaded(scene: Scene, seed: int, overrides: tuple[str, ...] = ()) -> Workload:
    """Return the trained network, from the cache (AMCSEARCH_CACHE) where it is there, and few samples to train on."""
    workload = load_workload(configured(scene, seed, overrides))
    train = workload.splits.train
    few = Subset(train, range(min(SAMPLES, length(train, "train"))))
    return replace(workload, splits=replace(workload.splits, train=few))
