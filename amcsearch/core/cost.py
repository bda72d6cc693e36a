"""What one network costs on one device."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["COST_NAMES", "Cost"]

COST_NAMES: Final = ("macs", "params", "latency_ms", "energy_mj")


@dataclass(frozen=True, slots=True)
class Cost(Mapping[str, float]):
    """Cost of one inference: MACs and parameters as counts, latency in ms, energy in mJ.

    ``None`` where no model was given (no latency table, no device profile); as a mapping it holds only what is known.
    """

    macs: float | None = None
    params: float | None = None
    latency_ms: float | None = None
    energy_mj: float | None = None

    def __getitem__(self, name: str) -> float:
        value = getattr(self, name) if name in COST_NAMES else None
        if value is None:
            raise KeyError(name)
        return float(value)

    def __iter__(self) -> Iterator[str]:
        return (name for name in COST_NAMES if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
