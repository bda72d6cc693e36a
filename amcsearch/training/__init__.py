"""Data splits, losses, one training loop, checkpoints and the reference networks."""

from amcsearch.training.checkpoint import load_checkpoint, pretrained, save_state
from amcsearch.training.data import DATASETS, check_samples, check_splits, with_dense_targets
from amcsearch.training.hook import StateStore, TrainingHook, Watch
from amcsearch.training.identity import (
    Identity,
    NetworkRecord,
    differences,
    fingerprint,
    network_difference,
    record_network,
    record_splits,
)
from amcsearch.training.loop import CLASS_IDS, Augmentation, Progress, evaluate, fit
from amcsearch.training.models import MODELS
from amcsearch.training.preparation import checked_splits, fixed_splits
from amcsearch.training.recipe import Distillation, TrainingRecipe
from amcsearch.training.resume import StateFile
from amcsearch.training.seeding import seeded
from amcsearch.training.sparsification import FixedMasks, GatedTraining, MaskedTraining, MaskedUnits, bake
from amcsearch.training.splits import (
    DEFAULT_SIZES,
    SPLITS,
    DataSplits,
    Samples,
    as_datasets,
    batches_of,
    fetch,
    length,
    make_splits,
    stacked,
    stratified,
)
from amcsearch.training.task import Guess, Meter, Task, judged_tensor
from amcsearch.training.tasks import (
    TASKS,
    Binary,
    Classification,
    Custom,
    Embedding,
    LanguageModelling,
    Multilabel,
    Regression,
    Segmentation,
)
from amcsearch.training.tensor_files import check_archive, load_tensors, read_texts, save_tensors
from amcsearch.training.updates import check_recipe

__all__ = [
    "CLASS_IDS",
    "DATASETS",
    "DEFAULT_SIZES",
    "MODELS",
    "SPLITS",
    "TASKS",
    "Augmentation",
    "Binary",
    "Classification",
    "Custom",
    "DataSplits",
    "Distillation",
    "Embedding",
    "FixedMasks",
    "GatedTraining",
    "Guess",
    "Identity",
    "LanguageModelling",
    "MaskedTraining",
    "MaskedUnits",
    "Meter",
    "Multilabel",
    "NetworkRecord",
    "Progress",
    "Regression",
    "Samples",
    "Segmentation",
    "StateFile",
    "StateStore",
    "Task",
    "TrainingHook",
    "TrainingRecipe",
    "Watch",
    "as_datasets",
    "bake",
    "batches_of",
    "check_archive",
    "check_recipe",
    "check_samples",
    "check_splits",
    "checked_splits",
    "differences",
    "evaluate",
    "fetch",
    "fingerprint",
    "fit",
    "fixed_splits",
    "judged_tensor",
    "length",
    "load_checkpoint",
    "load_tensors",
    "make_splits",
    "network_difference",
    "pretrained",
    "read_texts",
    "record_network",
    "record_splits",
    "save_state",
    "save_tensors",
    "seeded",
    "stacked",
    "stratified",
    "with_dense_targets",
]
