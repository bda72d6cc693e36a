"""Names of costs in a configuration: the built-in ones, and those that ``device.costs`` adds."""

import re
from typing import Any, Final

from pydantic import AfterValidator, ValidationInfo

from amcsearch.core import COST_NAMES

__all__ = ["RESERVED", "added_costs", "cost_among", "with_models"]

RESERVED: Final = frozenset(
    {
        *(
            *COST_NAMES,
            "accuracy",
            "bytes",
            "sparsity",
            "reward",
            "loss",
            "number",
            "agent",
            "seed",
            "state",
            "seconds",
        ),
        *("policy", "nonzero_params", "latency_ms_predicted", "latency_ms_predicted_sigma", "latency_ms_measured"),
    }
)
"""Names that a cost of the user's own cannot have: other costs, and columns and keys beside which it is written."""


def cost_among(*further: str) -> AfterValidator:
    """Accept the name of a cost, a built-in one or one of ``device.costs``, or one of ``further``.

    The names in ``device.costs`` are the validation's context; without one every name passes here, and whoever prices
    it refuses what it does not know.
    """
    built_in = (*further, *COST_NAMES)

    def check(name: str, info: ValidationInfo) -> str:
        known = (*built_in, *(info.context or ()))
        if info.context is not None and name not in known:
            *most, last = map(repr, known)
            raise ValueError(f"expected {', '.join(most)} or {last}; device.costs adds costs of your own")
        return name

    return AfterValidator(check)


def added_costs(data: dict[str, Any]) -> tuple[str, ...]:
    """Return the names in ``device.costs`` of a configuration that is not validated yet."""
    device = data.get("device")
    costs = device.get("costs") if isinstance(device, dict) else None
    return tuple(map(str, costs)) if isinstance(costs, dict) else ()


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
