"""What the latency of a kernel is a sum of, and how much of each term: a non-negative fit of relative error.

    t(layer) ≈ a · work + b + c · outputs + d · inputs + remainders

in multiply-accumulates and tensor elements, with widths as the kernel computes them (``tiling``). Layers of other map
and kernel sizes are comparable in these terms, so a kernel's fit may hold points of many signatures.

A kernel that takes some channels at a time (lanes) computes those left over more slowly, each by itself or all in one
more step; what both cost, for output and for input channels, are the remainders. (Measured: a depthwise int8
convolution of 127 channels took three times as long as one of 128, of 120 twice as long.) How many channels it takes
is tried, all numbers at once: lanes of inputs and of outputs change different terms, so the normal equations of each
pair of them are a part of one Gram matrix, and all pairs are solved together. That is exact enough to choose; the fit
itself solves the least squares of its terms.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.costs.latency.kernels.points import Groups, Points
from amcsearch.costs.latency.kernels.tiling import LANES, SetWork, Tiling

__all__ = [
    "OF_INPUT_LANES",
    "OF_OUTPUT_LANES",
    "TERMS",
    "Fit",
    "factors",
    "lanes_errors",
    "non_negative",
    "non_negative_each",
    "terms",
]

Array = NDArray[np.float64]

TERMS: Final = 8
OF_OUTPUT_LANES: Final = (0, 4, 5)  # the terms that depend on output lanes
OF_INPUT_LANES: Final = (6, 7)
_TINY: Final = 1e-300
_RIDGE: Final = 1e-10  # of a column's square: terms that say the same share their coefficient
_FULL_FIT_POINTS: Final = 6  # below this only work and a constant are fitted
_LANES_FIT_POINTS: Final = 16  # below this lanes are not looked for
_LANES_ERROR: Final = 0.01  # nor where the mean relative error is less without
_LANES_GAIN: Final = 0.1  # by which lanes must lessen the error to be believed
_MORE_LANES_GAIN: Final = 0.03


def terms(size: Array, at: Array, tiling: Tiling) -> Array:
    """Terms (L, 8) of layers of ``size`` (L, 5) at ``coordinates`` (L, 4): work, 1, outputs, inputs, remainders."""
    of_in, of_out = factors(size, at[:, 0], at[:, 1], tiling)
    return of_in * of_out


def factors(size: Array, c_in: Array, c_out: Array, tiling: Tiling) -> tuple[Array, Array]:
    """Terms as products: what of them depends on the inputs computed, (I, 8), and on the outputs, (O, 8).

    ``size`` are ``sizes`` of layers (I = O = L of them), or of one, (1, 5), at I widths and O others.
    """
    outputs, taps, inputs, mixes, _ = size.T
    lanes_in, lanes_out = tiling.lanes
    left_in, left_out = c_in % lanes_in * mixes, c_out % lanes_out
    a_pair = outputs * taps  # of channels
    of_in, of_out = np.ones((len(c_in), TERMS)), np.ones((len(c_out), TERMS))
    of_in[:, OF_OUTPUT_LANES] = np.where(mixes > 0.0, c_in, 1.0)[:, None]
    of_in[:, 3] = inputs * c_in * mixes
    of_in[:, 6], of_in[:, 7] = left_in, left_in > 0
    of_out[:, 0] = a_pair * (tiling.effective(c_out) - left_out)
    of_out[:, 2] = outputs * c_out * mixes
    of_out[:, 4], of_out[:, 5] = a_pair * left_out, a_pair * (left_out > 0)
    of_out[:, OF_INPUT_LANES] = (a_pair * c_out)[:, None]
    return of_in, of_out


def lanes_errors(size: Array, at: Array, tiling: Tiling, ms: Array, weight: Array) -> dict[tuple[int, int], float]:
    """Mean relative errors of fits of N measurements with each pair of lanes (in, out), fewer outputs first.

    Args:
        size, at: ``sizes`` (N, 5) and ``coordinates`` (N, 4).
        tiling: to which lanes are added.
        ms, weight: what was measured and how much its error counts, (N,) each.
    """
    tried = (1, *LANES)
    pairs = [(lanes_in, lanes_out) for lanes_out, lanes_in in product(range(len(tried)), repeat=2)]
    design = np.stack([terms(size, at, replace(tiling, lanes=(n, n))) for n in tried], axis=1)  # (N, lanes, terms)
    scaled = (design / np.maximum(design.max(axis=0), _TINY)).reshape(len(ms), -1) * weight[:, None]
    columns = np.tile(np.arange(TERMS), (len(pairs), 1))
    columns[:, OF_INPUT_LANES] += TERMS * np.array(pairs)[:, :1]
    columns[:, OF_OUTPUT_LANES] += TERMS * np.array(pairs)[:, 1:]
    gram, target = scaled.T @ scaled, scaled.T @ (ms * weight)
    of_pairs = non_negative_each(gram[columns[:, :, None], columns[:, None, :]], target[columns])
    coefficients = np.zeros((scaled.shape[1], len(pairs)))
    coefficients[columns, np.arange(len(pairs))[:, None]] = of_pairs
    errors = np.abs(scaled @ coefficients - (ms * weight)[:, None]).mean(axis=0)
    return {(tried[i], tried[o]): float(error) for (i, o), error in zip(pairs, errors, strict=True)}


def non_negative(design: Array, target: Array) -> Array:
    """Coefficients (C,) of at least 0 of the least squares of a design (N, C) and what is fitted, (N,).

    The most negative one is dropped until none is. (The optimum of ``scipy.optimize.nnls`` has other columns in 150 of
    the 938 fits of the shipped table: taking it would move predictions and the tables' measured accuracy with them.)
    """

    def solve(active: NDArray[np.bool_]) -> Array:
        coefficients = np.zeros(active.shape)
        if active.any():
            coefficients[active] = np.linalg.lstsq(design[:, active[0]], target, rcond=None)[0]
        return coefficients

    return np.asarray(_without_negative(solve, np.any(design, axis=0, keepdims=True))[0], dtype=np.float64)


def non_negative_each(gram: Array, target: Array) -> Array:
    """As ``non_negative`` for T designs at once, (T, C), from their normal equations: faster and less exact.

    One after another, with scipy's ``nnls`` for each, the 36 pairs of lanes of a kernel take 3.8 times as long.

    Args:
        gram: products of the columns of each of T designs, (T, C, C).
        target: products of these columns and what is fitted, (T, C).
    """
    norm: Array = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    unit: Array = 1.0 / np.where(norm > 0.0, norm, 1.0)
    alike: Array = gram * unit[:, :, None] * unit[:, None, :]
    wanted: Array = target * unit
    identity = np.eye(gram.shape[1])

    def solve(active: NDArray[np.bool_]) -> Array:
        both = active[:, :, None] & active[:, None, :]
        normal = np.where(both, alike, 0.0) + identity * np.where(active, _RIDGE, 1.0)[:, None, :]
        return np.asarray(np.linalg.solve(normal, np.where(active, wanted, 0.0)[:, :, None])[:, :, 0] * unit)

    return _without_negative(solve, np.asarray(norm > 0.0))


def _without_negative(solve: Callable[[NDArray[np.bool_]], Array], active: NDArray[np.bool_]) -> Array:
    """Coefficients (T, C) that ``solve`` gives for active columns (T, C), once the most negative ones are dropped."""
    while True:
        coefficients = solve(active)
        negative = np.flatnonzero(coefficients.min(axis=1) < 0.0)
        if not len(negative):
            return coefficients
        active[negative, coefficients[negative].argmin(axis=1)] = False


class Fit:
    """Terms fitted to points, those that the kernel cannot tell apart averaged.

    Args:
        points: at least one.
        tiling: how the kernel computes widths.
        groups: of the points, where they are known.

    Attributes:
        tiling: as given, with the lanes that fit best.
        points: N of them, all of which the kernel can tell apart.
        coordinates: (N, 4), see the function.
        coefficients: ms a unit of each term, (8,).
        residual: relative, of measured beside fitted, (N,).
    """

    def __init__(self, points: Points, tiling: Tiling, groups: Groups | None = None) -> None:
        groups = points.groups(tiling) if groups is None else groups
        self.points, self.coordinates = points.averaged(groups), groups.coordinates
        self._take(tiling)
        lanes = self._lanes()
        if lanes != tiling.lanes:
            self._take(replace(tiling, lanes=lanes))

    def _take(self, tiling: Tiling) -> None:
        self.tiling, self._terms = tiling, terms(self.points.sizes, self.coordinates, tiling)
        self.coefficients = self._fitted()
        fitted = self._terms @ self.coefficients
        self.residual = np.divide(self.points.ms, fitted, out=np.ones_like(fitted), where=fitted > 0.0) - 1.0

    def _lanes(self) -> tuple[int, int]:
        """The lanes of inputs and outputs that fit best; whole blocks leave no channels over."""
        best = self.tiling.lanes
        if self.tiling.block > 1 or len(self.coordinates) < _LANES_FIT_POINTS:
            return best
        error = np.abs((self._terms @ self.coefficients - self.points.ms) * self._weight()).mean()
        if error < _LANES_ERROR:
            return best
        bound = (1.0 - _LANES_GAIN) * error
        tried = lanes_errors(self.points.sizes, self.coordinates, self.tiling, self.points.ms, self._weight())
        for lanes, error in tried.items():
            if error < bound:  # more lanes must be clearly better than fewer
                best, bound = lanes, (1.0 - _MORE_LANES_GAIN) * error
        return best

    def _weight(self) -> Array:
        """Relative error counts; points that cost next to nothing beside the largest are not blown up."""
        floor = 1e-3 * max(float(self.points.ms.max()), 1e-9)
        return np.asarray(1.0 / np.maximum(self.points.ms, floor), dtype=np.float64)

    def _fitted(self) -> Array:
        scale, weight = np.maximum(self._terms.max(axis=0), _TINY), self._weight()
        n = len(self.coordinates)
        used = 1 if n == 1 else 2 if n < _FULL_FIT_POINTS else TERMS
        coefficients = np.zeros(TERMS)
        coefficients[:used] = non_negative((self._terms / scale)[:, :used] * weight[:, None], self.points.ms * weight)
        return np.asarray(coefficients / scale, dtype=np.float64)

    def set_work(self) -> SetWork | None:
        """What the fit says of sets of output blocks; None where no time is proportional to work."""
        work_ms = self._terms[:, 0] * self.coefficients[0]
        if not work_ms.all() or not self.points.ms.all():
            return None
        rest_ms = self.points.ms - self._terms[:, 1:] @ self.coefficients[1:]
        c_out = self.coordinates[:, 1]
        blocks = self.tiling.effective(c_out) / self.tiling.block
        return SetWork(rest_ms / work_ms * blocks, work_ms / self.points.ms, c_out)
