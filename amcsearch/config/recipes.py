"""How to train, and what the verbs besides ``search`` do: sections of a configuration."""

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
    model_validator,
)

from amcsearch.config.values import PruneTarget, Target

__all__ = ["Distillation", "FinetuneConfig", "PruneConfig", "RecipeConfig", "SparsifyConfig"]


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
    """``{sparsity: 0.8}``: the share that goes, of weights or of channels; or ``bytes``, or a cost as in the budget."""
    storage: Literal["bitmap", "csr", "run_length"] = "bitmap"
    """How ``bytes`` counts a tensor with single weights gone, wherever that is smaller than dense."""
    granularity: Literal["weights", "channels"] | None = None
    """What a schedule masks (null: weights); a gate knows for itself."""
    criterion: str = "magnitude"
    """What a schedule ranks by; gates learn their own order."""
    criterion_params: dict[str, JsonValue] = {"p": 1.0}
    training: RecipeConfig = RecipeConfig(learning_rate=0.02, warmup_epochs=0)


class PruneConfig(_Section):
    """What ``amcsearch prune`` does: apply a known policy, reach a cost, or keep the accuracy."""

    policy: str | None = None
    """A ``policy.json``."""
    target: PruneTarget | None = None
    """One cost and its limit, as in the budget; of macs, params and bytes a number up to 1 is a share of dense."""
    keep_accuracy: Annotated[float, Field(gt=0.0, lt=100.0)] | None = None
    """Percentage points of accuracy that may be lost: prune as far as that can be shown to hold."""
    allocation: Literal["global", "uniform", "per_cost"] = "global"
    """How groups share the pruning: by scores of all groups together, by one ratio, or by score per cost saved."""
    rounds: PositiveInt = 1
    """Reach ``target`` in so many rounds of pruning and training, which share ``recovery.finetune.epochs``."""
    round_shape: Literal["geometric", "linear", "cubic"] = "cubic"
    """The cost after each round: the same share of what remains goes, the same amount, or most at first.

    Most at first leaves the last cut least to mend, and did best (benchmarks/methods/rounds.md)."""
    normaliser: str = "mean"
    """What makes scores of different groups comparable."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """One-sided, of the bound that ``keep_accuracy`` goes by."""
    verification: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the search split that ``keep_accuracy`` sets aside to verify what it found on the rest."""
    scan: NonNegativeInt = 4
    """Bolder policies that ``keep_accuracy`` tries beyond the first that fails."""

    @model_validator(mode="after")
    def _one_goal(self) -> "PruneConfig":
        given = [name for name in ("policy", "target", "keep_accuracy") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are set; keep one of them")
        if self.rounds > 1 and given in (["policy"], ["keep_accuracy"]):
            raise ValueError(
                f"rounds = {self.rounds} lead to a target, and {given[0]} is set; give --target COST=LIMIT in its "
                "place, or --rounds 1"
            )
        return self
