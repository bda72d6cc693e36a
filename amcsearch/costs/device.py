"""A target device as numbers with units and sources: hardware is a file, not code.

Memories are listed from the one beside the multiplier outwards; the last is DRAM. A word that crosses from one to the
next costs an access of the outer one, and a multiply-accumulate at another width than those listed costs

    e(b_w, b_a) = e(b) · b_w·b_a / b²,     b: the listed width nearest to the wider operand

because a multiplier's area, and so its energy, goes with the product of its operands' bits (as the Timeloop tables have
it; Parashar et al., ISPASS 2019).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final

from amcsearch.core import BadInputError

__all__ = ["WORD_BITS", "DeviceProfile", "MemoryLevel"]

WORD_BITS: Final = (8, 16, 32)
MOST_BYTES: Final = 2**50  # of a memory
MOST_AMOUNT: Final = 1e12  # pJ or mW: sums over any network stay finite
MOST_MULTIPLE: Final = 2**16


@dataclass(frozen=True)
class MemoryLevel:
    """One memory of a device, or the network between its processing elements.

    - ``capacity_bytes``: what tiles may fill, all units of the level together; for the innermost level what ONE
      multiplier reaches. None for DRAM.
    - ``pj_per_byte``: energy of reading or writing one byte, in pJ.
    - ``map_share``: an activation map no larger than this share of the capacity stays here between two layers. At most
      1/3: a layer's input, its output and a shortcut's map must fit at once.
    - ``source``: where the numbers come from.

    Raises:
        BadInputError: a value out of range, or no source.
    """

    name: str
    capacity_bytes: int | None
    pj_per_byte: float
    source: str
    map_share: float = 0.0

    def __post_init__(self) -> None:
        if self.capacity_bytes is not None and not 1 <= self.capacity_bytes <= MOST_BYTES:
            raise BadInputError(
                f"memory {self.name!r}: capacity_bytes = {self.capacity_bytes}, must be at least 1 and at most "
                f"{MOST_BYTES}, or null for DRAM"
            )
        if not 0.0 <= self.pj_per_byte <= MOST_AMOUNT:
            raise BadInputError(
                f"memory {self.name!r}: pj_per_byte = {self.pj_per_byte}, must be a finite number of at least 0 and at "
                f"most {MOST_AMOUNT:g}"
            )
        if not 0.0 <= self.map_share <= 1 / 3:
            raise BadInputError(f"memory {self.name!r}: map_share = {self.map_share}, must be from 0 to 1/3")
        if not self.source:
            raise BadInputError(f"memory {self.name!r} has no source; say in `source` where its numbers come from")


@dataclass(frozen=True)
class DeviceProfile:
    """What energy and rounding need to know of a device.

    - ``word_bits``: bits of an activation, and of a weight unless ``weight_bits`` says otherwise; 8, 16 or 32.
    - ``mac_pj``: energy of one multiply-accumulate in pJ, by its bits.
    - ``memories``: from the innermost outwards, at least a register file and DRAM.
    - ``static_power_mw``: power drawn whatever is computed, in mW.
    - ``skips_zero_weights``: whether a product with a zero weight costs nothing.
    - ``channel_multiple``: widths the device prefers, None where unknown; a measured latency table overrules it.
    - ``sources``: for ``mac_pj`` and ``static_power_mw``, where they are above zero, where they come from.

    Raises:
        BadInputError: a value out of range, or a number without a source.
    """

    name: str
    word_bits: int
    mac_pj: Mapping[int, float]
    memories: tuple[MemoryLevel, ...]
    weight_bits: int | None = None
    static_power_mw: float = 0.0
    skips_zero_weights: bool = False
    channel_multiple: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"device {self.name!r}"
        listed = [("word_bits", self.word_bits), *(("mac_pj bits", bits) for bits in self.mac_pj)]
        for key, bits in [*listed, *([("weight_bits", self.weight_bits)] if self.weight_bits is not None else [])]:
            if bits not in WORD_BITS:
                raise BadInputError(f"{where}: {key} = {bits!r}, must be one of {WORD_BITS}")
        if not self.mac_pj:
            raise BadInputError(f"{where}: mac_pj is empty; give the energy of a MAC at one width or more, in pJ")
        energies = {f"mac_pj of {bits} bits": pj for bits, pj in self.mac_pj.items()}
        for key, value in {**energies, "static_power_mw": self.static_power_mw}.items():
            if not 0.0 <= value <= MOST_AMOUNT:
                raise BadInputError(
                    f"{where}: {key} = {value}, must be a finite number of at least 0 and at most {MOST_AMOUNT:g}"
                )
            name = key.partition(" ")[0]
            if value > 0.0 and not self.sources.get(name):
                raise BadInputError(f"{where}: {name} has no source; say in `sources` where it comes from")
        if self.channel_multiple is not None and not 1 <= self.channel_multiple <= MOST_MULTIPLE:
            raise BadInputError(
                f"{where}: channel_multiple = {self.channel_multiple}, must be at least 1 and at most {MOST_MULTIPLE}, "
                "or null"
            )
        self._check_memories(where)

    def _check_memories(self, where: str) -> None:
        capacities = [memory.capacity_bytes for memory in self.memories]
        if len(capacities) < 2 or capacities[-1] is not None or None in capacities[:-1]:
            raise BadInputError(
                f"{where}: memories have capacities {capacities}; give two or more from the innermost outwards, "
                "each with capacity_bytes, and DRAM last with null"
            )
        inner = [capacity for capacity in capacities if capacity is not None]
        if inner != sorted(inner):
            raise BadInputError(f"{where}: memories have capacities {capacities}, must grow outwards")
        limits = [memory.map_share * (memory.capacity_bytes or 0) for memory in self.memories[:-1]]
        if limits != sorted(limits):
            raise BadInputError(f"{where}: memories hold maps of {limits} bytes; an outer one must hold no less")

    def mac_energy_pj(self, weight_bits: int, activation_bits: int) -> float:
        """Energy of one multiply-accumulate of these widths, in pJ."""
        widest = max(weight_bits, activation_bits)
        nearest = min(self.mac_pj, key=lambda bits: (abs(bits - widest), bits))
        return self.mac_pj[nearest] * weight_bits * activation_bits / nearest**2

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> "DeviceProfile":
        """Make a profile of plain values, as a YAML file holds them: the bits of ``mac_pj`` are text.

        Raises:
            BadInputError: an unknown or missing key, a value of the wrong type, or as the class.
        """
        _check_keys("device profile", data, cls)
        for key, value in data.items():
            _check_type("device profile", key, value, _PROFILE_TYPES[key])
        memories = []
        for number, entry in enumerate(data["memories"]):
            where = f"device profile: memory {number + 1}"
            _check_keys(where, entry, MemoryLevel)
            for key, value in entry.items():
                _check_type(where, key, value, _MEMORY_TYPES[key])
            memories.append(MemoryLevel(**entry))
        mac_pj = {int(bits): pj for bits, pj in data["mac_pj"].items()}
        if len(mac_pj) < len(data["mac_pj"]):
            raise BadInputError(f"device profile: mac_pj has the keys {list(data['mac_pj'])}, name each width once")
        return cls(**{**data, "mac_pj": mac_pj, "memories": tuple(memories)})


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or isinstance(value, float)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_digits(value: object) -> bool:
    return isinstance(value, str) and value.isdecimal() and len(value) <= 3


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


_Check = tuple[Any, str]
_TEXT: Final[_Check] = (_is_text, "a text")
_INT: Final[_Check] = (_is_int, "a whole number")
_INT_OR_NULL: Final[_Check] = (lambda value: value is None or _is_int(value), "a whole number or null")
_NUMBER: Final[_Check] = (_is_number, "a number")
_PROFILE_TYPES: Final[Mapping[str, _Check]] = {
    "name": _TEXT,
    "word_bits": _INT,
    "mac_pj": (
        lambda value: _is_mapping(value) and all(map(_is_digits, value)) and all(map(_is_number, value.values())),
        'a mapping of bits to pJ, such as {"16": 2.0}',
    ),
    "memories": (
        lambda value: isinstance(value, Sequence) and not _is_text(value) and all(map(_is_mapping, value)),
        "a list of memories, innermost first",
    ),
    "weight_bits": _INT_OR_NULL,
    "static_power_mw": _NUMBER,
    "skips_zero_weights": (lambda value: isinstance(value, bool), "true or false"),
    "channel_multiple": _INT_OR_NULL,
    "sources": (
        lambda value: _is_mapping(value) and all(map(_is_text, (*value, *value.values()))),
        "a mapping of a key to its source",
    ),
}
_MEMORY_TYPES: Final[Mapping[str, _Check]] = {
    "name": _TEXT,
    "capacity_bytes": _INT_OR_NULL,
    "pj_per_byte": _NUMBER,
    "source": _TEXT,
    "map_share": _NUMBER,
}


def _check_keys(where: str, data: Iterable[Any], kind: type[Any]) -> None:
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(str(key) for key in data if key not in known)
    if unknown:
        raise BadInputError(f"{where} has unknown keys {unknown}; known: {list(known)}")
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in data]
    if missing:
        raise BadInputError(f"{where} lacks {missing}")


def _check_type(where: str, key: str, value: object, check: _Check) -> None:
    right, words = check
    if not right(value):
        raise BadInputError(f"{where}: {key} = {value!r:.200}, must be {words}")
