"""What a configuration can name: every registry as name → one line."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["KINDS", "entries"]


def entries(kind: str) -> dict[str, str]:
    """Return the names of one registry, each with the first line of its docstring."""
    return KINDS[kind]()


def _first_lines(registry: Mapping[str, Any]) -> dict[str, str]:
    return {name: (inspect.getdoc(entry) or "").split("\n", 1)[0] for name, entry in registry.items()}


def _agents() -> dict[str, str]:
    from amcsearch.search import SEARCHERS

    return _first_lines(SEARCHERS)


def _costs() -> dict[str, str]:
    return {
        "macs": "multiply-accumulates of one inference",
        "params": "parameters",
        "latency_ms": "measured ONNX Runtime latency, from device.table",
        "energy_mj": "memory accesses and MACs at the energies of device.profile",
    }


def _criteria() -> dict[str, str]:
    from amcsearch.methods.criteria import CRITERIA

    return _first_lines(CRITERIA)


def _datasets() -> dict[str, str]:
    from amcsearch.training.data import DATASETS

    return _factories(DATASETS)


def _gates() -> dict[str, str]:
    from amcsearch.methods.gates import GATES

    return _first_lines(GATES)


def _models() -> dict[str, str]:
    from amcsearch.training.models import MODELS

    return _factories(MODELS)


def _factories(registry: Mapping[str, Any]) -> dict[str, str]:
    lines = _first_lines(registry)
    return {f"{entry.__module__}:{entry.__name__}": lines[name] for name, entry in registry.items()}


def _rewards() -> dict[str, str]:
    from amcsearch.search.reward import REWARDS

    return _first_lines(REWARDS)


def _schedules() -> dict[str, str]:
    from amcsearch.methods.schedules import SCHEDULES

    return _first_lines(SCHEDULES)


def _selectors() -> dict[str, str]:
    from amcsearch.methods.selectors import SELECTORS

    return _first_lines(SELECTORS)


def _devices() -> dict[str, str]:
    from amcsearch.config import read_device

    return {str(path): read_device(path).name for path in sorted(Path("configs/devices").glob("*.yaml"))}


def _tables() -> dict[str, str]:
    from amcsearch.config import read_latency_table

    folders = sorted(path.parent for path in Path("latency_tables").glob("*/device.yaml"))
    return {str(folder): str(read_latency_table(folder).info["provenance"]["cpu"]) for folder in folders}


KINDS: Final[dict[str, Callable[[], dict[str, str]]]] = {
    "agents": _agents,
    "costs": _costs,
    "criteria": _criteria,
    "datasets": _datasets,
    "devices": _devices,
    "gates": _gates,
    "models": _models,
    "rewards": _rewards,
    "schedules": _schedules,
    "selectors": _selectors,
    "tables": _tables,
}
