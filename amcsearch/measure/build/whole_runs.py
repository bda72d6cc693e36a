"""Layers' times from whole runs alone, for a runtime that says nothing of its kernels.

A provider that fuses the whole graph has no profile. What it takes for a network is modelled as

    T(variant) = constant + Σ_layers m(layer) · (1 + a + r(widths)) + beyond(weights)

1. ``m`` grows with both widths: a launch, work, numbers read, numbers written and weights, each at a price of at least
   0 that all layers of a kind and kernel size share. Prices, the constant and what weights beyond the caches cost
   (``CacheOverflow``) are fitted by non-negative least squares of the relative error.
2. ``a + r`` is what layers of one signature have of their own: Gaussian processes that are observed through sums over
   layers (additive processes, Duvenaud et al. 2011, arXiv 1112.4394; Rasmussen & Williams 2006, chapter 5). Their
   scales and that of the noise have the greatest likelihood. Variants whose passes differ count for less.
3. Steps: widths are computed in blocks of channels, or in other kernels where they do not divide by a multiple. Both
   are taken only where they lessen the error of runs that are predicted from all others.
4. A time never falls where a layer of the same kernel gets wider: times are made monotone.

Errors come from variants that are left out in turn: fits without them become a table, and the table predicts them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs import KNOTS_MIB, WHOLE, CacheOverflow, LatencyModel, Observation, Tiling, by_signature, weight_mib
from amcsearch.measure.build.calibration import FOLDS, Calibration, Folds, NodeCalibration, fit_sigma
from amcsearch.measure.build.measured import MeasuredVariant

__all__ = ["Steps", "WholeRuns", "fit_whole_runs", "monotone"]

Array = NDArray[np.float64]
FREE: Final = frozenset({LayerKind.BATCH_NORM, LayerKind.PARAMETER})  # folded into their neighbours
BLOCKS: Final = (1, 8, 16, 32)
MULTIPLES: Final = (1, 4, 8, 16)
FEW_CHANNELS: Final = 4  # an image has fewer, and its first layer a kernel for them
GAIN: Final = 0.12  # by which steps must lessen the error to be believed
MORE_GAIN: Final = 0.02
OWN_SCALES: Final = (0.05, 0.15, 0.4)  # of what a signature has of its own, as shares: of all its widths, of each
WIDTH_SCALES: Final = (0.03, 0.1, 0.3)
NOISES: Final = (0.005, 0.015, 0.04, 0.1)
OCTAVES: Final = 0.7  # over which widths resemble each other
RIDGE: Final = 0.01
MOST_PRICES: Final = 0.8  # beside runs: as if no more had been fitted
FEW_TERMS: Final = 2  # launch and work, where runs are few
FEW_SIGMA: Final = (0.1, 0.2)
LEAST_SHARE: Final = 0.1  # of the shared price that stays a layer's, and of a latency that is no overhead
LEAST_MS: Final = 1e-7  # no layer is free
SMOOTHING: Final = 0.01  # times are smooth already
TINY: Final = 1e-12


@dataclass(frozen=True)
class Steps:
    """How widths count: in whole blocks of channels, and in other kernels where they do not divide by ``multiple``."""

    block: int = 1
    multiple: int = 1

    @property
    def layout_block(self) -> int:
        """The block as tables say it: 0 where each channel counts."""
        return self.block if self.block > 1 else 0

    def computed(self, widths: NDArray[np.int64], depthwise: bool) -> Array:
        """Widths (L, 2) as they are computed, see ``Tiling``."""
        return Tiling(self.block).computed(widths, np.full(len(widths), depthwise))

    def divides(self, widths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the multiple divides both of the widths (L, 2), or the output of the input's few channels: (L,)."""
        c_in, c_out = widths.T
        return np.asarray(((c_in % self.multiple == 0) | (c_in < FEW_CHANNELS)) & (c_out % self.multiple == 0))


@dataclass(frozen=True)
class WholeRuns:
    """What whole runs say of layers: steps, calibration, and the layers of each variant with their times in ms."""

    steps: Steps
    calibration: Calibration
    observations: list[list[Observation]]


@dataclass(frozen=True)
class _Runs:
    """V variants: their layers, latencies without the overhead of a call, doubts, and all weights in MiB, (V,) each."""

    layers: Sequence[Sequence[LayerSpec]]
    whole: Array
    doubt: Array
    weights_mib: Array

    @classmethod
    def of(cls, variants: Sequence[MeasuredVariant], overhead_ms: float, weight_bytes: int) -> "_Runs":
        """The fastest pass counts: others were disturbed; how far the next is from it says how sure that is."""
        passes = [sorted(variant.passes_ms) for variant in variants]
        fastest = np.array([of_variant[0] for of_variant in passes])
        second = np.array([of_variant[min(1, len(of_variant) - 1)] for of_variant in passes])
        mib = [sum(weight_mib(layer, weight_bytes) for layer in variant.layers) for variant in variants]
        whole = np.maximum(fastest - overhead_ms, LEAST_SHARE * fastest)
        return cls([variant.layers for variant in variants], whole, second / fastest - 1.0, np.array(mib))

    def __len__(self) -> int:
        return len(self.whole)

    @cached_property
    def alike(self) -> list[tuple[LayerSpec, NDArray[np.int64], NDArray[np.int64]]]:
        """All layers of all variants by signature: see ``by_signature``."""
        return by_signature(layer for of_variant in self.layers for layer in of_variant)

    def chosen(self, at: NDArray[np.int64]) -> "_Runs":
        """Those at some places."""
        return _Runs([self.layers[i] for i in at.tolist()], self.whole[at], self.doubt[at], self.weights_mib[at])


class _Alike(NamedTuple):
    """L layers of one signature that run in one kernel.

    Of which variant each is and which of all layers, (L,); its terms, (L, T); D distinct widths as they are computed,
    (D, 2), and which of them each layer has, (L,).
    """

    kernel: str
    price: tuple[Hashable, ...]
    variant: NDArray[np.int64]
    place: NDArray[np.int64]
    terms: Array
    computed: Array
    at: NDArray[np.int64]

    def spread(self, ms: Array, n_variants: int) -> Array:
        """How much of each variant's time (V,) lies at each of the distinct widths, (V, D), from that of layers."""
        result = np.zeros((n_variants, len(self.computed)))
        np.add.at(result, (self.variant, self.at), ms)
        return result

    def likeness(self) -> Array:
        """Covariance of distinct widths, (D, D)."""
        octaves = np.log2(self.computed)
        squares = ((octaves[:, None] - octaves) ** 2).sum(axis=2)
        return np.asarray(np.exp(-0.5 * squares / OCTAVES**2), dtype=np.float64)


def _terms(layer: LayerSpec, computed: Array) -> Array:
    """Launch, work, numbers read, numbers written, weights (L, 5) of a layer at computed widths (L, 2)."""
    c_in, c_out = computed.T
    mixes = layer.kind in (LayerKind.CONV, LayerKind.LINEAR) and not layer.is_depthwise
    inputs, outputs = layer.in_size[0] * layer.in_size[1], layer.out_size[0] * layer.out_size[1]
    weights = layer.kernel[0] * layer.kernel[1] * c_out * (c_in / layer.conv_groups if mixes else 1.0)
    work = weights * outputs * (inputs if layer.kind is LayerKind.ATTENTION else 1.0)
    return np.stack([np.ones(len(c_in)), work, inputs * c_in, outputs * c_out, weights], axis=1)


def _alike(runs: _Runs, steps: Steps, prior: LatencyModel | None) -> list[_Alike]:
    """Layers by signature and kernel; priced by the prior where there is one, alike where runs are few."""
    variant_of = np.repeat(np.arange(len(runs)), [len(of_variant) for of_variant in runs.layers])
    groups = []
    for layer, numbers, all_widths in runs.alike:
        divides = steps.divides(all_widths)
        for kernel, chosen in ((layer.kind.value, divides), (f"{layer.kind.value}+off{steps.multiple}", ~divides)):
            if layer.kind in FREE or not chosen.any():
                continue
            widths, place = all_widths[chosen], numbers[chosen]
            computed = steps.computed(widths, layer.is_depthwise)
            distinct, at = np.unique(computed, axis=0, return_inverse=True)
            terms = _terms(layer, computed)
            price: tuple[Hashable, ...] = (kernel, layer.is_depthwise, layer.kernel)
            if prior is not None:
                terms, price = prior.layer_costs(layer, *widths.T)[:, None], ()
            elif len(runs) < 2 * FOLDS:
                terms, price = terms[:, :FEW_TERMS], ()
            groups.append(_Alike(WHOLE + kernel, price, variant_of[place], place, terms, distinct, at.ravel()))
    return groups


class _Fit:
    """Steps 1 and 2 for runs, with the widths' steps given.

    Attributes:
        constant_ms: of a call, beside its overhead.
        overflow: what weights beyond the caches cost.
        error: mean relative error of runs that are predicted from the others, more where many prices were fitted.
    """

    def __init__(self, runs: _Runs, steps: Steps, prior: LatencyModel | None) -> None:
        self._runs, self._groups = runs, _alike(runs, steps, prior)
        n_prices = self._fit_prices()
        self._fit_own(1.0 - min(n_prices / len(runs), MOST_PRICES))

    def _fit_prices(self) -> int:
        """Take prices, and return how many are more than 0."""
        from scipy.optimize import nnls  # half a second of imports that no search needs

        runs, n = self._runs, len(self._runs)
        prices = list(dict.fromkeys(group.price for group in self._groups))
        width = self._groups[0].terms.shape[1]
        columns = np.zeros((n, len(prices), width))
        for group in self._groups:
            np.add.at(columns[:, prices.index(group.price)], group.variant, group.terms)
        most = runs.weights_mib.max()
        knots = [knot for knot in KNOTS_MIB if most - knot > 0.02 * most] if n >= 2 * FOLDS else []
        beyond = [CacheOverflow({knot: 1.0}).extra_ms(runs.weights_mib, runs.weights_mib) for knot in knots]
        design = np.column_stack([columns.reshape(n, -1), np.ones(n), *beyond])
        scale = np.maximum(design.max(axis=0), TINY)
        weight = 1.0 / np.hypot(1.0, runs.doubt / NOISES[1])
        ridge = RIDGE / runs.whole.mean() * np.eye(design.shape[1])
        fitted, _ = nnls(
            np.concatenate([design / scale * (weight / runs.whole)[:, None], ridge]),
            np.concatenate([weight, np.zeros(len(ridge))]),
        )
        of_unit = fitted / scale
        split = len(prices) * width
        self.constant_ms = float(of_unit[split])
        self.overflow = CacheOverflow(
            {knot: float(slope) for knot, slope in zip(knots, of_unit[split + 1 :], strict=True) if slope > TINY}
        )
        each = of_unit[:split].reshape(len(prices), width)
        self._shared = [group.terms @ each[prices.index(group.price)] for group in self._groups]
        self._left = 1.0 - design @ of_unit / runs.whole
        return int((fitted > 0.0).sum())

    def _fit_own(self, freedom: float) -> None:
        """Take what each signature has of its own, at the scales of the greatest likelihood."""
        n, whole = len(self._runs), self._runs.whole
        common, by_width = np.zeros((n, n)), np.zeros((n, n))
        spreads = []
        for group, ms in zip(self._groups, self._shared, strict=True):
            spread = group.spread(ms, n) / whole[:, None]
            common += np.outer(spread.sum(axis=1), spread.sum(axis=1))
            by_width += spread @ group.likeness() @ spread.T
            spreads.append(spread)
        best = -np.inf
        for of_signature, of_width, noise in product(OWN_SCALES, WIDTH_SCALES, NOISES):
            covariance = of_signature**2 * common + of_width**2 * by_width + np.diag(noise**2 + self._runs.doubt**2)
            inverse = np.linalg.inv(covariance)
            weights = inverse @ self._left
            likelihood = -0.5 * float(self._left @ weights + np.linalg.slogdet(covariance)[1])
            if likelihood > best:
                best = likelihood
                self.error = float(np.abs(weights / np.diag(inverse)).mean()) / freedom
                self._own = [
                    of_signature**2 * (spread.T @ weights).sum() + of_width**2 * group.likeness() @ (spread.T @ weights)
                    for group, spread in zip(self._groups, spreads, strict=True)
                ]

    def observations(self) -> list[list[Observation]]:
        """The layers of every variant, each with its kernel and time."""
        layers = [layer for of_variant in self._runs.layers for layer in of_variant]
        result = [Observation(layer, {}) for layer in layers]
        for group, shared, correction in zip(self._groups, self._shared, self._own, strict=True):
            mean = np.bincount(group.at, shared) / np.bincount(group.at)
            ms = np.maximum(monotone(group.computed, mean * np.maximum(1.0 + correction, LEAST_SHARE)), LEAST_MS)
            for place, at in zip(group.place.tolist(), group.at.tolist(), strict=True):
                result[place] = Observation(layers[place], {group.kernel: (1.0, float(ms[at]))})
        ends = np.cumsum([len(of_variant) for of_variant in self._runs.layers]).tolist()
        return [result[start:end] for start, end in pairwise([0, *ends])]


def monotone(computed: Array, ms: Array) -> Array:
    """Times (D,) at widths (D, 2) that fall nowhere where both widths grow: halfway between the envelopes."""
    within = (computed[:, None] <= computed).all(axis=2)  # (D, D): the first is nowhere wider
    below = np.where(within, ms[:, None], -np.inf).max(axis=0)
    above = np.where(within, ms, np.inf).min(axis=1)
    return np.asarray((below + above) / 2.0, dtype=np.float64)


def _chosen_steps(runs: _Runs, prior: LatencyModel | None) -> Steps:
    """The steps by which runs are predicted best from the others, none where that gains little."""
    if len(runs) < 2 * FOLDS:
        return Steps()
    best, bound = Steps(), (1.0 - GAIN) * _Fit(runs, Steps(), prior).error
    for block, multiple in product(BLOCKS, MULTIPLES):
        if block == multiple == 1 or 1 < block < multiple:
            continue
        error = _Fit(runs, Steps(block, multiple), prior).error
        if error < bound:
            best, bound = Steps(block, multiple), (1.0 - MORE_GAIN) * error
    return best


def fit_whole_runs(
    variants: Sequence[MeasuredVariant],
    overhead_ms: float,
    *,
    weight_bytes: int = 4,
    prior: LatencyModel | None = None,
    seed: int = 0,
) -> WholeRuns:
    """Fit everything on timed variants of one network.

    Args:
        variants: V of them; below twelve nothing is left out, no steps are looked for, and a prior does most.
        overhead_ms: latency of an empty call.
        weight_bytes: of one weight.
        prior: a model of the device that can predict the network, None where there is none. It is asked for few
            variants alone.
        seed: of the folds.
    """
    runs = _Runs.of(variants, overhead_ms, weight_bytes)
    few = len(variants) < 2 * FOLDS
    prior = prior if few else None
    steps = _chosen_steps(runs, prior)
    fit = _Fit(runs, steps, prior)
    calibration = Calibration(
        NodeCalibration(1.0, 0.0), SMOOTHING, overhead_ms + fit.constant_ms, {}, fit.overflow, *FEW_SIGMA
    )
    if not few:
        calibration = _with_errors(calibration, variants, runs, steps, seed)
    return WholeRuns(steps, calibration, fit.observations())


def _with_errors(
    calibration: Calibration, variants: Sequence[MeasuredVariant], runs: _Runs, steps: Steps, seed: int
) -> Calibration:
    """The calibration with errors of predictions by fits that never saw the variant."""
    kernels = sorted({group.kernel for group in _alike(runs, steps, None)})
    folds = Folds(variants, kernels, steps.layout_block, seed)
    fits = [_Fit(runs.chosen(folds.others(fold)), steps, None) for fold in range(FOLDS)]
    models = folds.models_of([[layer for of_variant in fit.observations() for layer in of_variant] for fit in fits])
    left = folds.left_out([model.smoothed(calibration.smoothing) for model in models])
    beside = np.zeros(len(runs))
    for fold, fit in enumerate(fits):
        at = np.setdiff1d(np.arange(len(runs)), folds.others(fold))
        mib = runs.weights_mib[at]
        beside[at] = fit.constant_ms + fit.overflow.extra_ms(mib, mib)
    residuals = (left.sums.sum(axis=1) + beside) / runs.whole - 1.0
    floor, octave = fit_sigma(residuals, left.far / runs.whole)
    return replace(calibration, sigma_floor=floor, sigma_octave=octave, residuals=tuple(map(float, residuals)))
