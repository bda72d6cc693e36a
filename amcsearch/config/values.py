"""Values of a configuration that are more than a number or a word: names of costs, limits, targets, import specs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, WithJsonSchema

from amcsearch.config.messages import shown
from amcsearch.core import COST_NAMES, METRICS, SHARE, SIZE, Limit, is_size, read_limit
from amcsearch.costs import StorageFormat

__all__ = [
    "RESERVED",
    "ChannelMultiple",
    "FreeAxes",
    "ImportSpec",
    "Objective",
    "PruneTarget",
    "Recalibration",
    "SparseFormat",
    "Target",
    "WrittenBudget",
    "added_names",
    "as_named",
    "limits_of",
    "with_models",
]

MAX_CHANNELS: Final = 65536
MAX_AXES: Final = 16
AXES: Final = {"batch": 0, "sequence": 1, "height": 2, "width": 3}
"""Well-known names of axes that an ONNX file may leave free."""
RESERVED: Final = frozenset(
    {
        *COST_NAMES,
        *("accuracy", "agent", "bytes", "loss", "number", "policy", "reward", "seconds", "seed", "sparsity", "state"),
        *("stopped_after", "metric_bound"),
        *(
            "accuracy_float32",
            "accuracy_int8",
            "accuracy_torch",
            "latency_ms_measured",
            "latency_ms_predicted",
            "latency_ms_predicted_sigma",
            "nonzero_params",
        ),
    }
)
"""Names that a cost of the user's own cannot have: other costs, and columns and keys beside which it is written."""


@dataclass(frozen=True)
class AddedNames:
    """Names that a configuration adds to the built-in ones: of costs, and of what its task judges by.

    ``metrics`` None is any: a task of the user's own says the name later.
    """

    costs: tuple[str, ...]
    metrics: tuple[str, ...] | None


def added_names(data: dict[str, Any]) -> AddedNames:
    """Return the names in ``device.costs`` and the metrics of ``task``, of a configuration not validated yet."""
    device, task = data.get("device"), as_named(data.get("task"))
    costs = device.get("costs") if isinstance(device, dict) else None
    names = tuple(map(str, costs)) if isinstance(costs, dict) else ()
    if not isinstance(task, dict):
        return AddedNames(names, ())
    if ":" in str(task.get("name")):
        return AddedNames(names, None)
    params = task.get("params")
    further = params.get("metric_name") if isinstance(params, dict) else None
    return AddedNames(names, (*METRICS, str(further)))


def _cost_among(*further: str, or_metric: bool = False) -> AfterValidator:
    """Accept the name of a cost, a built-in one or one of ``device.costs``, one of ``further``, or a metric.

    The validation's context, ``AddedNames``, has those that the configuration adds; without one every name passes
    here, and whoever prices or judges by it refuses what it does not know.
    """
    built_in = (*further, *COST_NAMES)

    def check(name: str, info: ValidationInfo) -> str:
        added: AddedNames | None = info.context
        if added is None or name in (*built_in, *added.costs):
            return name
        if or_metric and (added.metrics is None or name in added.metrics):
            return name
        *most, last = map(repr, (*built_in, *added.costs))
        raise ValueError(f"expected {', '.join(most)} or {last}; device.costs adds costs of your own")

    return AfterValidator(check)


def as_named(value: Any) -> Any:
    """Take a name alone for a section of a name and parameters."""
    return {"name": value} if isinstance(value, str) else value


def with_models(costs: Any) -> Any:
    """Take a spec alone for a cost without parameters, and refuse names that mean something else."""
    if not isinstance(costs, dict):
        return costs
    for name in costs:
        if name in RESERVED or not re.fullmatch("[a-z][a-z0-9_]*", str(name)):
            raise ValueError(
                f"{name!r} cannot name a cost of your own; choose small letters, digits and _ that name nothing else, "
                "such as activation_mib"
            )
    return {name: {"model": cost} if isinstance(cost, str) else cost for name, cost in costs.items()}


def _limit(value: Any) -> str | float:
    """Accept a share of dense such as ``0.5x`` or a size such as ``300 KiB``, kept as written, or a number above 0."""
    number, of_dense = read_limit(value)
    return value if of_dense or is_size(value) else number


def limits_of(written: Mapping[Any, Any], section: str) -> tuple[Limit, ...]:
    """Limits written as cost name → share or number, each under the key ``section.cost``."""
    return tuple(Limit.parse(str(cost), bound, f"{section}.{cost}") for cost, bound in written.items())


def _as_limits(section: str) -> AfterValidator:
    """Accept costs that ``Limit`` accepts."""

    def check(written: dict[Any, Any]) -> dict[Any, Any]:
        limits_of(written, section)
        return written

    return AfterValidator(check)


def _costs_with_limits(value: Any) -> Any:
    """Refuse what names no costs, such as a limit alone."""
    if not isinstance(value, dict):
        raise ValueError('expected costs with their limits, such as {"macs": "0.5x"} or {"latency_ms": 2.5}')
    return value


def _target(value: dict[str, Any]) -> dict[str, Any]:
    """Accept one entry: a share for ``sparsity``, or the limit of a cost."""
    if len(value) != 1:
        raise ValueError(f"expected one of sparsity, bytes, {', '.join(COST_NAMES)}; got {len(value)} entries")
    name, bound = next(iter(value.items()))
    if name != "sparsity":
        limits_of(value, "sparsify.target")
        return {name: _limit(bound)}
    if not isinstance(bound, int | float) or isinstance(bound, bool) or not 0.0 < bound < 1.0:
        raise ValueError(f"sparsity = {shown(bound)}, expected a share between 0 and 1 such as 0.8")
    return {name: float(bound)}


def _one_cost(value: dict[str, Any]) -> dict[str, Any]:
    """Accept one cost with its limit."""
    if len(value) != 1:
        raise ValueError(f"expected one of bytes, {', '.join(COST_NAMES)}; got {len(value)} entries")
    return value


def _free_axes(value: Any) -> dict[str, Any]:
    """Accept names of well-known axes, or names with their axis in every input, or in each of some inputs."""
    if isinstance(value, list | tuple):
        unknown = [name for name in value if name not in AXES]
        if unknown:
            raise ValueError(f"{shown(unknown[0])} is unknown; known: {', '.join(AXES)}; name others as {{name: axis}}")
        return {name: AXES[name] for name in value}
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)}, expected names such as [batch], or names with axes such as {{batch: 0}}")
    for name, where in value.items():
        axes = where.values() if isinstance(where, dict) else [where]
        whole = all(isinstance(axis, int) and not isinstance(axis, bool) and 0 <= axis < MAX_AXES for axis in axes)
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", str(name)) or not whole or not axes:
            raise ValueError(
                f"{shown(name)}: {shown(where)}, expected a name with its axis in every input, from 0 to "
                f"{MAX_AXES - 1}, or with {{input: axis}}"
            )
    return value


def _channel_multiple(value: Any) -> int | str:
    """Accept ``auto`` or a whole number of channels."""
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_CHANNELS
    if value != "auto" and not whole:
        raise ValueError(f"expected auto or a whole number from 1 to {MAX_CHANNELS}")
    return value  # type: ignore[no-any-return]


def _recalibration(value: Any) -> bool | str:
    """Accept ``auto``, true or false."""
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("expected auto, true or false")
    return value  # type: ignore[no-any-return]


def _sparse_format(value: Any) -> StorageFormat:
    """Accept a format that stores a tensor with zeros in less than its dense size."""
    if value not in _SPARSE_FORMATS:
        *most, last = map(repr, _SPARSE_FORMATS)
        raise ValueError(f"expected {', '.join(most)} or {last}")
    return StorageFormat(value)


def _import_spec(value: str) -> str:
    """Accept ``package.module:callable`` or ``path/to/file.py:callable``."""
    module, _, name = value.rpartition(":")
    if not module or not name.isidentifier():
        raise ValueError("expected package.module:callable or path/to/file.py:callable")
    return value


FreeAxes = Annotated[
    Any,
    BeforeValidator(_free_axes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"enum": list(AXES)}},
                {"type": "object", "additionalProperties": {"type": ["integer", "object"]}},
            ]
        }
    ),
]
ImportSpec = Annotated[str, AfterValidator(_import_spec)]
ChannelMultiple = Annotated[
    Any,
    BeforeValidator(_channel_multiple),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": MAX_CHANNELS}]}),
]
Recalibration = Annotated[
    Any, BeforeValidator(_recalibration), WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "boolean"}]})
]
_WrittenLimit = Annotated[
    Any,
    BeforeValidator(_limit),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{SHARE.pattern}$"},
                {"type": "string", "pattern": f"^{SIZE.pattern}$"},
                {"type": "number"},
            ]
        }
    ),
]
_CostName = Annotated[str, _cost_among()]
_TargetName = Annotated[str, _cost_among("sparsity", "bytes")]
_PruneTargetName = Annotated[str, _cost_among("bytes")]
Objective = Annotated[str, _cost_among("accuracy", "metric", or_metric=True)]
WrittenBudget = Annotated[dict[_CostName, _WrittenLimit], BeforeValidator(_costs_with_limits), _as_limits("budget")]
PruneTarget = Annotated[
    dict[_PruneTargetName, _WrittenLimit],
    BeforeValidator(_costs_with_limits),
    AfterValidator(_one_cost),
    _as_limits("prune.target"),
]
Target = Annotated[dict[_TargetName, Any], BeforeValidator(_costs_with_limits), AfterValidator(_target)]
_SPARSE_FORMATS: Final = [form.value for form in StorageFormat if form is not StorageFormat.DENSE]
SparseFormat = Annotated[StorageFormat, BeforeValidator(_sparse_format), WithJsonSchema({"enum": _SPARSE_FORMATS})]
