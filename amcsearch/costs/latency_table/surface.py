"""Latency of one kernel over the layers it computes, through measured points that lie anywhere.

    t(layer) = fit(layer) · (1 + r(layer))

a non-negative fit (``terms``) times a smooth correction r: the mean of a Gaussian process through the points' relative
residuals (Rasmussen & Williams 2006, chapter 2) with the covariance

    k(x, x') = Π_j exp(-(log₂ x_j - log₂ x'_j)² / 2 l_j²)

over both widths, and over map and kernel size where points have several. Near measurements the surface follows them as
closely as their noise allows; far from all it is the fit alone, without waves. The covariance is a product of one
factor for each width, so a million pairs of widths are priced by a product of two matrices.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerSpec
from amcsearch.costs.latency_table.terms import Fit, Point, places, terms
from amcsearch.costs.latency_table.tiling import Tiling

__all__ = ["Surface"]

_OCTAVES: Final = (0.7, 0.7, 2.8, 2.8)  # l: over which widths, widths, positions and taps resemble each other
_LEAST_NOISE: Final = 1e-6
_MOST_POINTS: Final = 800  # of a process, evenly chosen: its cost grows with their cube; all take part in the fit
_CHUNK: Final = 2**17  # numbers a pass, which then stay within the cache

Array = NDArray[np.float64]


def _likeness(one: Array, other: Array, coordinate: int) -> Array:
    """Factor of the covariance of one coordinate, in octaves: (N,), (M,) → (N, M)."""
    return np.asarray(np.exp(-0.5 * ((one[:, None] - other) / _OCTAVES[coordinate]) ** 2), dtype=np.float64)


class Surface:
    """Latency in ms of one kernel, from at least one measured layer.

    Args:
        points: layers, their latencies in ms, and how many measurements each stands for.
        tiling: how the kernel computes widths.
        noise: variance of a measurement as a share of the variance of true residuals; 0 hits every point.
    """

    def __init__(self, points: Sequence[Point], tiling: Tiling | None = None, noise: float = 0.0) -> None:
        fit = Fit(points, tiling or Tiling())
        self._tiling = fit.tiling
        self._coefficients = fit.coefficients
        self._measured = np.log2(fit.places)
        chosen = np.unique(np.linspace(0, len(fit.places) - 1, min(len(fit.places), _MOST_POINTS)).astype(np.int64))
        self._known = self._measured[chosen].T  # (4, K)
        likeness = np.diag(max(noise, _LEAST_NOISE) / np.maximum(fit.times[chosen], 1.0))
        likeness += np.prod([_likeness(values, values, j) for j, values in enumerate(self._known)], axis=0)
        self._weights = np.linalg.solve(likeness, fit.residual[chosen])

    def octaves(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """Distances (L,) of the layer at many widths (in, out), (L, 2), from the nearest measured one, in octaves."""
        at = np.log2(places([layer], widths, self._tiling))
        squares = ((at[:, None] - self._measured) ** 2).sum(axis=2)
        return np.asarray(np.sqrt(squares.min(axis=1)), dtype=np.float64)

    def predict_widths(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """Latencies in ms (L,) of the layer at many widths (in, out), (L, 2)."""
        at = places([layer], widths, self._tiling)
        ms = terms([layer], at, self._tiling) @ self._coefficients
        return np.asarray(ms * np.maximum(1.0 + self._correction(at), 0.0), dtype=np.float64)

    def _correction(self, at: Array) -> Array:
        """r (L,) at places (L, 4) of one layer."""
        weights = self._weights
        for j in (2, 3):
            weights = weights * _likeness(np.log2(at[:1, j]), self._known[j], j)[0]
        # widths repeat: the covariance is taken once a width, not once a pair
        (c_in, at_in), (c_out, at_out) = (np.unique(at[:, j], return_inverse=True) for j in (0, 1))
        of_in = _likeness(np.log2(c_in), self._known[0], 0) * weights
        of_out = _likeness(np.log2(c_out), self._known[1], 1)
        if len(c_in) * len(c_out) <= 8 * len(at):
            return np.asarray((of_in @ of_out.T)[at_in, at_out], dtype=np.float64)
        correction = np.empty(len(at))
        step = max(1, _CHUNK // len(weights))
        for start in range(0, len(at), step):
            own = slice(start, start + step)
            correction[own] = np.einsum("nk,nk->n", of_in[at_in[own]], of_out[at_out[own]])
        return correction
