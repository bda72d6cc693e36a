"""How many channels a kernel takes at a time: every number is tried, all at once.

Lanes of inputs and of outputs change different terms. So the normal equations of each pair of them are a part of one
Gram matrix, and all pairs are solved together. That is exact enough to choose; the fit itself is not made this way.
"""

from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.costs.latency_table.terms import OF_INPUT_LANES, OF_OUTPUT_LANES, TERMS, terms
from amcsearch.costs.latency_table.tiling import LANES, Tiling

__all__ = ["lanes_errors", "non_negative_each"]

_RIDGE: Final = 1e-10  # of a column's square: terms that say the same share their coefficient
_TINY: Final = 1e-300

Array = NDArray[np.float64]


def lanes_errors(own: Array, at: Array, tiling: Tiling, ms: Array, weight: Array) -> dict[tuple[int, int], float]:
    """Mean relative errors of fits of N measurements with each pair of lanes (in, out), fewer outputs first.

    Args:
        own, at: ``sizes`` (N, 5) and ``places`` (N, 4).
        tiling: to which lanes are added.
        ms, weight: what was measured and how much its error counts, (N,) each.
    """
    tried = (1, *LANES)
    pairs = [(lanes_in, lanes_out) for lanes_out, lanes_in in product(range(len(tried)), repeat=2)]
    design = np.stack([terms(own, at, replace(tiling, lanes=(n, n))) for n in tried], axis=1)  # (N, lanes, terms)
    scaled = (design / np.maximum(design.max(axis=0), _TINY)).reshape(len(ms), -1) * weight[:, None]
    columns = np.tile(np.arange(TERMS), (len(pairs), 1))
    columns[:, OF_INPUT_LANES] += TERMS * np.array(pairs)[:, :1]
    columns[:, OF_OUTPUT_LANES] += TERMS * np.array(pairs)[:, 1:]
    gram, target = scaled.T @ scaled, scaled.T @ (ms * weight)
    found = non_negative_each(gram[columns[:, :, None], columns[:, None, :]], target[columns])
    coefficients = np.zeros((scaled.shape[1], len(pairs)))
    coefficients[columns, np.arange(len(pairs))[:, None]] = found
    errors = np.abs(scaled @ coefficients - (ms * weight)[:, None]).mean(axis=0)
    return {(tried[i], tried[o]): float(error) for (i, o), error in zip(pairs, errors, strict=True)}


def non_negative_each(gram: Array, target: Array) -> Array:
    """Least squares with coefficients of at least 0, many at once: the most negative one is dropped until none is.

    Args:
        gram: products of the columns of each of T designs, (T, C, C).
        target: products of these columns and what is fitted, (T, C).
    """
    norm = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    active = norm > 0.0
    unit = 1.0 / np.where(active, norm, 1.0)
    alike, wanted = gram * unit[:, :, None] * unit[:, None, :], target * unit
    identity = np.eye(gram.shape[1])
    while True:
        both = active[:, :, None] & active[:, None, :]
        normal = np.where(both, alike, 0.0) + identity * np.where(active, _RIDGE, 1.0)[:, None, :]
        found = np.linalg.solve(normal, np.where(active, wanted, 0.0)[:, :, None])[:, :, 0] * unit
        negative = np.flatnonzero(found.min(axis=1) < 0.0)
        if not len(negative):
            return np.asarray(found, dtype=np.float64)
        active[negative, found[negative].argmin(axis=1)] = False
