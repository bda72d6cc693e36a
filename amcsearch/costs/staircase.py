"""Latency of one layer signature as a function of its widths, through measured points that lie anywhere.

ONNX Runtime's CPU provider works on blocks of channels (NCHWc, 16 with AVX-512): a convolution's outputs are padded to
whole blocks, so its latency is a staircase in ``out_channels``; and where ``in_channels`` is neither below a block
nor a multiple of 4 the layer falls back to a plain, slower kernel. Hence two separate surfaces:

- blocked: over (in_channels, out_channels padded to the block);
- plain: over the widths as they are.

Each surface is a non-negative fit of relative error, then pulled through its points:

    t(i, o) = (a + b·i + c·o + d·i·o) · Σ_k w_k·(t_k / fit_k) / Σ_k w_k,     w_k = 1 / distance(log₂ widths)⁴

so it equals the measurement at a measured (padded) width, stays between its neighbours' ratios elsewhere, and
extrapolates by the fit. Without plain points, a plain width is priced as the next full block of inputs: an off-grid
width is never flattered, nor ever priced below the blocked kernel. The rules were measured on ONNX Runtime 1.32
with AVX-512.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec

__all__ = ["Signature", "Staircase", "signature"]

_PLAIN_STEP: Final = 4  # input widths off this step leave the blocked layout
_FULL_FIT_POINTS: Final = 6  # below this only a + d·i·o is fitted
_EXACT: Final = 1e-12  # squared distance below which a point is hit

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Signature:
    """Everything a layer's latency depends on but its widths.

    ``conv_groups`` is 0 where groups follow the widths (depthwise filters, attention heads); ``group_width`` then
    holds the channels a group keeps, and is 0 otherwise.
    """

    kind: LayerKind
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    has_bias: bool
    conv_groups: int
    group_width: int


def signature(layer: LayerSpec) -> Signature:
    """Signature of a layer: layers that share it differ in their widths alone."""
    follows = layer.is_depthwise or layer.kind is LayerKind.ATTENTION
    return Signature(
        layer.kind,
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.in_size,
        layer.out_size,
        layer.has_bias,
        0 if follows else layer.conv_groups,
        layer.in_channels // layer.conv_groups if follows else 0,
    )


def _up(width: int, step: int) -> int:
    return -(-width // step) * step


def is_blocked(layer: LayerSpec, block: int) -> bool:
    """Whether the runtime keeps a layer in its blocked layout (always true of layers that have none)."""
    if layer.kind is not LayerKind.CONV or block == 0:
        return True
    if layer.is_depthwise:
        return layer.in_channels % _PLAIN_STEP == 0
    if layer.conv_groups > 1:
        widths = (layer.in_channels // layer.conv_groups, layer.out_channels // layer.conv_groups)
        return all(width % block == 0 for width in widths)
    return layer.in_channels < block or layer.in_channels % _PLAIN_STEP == 0


def _terms(layer: LayerSpec, c_in: int, c_out: int) -> tuple[float, ...]:
    """What latency is a sum of, the most telling first; one width where both move together."""
    if layer.kind in (LayerKind.CONV, LayerKind.LINEAR) and not layer.is_depthwise:
        return float(c_in * c_out), 1.0, float(c_out), float(c_in)
    return float(c_out), 1.0


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


class _Surface:
    """Non-negative fit through points (N, 2) with latencies (N,), pulled through the points."""

    def __init__(self, widths: Array, terms: Array, latency_ms: Array) -> None:
        self._log_widths = np.log2(widths)
        scale = terms.max(axis=0)
        # relative error counts; points that cost nothing beside the largest are not blown up
        weight = 1.0 / np.maximum(latency_ms, 1e-3 * max(float(latency_ms.max()), 1e-9))
        distinct = len(np.unique(widths, axis=0))
        used = 1 if distinct == 1 else 2 if distinct < _FULL_FIT_POINTS else terms.shape[1]
        design = (terms / scale)[:, :used] * weight[:, None]
        self._coefficients = np.zeros(terms.shape[1])
        self._coefficients[:used] = _non_negative(design, latency_ms * weight) / scale[:used]
        fitted = terms @ self._coefficients
        self._ratio = np.divide(latency_ms, fitted, out=np.ones_like(fitted), where=fitted > 0.0)

    def __call__(self, widths: tuple[int, int], terms: tuple[float, ...]) -> float:
        distance = ((self._log_widths - np.log2(widths)) ** 2).sum(axis=1)
        weight = (distance + _EXACT) ** -2
        return float(self._coefficients @ terms * (weight @ self._ratio) / weight.sum())


class Staircase:
    """Latency in ms over the widths of one signature, from at least one measured layer.

    ``block`` is the runtime's channel block; 0 where it has no blocked layout (then one plain surface).
    """

    def __init__(self, points: Sequence[tuple[LayerSpec, float]], block: int) -> None:
        self._block = block
        self._surfaces: dict[bool, _Surface] = {}
        for blocked in (True, False):
            chosen = [(layer, ms) for layer, ms in points if is_blocked(layer, block) is blocked]
            if chosen:
                widths = [self._widths(layer, blocked) for layer, _ in chosen]
                terms = [_terms(layer, *w) for (layer, _), w in zip(chosen, widths, strict=True)]
                latency_ms = np.array([ms for _, ms in chosen], dtype=np.float64)
                self._surfaces[blocked] = _Surface(np.array(widths, float), np.array(terms), latency_ms)

    def _widths(self, layer: LayerSpec, blocked: bool) -> tuple[int, int]:
        if layer.kind is not LayerKind.CONV or not blocked or self._block == 0:
            return layer.in_channels, layer.out_channels
        out = _up(layer.out_channels, self._block)
        return (out if layer.is_depthwise else layer.in_channels), out

    def predict(self, layer: LayerSpec) -> float:
        """Latency in ms of a layer of this signature."""
        if is_blocked(layer, self._block) and True in self._surfaces:
            return self._at(layer, True, self._widths(layer, True))
        plain = self._at(layer, False, self._widths(layer, False)) if False in self._surfaces else None
        if True not in self._surfaces:
            assert plain is not None
            return plain
        if plain is None:
            full = _up(layer.in_channels, self._block), _up(layer.out_channels, self._block)
            return self._at(layer, True, full)
        # few plain points can extrapolate too low; the plain kernel is not the faster one
        return max(plain, self._at(layer, True, self._widths(layer, True)))

    def _at(self, layer: LayerSpec, blocked: bool, widths: tuple[int, int]) -> float:
        return self._surfaces[blocked](widths, _terms(layer, *widths))
