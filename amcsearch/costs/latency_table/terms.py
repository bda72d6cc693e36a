"""What the latency of a kernel is a sum of, and how much of each: a non-negative fit of relative error.

    t(layer) ≈ a · work + b + c · outputs + d · inputs + remainders

in multiply-accumulates and tensor elements, with widths as the kernel computes them (``tiling``). Layers of other map
and kernel sizes are comparable in these terms, so a kernel's fit may hold points of many signatures.

A kernel that takes some channels at a time computes those left over more slowly, each by itself or all in one more
step; both times for output and for input channels are the remainders. How many it takes is tried. (Measured: a
depthwise int8 convolution of 127 channels took three times as long as one of 128, of 120 twice as long.)
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency_table.signature import positions
from amcsearch.costs.latency_table.tiling import LANES, SetWork, Tiling

__all__ = ["Fit", "Point", "averaged", "places", "sizes", "terms"]

_FULL_FIT_POINTS: Final = 6  # below this only work and a constant are fitted
_LANES_FIT_POINTS: Final = 16  # below this lanes are not looked for
_LANES_ERROR: Final = 0.01  # nor where the mean relative error is less without
_LANES_GAIN: Final = 0.1  # by which lanes must lessen the error to be believed
_MORE_LANES_GAIN: Final = 0.03
_TINY: Final = 1e-300

Array = NDArray[np.float64]
Point = tuple[LayerSpec, float, float]  # layer, ms, how many measurements it stands for


def sizes(layers: Sequence[LayerSpec]) -> Array:
    """What matters of layers besides their widths, (L, 4): see ``_sizes``."""
    return np.array([_sizes(layer) for layer in layers], dtype=np.float64)


def _sizes(layer: LayerSpec) -> tuple[float, float, float, bool]:
    """Output positions, taps an output reads of each channel, input positions, and whether channels are mixed."""
    mixes = layer.kind in (LayerKind.CONV, LayerKind.LINEAR) and not layer.is_depthwise
    taps = layer.kernel[0] * layer.kernel[1] / (layer.conv_groups if mixes else 1)
    return float(positions(layer)), taps, float(layer.in_size[0] * layer.in_size[1]), mixes


def places(layers: Sequence[LayerSpec], widths: NDArray[np.int64], tiling: Tiling) -> Array:
    """Where layers lie, (L, 4): both widths as computed, output positions, taps; of one layer at L widths, or of L."""
    sizes = np.array([_sizes(layer)[:2] for layer in layers])
    depthwise = np.array([layer.is_depthwise for layer in layers])
    computed = tiling.computed(widths, np.broadcast_to(depthwise, len(widths)))
    return np.concatenate([computed, np.broadcast_to(sizes, (len(widths), 2))], axis=1)


def terms(own: Array, at: Array, tiling: Tiling) -> Array:
    """Terms (L, 8) of layers of ``sizes`` (L, 4) at ``places`` (L, 4): work, 1, outputs, inputs, and the remainders."""
    c_in, c_out, outputs, taps = at.T
    _, _, inputs, mixes = own.T
    lanes_in, lanes_out = tiling.lanes
    left_in, left_out = c_in % lanes_in * mixes, c_out % lanes_out
    a_filter, a_channel = outputs * taps * np.where(mixes > 0.0, c_in, 1.0), outputs * taps * c_out
    columns = (
        *(a_filter * (tiling.effective(c_out) - left_out), np.ones(len(at)), outputs * c_out * mixes),
        *(inputs * c_in * mixes, a_filter * left_out, a_filter * (left_out > 0)),
        *(a_channel * left_in, a_channel * (left_in > 0)),
    )
    return np.stack(columns, axis=1)


def averaged(points: Sequence[Point], tiling: Tiling) -> tuple[list[LayerSpec], Array, Array, Array]:
    """Points that a kernel cannot tell apart as one: layers, places (N, 4), ms and how many measurements, (N,) each."""
    given = [layer for layer, _, _ in points]
    widths = np.array([(layer.in_channels, layer.out_channels) for layer in given])
    at: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for i, place in enumerate(places(given, widths, tiling).tolist()):
        at[tuple(place)].append(i)
    ms, times = np.array([(ms, n) for _, ms, n in points]).T
    together = np.array([times[own].sum() for own in at.values()])
    mean_ms = np.array([ms[own] @ times[own] for own in at.values()]) / together
    return [given[own[0]] for own in at.values()], np.array(list(at)), mean_ms, together


def _non_negative(design: Array, target: Array) -> Array:
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

    Attributes:
        tiling: as given, with the lanes that were found.
        places: (N, 4), see the function.
        latency_ms, times: (N,), means and how many measurements they stand for.
        coefficients: ms a unit of each term, (8,).
        residual: relative, of measured beside fitted, (N,).
    """

    def __init__(self, points: Sequence[Point], tiling: Tiling) -> None:
        layers, self.places, self.latency_ms, self.times = averaged(points, tiling)
        self._sizes = sizes(layers)
        self.tiling = self._with_lanes(tiling)
        self._terms = terms(self._sizes, self.places, self.tiling)
        self.coefficients = self._fitted(self._terms)
        fitted = self._terms @ self.coefficients
        self.residual = np.divide(self.latency_ms, fitted, out=np.ones_like(fitted), where=fitted > 0.0) - 1.0

    def _with_lanes(self, tiling: Tiling) -> Tiling:
        """The tiling with the lanes of inputs and outputs that fit best; whole blocks leave no channels over."""
        if tiling.block > 1 or len(self.places) < _LANES_FIT_POINTS:
            return tiling
        error = self._error(tiling)
        if error < _LANES_ERROR:
            return tiling
        best, bound = tiling, (1.0 - _LANES_GAIN) * error
        for out_lanes, in_lanes in product((1, *LANES), repeat=2):
            tried = replace(tiling, lanes=(in_lanes, out_lanes))
            error = self._error(tried)
            if error < bound:  # more lanes must be clearly better than fewer
                best, bound = tried, (1.0 - _MORE_LANES_GAIN) * error
        return best

    def _error(self, tiling: Tiling) -> float:
        """Mean relative error of a fit."""
        own = terms(self._sizes, self.places, tiling)
        return float(np.abs((own @ self._fitted(own) - self.latency_ms) * self._weight()).mean())

    def _weight(self) -> Array:
        """Relative error counts; points that cost next to nothing beside the largest are not blown up."""
        floor = 1e-3 * max(float(self.latency_ms.max()), 1e-9)
        return np.asarray(1.0 / np.maximum(self.latency_ms, floor), dtype=np.float64)

    def _fitted(self, own: Array) -> Array:
        scale, weight = np.maximum(own.max(axis=0), _TINY), self._weight()
        n = len(self.places)
        used = 1 if n == 1 else 2 if n < _FULL_FIT_POINTS else own.shape[1]
        found = np.zeros(own.shape[1])
        found[:used] = _non_negative((own / scale)[:, :used] * weight[:, None], self.latency_ms * weight)
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
