"""The configuration of a job: every key with its default, its bound and its meaning.

A criterion, selector, agent, reward, task, gate or schedule is a row of ``amcsearch list KIND``, or an import spec.
"""

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from amcsearch.config.sections import (
    Count,
    CountFrom0,
    DataConfig,
    DeviceConfig,
    FinetuneConfig,
    Magnitude,
    ModelConfig,
    RecipeConfig,
    Section,
    TaskConfig,
)
from amcsearch.config.values import (
    Objective,
    PruneTarget,
    Recalibration,
    SparseFormat,
    Target,
    WrittenBudget,
    as_named,
    limits_of,
)
from amcsearch.core import COST_NAMES, Limit
from amcsearch.costs import StorageFormat

__all__ = [
    "EXACT",
    "Config",
    "EvaluationConfig",
    "PruneConfig",
    "RecoveryConfig",
    "RewardConfig",
    "SearchConfig",
    "SelectionConfig",
    "SparsifyConfig",
]

EXACT: Final = "exact"
"""What ``search.start`` and ``prune.allocation`` call the exact programme's policies."""


class SparsifyConfig(Section):
    """What ``amcsearch sparsify`` does: gates or masks that are decided while the network trains."""

    method: str = "gradual"
    """A gate or a schedule."""
    params: dict[str, JsonValue] = {}
    """Fields of the method's dataclass."""
    target: Target = {"sparsity": 0.5}
    """``{sparsity: 0.8}``: the share that goes, of weights or of channels; or ``bytes``, or a cost as in the budget."""
    storage: SparseFormat = StorageFormat.BITMAP
    """How ``bytes`` counts a tensor with single weights gone, wherever that is smaller than dense."""
    granularity: Literal["weights", "channels"] | None = None
    """What a schedule masks (null: weights); a gate knows for itself."""
    criterion: str = "magnitude"
    """What a schedule ranks by, as ``selection.criterion``; gates learn their own order."""
    criterion_params: dict[str, JsonValue] = {"p": 1.0}
    """Fields of the criterion's dataclass."""
    training: RecipeConfig = RecipeConfig(learning_rate=0.02, warmup_epochs=0.0)
    """``accumulation``, ``clip_norm``, ``ema`` and float16 have no place in it: masks and gates make the gradients."""

    @model_validator(mode="after")
    def _is_plain(self) -> "SparsifyConfig":
        if self.training.ema is not None:
            raise ValueError(
                f"training.ema = {self.training.ema:g} would average weights from before they were masked; set it to "
                "null"
            )
        return self

    @property
    def limit(self) -> Limit | None:
        """The target as a limit on a cost; None where it is a sparsity."""
        return None if "sparsity" in self.target else limits_of(self.target, "sparsify.target")[0]


class PruneConfig(Section):
    """What ``amcsearch prune`` does: apply a known policy, reach a cost, or keep the metric."""

    policy: dict[str, CountFrom0] | str | None = None
    """Channels kept, by name of the group; or a ``policy.json``. 0 lets a residual branch vanish."""
    target: PruneTarget | None = None
    """One cost and its limit, as in the budget."""
    keep_accuracy: Magnitude | None = None
    """How much of the metric may be lost, as far as that can be shown: points of a share, else the metric's unit."""
    allocation: str = "auto"
    """How groups share the pruning: at the least sum of a selector's errors (exact), by all scores (global), one ratio
    (uniform), or score per cost saved (per_cost).

    auto: exact with a selector that knows its errors, such as obc, global with a criterion, else uniform."""
    rounds: Count = 1
    """Reach ``target`` in so many rounds of pruning and training, which share ``recovery.finetune.epochs``."""
    round_shape: str = "cubic"
    """The cost after each round: the same share of what remains goes (geometric), the same amount (linear), or most at
    first (cubic).

    Most at first leaves the last cut least to mend, and did best (benchmarks/methods/rounds.md)."""
    normaliser: str = "mean"
    """What makes scores of different groups comparable."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """One-sided, of the bound that ``keep_accuracy`` goes by."""
    verification: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the search split that ``keep_accuracy`` sets aside to verify what it found on the rest."""
    scan: CountFrom0 = 4
    """Bolder policies that ``keep_accuracy`` tries beyond the first that fails."""

    @property
    def limit(self) -> Limit | None:
        """The target as a limit on a cost; None where there is no target."""
        return None if self.target is None else limits_of(self.target, "prune.target")[0]

    @model_validator(mode="after")
    def _one_goal(self) -> "PruneConfig":
        given = [name for name in ("policy", "target", "keep_accuracy") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are set; keep one of them")
        if self.rounds > 1 and given in (["policy"], ["keep_accuracy"]):
            raise ValueError(
                f"rounds = {self.rounds} lead to a target, and {given[0]} is set; give prune.target in its "
                "place, or prune.rounds = 1"
            )
        return self


class SelectionConfig(Section):
    """Which channels of a group go."""

    criterion: str | None = None
    """Ranks channels by a saliency of their weights."""
    selector: str | None = None
    """Judges channels by what reads them, in place of the criterion, and says how that is refitted.

    With neither: obc where it fits, else a criterion; the run says which and why, also in ``config.yaml``."""
    params: dict[str, JsonValue] = {}
    """Fields of the criterion's dataclass, or of the selector's where there is one."""

    @property
    def is_open(self) -> bool:
        """Whether the network and the data are to decide."""
        return self.criterion is None and self.selector is None

    @model_validator(mode="after")
    def _check_params(self) -> "SelectionConfig":
        if self.is_open and self.params:
            raise ValueError("params are those of a criterion or a selector, and neither is named; name one")
        return self


class RecoveryConfig(Section):
    """How the metric is regained."""

    bn_recalibration: Recalibration = "auto"
    """Batch norms take their statistics anew on the calibration split; auto: unless that makes the dense network
    clearly worse, and a pruned one too, as where the calibration data are not like what the network was trained on.
    """
    reconstruction: str = "auto"
    """How what reads pruned channels is refitted, also within the search: none, bias, scales, least_squares or
    sequential; auto: as the selector says, else none.

    ``sequential`` costs a forward pass over the calibration data a layer, the others a small solve.
    """
    finetune: FinetuneConfig | None = FinetuneConfig()


class EvaluationConfig(Section):
    """How a policy is evaluated."""

    batch_size: Count | None = None
    """Samples in a forward pass; null takes what a CPU likes for the size of the inputs."""
    torch_device: str = "cpu"
    """Where torch computes: training, saliency and evaluation."""


class RewardConfig(Section):
    """What the agent maximises."""

    name: str = "accuracy"
    """A reward."""
    params: dict[str, JsonValue] = {}
    """Parameters of the reward."""


class SearchConfig(Section):
    """How the policies are searched."""

    agent: str = "ddpg"
    """Proposes the policies."""
    agent_params: dict[str, JsonValue] = {}
    """Fields of the agent's dataclass."""
    trials: Count = 200
    """Policies to evaluate."""
    further_trials: tuple[Count, ...] = ()
    """Evaluations added to the finished search, one number for each time that ``--trials +N`` did so."""
    reward: RewardConfig = RewardConfig()
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2)] | None = None
    """Two or more give a Pareto front instead of one best policy: ``metric``, or the metric's own name, and costs."""
    batch: Count = 1
    """Policies that an agent keeps under way; ``--workers`` evaluates them side by side, with the same results."""
    stop_confidence: Annotated[float, Field(ge=0.5, lt=1.0)] | None = None
    """An evaluation stops, with this confidence, once its policy cannot beat the best that was known when it was
    proposed; null: never. Agents learn from its estimate, but it is neither the best nor a finalist.

    Ignored, with a warning, where the metric is no mean over samples, or with several objectives or a reward of your
    own."""
    max_pruning_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    """The largest share of channels that any group may lose."""
    vanish: bool = False
    """Whether a residual branch may vanish: its groups may keep 0 channels, whatever ``max_pruning_ratio``, and the
    shortcut alone is left of the block. ``sparsify`` and rounds of ``prune`` never let one vanish."""
    baseline: str | None = "random"
    """An agent that also runs, with its defaults and at equal evaluations, for the convergence picture; its best policy
    is delivered only where no policy of the agent has a finite loss."""
    finalists: Count = 3
    """The best policies that are exported and measured on the device."""
    finalist_epochs: CountFrom0 | None = None
    """Those within the limit are trained for so many epochs of ``recovery.finetune``, and the search split then says
    which is best: accuracy before fine-tuning does not rank accuracy after it. null: a fifth of its epochs, at least 1;
    0: none, the search's reward says it, as it does for a training of your own.

    Of four or more the better half is trained anew for twice as long, again and again, but no longer than all of
    ``recovery.finetune``: 8 finalists of 1 epoch make 8 + 4·2 + 2·4 = 24 epochs in all.

    With ``device.dtype: int8`` it is the quantised file that the search split judges, also where nothing is trained."""
    start: Annotated[str | None, BeforeValidator(lambda value: None if value == "none" else value)] = EXACT
    """What the agent evaluates first: ``exact``, none, or a ``policy.json``, brought within the budget if need be.

    ``exact``: the policy that the exact programme allocates from the errors that a selector such as obc knows for every
    kept count, which costs no evaluation (for several objectives, some along the front); then the uniform policy. The
    baseline starts from a ``policy.json`` too, but not from these."""

    @property
    def evaluations(self) -> int:
        """All that were asked for: ``trials`` and ``further_trials``."""
        return self.trials + sum(self.further_trials)


class Config(Section):
    """Everything a search needs, valid by construction."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = "search"
    """Also the beginning of the run folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides splits, training, search and fine-tuning."""
    model: ModelConfig
    data: DataConfig
    task: Annotated[TaskConfig | None, BeforeValidator(as_named)] = None
    """A section or a name alone; null: targets are class ids, judged by cross-entropy and accuracy."""
    device: DeviceConfig = DeviceConfig()
    budget: WrittenBudget = {"macs": "0.5x"}
    """Cost name → ``0.5x`` (half of dense) or an absolute number; every one of them must hold.

    Left out: half of the MACs. ``{}`` is an error unless ``search.objectives`` say what is traded."""
    selection: SelectionConfig = SelectionConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    search: SearchConfig = SearchConfig()
    sparsify: SparsifyConfig = SparsifyConfig()
    prune: PruneConfig = PruneConfig()

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The budget as limits on costs."""
        return limits_of(self.budget, "budget")

    @property
    def may_vanish(self) -> bool:
        """Whether groups may keep 0 channels. Between rounds none does: a later round narrows what is left."""
        return self.search.vanish and self.prune.rounds == 1

    @model_validator(mode="after")
    def _has_a_goal(self) -> "Config":
        if not self.budget and self.search.objectives is None:
            raise ValueError(
                f"budget is empty; name a cost ({', '.join(COST_NAMES)}), leave it out for half of the macs, or set "
                "search.objectives"
            )
        return self
