"""Latency of one kernel of one layer signature as a function of widths, through measured points that lie anywhere.

    t(i, o) = (a + b·i + c·o + d·i·o) · Σ_k w_k·(t_k / fit_k) / Σ_k w_k,     w_k = 1 / (distance²(log₂ widths) + s)²

a non-negative fit of relative error, pulled towards its points: with smoothing s = 0 it equals the measurement at a
measured width; it stays between its neighbours' ratios elsewhere, and extrapolates by the fit. Kernels of ONNX
Runtime's blocked layout (NCHWc) compute whole blocks of output channels: for them o, and both widths of a depthwise
layer, are rounded up to the block, which makes the surface a staircase.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec

__all__ = ["Surface"]

_FULL_FIT_POINTS: Final = 6  # below this only a + d·i·o is fitted
_PHASE_OCTAVES: Final = 4.0  # distance between inputs of whole blocks and of almost one more
_EXACT: Final = 1e-12  # squared distance below which a point is hit
_CHUNK: Final = 2**17  # distances a pass, which then stay within the cache

Array = NDArray[np.float64]


def _terms(layer: LayerSpec, widths: Array) -> Array:
    """What latency is a sum of, the most telling first, for widths (L, 2); one width where both move together."""
    ones = np.ones(len(widths))
    c_in, c_out = widths.T
    if layer.kind in (LayerKind.CONV, LayerKind.LINEAR) and not layer.is_depthwise:
        return np.stack([c_in * c_out, ones, c_out, c_in], axis=1)
    return np.stack([c_out, ones], axis=1)


def _non_negative(design: Array, target: Array) -> Array:
    """Least squares with coefficients of at least 0: the most negative column is dropped until none is."""
    coefficients = np.zeros(design.shape[1])
    active = np.arange(design.shape[1])
    while len(active):
        found = np.linalg.lstsq(design[:, active], target, rcond=None)[0]
        if found.min() >= 0.0:
            coefficients[active] = found
            break
        active = np.delete(active, int(np.argmin(found)))
    return coefficients


class Surface:
    """Latency in ms over the widths of one signature, from at least one measured layer.

    Args:
        points: layers of one signature, their latencies in ms, and how many measurements each stands for; those of
            equal widths are averaged.
        block: channels to which outputs are rounded up, 0 or 1 for a kernel that computes what it is given.
        smoothing: squared distance, in octaves of width, over which neighbours are averaged; 0 hits every point.
    """

    def __init__(
        self, points: Sequence[tuple[LayerSpec, float, float]], block: int = 0, smoothing: float = 0.0
    ) -> None:
        self._block, self._smoothing = max(block, 1), max(smoothing, _EXACT)
        layer = points[0][0]
        given = [(one.in_channels, one.out_channels) for one, _, _ in points]
        at: dict[tuple[float, ...], list[tuple[float, float]]] = defaultdict(list)
        for place, (_, ms, times) in zip(self._padded(layer, np.array(given)).tolist(), points, strict=True):
            at[tuple(place)].append((ms, times))
        widths = np.array(list(at))
        terms = _terms(layer, widths)
        latency_ms = np.array([sum(ms * n for ms, n in values) / sum(n for _, n in values) for values in at.values()])
        self._log_widths, self._phase = np.log2(widths), self._phases(widths[:, 0])
        scale = terms.max(axis=0)
        # relative error counts; points that cost nothing beside the largest are not blown up
        weight = 1.0 / np.maximum(latency_ms, 1e-3 * max(float(latency_ms.max()), 1e-9))
        used = 1 if len(at) == 1 else 2 if len(at) < _FULL_FIT_POINTS else terms.shape[1]
        design = (terms / scale)[:, :used] * weight[:, None]
        self._coefficients = np.zeros(terms.shape[1])
        self._coefficients[:used] = _non_negative(design, latency_ms * weight) / scale[:used]
        fitted = terms @ self._coefficients
        self._ratio = np.divide(latency_ms, fitted, out=np.ones_like(fitted), where=fitted > 0.0)

    def _padded(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """Widths (L, 2) as the kernel computes them."""
        out = -(-widths[:, 1] // self._block) * self._block
        together = layer.is_depthwise and self._block > 1
        return np.stack([out if together else widths[:, 0], out], axis=1).astype(np.float64)

    def _phases(self, c_in: Array) -> Array:
        """How full the last block of inputs is, as a share in [0, 1); 0 is a full one."""
        return c_in % self._block / self._block

    def predict(self, layer: LayerSpec) -> tuple[float, float]:
        """Latency in ms of a layer of this signature, and its distance in octaves from the nearest measured one."""
        ms, octaves = self.predict_widths(layer, np.array([[layer.in_channels, layer.out_channels]]))
        return float(ms[0]), float(octaves[0])

    def predict_widths(self, layer: LayerSpec, widths: NDArray[np.int64]) -> tuple[Array, Array]:
        """As ``predict`` for the layer at many widths (in, out), (L, 2): latencies (L,) and distances (L,)."""
        padded = self._padded(layer, widths)
        # widths repeat, pairs seldom: squares are taken once a width
        parts = [np.unique(column, return_inverse=True) for column in padded.T]
        squares = [
            (np.log2(values)[:, None] - known) ** 2
            for (values, _), known in zip(parts, self._log_widths.T, strict=True)
        ]
        squares[0] += (_PHASE_OCTAVES * (self._phases(parts[0][0])[:, None] - self._phase)) ** 2
        ratio, nearest = np.empty(len(padded)), np.empty(len(padded))
        step = max(1, _CHUNK // len(self._ratio))
        for start in range(0, len(padded), step):
            stop = start + step
            distance = squares[0][parts[0][1][start:stop]]
            distance += squares[1][parts[1][1][start:stop]]
            nearest[start:stop] = distance.min(axis=1)
            distance += self._smoothing
            np.multiply(distance, distance, out=distance)
            weight = np.divide(1.0, distance, out=distance)
            ratio[start:stop] = (weight @ self._ratio) / weight.sum(axis=1)
        return (_terms(layer, padded) @ self._coefficients) * ratio, np.sqrt(nearest)
