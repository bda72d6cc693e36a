"""The Pareto front of points."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["non_dominated"]


def non_dominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of ``points`` (N, M), every column to be minimised, no other point dominates: shape (N,).

    A point dominates another when it is nowhere worse and somewhere better. Equal points do not dominate each other,
    so copies of a front point all stay. O(N² M) time, O(N M) memory.

    Raises:
        ValueError: not a matrix, or a value is NaN (it could neither win nor lose).
    """
    if points.ndim != 2:
        raise ValueError(f"points have shape {points.shape}, must be (points, objectives)")
    if np.isnan(points).any():
        raise ValueError("a point holds NaN; drop failed trials first")
    front = np.ones(len(points), dtype=np.bool_)
    for i, point in enumerate(points):
        nowhere_worse = (points <= point).all(axis=1)
        somewhere_better = (points < point).any(axis=1)
        front[i] = not (nowhere_worse & somewhere_better).any()
    return front
