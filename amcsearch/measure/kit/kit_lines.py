"""Lines of a kit's result as typed records, held to the plan that they belong to.

A checksum says that a line is as it was written, not that a kit wrote it. So every field is read by its type, and every
count by the plan's, before anything is made of it.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from amcsearch.core import BadInputError
from amcsearch.runs import StoredDocument, read_as

__all__ = ["Line", "PlannedModel", "check_line", "check_lines"]

MOST_PASSES: Final = 1000
MOST_ROUNDS: Final = 100_000
REPEATS: Final = 2  # a pass has up to as many disturbed rounds again


@dataclass(frozen=True, slots=True)
class Line:
    """A record and where it was read."""

    record: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class PlannedModel(StoredDocument):
    """A model of a plan, as a result's header describes it."""

    id: str
    network: str
    role: str
    policy: Mapping[str, int] | None
    timed: bool
    profiled: bool
    meta: Mapping[str, object]


@dataclass(frozen=True)
class _Plan(StoredDocument):
    """What the host reads of a plan."""

    batch: int
    dtype: str
    passes: int
    rounds: int
    models: tuple[PlannedModel, ...]
    info: Mapping[str, object]


_NUMBERS: Final = tuple[float, ...]
_FIELDS: Final[Mapping[str, Mapping[str, object]]] = {
    "header": {"part": int, "plan_hash": str, "provenance": Mapping[str, object], "plan": _Plan},
    "overhead": {"pass": int, "samples_ms": _NUMBERS},
    "timing": {"model": str, "pass": int, "reference": str, "samples_ms": _NUMBERS, "reference_ms": _NUMBERS},
    "graph": {"model": str, "graph": str},
    "profile": {"model": str, "nodes": tuple[tuple[object, ...], ...]},
    "drift": {"model": str, "pass": int, "ratio": float},
    "failed": {"model": str, "reason": str},
}
"""Fields that the host reads of each kind of record, and their types."""
_NODE: Final = (str, str, float, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...])  # fields of ExecutedNode


def check_line(line: Line) -> None:
    """Check the fields of a record; a kind that is not read passes.

    Raises:
        BadInputError: a field is missing or of another type; names the line, the field and the value.
    """
    kind = line.record.get("kind")
    for key, hint in _FIELDS.get(kind, {}).items() if isinstance(kind, str) else ():
        if key not in line.record:
            raise BadInputError(f"{line.place}: the {kind} record lacks {key}; run the kit again")
        value = _checked(hint, line.record[key], f"{line.place}: {key}")
        if isinstance(value, _Plan):
            _check_plan(value, line.place)
    for number, node in enumerate(line.record["nodes"], 1) if kind == "profile" else ():
        where = f"{line.place}: node {number}"
        if len(node) != len(_NODE):
            raise BadInputError(f"{where} has {len(node)} parts, expected {len(_NODE)}; run the kit again")
        for hint, value in zip(_NODE, node, strict=True):
            _checked(hint, value, where)


def _checked(hint: object, value: object, where: str) -> object:
    """Read a value by its type; null, which stands for NaN in documents of our own, is no number here."""
    read = read_as(hint, value, where)
    numbers = value if hint == _NUMBERS else [value] if hint is float else []
    if isinstance(numbers, list) and None in numbers:
        raise BadInputError(f"{where} holds null, expected a number; run the kit again")
    return read


def check_lines(lines: Iterable[Line], header: Line, models: Container[str] | None = None) -> None:
    """Check records, and that they are of the plan in ``header``, which was checked before.

    Args:
        lines: to check.
        header: of the plan.
        models: names of the plan's models, for a caller that has them; None reads them from ``header``.

    Raises:
        BadInputError: as ``check_line``, or a model, pass or number of samples that the plan has not.
    """
    plan = header.record["plan"]
    known = {model["id"] for model in plan["models"]} if models is None else models
    for line in lines:
        check_line(line)
        record = line.record
        for key in ("model", "reference"):
            if isinstance(record.get(key), str) and record[key] not in known:
                raise BadInputError(f"{line.place}: model {record[key]!r:.80} is not in the plan of {header.place}")
        if record.get("kind") in ("overhead", "timing", "drift") and not 1 <= record["pass"] <= plan["passes"]:
            raise BadInputError(f"{line.place}: pass = {record['pass']}, the plan has 1 to {plan['passes']}")
        if record.get("kind") == "timing":
            _check_samples(line, plan["rounds"])


def _check_samples(line: Line, rounds: int) -> None:
    counts = [len(line.record[key]) for key in ("samples_ms", "reference_ms")]
    if counts[0] != counts[1] or not 1 <= counts[0] <= REPEATS * rounds:
        raise BadInputError(
            f"{line.place}: {counts[0]} samples beside {counts[1]} of the reference, expected as many, and 1 to "
            f"{REPEATS * rounds} for {rounds} rounds"
        )


def _check_plan(plan: _Plan, place: str) -> None:
    for name, most in {"batch": MOST_ROUNDS, "passes": MOST_PASSES, "rounds": MOST_ROUNDS}.items():
        if not 1 <= getattr(plan, name) <= most:
            raise BadInputError(
                f"{place}: {name} = {getattr(plan, name)}, must be from 1 to {most}; build the kit again"
            )
    twice = [name for name, count in Counter(model.id for model in plan.models).items() if count > 1]
    if twice:
        raise BadInputError(f"{place}: model {twice[0]!r:.80} is in the plan twice; build the kit again")
