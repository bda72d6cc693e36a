"""What ``prune`` was asked for, and what it achieved."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from amcsearch.core import BadInputError
from amcsearch.runs.documents import StoredDocument, items_of

__all__ = ["FailedLevel", "Goal", "KeepAccuracyGoal", "PairedChange", "PolicyGoal", "RoundSummary", "TargetGoal"]


@dataclass(frozen=True)
class Goal(StoredDocument):
    """A goal of ``prune``; its ``kind`` in JSON says which of the classes below it is."""

    kind: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, ``kind`` first."""
        return {"kind": self.kind, **super().to_json()}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read the goal of the kind that the value names.

        Raises:
            BadInputError: an unknown kind, or as ``StoredDocument.from_json``.
        """
        if cls is not Goal:
            return super().from_json(value, where)
        kinds = {goal.kind: goal for goal in (PolicyGoal, TargetGoal, KeepAccuracyGoal)}
        kind = items_of(value, where).get("kind")
        if kind not in kinds:
            raise BadInputError(f"{where} is of kind {kind!r}, expected one of {', '.join(kinds)}")
        goal: Any = kinds[kind].from_json(value, where)
        return goal  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PolicyGoal(Goal):
    """A policy that was known before."""

    kind: ClassVar[str] = "policy"


@dataclass(frozen=True)
class RoundSummary(StoredDocument):
    """One of several rounds: costs in the unit of the target, the metric on the search split in its own unit."""

    limit: float
    achieved: float
    metric_pruned: float = field(metadata={"key": "accuracy_pruned"})
    metric_finetuned: float = field(metadata={"key": "accuracy_finetuned"})


@dataclass(frozen=True)
class TargetGoal(Goal):
    """A cost that was to be reached, in its own unit.

    ``asked`` is what the user wrote, ``limit`` what it means. ``level`` of ``levels`` (counted from the dense network,
    0) came to ``level_value``, and ``moves`` steps of single groups to ``achieved``. ``smallest_step`` is the least
    that one more step would add, None where no group has one left. ``rounds`` are those of gradual pruning, none where
    there was one. JSON calls a level ``rung``, as the first releases did.
    """

    kind: ClassVar[str] = "target"

    cost: str
    asked: str | float
    allocation: str
    limit: float
    dense: float
    achieved: float
    smallest_step: float | None
    levels: int = field(metadata={"key": "rungs"})
    level: int = field(metadata={"key": "rung"})
    level_value: float = field(metadata={"key": "rung_value"})
    moves: int
    rounds: tuple[RoundSummary, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, without ``rounds`` where there was one."""
        values = super().to_json()
        if not self.rounds:
            del values["rounds"]
        return values


@dataclass(frozen=True)
class PairedChange(StoredDocument):
    """How much better the metric is than the dense network's on the same ``samples``, with its lower bound.

    Negative is worse, whichever direction the metric has; in the metric's unit, shares as shares. Both are None where
    the policy was not evaluated on these samples.
    """

    samples: int
    change: float | None
    change_low: float | None


@dataclass(frozen=True)
class FailedLevel(StoredDocument):
    """A level that the verification did not accept."""

    level: int = field(metadata={"key": "rung"})
    evidence: PairedChange

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON that holds the evidence beside the level."""
        return {"rung": self.level, **self.evidence.to_json()}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote; raises as ``StoredDocument.from_json``."""
        evidence = PairedChange.from_json(value, where)
        return super().from_json({**items_of(value, where), "evidence": evidence.to_json()}, where)


@dataclass(frozen=True)
class KeepAccuracyGoal(Goal):
    """Metric that was to be kept.

    ``points`` is how much of it may be lost, in percentage points of a share, else in its own unit; ``confidence`` is
    one-sided. ``evaluated`` says in words how
    policies were evaluated. ``level`` of ``levels`` was chosen among those ``accepted`` on the ``search`` part of the
    search split, and stood the ``verification`` on the other part, which ``failed`` did not.
    """

    kind: ClassVar[str] = "keep_accuracy"

    points: float
    confidence: float
    allocation: str
    evaluated: str
    levels: int = field(metadata={"key": "rungs"})
    level: int = field(metadata={"key": "rung"})
    accepted: tuple[int, ...]
    search: PairedChange
    verification: PairedChange
    failed: tuple[FailedLevel, ...]
