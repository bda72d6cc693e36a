"""Values of a configuration that are more than a number or a word."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

__all__ = ["ChannelMultiple", "CostName", "ImportSpec", "Limit", "Objective", "PruneTarget", "Target"]

CostName = Literal["macs", "params", "latency_ms", "energy_mj"]
TargetName = Literal["sparsity", "macs", "params", "bytes", "latency_ms", "energy_mj"]
PruneTargetName = Literal["macs", "params", "bytes", "latency_ms", "energy_mj"]
Objective = Literal["accuracy", "macs", "params", "latency_ms", "energy_mj"]
_SHARE_OF_DENSE = re.compile(r"([0-9]*\.?[0-9]+)x")


def _channel_multiple(value: Any) -> int | str:
    """Accept ``auto`` or a whole number of at least 1."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value != "auto" and not whole:
        raise ValueError("expected auto or a whole number of at least 1")
    return value  # type: ignore[no-any-return]


def _limit(value: Any) -> str | float:
    """Accept a share of dense such as ``0.5x``, or an absolute limit above zero."""
    if isinstance(value, str):
        match = _SHARE_OF_DENSE.fullmatch(value)
        if match and 0.0 < float(match[1]) <= 1.0:
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value < float("inf"):
        return float(value)
    raise ValueError("expected a share of dense from 0x to 1x such as 0.5x, or a number above 0")


def _target(value: dict[TargetName, Any]) -> dict[TargetName, Any]:
    """Accept one entry: a share for ``sparsity``, or the limit of a cost."""
    if len(value) != 1:
        raise ValueError(f"expected one of {', '.join(get_args(TargetName))}; got {len(value)} entries")
    name, asked = next(iter(value.items()))
    if name != "sparsity":
        return {name: _limit(asked)}
    if not isinstance(asked, int | float) or isinstance(asked, bool) or not 0.0 < asked < 1.0:
        raise ValueError(f"sparsity = {asked!r}, expected a share between 0 and 1 such as 0.8")
    return {name: float(asked)}


def _prune_target(value: dict[PruneTargetName, Any]) -> dict[PruneTargetName, Any]:
    """Accept one cost with its limit; of what is counted (no time, no energy) a number up to 1 is a share of dense."""
    if len(value) != 1:
        raise ValueError(f"expected one of {', '.join(get_args(PruneTargetName))}; got {len(value)} entries")
    name, asked = next(iter(value.items()))
    counted = name in ("macs", "params", "bytes") and isinstance(asked, int | float) and not isinstance(asked, bool)
    return {name: _limit(f"{asked}x" if counted and 0.0 < asked <= 1.0 else asked)}


def _import_spec(value: str) -> str:
    """Accept ``package.module:callable`` or ``path/to/file.py:callable``."""
    module, _, name = value.rpartition(":")
    if not module or not name.isidentifier():
        raise ValueError("expected package.module:callable or path/to/file.py:callable")
    return value


ImportSpec = Annotated[str, AfterValidator(_import_spec)]
Limit = Annotated[
    Any,
    BeforeValidator(_limit),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{_SHARE_OF_DENSE.pattern}$"}, {"type": "number"}]}),
]
ChannelMultiple = Annotated[
    Any,
    BeforeValidator(_channel_multiple),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]
PruneTarget = Annotated[dict[PruneTargetName, Any], AfterValidator(_prune_target)]
Target = Annotated[dict[TargetName, Any], AfterValidator(_target)]
