"""Hardware-aware search of pruning policies.

Give it a trained network, its data, a target device and a budget; get back a smaller network that is measured to be
faster there. Names load when they are first used: ``import amcsearch`` itself loads neither torch nor anything heavy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from amcsearch.api import compare as compare
    from amcsearch.api import energy as energy
    from amcsearch.api import front as front
    from amcsearch.api import load as load
    from amcsearch.api import make_env as make_env
    from amcsearch.api import measure_latency_table as measure_latency_table
    from amcsearch.api import prune as prune
    from amcsearch.api import search as search
    from amcsearch.api import sensitivity as sensitivity
    from amcsearch.api import sparsify as sparsify
    from amcsearch.api import verify as verify
    from amcsearch.service import connect as connect

__version__ = "0.1.0"

_ROOMS: Final = {
    "api": (
        *("compare", "energy", "front", "load", "make_env", "measure_latency_table", "prune", "search"),
        *("sensitivity", "sparsify", "verify"),
    ),
    "config": ("Config", "read_device", "read_latency_table", "write_latency_table"),
    "core": (
        *("BadInputError", "ChannelGroup", "Cost", "Evaluation", "InfeasibleBudgetError", "LayerKind", "LayerSpec"),
        *("NetworkSpec", "PolicySpace", "PruningPolicy", "Trial"),
    ),
    "costs": ("CostGrid", "CostModel", "DeviceProfile", "EnergyModel", "LatencyTable", "Macs", "Params"),
    "evaluation": ("Evaluator", "ProcessExecutor", "SerialExecutor"),
    "graph": ("Trace", "fold_weights", "masked", "remove", "trace"),
    "jobs": (
        "Comparison",
        "EnergyReport",
        "Observer",
        "RunResult",
        "SearchResult",
        "Sensitivity",
        "SparsifyResult",
        "TrainingRequest",
    ),
    "methods": (
        *("CRITERIA", "GATES", "REDUCTIONS", "SCHEDULES", "SELECTORS"),
        *("Criterion", "Need", "Selector", "Statistics"),
    ),
    "runs": ("FrontResult", "SparsifySummary", "Summary"),
    "service": ("connect",),
    "search": ("AGENTS", "Agent", "Budget", "FeasibleSet", "LayerwiseEnv", "Study"),
}
_ROOM_OF: Final = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = ["__version__", *sorted(_ROOM_OF)]


class _Face(ModuleType):
    """This package as a module: ``amcsearch.search`` stays the verb when the room of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _ROOM_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
