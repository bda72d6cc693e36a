"""How to train: the sections of a configuration that are recipes."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from amcsearch.config.values import Target

__all__ = ["Distillation", "FinetuneConfig", "RecipeConfig", "SparsifyConfig"]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RecipeConfig(_Section):
    """How to train: the fields of ``training.loop.TrainingRecipe``."""

    epochs: NonNegativeInt = 10
    learning_rate: PositiveFloat = 0.1
    batch_size: PositiveInt = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NonNegativeInt = 1
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    max_shift: NonNegativeInt = 0
    """Images move at random by up to so many pixels."""


class Distillation(_Section):
    """Learn from the dense network: softened by ``temperature``, weighted by ``alpha`` against the true targets."""

    temperature: PositiveFloat = 4.0
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7


class FinetuneConfig(RecipeConfig):
    """The short training after removal."""

    epochs: NonNegativeInt = 5
    learning_rate: PositiveFloat = 0.02
    schedule: Literal["cosine", "constant", "rewound"] = "cosine"  # type: ignore[assignment]
    """``rewound`` replays the last ``epochs`` of ``model.pretrain``, with its recipe (learning-rate rewinding)."""
    warmup_epochs: NonNegativeInt = 0
    distillation: Distillation | None = Distillation()


class SparsifyConfig(_Section):
    """What ``amcsearch sparsify`` does: gates or masks that are decided while the network trains."""

    method: str = "gradual"
    """A gate or a schedule."""
    params: dict[str, JsonValue] = {}
    """Fields of the method's dataclass."""
    target: Target = {"sparsity": 0.5}
    """``{sparsity: 0.8}``: the share that goes, of weights or of channels; or a cost, as in the budget."""
    granularity: Literal["weights", "channels"] | None = None
    """What a schedule masks (null: weights); a gate knows for itself."""
    criterion: str = "magnitude"
    """What a schedule ranks by; gates learn their own order."""
    criterion_params: dict[str, JsonValue] = {"p": 1.0}
    training: RecipeConfig = RecipeConfig(learning_rate=0.02, warmup_epochs=0)
