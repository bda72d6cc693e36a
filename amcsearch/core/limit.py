"""The most that a network may cost: a share of the dense network's cost, or an absolute number."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from amcsearch.core.errors import BadInputError

__all__ = ["SHARE", "SIZE", "Limit", "is_size", "read_limit"]

SHARE: Final = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)x")
"""A share of dense as users write it: ``0.5x``."""
BYTES: Final = frozenset({"bytes", "model_bytes", "peak_memory_bytes"})
COUNTED: Final = frozenset({"macs", "params", *BYTES})  # whole numbers: less than 1 of them cannot be meant
_UNITS: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SIZE: Final = re.compile(rf"([0-9]*\.?[0-9]+) ?({'|'.join(_UNITS)})")
"""A number of bytes as users write it: ``300 KiB``."""
_WITH_UNIT: Final = re.compile(r"[0-9.]+ ?[A-Za-z]+")
_IN_UNITS: Final = f"of bytes also with one of {', '.join(_UNITS)}"
_OF_BYTES: Final = f" ({_IN_UNITS})"
_OF_ANY: Final = f" (of ms for latency, of mJ for energy, {_IN_UNITS})"
_LOWER: Final = "lower the limit or drop it"
_COUNTED_IN: Final = {"latency_ms": " of ms", "energy_mj": " of mJ", "macs": " of MACs", "params": " of parameters"}
_TOLERANCE: Final = 1e-9  # relative: the same cost summed in another order is still the same cost
_MODEL_OF: Final = {
    "latency_ms": "give device.table a latency table",
    "energy_mj": "give device.profile a device profile",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``value`` of a cost: a share of the dense network's if ``of_dense``, else a number in the cost's unit.

    Attributes:
        cost: name of the cost, which fixes its unit: ``macs``, ``latency_ms``, …
        value: in (0, 1] as a share, above 0 and finite as a number.
        of_dense: whether ``value`` is a share.
        key: where the user wrote it, such as ``budget.macs``; errors name it.

    Raises:
        BadInputError: a value out of these bounds, or an absolute number below 1 of what is counted one by one.
    """

    cost: str
    value: float
    of_dense: bool
    key: str

    def __post_init__(self) -> None:
        if not 0.0 < self.value < math.inf or (self.of_dense and self.value > 1.0):  # true for NaN too
            raise BadInputError(_out_of_range(self.key, self.written, "above 0"))
        if not self.of_dense and self.cost in COUNTED and self.value < 1.0:
            raise BadInputError(
                f"{self.key} = {self.written} is an absolute number of {self.cost}, must be at least 1; write "
                f"{_number(self.value)}x for that share of the dense network's"
            )

    @classmethod
    def parse(cls, cost: str, written: str | float, key: str, dense: float | None = None) -> "Limit":
        """Make a limit of what a user writes: ``"0.5x"`` is half of dense; a number, or its text, is absolute.

        A limit of bytes may have a unit: ``"300 KiB"``.

        ``dense`` is the dense network's cost where it is known already: errors then name it as the bound.

        Raises:
            BadInputError: as the class, or neither a share nor a number; names key, value, bound and cure.
        """
        try:
            value, of_dense = read_limit(written)
            if cost not in BYTES and is_size(written):
                raise ValueError(f"{cost} is not counted in bytes")
        except ValueError as error:
            bound = "above 0" if dense is None else _up_to(dense, cost)
            units = _OF_BYTES if cost in BYTES else ""
            raise BadInputError(_out_of_range(key, written, bound, units, _cure(cost, written))) from error
        return cls(cost, value, of_dense, key)

    @property
    def written(self) -> str | float:
        """What a configuration says: ``"0.5x"``, or a number; ``parse`` makes an equal limit of it."""
        return f"{_number(self.value)}x" if self.of_dense else self.value

    def resolve(self, dense: float) -> float:
        """Return the limit in the unit of the cost.

        Raises:
            BadInputError: more than ``dense``, the dense network's cost.
        """
        if self.of_dense:
            return self.value * dense
        if not self.value <= dense * (1.0 + _TOLERANCE):
            raise BadInputError(_out_of_range(self.key, self.written, _up_to(dense, self.cost)))
        return self.value

    def dense_cost(self, dense: Mapping[str, float]) -> float:
        """Return what the dense network costs, of its costs by name.

        Raises:
            BadInputError: nothing prices the limited cost; names the cure, or the costs that are priced.
        """
        if self.cost in dense:
            return dense[self.cost]
        if self.cost in _MODEL_OF:
            raise BadInputError(
                f"{self.key} = {self.written}, but nothing here predicts {self.cost}; {_MODEL_OF[self.cost]} or drop "
                "the limit"
            )
        raise BadInputError(f"{self.key} = {self.written}: unknown cost {self.cost!r}; choose from {', '.join(dense)}")


def read_limit(written: object) -> tuple[float, bool]:
    """Read what a user writes as a limit: its value, and whether that is a share of dense; a size is read as bytes.

    Raises:
        ValueError: neither a share in (0x, 1x] nor a finite number above 0, nor the text of one of them.
    """
    text = written.strip() if isinstance(written, str) else ""
    share = SHARE.fullmatch(text)
    size = SIZE.fullmatch(text)
    number = share[1] if share else text or written
    if size:
        number = str(float(size[1]) * _UNITS[size[2]])
    try:
        value = math.nan if isinstance(number, bool) else float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0.0 < value < math.inf or (share and value > 1.0):
        units = _OF_ANY if share is None and _WITH_UNIT.fullmatch(text) else ""
        raise ValueError(f"expected a share of dense in (0x, 1x] such as 0.5x, or a number{units} above 0")
    return value, share is not None


def is_size(written: object) -> bool:
    """Whether what a user writes as a limit is a number of bytes with its unit, such as ``300 KiB``."""
    return isinstance(written, str) and SIZE.fullmatch(written.strip()) is not None


def _number(value: float) -> str:
    """The shortest text of a number that reads back the same, ``1`` for one."""
    return repr(value).removesuffix(".0")


def _out_of_range(key: str, written: str | float, bound: str, units: str = "", cure: str = _LOWER) -> str:
    return f"{key} = {written!r}, must be a share of dense in (0x, 1x] such as 0.5x, or a number{units} {bound}; {cure}"


def _cure(cost: str, written: str | float) -> str:
    """What to do about what is no limit: a share above 1x is lowered, anything else is written in another form."""
    share = SHARE.fullmatch(written.strip()) if isinstance(written, str) else None
    if share and float(share[1]) > 1.0:
        return _LOWER
    if cost in BYTES:
        return "write 0.5x, a number of bytes, or one with its unit such as 300 KiB"
    return f"write 0.5x, or the number{_COUNTED_IN.get(cost, '')} alone"


def _up_to(dense: float, cost: str) -> str:
    return f"in (0, {dense:.6g}], the dense network's {cost}"
