"""The order of numbers in which NaN is the worst: comparisons and sorts by Python and numpy give it any place."""

import math

__all__ = ["at_worst"]


def at_worst(value: float, worst: float = math.inf) -> float:
    """Return a number as a key of an order: itself, or ``worst`` for NaN (infinity where smaller is better)."""
    return worst if math.isnan(value) else value
