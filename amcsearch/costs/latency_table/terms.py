"""What the latency of a kernel is a sum of, and how much of each: a non-negative fit of relative error.

    t(layer) ≈ a · work + b + c · outputs + d · inputs

in multiply-accumulates and tensor elements, with widths as the kernel computes them (``tiling``). Layers of other map
and kernel sizes are comparable in these terms, so a kernel's fit may hold points of many signatures.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency_table.signature import positions
from amcsearch.costs.latency_table.tiling import SetWork, Tiling

__all__ = ["Fit", "Point", "places", "terms"]

_FULL_FIT_POINTS: Final = 6  # below this only work and a constant are fitted
_TINY: Final = 1e-300

Array = NDArray[np.float64]
Point = tuple[LayerSpec, float, float]  # layer, ms, how many measurements it stands for


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


def terms(layers: Sequence[LayerSpec], at: Array, tiling: Tiling) -> Array:
    """Terms (L, 4) of layers at ``places`` (L, 4)."""
    c_in, c_out, outputs, taps = at.T
    _, _, inputs, mixes = np.array([_sizes(layer) for layer in layers]).T
    work = outputs * taps * np.where(mixes, c_in * tiling.effective(c_out), c_out)
    return np.stack([work, np.ones(len(at)), outputs * c_out * mixes, inputs * c_in * mixes], axis=1)


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
        places: (N, 4), see the function.
        latency_ms, times: (N,), means and how many measurements they stand for.
        coefficients: ms a unit of each term, (4,).
        residual: relative, of measured beside fitted, (N,).
    """

    def __init__(self, points: Sequence[Point], tiling: Tiling) -> None:
        self._tiling = tiling
        given = [layer for layer, _, _ in points]
        widths = np.array([(layer.in_channels, layer.out_channels) for layer in given])
        at: dict[tuple[float, ...], list[int]] = defaultdict(list)
        for i, place in enumerate(places(given, widths, tiling).tolist()):
            at[tuple(place)].append(i)
        ms, times = np.array([(ms, n) for _, ms, n in points]).T
        self.places = np.array(list(at))
        self.times = np.array([times[own].sum() for own in at.values()])
        self.latency_ms = np.array([ms[own] @ times[own] for own in at.values()]) / self.times
        self._terms = terms([given[own[0]] for own in at.values()], self.places, tiling)
        self.coefficients = self._fitted()
        fitted = self._terms @ self.coefficients
        self.residual = np.divide(self.latency_ms, fitted, out=np.ones_like(fitted), where=fitted > 0.0) - 1.0

    def _fitted(self) -> Array:
        """Relative error counts; points that cost next to nothing beside the largest are not blown up."""
        scale = np.maximum(self._terms.max(axis=0), _TINY)
        weight = 1.0 / np.maximum(self.latency_ms, 1e-3 * max(float(self.latency_ms.max()), 1e-9))
        n = len(self.places)
        used = 1 if n == 1 else 2 if n < _FULL_FIT_POINTS else self._terms.shape[1]
        found = np.zeros(self._terms.shape[1])
        found[:used] = _non_negative((self._terms / scale)[:, :used] * weight[:, None], self.latency_ms * weight)
        return np.asarray(found / scale, dtype=np.float64)

    def set_work(self) -> SetWork | None:
        """What the fit says of sets of output blocks; None where no time is proportional to work."""
        work_ms = self._terms[:, 0] * self.coefficients[0]
        if not work_ms.all() or not self.latency_ms.all():
            return None
        rest_ms = self.latency_ms - self._terms[:, 1:] @ self.coefficients[1:]
        c_out = self.places[:, 1]
        blocks = self._tiling.effective(c_out) / self._tiling.block
        return SetWork(rest_ms / work_ms * blocks, work_ms / self.latency_ms, c_out)
