"""The result of a search or of ``prune``: what ``summary.json`` holds, key by key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

from amcsearch.core import ACCURACY, FIRST_COSTS, BadInputError, Cost, Limit, Metric, PruningPolicy
from amcsearch.runs.documents import MetricRecord, StoredDocument, items_of, plain, read_cost, read_number
from amcsearch.runs.goals import Goal
from amcsearch.runs.measuring_device import MeasuringDevice
from amcsearch.runs.table_summary import TableSummary
from amcsearch.runs.verdict import DeliveredFile, Interval, LimitVerdict, Measurement, Verdict

__all__ = [
    "BudgetEntry",
    "DeliveredMetric",
    "FinalistSummary",
    "GroupWidth",
    "ModelBlock",
    "SkippedLayer",
    "Summary",
    "with_metric",
    "with_total",
    "without_metric",
    "without_total",
]

_DELIVERED: Final = "accuracy_"  # and the data type


@dataclass(frozen=True)
class DeliveredMetric:
    """Metric of the ONNX file, which computes in ``dtype``."""

    dtype: str
    value: float


@dataclass(frozen=True)
class ModelBlock(StoredDocument):
    """One network: the metric on the test split, what the network costs as predicted, and its measured latency in ms,
    None while its device has not measured it.

    ``metric``, in its own unit, is that of the delivered file, read back from the disk and run in ``device.runtime``;
    of a network that no file is delivered of, torch's. ``torch_metric`` is the metric in torch, in float32, where a
    file was scored; a run of version 0.1.0 has none, and torch's as ``metric``. ``latency_ms_sigma`` is the standard
    deviation of the predicted latency, None without a latency table. ``delivered`` is there where the file computes in
    another data type than float32.
    """

    metric: float
    cost: Cost
    latency_ms_sigma: float | None
    latency_ms: Interval | None
    delivered: DeliveredMetric | None = None
    torch_metric: float | None = None

    @property
    def in_file(self) -> float:
        """Metric of the file that is delivered; torch's where none was scored."""
        return self.metric if self.delivered is None else self.delivered.value

    @property
    def in_torch(self) -> float:
        """Metric in torch, in float32."""
        return self.metric if self.torch_metric is None else self.torch_metric

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, in which each cost has its key."""
        values = {
            "accuracy": self.metric,
            **{name: self.cost.get(name) for name in FIRST_COSTS if name != "latency_ms"},
            **self.cost.further,
            "latency_ms_predicted": self.cost.latency_ms,
            "latency_ms_predicted_sigma": self.latency_ms_sigma,
            "latency_ms_measured": self.latency_ms,
        }
        if self.delivered is not None:
            values[f"{_DELIVERED}{self.delivered.dtype}"] = self.delivered.value
        if self.torch_metric is not None:
            values["accuracy_torch"] = self.torch_metric
        return {name: plain(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote; raises as ``StoredDocument.from_json``."""
        given = items_of(value, where)
        flat = _FlatBlock.from_json(given, where)
        in_file = [name for name in given if name.startswith(_DELIVERED) and name != "accuracy_torch"]
        delivered = [
            DeliveredMetric(name.removeprefix(_DELIVERED), read_number(given[name], f"{where}: {name}"))
            for name in in_file
        ]
        apart = [*in_file, *(item.name for item in fields(_FlatBlock))]
        return cls(
            flat.accuracy,
            read_cost({**given, "latency_ms": flat.latency_ms_predicted}, apart, where),
            flat.latency_ms_predicted_sigma,
            flat.latency_ms_measured,
            delivered[0] if delivered else None,
            flat.accuracy_torch,
        )


@dataclass(frozen=True)
class _FlatBlock(StoredDocument):
    """The keys of a block that are not costs."""

    accuracy: float
    latency_ms_measured: Interval | None
    latency_ms_predicted: float | None = None
    latency_ms_predicted_sigma: float | None = None
    accuracy_torch: float | None = None


@dataclass(frozen=True)
class FinalistSummary(StoredDocument):
    """A policy that was measured before fine-tuning, or waits for it.

    ``metric`` and ``reward`` are those of its trial, ``metric_trained`` and ``reward_trained`` those after a short
    fine-tuning of ``epochs_trained``, all on the search split. Latencies are in ms, ``latency_ratio`` is the share of
    dense. ``round`` is 1 for the best by prediction, and 2 for cheaper ones that count where none of those is within
    the limit.
    """

    trial: int
    chosen: bool
    policy: PruningPolicy
    metric: float = field(metadata={"key": "accuracy"})
    reward: float
    latency_ms_predicted: float | None
    latency_ms_measured: Interval | None
    latency_ratio: Interval | None = None
    metric_trained: float | None = field(default=None, metadata={"key": "accuracy_trained"})
    reward_trained: float | None = None
    epochs_trained: int | None = None
    round: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, without what was trained where nothing was, and without a first ``round``."""
        values = super().to_json()
        absent = {
            "accuracy_trained": self.metric_trained,
            "reward_trained": self.reward_trained,
            "epochs_trained": self.epochs_trained,
        }
        without = [name for name, value in absent.items() if value is None] + ["round"] * (self.round == 1)
        return {name: value for name, value in values.items() if name not in without}


@dataclass(frozen=True)
class BudgetEntry(StoredDocument):
    """A limit as ``asked`` (``"0.5x"`` of dense, or absolute), in the cost's unit, and the predicted cost beside it."""

    asked: str | float
    limit: float
    predicted: float


@dataclass(frozen=True)
class GroupWidth(StoredDocument):
    """Channels of a group in the dense network, and how many of them are kept."""

    group: str
    channels: int
    kept: int


@dataclass(frozen=True)
class SkippedLayer(StoredDocument):
    """A layer, operation or group that is never pruned, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Summary(StoredDocument):
    """Dense, pruned and fine-tuned, and how they came about.

    ``metric`` is what the task judges by; the keys of JSON that hold its values bear its name.

    ``dtype`` is that of the ONNX file, and ``float32_ms``, where that is not float32, the dense network's measured
    latency in float32; ``latency_ratio`` the fine-tuned network's measured share of dense latency, None while
    ``device`` has not measured it (a run of version 0.1.0 does not say which device measured);
    ``dense_search_metric`` the dense network's on the search split; ``onnx_max_abs_diff`` the largest difference
    between torch's outputs and ONNX Runtime's in float32, null where one is not a number. ``agent`` proposed the
    policy, ``baseline`` spent as many ``evaluations`` beside it. ``selection`` says what chose the channels, and why
    where the configuration left that open, ``training`` which epoch of the fine-tuning is kept, and why. ``seconds``
    are the wall time of each phase.
    ``recalibrated`` says whether batch norms took their statistics anew for every evaluation.
    ``verdict`` says whether the budget is met, ``files`` how far each delivered file is the network that was judged.
    """

    dense: ModelBlock
    pruned: ModelBlock
    finetuned: ModelBlock
    dtype: str = "float32"
    float32_ms: Interval | None = None
    latency_ratio: Interval | None
    device: MeasuringDevice | None = None
    budget: Mapping[str, BudgetEntry]
    dense_search_metric: float = field(metadata={"key": "dense_search_accuracy"})
    table: TableSummary | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    onnx_max_abs_diff: float
    selection: str = ""
    agent: str
    baseline: str | None = None
    goal: Goal | None = None
    training: str = ""
    seed: int
    evaluations: int
    seconds: Mapping[str, float]
    finalists: tuple[FinalistSummary, ...]
    network: tuple[GroupWidth, ...]
    skipped: tuple[SkippedLayer, ...] = ()
    channel_multiple: int
    widths_left_out: int = 0
    recalibrated: bool | None = None
    warnings: tuple[str, ...] = ()
    verdict: Verdict | None = None
    files: tuple[DeliveredFile, ...] = ()
    metric: Metric = ACCURACY

    @property
    def judged(self) -> Verdict:
        """The verdict; of a run of version 0.1.0, which wrote none, made of the same numbers."""
        if self.verdict is not None:
            return self.verdict
        made = self._measurement
        return Verdict.of(_limits(self.budget, self.dense.cost, made), (), made)

    @property
    def _measurement(self) -> Measurement | None:
        """The final measurement without its rounds; None while there is none."""
        latency_ms = self.finetuned.latency_ms
        if latency_ms is None or self.latency_ratio is None:
            return None
        return Measurement(latency_ms, self.latency_ratio)

    @property
    def latency_doubt(self) -> str | None:
        """Why the measured latency says nothing; None where it does, or where nothing was measured yet."""
        stored, made = None if self.verdict is None else self.verdict.doubt, self._measurement
        return stored or (None if made is None else made.doubt)

    @property
    def predicted_ratio(self) -> float | None:
        """Predicted latency of the delivered network as a share of dense, None without a latency table."""
        before, after = self.dense.cost.latency_ms, self.finetuned.cost.latency_ms
        return after / before if before and after is not None else None

    @property
    def drift(self) -> float | None:
        """How much slower the dense network was than predicted, as a share; None where either is not known.

        By as much the device has drifted since its latency table was measured.
        """
        predicted, measured = self.dense.cost.latency_ms, self.dense.latency_ms
        if not predicted or measured is None or self.latency_doubt is not None:
            return None
        return measured.median / predicted - 1.0

    def of_float32(self, block: ModelBlock) -> float | None:
        """Measured latency as a share of the dense network's in float32, None where the file is of float32."""
        if self.float32_ms is None or block.latency_ms is None:
            return None
        return block.latency_ms.median / self.float32_ms.median

    @property
    def total_seconds(self) -> float:
        """Wall time of all phases."""
        return sum(self.seconds.values())

    @property
    def chosen(self) -> FinalistSummary | None:
        """The finalist that was fine-tuned and delivered."""
        return next((finalist for finalist in self.finalists if finalist.chosen), None)

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, with the ``total`` of the seconds among them."""
        values = {**super().to_json(), "seconds": with_total(self.seconds)}
        for name in ("float32_ms", "device", "selection", "training"):  # an older run wrote none
            if not getattr(self, name):
                del values[name]
        if self.verdict is None:  # as a run of version 0.1.0 has it
            del values["verdict"], values["files"], values["recalibrated"]
        return with_metric(values, self.metric)

    @classmethod
    def from_json(cls, value: object, where: str = "summary.json") -> Self:
        """Read what ``to_json`` wrote; raises as ``StoredDocument.from_json``."""
        values, metric = without_metric(without_total(value, where), where)
        return replace(super().from_json(values, where), metric=metric)


def _limits(budget: Mapping[str, BudgetEntry], dense: Cost, made: Measurement | None) -> Iterator[LimitVerdict]:
    """Judge limits as they are stored; one that cannot be read is left out."""
    for name, entry in budget.items():
        try:
            limit = Limit.parse(name, entry.asked, f"budget.{name}")
            limit = limit if limit.of_dense else replace(limit, value=entry.limit)
        except BadInputError:
            continue
        whole = dense.get(name, entry.limit / limit.value if limit.of_dense else entry.limit)
        if name == "latency_ms" and made is None:
            yield LimitVerdict.unmeasured(limit, entry.predicted, whole)
        elif name == "latency_ms" and made is not None:
            yield LimitVerdict.by_measurement(limit, entry.predicted, whole, made)
        else:
            yield LimitVerdict.by_prediction(limit, entry.predicted, whole)


def with_total(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return seconds by phase with their sum as ``total``, as JSON holds them."""
    return {**seconds, "total": sum(seconds.values())}


def without_total(value: object, where: str) -> dict[str, Any]:
    """Return a summary of JSON whose seconds lack their ``total``."""
    given = items_of(value, where)
    if "seconds" not in given:
        return given
    seconds = items_of(given["seconds"], f"{where}: seconds")
    return {**given, "seconds": {name: spent for name, spent in seconds.items() if name != "total"}}


_BLOCKS: Final = ("dense", "pruned", "sparse", "finetuned")
_LISTS: Final = ("finalists", "rounds")
_SUFFIXES: Final = ("", "_torch", "_float32", "_int8", "_pruned", "_finetuned", "_trained")


def with_metric(values: dict[str, Any], metric: Metric) -> dict[str, Any]:
    """Return a summary of JSON in which the metric's values have its name, with what the metric is.

    Of accuracy nothing is changed or added: a summary of version 0.1.0 knew no other.
    """
    values = {key: value for key, value in values.items() if key != "metric"}
    if metric == ACCURACY:
        return values
    return {**_renamed(values, ACCURACY.name, metric.name), "metric": MetricRecord.of(metric).to_json()}


def without_metric(values: dict[str, Any], where: str) -> tuple[dict[str, Any], Metric]:
    """Return a summary of JSON with the metric's values under the keys of accuracy, and the metric.

    Raises:
        BadInputError: the metric is not described as ``with_metric`` does it.
    """
    if "metric" not in values:
        return values, ACCURACY
    metric = MetricRecord.from_json(values["metric"], f"{where}: metric").metric
    without = {key: value for key, value in values.items() if key != "metric"}
    return _renamed(without, metric.name, ACCURACY.name), metric


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Rename the keys of a metric's values, in the blocks, the finalists and the rounds of a goal."""
    names = {old + suffix: new + suffix for suffix in _SUFFIXES}

    def of_one(value: Any) -> Any:
        return {names.get(key, key): inner for key, inner in value.items()} if isinstance(value, dict) else value

    def of_any(key: str, value: Any) -> Any:
        if key in _BLOCKS:
            return of_one(value)
        if key in _LISTS and isinstance(value, list):
            return [of_one(each) for each in value]
        if key == "goal" and isinstance(value, dict):
            return {inner: of_any(inner, each) for inner, each in value.items()}
        return value

    top = {f"dense_search_{old}": f"dense_search_{new}"}
    return {top.get(key, key): of_any(key, value) for key, value in values.items()}
