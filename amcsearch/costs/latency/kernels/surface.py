"""Latency of one kernel over the layers it computes, through measured points that lie anywhere.

    t(layer) = fit(layer) · (1 + r(layer))

a non-negative fit (``terms``) times a smooth correction r: the mean of a Gaussian process through the points' relative
residuals (Rasmussen & Williams 2006, chapter 2) with the covariance

    k(x, x') = Π_j exp(-(log₂ x_j - log₂ x'_j)² / 2 l_j²)

over both widths, and over map and kernel size where points have several. Near measurements the surface follows them as
closely as their noise allows; far from all it is the fit alone, without waves. It never leaves the range of the
residuals: between noisy ones of a kernel of a microsecond the mean of the process went down to 0 ms, which relatives
then made a hundredfold of. The covariance is a product of one factor for each width, and so is every term of the fit:
at every pair of some widths a surface is two matrix products.

Where a layer has few points of its own, its relatives' surface takes the place of the fit (``CorrectedSurface``).
"""

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerSpec
from amcsearch.costs.distinct import distinct_places
from amcsearch.costs.latency.kernels.fit import Fit, factors, terms
from amcsearch.costs.latency.kernels.points import Points, coordinates, moved, sizes
from amcsearch.costs.latency.kernels.tiling import Tiling

__all__ = ["AnySurface", "CorrectedSurface", "MapSurface", "Surface"]

_OCTAVES: Final = (0.7, 0.7, 2.8, 2.8)  # l: over which widths, widths, positions and taps resemble each other
_LEAST_NOISE: Final = 1e-6
_SHARED: Final = 1.0  # variance of what a layer's points have in common beside its relatives
_TINY_MS: Final = 1e-9
_WIDEST: Final = 100.0  # a correction stays within this factor
_MOST_POINTS: Final = 800  # of a process, evenly chosen: its cost grows with their cube; all take part in the fit
_CHUNK: Final = 2**17  # numbers a pass, which then stay within the cache

Array = NDArray[np.float64]
Block = tuple[slice, slice]  # rows and columns of a grid of widths


def _likeness(first: Array, other: Array, coordinate: int) -> Array:
    """Factor of the covariance of one coordinate, in octaves: (N,), (M,) → (N, M)."""
    return np.asarray(np.exp(-0.5 * ((first[:, None] - other) / _OCTAVES[coordinate]) ** 2), dtype=np.float64)


class AnySurface(Protocol):
    """The latency of one kernel at any widths."""

    def octaves(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """Distances (L,) of the layer at many widths (in, out), (L, 2), from the nearest measured one, in octaves."""
        ...

    def predict_widths(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """Latencies in ms (L,) of the layer at many widths (in, out), (L, 2)."""
        ...

    def predict_blocks(
        self, layer: LayerSpec, c_in: NDArray[np.int64], c_out: NDArray[np.int64], blocks: Sequence[Block]
    ) -> Iterator[Array]:
        """Latencies in ms (I', O') of a layer, not a depthwise one, at all pairs in blocks of widths (I,), (O,)."""
        ...


class _Process:
    """Mean of a Gaussian process through values at coordinates.

    Args:
        measured: where, (N, 4), log₂ of ``coordinates``.
        values: (N,).
        counts: how many measurements each stands for, (N,).
        noise: variance of one measurement as a share of the variance of the process.
        shared: variance of what all values have in common, as such a share.
    """

    def __init__(self, measured: Array, values: Array, counts: Array, noise: float, shared: float = 0.0) -> None:
        self._measured = measured
        chosen = np.arange(len(measured))
        if len(measured) > _MOST_POINTS:
            chosen = np.unique(np.linspace(0, len(measured) - 1, _MOST_POINTS).astype(np.int64))
        self._known = measured[chosen].T  # (4, K)
        likeness = np.diag(max(noise, _LEAST_NOISE) / np.maximum(counts[chosen], 1.0)) + shared
        squares = np.zeros_like(likeness)
        for coordinate, octaves in zip(self._known, _OCTAVES, strict=True):
            if np.ptp(coordinate):  # layers of one signature differ in widths alone
                squares += ((coordinate[:, None] - coordinate) / octaves) ** 2
        likeness += np.exp(-0.5 * squares)
        self._weights = np.linalg.solve(likeness, values[chosen])
        self._common = shared * float(self._weights.sum())

    def octaves(self, at: Array) -> Array:
        """Distances (L,) of coordinates (L, 4) from the nearest measured one."""
        squares = ((np.log2(at)[:, None] - self._measured) ** 2).sum(axis=2)
        return np.asarray(np.sqrt(squares.min(axis=1)), dtype=np.float64)

    def at(self, at: Array) -> Array:
        """The mean (L,) at coordinates (L, 4) of one layer."""
        weights = self._weights_of(at[0, 2:])
        # widths repeat: the covariance is taken once a width, not once a pair
        (c_in, at_in), (c_out, at_out) = (distinct_places(at[:, j].astype(np.int64)) for j in (0, 1))
        of_in = _likeness(np.log2(c_in), self._known[0], 0) * weights
        of_out = _likeness(np.log2(c_out), self._known[1], 1)
        mean = np.full(len(at), self._common)
        step = max(1, _CHUNK // len(weights))
        for start in range(0, len(at), step):
            part = slice(start, start + step)
            mean[part] += np.einsum("nk,nk->n", of_in[at_in[part]], of_out[at_out[part]])
        return mean

    def in_blocks(self, c_in: Array, c_out: Array, size: Array, blocks: Sequence[Block]) -> Iterator[Array]:
        """The mean (I', O') at all pairs in blocks of computed widths (I,), (O,) of a layer of (positions, taps)."""
        of_in = _likeness(np.log2(c_in), self._known[0], 0) * self._weights_of(size)
        of_out = _likeness(np.log2(c_out), self._known[1], 1)
        for rows, columns in blocks:
            mean = of_in[rows] @ of_out[columns].T
            mean += self._common
            yield mean

    def _weights_of(self, size: Array) -> Array:
        """Weights of the known coordinates for a layer of (positions, taps): (K,)."""
        weights = self._weights
        for j, value in enumerate(size.tolist(), start=2):
            weights = weights * _likeness(np.log2(np.array([value])), self._known[j], j)[0]
        return np.asarray(weights, dtype=np.float64)


def _range(values: Array) -> tuple[float, float]:
    """The least and the largest of values (N,), 0 among them: that is what a process is far from all."""
    return min(0.0, float(values.min())), max(0.0, float(values.max()))


class Surface:
    """Latency in ms of one kernel, from at least one measured layer.

    Args:
        fit: what its times are a sum of, as far as that can be said.
        noise: variance of a measurement as a share of the variance of true residuals; 0 hits every point.
    """

    def __init__(self, fit: Fit, noise: float = 0.0) -> None:
        self._tiling = fit.tiling
        self._coefficients = fit.coefficients
        self._range = _range(fit.residual)
        self._residual = _Process(np.log2(fit.coordinates), fit.residual, fit.points.counts, noise)

    def octaves(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """See ``AnySurface``."""
        return self._residual.octaves(coordinates(sizes(layer), widths, self._tiling))

    def predict_widths(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """See ``AnySurface``."""
        size = sizes(layer)
        at = coordinates(size, widths, self._tiling)
        ms = terms(size, at, self._tiling) @ self._coefficients
        return np.asarray(ms * (1.0 + np.clip(self._residual.at(at), *self._range)), dtype=np.float64)

    def predict_blocks(
        self, layer: LayerSpec, c_in: NDArray[np.int64], c_out: NDArray[np.int64], blocks: Sequence[Block]
    ) -> Iterator[Array]:
        """See ``AnySurface``."""
        size, computed = sizes(layer), (self._tiling.inputs(c_in), self._tiling.outputs(c_out))
        of_in, of_out = factors(size, *computed, self._tiling)
        of_in *= self._coefficients
        residuals = self._residual.in_blocks(*computed, size[0, :2], blocks)
        for (rows, columns), ms in zip(blocks, residuals, strict=True):
            np.clip(ms, *self._range, out=ms)
            ms += 1.0
            ms *= of_in[rows] @ of_out[columns].T
            yield ms


class CorrectedSurface:
    """Latency in ms of one kernel in layers of few points: that of their relatives, times a correction.

    The logarithm of the correction is a Gaussian process through the logarithms of measured by related, in which all
    points share something: one point says most of how far a layer is from its relatives. It never leaves their range.

    Args:
        layer: one of them.
        points: what was measured of it.
        tiling: how the kernel computes widths.
        noise: as of ``Surface``.
        related: surface of the relatives.
    """

    def __init__(
        self, layer: LayerSpec, points: Points, related: AnySurface, tiling: Tiling, noise: float = 0.0
    ) -> None:
        self._related, self._tiling = related, tiling
        groups = points.groups(tiling)
        mean = points.averaged(groups)
        ratio = np.maximum(mean.ms, _TINY_MS) / np.maximum(related.predict_widths(layer, mean.widths), _TINY_MS)
        values = np.log(np.clip(ratio, 1.0 / _WIDEST, _WIDEST))
        self._range = _range(values)
        self._correction = _Process(np.log2(groups.coordinates), values, mean.counts, noise, _SHARED)

    def octaves(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """See ``AnySurface``."""
        return self._correction.octaves(coordinates(sizes(layer), widths, self._tiling))

    def predict_widths(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """See ``AnySurface``."""
        correction = np.clip(self._correction.at(coordinates(sizes(layer), widths, self._tiling)), *self._range)
        ms = self._related.predict_widths(layer, widths) * np.exp(correction)
        return np.asarray(ms, dtype=np.float64)

    def predict_blocks(
        self, layer: LayerSpec, c_in: NDArray[np.int64], c_out: NDArray[np.int64], blocks: Sequence[Block]
    ) -> Iterator[Array]:
        """See ``AnySurface``."""
        computed = self._tiling.inputs(c_in), self._tiling.outputs(c_out)
        corrections = self._correction.in_blocks(*computed, sizes(layer)[0, :2], blocks)
        related = self._related.predict_blocks(layer, c_in, c_out, blocks)
        for ms, correction in zip(related, corrections, strict=True):
            yield ms * np.exp(np.clip(correction, *self._range))


class MapSurface:
    """Latency in ms of a reorder behind a layer: that of the map which the layer writes, whatever it reads.

    Args:
        surface: of ``moved`` layers.
    """

    def __init__(self, surface: AnySurface) -> None:
        self._surface = surface

    def octaves(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """See ``AnySurface``."""
        return self._surface.octaves(moved(layer), _written(widths))

    def predict_widths(self, layer: LayerSpec, widths: NDArray[np.int64]) -> Array:
        """See ``AnySurface``."""
        return self._surface.predict_widths(moved(layer), _written(widths))

    def predict_blocks(
        self, layer: LayerSpec, c_in: NDArray[np.int64], c_out: NDArray[np.int64], blocks: Sequence[Block]
    ) -> Iterator[Array]:
        """See ``AnySurface``."""
        ms = self._surface.predict_widths(moved(layer), np.stack([c_out, c_out], axis=1))
        for rows, columns in blocks:
            yield np.broadcast_to(ms[columns], (len(c_in[rows]), len(ms[columns])))


def _written(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Widths (in, out), (L, 2), of ``moved`` layers."""
    return widths[:, [1, 1]]
