"""How much of each term the latency of a kernel is: a non-negative fit of relative error."""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.costs.latency_table.lanes import lanes_errors
from amcsearch.costs.latency_table.points import Groups, Points
from amcsearch.costs.latency_table.terms import terms
from amcsearch.costs.latency_table.tiling import SetWork, Tiling

__all__ = ["Fit", "non_negative"]

_FULL_FIT_POINTS: Final = 6  # below this only work and a constant are fitted
_LANES_FIT_POINTS: Final = 16  # below this lanes are not looked for
_LANES_ERROR: Final = 0.01  # nor where the mean relative error is less without
_LANES_GAIN: Final = 0.1  # by which lanes must lessen the error to be believed
_MORE_LANES_GAIN: Final = 0.03
_TINY: Final = 1e-300

Array = NDArray[np.float64]


def non_negative(design: Array, target: Array) -> Array:
    """Least squares with coefficients of at least 0: the most negative column is dropped until none is."""
    coefficients = np.zeros(design.shape[1])
    active = np.flatnonzero(design.any(axis=0))
    while len(active):
        found = np.linalg.lstsq(design[:, active], target, rcond=None)[0]
        if found.min() >= 0.0:
            coefficients[active] = found
            break
        active = np.delete(active, int(np.argmin(found)))
    return coefficients


class Fit:
    """Terms fitted to points, those that the kernel cannot tell apart averaged.

    Args:
        points: at least one.
        tiling: how the kernel computes widths.
        groups: of the points, where they are known.

    Attributes:
        tiling: as given, with the lanes that were found.
        places: (N, 4), see the function.
        latency_ms, times: (N,), means and how many measurements they stand for.
        coefficients: ms a unit of each term, (8,).
        residual: relative, of measured beside fitted, (N,).
    """

    def __init__(self, points: Points, tiling: Tiling, groups: Groups | None = None) -> None:
        groups = points.groups(tiling) if groups is None else groups
        own, self.places = points.averaged(groups), groups.places
        self._sizes, self.latency_ms, self.times = own.sizes, own.ms, own.times
        self._take(tiling)
        lanes = self._lanes()
        if lanes != tiling.lanes:
            self._take(replace(tiling, lanes=lanes))

    def _take(self, tiling: Tiling) -> None:
        self.tiling, self._terms = tiling, terms(self._sizes, self.places, tiling)
        self.coefficients = self._fitted(self._terms)
        fitted = self._terms @ self.coefficients
        self.residual = np.divide(self.latency_ms, fitted, out=np.ones_like(fitted), where=fitted > 0.0) - 1.0

    def _lanes(self) -> tuple[int, int]:
        """The lanes of inputs and outputs that fit best; whole blocks leave no channels over."""
        best = self.tiling.lanes
        if self.tiling.block > 1 or len(self.places) < _LANES_FIT_POINTS:
            return best
        error = np.abs((self._terms @ self.coefficients - self.latency_ms) * self._weight()).mean()
        if error < _LANES_ERROR:
            return best
        bound = (1.0 - _LANES_GAIN) * error
        tried = lanes_errors(self._sizes, self.places, self.tiling, self.latency_ms, self._weight())
        for lanes, error in tried.items():
            if error < bound:  # more lanes must be clearly better than fewer
                best, bound = lanes, (1.0 - _MORE_LANES_GAIN) * error
        return best

    def _weight(self) -> Array:
        """Relative error counts; points that cost next to nothing beside the largest are not blown up."""
        floor = 1e-3 * max(float(self.latency_ms.max()), 1e-9)
        return np.asarray(1.0 / np.maximum(self.latency_ms, floor), dtype=np.float64)

    def _fitted(self, own: Array) -> Array:
        scale, weight = np.maximum(own.max(axis=0), _TINY), self._weight()
        n = len(self.places)
        used = 1 if n == 1 else 2 if n < _FULL_FIT_POINTS else own.shape[1]
        found = np.zeros(own.shape[1])
        found[:used] = non_negative((own / scale)[:, :used] * weight[:, None], self.latency_ms * weight)
        return np.asarray(found / scale, dtype=np.float64)

    def set_work(self) -> SetWork | None:
        """What the fit says of sets of output blocks; None where no time is proportional to work."""
        work_ms = self._terms[:, 0] * self.coefficients[0]
        if not work_ms.all() or not self.latency_ms.all():
            return None
        rest_ms = self.latency_ms - self._terms[:, 1:] @ self.coefficients[1:]
        c_out = self.places[:, 1]
        blocks = self.tiling.effective(c_out) / self.tiling.block
        return SetWork(rest_ms / work_ms * blocks, work_ms / self.latency_ms, c_out)
