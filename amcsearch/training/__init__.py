"""Data splits, losses, one training loop, checkpoints and the reference networks."""

from amcsearch.training.checkpoint import load_checkpoint, pretrained, save_state
from amcsearch.training.cuts import (
    DEFAULT_SIZES,
    as_datasets,
    collate_of,
    first_item,
    make_splits,
    stratified,
)
from amcsearch.training.data import DATASETS, are_outputs_kept, with_dense_targets
from amcsearch.training.forms import Form, choose_form
from amcsearch.training.hook import StateStore, TrainingHook, Watch
from amcsearch.training.identity import (
    PROBES,
    TRAIN_SAMPLES,
    Identity,
    NetworkRecord,
    SplitRecord,
    differences,
    fingerprint,
    network_difference,
    record_network,
)
from amcsearch.training.loop import CLASS_IDS, Augmentation, Progress, evaluate, fit, guess_on
from amcsearch.training.models import MODELS
from amcsearch.training.preparation import checked_splits, fixed_splits
from amcsearch.training.reading import all_targets, batches_of, fitting_batch_size, is_ragged
from amcsearch.training.recipe import Distillation, TrainingRecipe
from amcsearch.training.resume import StateFile
from amcsearch.training.seeding import seeded
from amcsearch.training.sparsification import FixedMasks, GatedTraining, MaskedTraining, MaskedUnits, bake
from amcsearch.training.splits import (
    SPLITS,
    STREAM_SAMPLES,
    DataSplits,
    Held,
    Items,
    Samples,
    fetch,
    is_in_memory,
    is_stackable,
    length,
    read,
    source_of,
    stacked,
)
from amcsearch.training.surveys import check_samples, check_splits
from amcsearch.training.task import Guess, Meter, Task, judged_tensor, outputs_apart
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
    "PROBES",
    "SPLITS",
    "STREAM_SAMPLES",
    "TASKS",
    "TRAIN_SAMPLES",
    "Augmentation",
    "Binary",
    "Classification",
    "Custom",
    "DataSplits",
    "Distillation",
    "Embedding",
    "FixedMasks",
    "Form",
    "GatedTraining",
    "Guess",
    "Held",
    "Identity",
    "Items",
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
    "SplitRecord",
    "StateFile",
    "StateStore",
    "Task",
    "TrainingHook",
    "TrainingRecipe",
    "Watch",
    "all_targets",
    "are_outputs_kept",
    "as_datasets",
    "bake",
    "batches_of",
    "check_archive",
    "check_recipe",
    "check_samples",
    "check_splits",
    "checked_splits",
    "choose_form",
    "collate_of",
    "differences",
    "evaluate",
    "fetch",
    "fingerprint",
    "first_item",
    "fit",
    "fitting_batch_size",
    "fixed_splits",
    "guess_on",
    "is_in_memory",
    "is_ragged",
    "is_stackable",
    "judged_tensor",
    "length",
    "load_checkpoint",
    "load_tensors",
    "make_splits",
    "network_difference",
    "outputs_apart",
    "pretrained",
    "read",
    "read_texts",
    "record_network",
    "save_state",
    "save_tensors",
    "seeded",
    "source_of",
    "stacked",
    "stratified",
    "with_dense_targets",
]
