"""Frozen dataclasses as the plain values of JSON, and back.

A stored document's keys are its fields, in their order (or the ``key`` of their metadata). A key that this version does
not know is left out on reading, and a key that an older version did not write takes the default of its field, where it
has one.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from enum import StrEnum
from functools import cache
from itertools import zip_longest
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from amcsearch.core import FIRST_COSTS, BadInputError, Cost, Metric, PruningPolicy

__all__ = [
    "ConfigFile",
    "Document",
    "MetricRecord",
    "StoredDocument",
    "first_difference",
    "items_of",
    "key_of",
    "lines_of",
    "plain",
    "read_as",
    "read_cost",
    "read_number",
]


_MOST: Final = 2**64  # of a whole number: a seed may need as many bits
_HASH: Final = "# configuration "  # and the hash: the first line of config.yaml
_SELECTION: Final = "# selection: "  # and what was chosen, and why: the second where the configuration left it open
_NAME: Final = "name: "  # and the name: the next, for the configuration begins with it


@dataclass(frozen=True)
class ConfigFile:
    """``config.yaml``: its text, and what its first lines say, None where they lack it.

    ``config_hash`` tells configurations apart, with the files that they name; ``name`` is the configuration's;
    ``selection`` is what the network and the data decided on where it left that open, and why.
    """

    text: str
    config_hash: str | None = None
    name: str | None = None
    selection: str | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """Read the first lines."""
        lines, heads = text.splitlines(), list[str | None]()
        for head in (_HASH, _SELECTION, _NAME):
            is_there = bool(lines) and lines[0].startswith(head)
            heads.append(lines.pop(0).removeprefix(head) if is_there else None)
        config_hash, selection, name = heads
        return cls(text, config_hash, name and name.strip("'\""), selection)

    def with_head(self) -> str:
        """Return the text under the lines of the hash and of the selection."""
        selection = "" if self.selection is None else f"{_SELECTION}{self.selection}\n"
        return f"{_HASH}{self.config_hash}\n{selection}{self.text}"


def plain(value: object) -> Any:
    """Turn documents, numpy values, tuples and paths into what JSON holds; numbers that are not finite become None."""
    if isinstance(value, Document):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Document:
    """Values with names, which are printed or written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON; a number that is not finite becomes null."""
        return {key_of(item): plain(getattr(self, item.name)) for item in fields(self)}


@cache
def _hints(kind: type) -> Mapping[str, object]:
    """The types of a document's fields; reading annotations takes longer than reading a document."""
    return get_type_hints(kind)


@dataclass(frozen=True)
class StoredDocument(Document):
    """A document that is read back from a file of JSON."""

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote; null is NaN where a field is a number. ``where`` names the value in errors.

        Raises:
            BadInputError: a key is missing, or a value is of another type than its field.
        """
        values, hints = items_of(value, where), _hints(cls)  # type: ignore[arg-type]  # mypy: classes are hashable
        needed = {key_of(item) for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
        missing = sorted(needed - set(values))
        if missing:
            raise BadInputError(f"{where} lacks {', '.join(missing)}")
        names = {item.name: key_of(item) for item in fields(cls) if key_of(item) in values}
        return cls(**{name: read_as(hints[name], values[key], f"{where}: {key}") for name, key in names.items()})


@dataclass(frozen=True)
class MetricRecord(StoredDocument):
    """What a metric is: its name, unit and direction."""

    name: str
    unit: str
    higher_is_better: bool

    @classmethod
    def of(cls, metric: Metric) -> Self:
        """Describe a metric."""
        return cls(metric.name, metric.unit, metric.higher_is_better)

    @property
    def metric(self) -> Metric:
        """The metric; raises as ``Metric``."""
        return Metric(self.name, self.unit, self.higher_is_better)


def key_of(item: "Field[Any]") -> str:
    """The key of a field in JSON: its name, or the ``key`` of its metadata."""
    return str(item.metadata.get("key", item.name))


def items_of(value: object, where: str) -> dict[str, Any]:
    """Return the keys and values of an object of JSON.

    Raises:
        BadInputError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise _unfit(where, value, "an object")
    return {str(key): inner for key, inner in value.items()}


def read_cost(values: Mapping[str, Any], apart: Iterable[str], where: str) -> Cost:
    """Read the costs among values: the built-in ones, and every other number as a cost of the user's own.

    Values named in ``apart`` are no costs; null is a cost that is not known.

    Raises:
        BadInputError: a built-in cost is something else than a number.
    """
    names = [name for name in values if name not in set(apart) and values[name] is not None]
    numbers = [name for name in names if isinstance(values[name], int | float) and not isinstance(values[name], bool)]
    order = [name for name in FIRST_COSTS if name in names] + [name for name in numbers if name not in FIRST_COSTS]
    return Cost({name: read_number(values[name], f"{where}: {name}") for name in order})


def _unfit(where: str, value: object, expected: str) -> BadInputError:
    return BadInputError(f"{where} is {value!r:.60}, expected {expected}")


def read_number(value: object, where: str) -> float:
    """Read a number; null is NaN.

    Raises:
        BadInputError: it is something else.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unfit(where, value, "a number")
    if isinstance(value, int) and abs(value) > _MOST:
        raise _unfit(where, value, f"a number of at most {_MOST:.3g}")
    return value


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _unfit(where, value, "a whole number")
    if abs(value) > _MOST:
        raise _unfit(where, value, f"a whole number of at most {_MOST:.3g}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _unfit(where, value, "a text")
    return value


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _unfit(where, value, "true or false")
    return value


def _policy(value: object, where: str) -> PruningPolicy:
    try:
        return PruningPolicy(items_of(value, where))
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}") from error


_READERS: Final[Mapping[object, Callable[[object, str], object]]] = {
    float: read_number,
    int: _count,
    str: _text,
    bool: _truth,
    PruningPolicy: _policy,
    object: lambda value, _: value,
}


def read_as(hint: Any, value: object, where: str) -> Any:
    """Return a value of the type that a field is annotated with; ``object`` is anything.

    Raises:
        BadInputError: it is of another type; names ``where``.
    """
    if hint in _READERS:
        return _READERS[hint](value, where)
    if isinstance(hint, type) and issubclass(hint, StoredDocument):
        return hint.from_json(value, where)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if not isinstance(value, str) or value not in list(hint):
            raise _unfit(where, value, f"one of {', '.join(hint)}")
        return hint(value)
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return _read_either(parts, value, where)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            raise _unfit(where, value, "a list")
        return tuple(read_as(parts[0], inner, f"{where}[{i}]") for i, inner in enumerate(value))
    if kind is Mapping:
        return {name: read_as(parts[1], inner, f"{where}.{name}") for name, inner in items_of(value, where).items()}
    raise TypeError(f"{where}: a document cannot have a field of type {hint}")


def _read_either(parts: tuple[Any, ...], value: object, where: str) -> object:
    """Read null, a text, or a value of the one other type."""
    if value is None and NoneType in parts:
        return None
    if isinstance(value, str) and str in parts:
        return value
    other = next((part for part in parts if part not in (NoneType, str)), str)
    return read_as(other, value, where)


def lines_of(text: str) -> list[str]:
    """Return the lines of a configuration without its comments."""
    return [line for line in text.splitlines() if not line.startswith("#")]


def first_difference(before: str, now: str) -> str:
    """Say in which line two configurations differ first."""
    for a, b in zip_longest(lines_of(before), lines_of(now), fillvalue=""):
        if a != b:
            return f"it had {a.strip() or 'nothing'!r} where there is now {b.strip() or 'nothing'!r}"
    return "a file that it names has changed (table, profile, checkpoint or factory)"
