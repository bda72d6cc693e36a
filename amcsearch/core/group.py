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

    ``can_vanish``: the group may keep 0 channels, for the layers that read it feed a residual branch: what they write
    is a constant then, and the network goes on with the shortcut alone. ``idle_layers`` are others that nothing reads
    then, such as the norm at the beginning of the branch.

    Raises:
        BadInputError: no channels, a unit that does not divide them, or a coupling that counts parts of a unit.
    """

    name: str
    channels: int
    couplings: tuple[Coupling, ...]
    unit: int = 1
    can_vanish: bool = False
    idle_layers: tuple[str, ...] = ()

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

    @property
    def smallest(self) -> int:
        """Fewest channels that may be kept: 0 where the group can vanish, else one unit."""
        return 0 if self.can_vanish else self.unit

    def check(self, n_keep: int) -> None:
        """Refuse a count of kept channels that the group cannot have.

        Raises:
            BadInputError: it is out of range or splits a unit.
        """
        if not self.smallest <= n_keep <= self.channels or n_keep % self.unit:
            raise BadInputError(
                f"group {self.name!r}: n_keep = {n_keep}, must be a multiple of {self.unit} "
                f"from {self.smallest} to {self.channels}"
            )

    def choices(self, multiple: int = 1, max_pruning_ratio: float = 1.0, *, vanish: bool = False) -> tuple[int, ...]:
        """Kept counts on the device's channel grid, ascending; the last is always all channels.

        Counts that remove more than ``max_pruning_ratio`` of the channels are left out, but for 0: it is the first
        choice of a group that can vanish, if ``vanish`` asks for it.
        """
        step = math.lcm(self.unit, multiple)
        floor = self.channels * (1.0 - max_pruning_ratio) - 1e-9
        none = (0,) if vanish and self.can_vanish else ()
        return (*none, *(n for n in range(step, self.channels, step) if n >= floor), self.channels)
