"""Channel groups: channels of several layers that leave together."""

import math
from dataclasses import dataclass
from enum import StrEnum

from amcsearch.core.errors import BadInputError

__all__ = ["ChannelGroup", "Coupling", "Side"]


class Side(StrEnum):
    """Which width of a layer a group moves."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True, slots=True)
class Coupling:
    """A layer width that shrinks by ``factor`` for every ``removed`` channels.

    A flatten of HxW maps has factor HW; a table with one column a head of width d has factor 1 for d removed.
    """

    layer: str
    side: Side
    factor: int = 1
    removed: int = 1


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Coupled channels: one decision of the search.

    ``unit`` channels leave together: 1, or the width of an attention head, or the number of groups of a
    grouped convolution (one channel from each). Kept counts are multiples of it.

    Raises:
        BadInputError: no channels, a unit that does not divide them, or a coupling that counts parts of a unit.
    """

    name: str
    channels: int
    couplings: tuple[Coupling, ...]
    unit: int = 1

    def __post_init__(self) -> None:
        if self.channels < 1 or self.unit < 1 or self.channels % self.unit:
            raise BadInputError(
                f"group {self.name!r}: {self.channels} channels cannot be cut into units of {self.unit}"
            )
        for coupling in self.couplings:
            if coupling.removed < 1 or self.unit * coupling.factor % coupling.removed:
                raise BadInputError(
                    f"group {self.name!r}: {coupling.layer} cannot lose {coupling.factor} for every "
                    f"{coupling.removed} of channels that leave in units of {self.unit}"
                )

    def choices(self, multiple: int = 1, max_pruning_ratio: float = 1.0) -> tuple[int, ...]:
        """Kept counts on the device's channel grid, ascending; the last is always all channels.

        Counts that remove more than ``max_pruning_ratio`` of the channels are left out.
        """
        step = math.lcm(self.unit, multiple)
        floor = self.channels * (1.0 - max_pruning_ratio) - 1e-9
        return (*(n for n in range(step, self.channels, step) if n >= floor), self.channels)
