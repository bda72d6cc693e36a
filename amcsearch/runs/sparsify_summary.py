"""The result of ``sparsify``: what its ``summary.json`` holds, key by key."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from amcsearch.core import ACCURACY, Cost, Limit, Metric, PruningPolicy
from amcsearch.runs.documents import StoredDocument, items_of, key_of, plain, read_as, read_cost
from amcsearch.runs.measuring_device import MeasuringDevice
from amcsearch.runs.summary import with_metric, with_total, without_metric, without_total
from amcsearch.runs.verdict import DeliveredFile, Interval, LimitVerdict, Verdict

__all__ = ["Density", "SparseBlock", "SparseLatency", "SparsifySummary", "SparsityTarget"]


@dataclass(frozen=True)
class SparseBlock(StoredDocument):
    """One network on the test split: the metric in its own unit, the task's loss, parameters that are not 0.

    ``cost`` is what the device's grid prices: empty for zeros in dense tensors, which it does not see.
    """

    metric: float = field(metadata={"key": "accuracy"})
    loss: float
    nonzero_params: int
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, in which each known cost has its key."""
        values = super().to_json()
        cost = values.pop("cost")
        return {**values, **cost}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote; raises as ``StoredDocument.from_json``."""
        given = items_of(value, where)
        network = _Network.from_json(given, where)
        return cls(
            network.metric,
            network.loss,
            network.nonzero_params,
            read_cost(given, [key_of(item) for item in fields(_Network)], where),
        )


@dataclass(frozen=True)
class _Network(StoredDocument):
    """The keys of a block that are not costs."""

    metric: float = field(metadata={"key": "accuracy"})
    loss: float
    nonzero_params: int


@dataclass(frozen=True)
class SparsityTarget(StoredDocument):
    """What was asked for and achieved, as shares of dense.

    ``name`` is ``sparsity`` or a cost, and ``asked`` what the user wrote. For a cost, ``limit``, ``dense`` and
    ``achieved`` are in its unit; ``storage`` is the format of sparse weights, where bytes were the target.
    """

    name: str
    asked: str | float
    kept_asked: float
    kept: float
    limit: float | None = None
    dense: float | None = None
    achieved: float | None = None
    storage: str | None = None

    def judged(self, total: int, again: str | None = None) -> LimitVerdict:
        """Judge the target by shares of dense; latency, which is not measured here, is undecided.

        A sparsity is reached to within one of ``total`` weights or units. ``again`` says how to measure latency.
        """
        limit = Limit(self.name, self.kept_asked, True, f"sparsify.target.{self.name}")
        if self.name == "latency_ms":
            verdict = LimitVerdict.unmeasured(limit, self.kept, 1.0, again)
        else:
            slack = 1.0 / total if self.name == "sparsity" else 0.0
            verdict = LimitVerdict.by_prediction(limit, self.kept, 1.0, slack)
        return replace(verdict, asked=self.asked)

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON: ``{name: asked, …}``, with the keys of a cost where one was the target."""
        values: dict[str, object] = {self.name: self.asked, "kept_asked": self.kept_asked, "kept": self.kept}
        if self.limit is not None:
            values |= {"cost": self.name, "limit": self.limit, "dense": self.dense, "achieved": self.achieved}
        return plain(values | ({} if self.storage is None else {"storage": self.storage}))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote; raises as ``StoredDocument.from_json``."""
        given = items_of(value, where)
        name = read_as(str, given.get("cost", "sparsity"), f"{where}: cost")
        bound = {"asked": given[name]} if name in given else {}
        return super().from_json({**given, "name": name, **bound}, where)


@dataclass(frozen=True)
class Density(StoredDocument):
    """How much of a tensor's weights, or of a group's units, is in use: ``kept`` of ``total``, and their share."""

    name: str
    kept: int
    total: int
    density: float


@dataclass(frozen=True)
class SparseLatency(StoredDocument):
    """Latency of the fine-tuned network as measured beside the dense one: in ms, and as a share of dense.

    ``float32_ms`` is the dense network's in float32, where the device computes in another data type.
    """

    dense_ms: Interval
    finetuned_ms: Interval
    ratio: Interval
    float32_ms: Interval | None = None


@dataclass(frozen=True)
class SparsifySummary(StoredDocument):
    """Dense, sparse and fine-tuned, and what is in use of what.

    ``granularity`` is ``weights`` or ``channels``; ``sparsity`` the share of them that is not in use: all but ``kept``
    of ``total``. ``training`` says which epoch of the fine-tuning is kept, and why. ``metric`` is what the task judges
    by. ``policy`` holds the channels that a search can start from, ``seconds`` the wall time of each phase. ``device``
    is the one that is to measure latency, None where this machine would, for training times nothing; ``latency`` is
    None while it has not measured.
    """

    dense: SparseBlock
    sparse: SparseBlock
    finetuned: SparseBlock
    method: str
    granularity: str
    target: SparsityTarget
    sparsity: float
    kept: int
    total: int
    densities: tuple[Density, ...]
    policy: PruningPolicy
    channel_multiple: int
    warnings: tuple[str, ...]
    seed: int
    seconds: Mapping[str, float]
    training: str = ""
    verdict: Verdict | None = None
    files: tuple[DeliveredFile, ...] = ()
    device: MeasuringDevice | None = None
    latency: SparseLatency | None = None
    metric: Metric = ACCURACY

    @property
    def judged(self) -> Verdict:
        """The verdict; of a run of version 0.1.0, which wrote none, made of its target."""
        return self.verdict or Verdict.of([self.target.judged(self.total)])

    @property
    def latency_ratio(self) -> Interval | None:
        """The fine-tuned network's measured share of dense latency; None while nothing was measured."""
        return None if self.latency is None else self.latency.ratio

    @property
    def latency_doubt(self) -> str | None:
        """Why the measured latency says nothing; None where it does, or where nothing was measured."""
        return None if self.verdict is None else self.verdict.doubt

    @property
    def predicted_ratio(self) -> float | None:
        """Predicted latency as a share of dense; None without a latency table, or for zeros in dense tensors."""
        before, after = self.dense.cost.latency_ms, self.finetuned.cost.latency_ms
        return after / before if before and after is not None else None

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, with the ``total`` of the seconds among them."""
        values = {**super().to_json(), "seconds": with_total(self.seconds)}
        if self.verdict is None:  # as a run of version 0.1.0 has it
            del values["verdict"], values["files"]
        for name in ("training", "device", "latency"):  # an older run, and one that is to be measured nowhere
            if not getattr(self, name):
                del values[name]
        return with_metric(values, self.metric)

    @classmethod
    def from_json(cls, value: object, where: str = "summary.json") -> Self:
        """Read what ``to_json`` wrote; raises as ``StoredDocument.from_json``."""
        values, metric = without_metric(without_total(value, where), where)
        return replace(super().from_json(values, where), metric=metric)
