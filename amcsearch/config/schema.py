"""The configuration of a search: every key with its default, its bound and its meaning."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from amcsearch.config.recipes import Distillation, FinetuneConfig, PruneConfig, RecipeConfig, SparsifyConfig
from amcsearch.config.values import ChannelMultiple, CostName, ImportSpec, Limit, Objective
from amcsearch.core import COST_NAMES, BadInputError

__all__ = [
    "Config",
    "DataConfig",
    "DeviceConfig",
    "Distillation",
    "EvaluationConfig",
    "FinetuneConfig",
    "ModelConfig",
    "PruneConfig",
    "RecipeConfig",
    "RecoveryConfig",
    "RewardConfig",
    "SearchConfig",
    "SelectionConfig",
    "SparsifyConfig",
    "SplitsConfig",
    "check_priced",
]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(_Section):
    """The network: made by a factory, then loaded from a checkpoint or trained on the spot."""

    factory: ImportSpec
    """``package.module:callable`` or ``path/to/file.py:callable``; called with ``kwargs`` it gives an ``nn.Module``."""
    kwargs: dict[str, JsonValue] = {}
    checkpoint: str | None = None
    """A state dict: ``.safetensors``, or ``.pt`` read with ``weights_only``."""
    input_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Shape of one input without the batch dimension; null takes it from the data."""
    pretrain: RecipeConfig | None = None
    """Train the network first; null means that the factory or the checkpoint gives a trained one."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.checkpoint is not None and self.pretrain is not None:
            raise ValueError("checkpoint and pretrain are both set; keep one of them")
        return self


class SplitsConfig(_Section):
    """Samples of each split that the data factory does not give itself."""

    calibration: PositiveInt = 512
    search: PositiveInt = 512
    test: PositiveInt | None = None

    def sizes(self) -> dict[str, int]:
        """Split name → samples, without the splits left to their default."""
        return self.model_dump(exclude_none=True)


class DataConfig(_Section):
    """The data: a factory that returns the datasets ``train``, ``calibration``, ``search``, ``test``, or fewer."""

    factory: ImportSpec
    kwargs: dict[str, JsonValue] = {}
    targets: Literal["given", "dense"] = "given"
    """``dense``: no labels; the dense network's own outputs are to be kept, and accuracy is the mean cosine to them.

    The factory's targets are read by ``model.pretrain`` alone; -100 stands for none.
    """
    splits: SplitsConfig = SplitsConfig()


class DeviceConfig(_Section):
    """The target."""

    profile: str | None = None
    """A device YAML (energy constants, channel multiple); without it energy is not priced."""
    table: str | None = None
    """A folder made by ``amcsearch table measure``; without it latency is not priced."""
    channel_multiple: ChannelMultiple = "auto"
    """Kept channels are multiples of it; auto takes the table's, then the profile's, then 1."""
    threads: PositiveInt = 1
    batch: PositiveInt = 1
    dtype: Literal["float32", "int8"] = "float32"
    """What the device computes in. int8: tables, finalists and ``pruned.onnx`` are quantised after training, calibrated
    on the calibration split; the search itself judges accuracy in float32."""
    rounds: PositiveInt = 300
    """Samples of a latency measurement of finalists and of the result; 300 take about fifteen seconds."""


class SelectionConfig(_Section):
    """Which channels of a group go."""

    criterion: str = "taylor"
    selector: str | None = None
    """Judges channels by what reads them, in place of the criterion, and says how that is refitted."""
    params: dict[str, JsonValue] = {}
    """Fields of the criterion's dataclass, or of the selector's where there is one."""


class RecoveryConfig(_Section):
    """How accuracy is regained."""

    bn_recalibration: bool = True
    reconstruction: Literal["auto", "none", "bias", "scales", "least_squares", "sequential"] = "auto"
    """How what reads pruned channels is refitted, also within the search; auto: as the selector says, else none.

    ``sequential`` costs a forward pass over the calibration data a layer, the others a small solve.
    """
    finetune: FinetuneConfig | None = FinetuneConfig()


class EvaluationConfig(_Section):
    """How a policy is evaluated."""

    batch_size: PositiveInt | None = None
    """Samples in a forward pass; null takes what a CPU likes for the size of the inputs."""
    torch_device: str = "cpu"


class RewardConfig(_Section):
    """What the agent maximises."""

    name: str = "accuracy"
    params: dict[str, JsonValue] = {}


class SearchConfig(_Section):
    """How the policies are searched."""

    agent: str = "ddpg"
    agent_params: dict[str, JsonValue] = {}
    trials: PositiveInt = 200
    reward: RewardConfig = RewardConfig()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2)] | None = None
    """Two or more objectives give a Pareto front instead of one best policy."""
    batch: PositiveInt = 1
    """Policies an agent proposes at once; ``--workers`` evaluates them side by side, with the same results."""
    max_pruning_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """The largest share of channels that any group may lose."""
    baseline: Literal["random"] | None = "random"
    """Also run at equal evaluations, for the convergence picture."""
    finalists: PositiveInt = 3
    """The best policies that are exported and measured on the device."""
    start: str | None = None
    """A ``policy.json`` that every agent evaluates first, repaired to the budget where it exceeds it."""


class Config(_Section):
    """Everything a search needs, valid by construction."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = "search"
    """Also the beginning of the run folder's name."""
    seed: NonNegativeInt = 0
    model: ModelConfig
    data: DataConfig
    device: DeviceConfig = DeviceConfig()
    budget: dict[CostName, Limit] = {"macs": "0.5x"}
    """Cost name → ``0.5x`` (half of dense) or an absolute number; every one of them must hold."""
    selection: SelectionConfig = SelectionConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    sparsify: SparsifyConfig = SparsifyConfig()
    prune: PruneConfig = PruneConfig()

    @model_validator(mode="after")
    def _has_a_goal(self) -> "Config":
        if not self.budget and self.search.objectives is None:
            raise ValueError(f"budget is empty; name a cost ({', '.join(COST_NAMES)}) or set search.objectives")
        return self


def check_priced(config: Config) -> None:
    """Check that every cost in the budget and the objectives can be priced on the device.

    Raises:
        BadInputError: latency without a table, or energy without a profile; names the key and the cure.
    """
    wanted: Mapping[str, str] = {
        **dict.fromkeys(config.search.objectives or (), "search.objectives"),
        **{name: f"budget.{name}" for name in config.budget},
    }
    if "latency_ms" in wanted and config.device.table is None:
        raise BadInputError(
            f"{wanted['latency_ms']} needs a latency table, device.table is null; make one with "
            "`amcsearch table measure CONFIG -o latency_tables/NAME` and set device.table to it"
        )
    if "energy_mj" in wanted and config.device.profile is None:
        raise BadInputError(
            f"{wanted['energy_mj']} needs device.profile, which is null; set it to a file of configs/devices"
        )
