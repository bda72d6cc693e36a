"""The tasks that are built in; one of your own is a subclass of ``Task``."""

from collections.abc import Callable, Mapping
from typing import Final

from amcsearch.training.task import Task
from amcsearch.training.tasks.class_ids import (
    Classification,
    LanguageModelling,
    Segmentation,
    language_modelling,
    segmentation,
)
from amcsearch.training.tasks.custom import Custom, custom
from amcsearch.training.tasks.embedding import Embedding
from amcsearch.training.tasks.regression import Regression, regression
from amcsearch.training.tasks.yes_or_no import Binary, Multilabel, binary, multilabel

__all__ = [
    "TASKS",
    "Binary",
    "Classification",
    "Custom",
    "Embedding",
    "LanguageModelling",
    "Multilabel",
    "Regression",
    "Segmentation",
]

TASKS: Final[Mapping[str, Callable[..., Task]]] = {
    "classification": Classification,
    "language_modelling": language_modelling,
    "segmentation": segmentation,
    "regression": regression,
    "binary": binary,
    "multilabel": multilabel,
    "embedding": Embedding,
    "custom": custom,
}
