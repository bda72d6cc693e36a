"""Registry of mask schedules: name → what makes a schedule from its parameters, one rule a file."""

from collections.abc import Callable, Mapping
from typing import Final

from amcsearch.methods.mask_schedule import MaskSchedule
from amcsearch.methods.schedules.dynamic_surgery import DynamicSurgery
from amcsearch.methods.schedules.gradual import Gradual
from amcsearch.methods.schedules.lottery import Lottery
from amcsearch.methods.schedules.movement import MovementTopV
from amcsearch.methods.schedules.one_shot import OneShot
from amcsearch.methods.schedules.rigl import RigL
from amcsearch.methods.schedules.rounds import Iterative

__all__ = ["SCHEDULES", "MaskSchedule"]

SCHEDULES: Final[Mapping[str, Callable[..., MaskSchedule]]] = {
    "dynamic_surgery": DynamicSurgery,
    "gradual": Gradual,
    "iterative": Iterative,
    "lottery": Lottery,
    "movement": MovementTopV,
    "one_shot": OneShot,
    "rigl": RigL,
}
