"""Distinct whole numbers, by marking: sorting millions of widths would take longer than pricing them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["distinct", "distinct_places"]

_SPARSE: Final = 64  # marks a number that are worth looking through


def distinct(numbers: NDArray[np.int64], below: int) -> NDArray[np.int64]:
    """Those among numbers (N,) from 0 to ``below``, each once, in order: (D,)."""
    if below > _SPARSE * numbers.size:
        return np.asarray(np.unique(numbers), dtype=np.int64)
    marked = np.zeros(below, dtype=np.bool_)
    marked[numbers] = True
    return np.asarray(np.flatnonzero(marked), dtype=np.int64)


def distinct_places(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct numbers (D,) of at least 0 among (N,), in order, and which of them each is, (N,)."""
    below = int(numbers.max(initial=-1)) + 1
    each = distinct(numbers, below)
    if below > _SPARSE * numbers.size:
        return each, np.searchsorted(each, numbers)
    index = np.zeros(below, dtype=np.int64)
    index[each] = np.arange(len(each))
    return each, index[numbers]
