"""Trainings in the configuration: every key of a recipe with its default, its bound and its meaning."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from amcsearch.config.values import ImportSpec

__all__ = [
    "MAX_BATCH",
    "MAX_THREADS",
    "Count",
    "CountFrom0",
    "Distillation",
    "FinetuneConfig",
    "Magnitude",
    "MagnitudeFrom0",
    "RecipeConfig",
]

MAX_COUNT: Final = 10_000_000
"""Of samples, epochs, evaluations: more than any machine does in a year, few enough to hold one number for each."""
MAX_MAGNITUDE: Final = 1e6
"""Of learning rates, weights of penalties and temperatures: float32 computes with it and with its square."""
MAX_THREADS: Final = 1024
MAX_BATCH: Final = 65_536
MAX_SHIFT: Final = 1024  # pixels
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
CountFrom0 = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Magnitude = Annotated[float, Field(gt=0.0, le=MAX_MAGNITUDE)]
MagnitudeFrom0 = Annotated[float, Field(ge=0.0, le=MAX_MAGNITUDE)]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RecipeConfig(_Section):
    """How to train."""

    epochs: CountFrom0 = 10
    """Passes over the training split."""
    learning_rate: Magnitude = 0.1
    """The highest; the warm-up ends there."""
    batch_size: Count = 64
    """Samples that go through the network at once."""
    accumulation: Count = 1
    """Batches whose gradients make one step: 4 of 16 samples learn as one of 64, with the memory of 16."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """``sgd`` has Nesterov momentum."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of ``sgd``; the first beta of ``adamw``."""
    weight_decay: MagnitudeFrom0 = 5e-4
    """On all parameters but those of ``no_decay``."""
    no_decay: tuple[Literal["vectors", "biases", "norms", "embeddings"], ...] = ("vectors",)
    """Parameters without weight decay: ``vectors`` have fewer than two axes (biases, scales of norms), ``norms`` are
    all of normalisation layers, ``embeddings`` all of embedding layers; ``[]`` decays everything."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: along half a cosine to zero, or constant."""
    warmup_epochs: MagnitudeFrom0 = 1.0
    """Epochs of the linear rise to ``learning_rate``; 0.5 is half of one."""
    warmup_steps: CountFrom0 | None = None
    """Steps of the rise, in place of ``warmup_epochs``."""
    clip_norm: Magnitude | None = None
    """Shortens the gradient of all parameters together to this length where it is longer; null leaves it."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What networks compute in while they train (autocast; weights stay float32). float16 needs CUDA."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of a moving average of the weights, such as 0.99, which takes their place at the end; null for none."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a target that all classes divide; not with a teacher."""
    max_shift: Annotated[int, Field(ge=0, le=MAX_SHIFT)] = 0
    """Images move at random by up to so many pixels."""
    augmentation: ImportSpec | None = None
    """``module:callable`` or ``path/to/file.py:callable``, which changes a ``Batch`` of the training split and returns
    it."""


class Distillation(_Section):
    """Learn from the dense network: softened by ``temperature``, weighted by ``alpha`` against the true targets."""

    temperature: Magnitude = 4.0
    """Divides the logits of both networks."""
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    """Weight of the dense network's outputs; the true targets have the remainder."""


class FinetuneConfig(RecipeConfig):
    """The training after removal."""

    factory: ImportSpec | None = None
    """``module:callable`` or ``path/to/file.py:callable``: a training of your own in place of ours, which gets a
    ``TrainingRequest`` and returns the network; all other keys here but ``distillation`` are ours and then unused."""
    epochs: CountFrom0 = 5
    """Passes over the training split; 0 for none."""
    learning_rate: Magnitude = 0.02
    """The highest; ``rewound`` takes those of ``model.pretrain`` in its place."""
    schedule: Literal["cosine", "constant", "rewound"] = "cosine"  # type: ignore[assignment]
    """``rewound`` replays the last ``epochs`` of ``model.pretrain``, with its recipe (learning-rate rewinding)."""
    warmup_epochs: MagnitudeFrom0 = 0.0
    """Epochs of the linear rise to ``learning_rate``; 0.5 is half of one."""
    distillation: Distillation | None = Distillation()
    keep: Literal["best", "last"] = "best"
    """``best``: the epoch that does best on the search split, the network before fine-tuning among them; ``last``."""
    patience: Count | None = None
    """Ends the training after so many epochs in a row that gave no better network on the search split; null: never."""
