"""A target device as numbers with units and sources: hardware is a file, not code."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from typing import Any, Final, get_args

from amcsearch.core import BadInputError

__all__ = ["DeviceProfile"]

_WORD_BITS: Final = (8, 16, 32)
_NUMBERS: Final = ("mac_pj", "dram_pj_per_byte", "static_power_mw")


@dataclass(frozen=True)
class DeviceProfile:
    """What energy and rounding need to know of a device.

    - ``word_bits``: bits of a weight or activation, 8, 16 or 32.
    - ``mac_pj``: energy of one multiply-accumulate at that width, in pJ.
    - ``dram_pj_per_byte``: energy of moving one byte to or from DRAM, in pJ.
    - ``static_power_mw``: power drawn whatever is computed, in mW.
    - ``channel_multiple``: widths the device prefers, None where unknown; a measured latency table overrules it.
    - ``sources``: for every number above zero where it comes from.

    Raises:
        BadInputError: a value out of range, or a number without a source.
    """

    name: str
    word_bits: int
    mac_pj: float
    dram_pj_per_byte: float
    static_power_mw: float = 0.0
    channel_multiple: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.word_bits not in _WORD_BITS:
            raise BadInputError(f"device {self.name!r}: word_bits = {self.word_bits!r}, must be one of {_WORD_BITS}")
        for key in _NUMBERS:
            value = getattr(self, key)
            if not isfinite(value) or value < 0.0:
                raise BadInputError(f"device {self.name!r}: {key} = {value}, must be a finite number of at least 0")
            if value > 0.0 and not self.sources.get(key):
                raise BadInputError(f"device {self.name!r}: {key} has no source; say in `sources` where it comes from")
        if self.channel_multiple is not None and self.channel_multiple < 1:
            raise BadInputError(
                f"device {self.name!r}: channel_multiple = {self.channel_multiple}, must be at least 1, or null"
            )

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> "DeviceProfile":
        """Make a profile of plain values, as a YAML file holds them.

        Raises:
            BadInputError: an unknown or missing key, a value of the wrong type, or as the class.
        """
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(str(key) for key in data if key not in known)
        if unknown:
            raise BadInputError(f"device profile has unknown keys {unknown}; known: {list(known)}")
        needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in needed if name not in data]
        if missing:
            raise BadInputError(f"device profile lacks {missing}")
        for key, value in data.items():
            _check_type(key, value, known[key].type)
        return cls(**data)


def _check_type(key: str, value: object, annotation: Any) -> None:
    if annotation == Mapping[str, str]:
        right = isinstance(value, Mapping) and all(isinstance(text, str) for text in (*value, *value.values()))
        words = "a mapping of a key to its source"
    else:
        types = get_args(annotation) or (annotation,)
        whole = isinstance(value, int) and not isinstance(value, bool)
        right = (isinstance(value, types) and not isinstance(value, bool)) or (float in types and whole)
        words = " or ".join("null" if t is type(None) else t.__name__ for t in types)
    if not right:
        raise BadInputError(f"device profile: {key} = {value!r}, must be {words}")
