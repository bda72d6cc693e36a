"""Costs of one network on one device."""

from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["COST_NAMES", "FIRST_COSTS", "Cost"]

FIRST_COSTS: Final = ("macs", "params", "latency_ms", "energy_mj")
"""The costs that have a place of their own in every file of a run; others come after them."""
COST_NAMES: Final = (*FIRST_COSTS, "model_bytes", "peak_memory_bytes")
"""The built-in costs, whose units are known; a cost of the user's own has any other name."""


class Cost(Mapping[str, float]):
    """Cost of one inference by name: MACs and parameters as counts, latency in ms, energy in mJ, memory in bytes, and
    the user's own.

    Immutable. Made of a mapping or of the four named costs; ``None`` is a cost that no model gave (no latency table,
    no device profile). As a mapping it holds only what is known, the four first.
    """

    __slots__ = ("_values",)
    _values: dict[str, float]

    def __init__(
        self,
        values: Mapping[str, float | None] | None = None,
        /,
        *,
        macs: float | None = None,
        params: float | None = None,
        latency_ms: float | None = None,
        energy_mj: float | None = None,
    ) -> None:
        named = {"macs": macs, "params": params, "latency_ms": latency_ms, "energy_mj": energy_mj}
        given = {**named, **(values or {})}
        object.__setattr__(self, "_values", {name: float(value) for name, value in given.items() if value is not None})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot set {name} of a cost, which is immutable; make another one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete {name} of a cost, which is immutable; make another one")

    def __reduce__(self) -> tuple[type["Cost"], tuple[dict[str, float]]]:
        return Cost, (dict(self),)

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __repr__(self) -> str:
        return f"Cost({dict(self)})"

    @property
    def macs(self) -> float | None:
        """Multiply-accumulates."""
        return self.get("macs")

    @property
    def params(self) -> float | None:
        """Parameters."""
        return self.get("params")

    @property
    def latency_ms(self) -> float | None:
        """Latency in milliseconds."""
        return self.get("latency_ms")

    @property
    def energy_mj(self) -> float | None:
        """Energy in millijoules."""
        return self.get("energy_mj")

    @property
    def further(self) -> dict[str, float]:
        """Costs beyond the first four: memory, and the user's own."""
        return {name: value for name, value in self.items() if name not in FIRST_COSTS}
