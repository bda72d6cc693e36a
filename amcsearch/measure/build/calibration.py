"""From profiles and whole runs to kernel times that add up to whole runs.

1. What the profiler itself takes is fitted on whole runs by least squares of the RELATIVE error,

       T − overhead = scale · Σ profiled + node_ms · nodes

   ``node_ms`` is negative (about −2 µs); forcing it to be positive tripled the error of predictions. It is a first
   guess: the multiple of it is taken that predicts left-out variants best, on one machine half as much again.
2. Each variant's profile gets the scale at which its kernels add up to its own whole run: the profile says who, the
   whole run says how much, and a machine that was slow meanwhile does no harm. What the weights cost beyond the caches
   (``CacheOverflow``) is taken off again, for it belongs to the network and not to a kernel.
3. Kernel models are built with a sixth of the variants left out in turn, and predict these. On such predictions alone
   are fitted: one factor a kernel family, the constant of a call, the slopes beyond the caches (all bounded, the
   factors drawn towards 1) and the uncertainty; and the smoothing of surfaces is chosen. In-sample sums would hide
   every bias: a surface goes through its own points.
4. Steps 2 and 3 are repeated, since the cost beyond the caches changes the kernel times it is fitted on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import at_worst
from amcsearch.costs import KNOTS_MIB, CacheOverflow, KernelModel, Observation, by_signature, is_plain, weight_mib
from amcsearch.measure.build.measured import MeasuredVariant

__all__ = [
    "FOLDS",
    "Calibration",
    "Folds",
    "LeftOut",
    "NodeCalibration",
    "calibrate",
    "fit_nodes",
    "fit_sigma",
    "inside_ms",
    "observe",
]

Array = NDArray[np.float64]


FOLDS: Final = 6


@dataclass(frozen=True)
class LeftOut:
    """Predictions of variants by models that never saw them, before calibration."""

    sums: Array  # (V, families), ms
    far: Array  # (V,), root of the sum of (ms · octaves)²


class Folds:
    """Variants left out in turn: what the others' models predict of them.

    Which kernels layers become, and how far from measured ones they lie, does not depend on times and is found once.
    """

    def __init__(self, variants: Sequence[MeasuredVariant], kernels: Sequence[str], block: int, seed: int) -> None:
        self._of_variant = np.random.default_rng(seed).permutation(len(variants)) % FOLDS
        self._families = {name: i for i, name in enumerate(kernels)}
        self._layers = [
            [(v, layer) for v in np.flatnonzero(self._of_variant == fold).tolist() for layer in variants[v].layers]
            for fold in range(FOLDS)
        ]
        self._alike = [by_signature(layer for _, layer in left_out) for left_out in self._layers]
        self._block = block
        self._first: list[KernelModel] = []
        self._octaves: list[list[dict[str, Array]]] = []

    def others(self, fold: int) -> NDArray[np.int64]:
        """The variants that a fold does not leave out."""
        return np.flatnonzero(self._of_variant != fold)

    def models(self, observed: Sequence[Sequence[Observation]]) -> list[KernelModel]:
        """Of each fold a model of the variants in all others."""
        return self.models_of(
            [[layer for v in self.others(fold).tolist() for layer in observed[v]] for fold in range(FOLDS)]
        )

    def models_of(self, others: Sequence[Sequence[Observation]]) -> list[KernelModel]:
        """Of each fold a model of the layers of all others, as they were observed without it."""
        if self._first:
            return [model.retimed(observations) for model, observations in zip(self._first, others, strict=True)]
        self._first = [KernelModel(observations, self._block) for observations in others]
        self._octaves = [
            [model.octaves_at(layer, widths) for layer, _, widths in alike]
            for model, alike in zip(self._first, self._alike, strict=True)
        ]
        return self._first

    def left_out(self, models: Sequence[KernelModel]) -> LeftOut:
        """Predictions of variants (V,), each by the model of those in other folds."""
        sums, squares = np.zeros((len(self._of_variant), len(self._families))), np.zeros(len(self._of_variant))
        for model, layers, alike, far in zip(models, self._layers, self._alike, self._octaves, strict=True):
            for (layer, numbers, widths), octaves in zip(alike, far, strict=True):
                at = np.array([layers[number][0] for number in numbers])
                for kernel, (ms, _) in (model.latencies_at(layer, widths) or {}).items():
                    np.add.at(sums[:, self._families[kernel]], at, ms)
                    np.add.at(squares, at, (ms * octaves[kernel]) ** 2)
        return LeftOut(sums, np.sqrt(squares))


LEAST_NODE_MS: Final = 2e-4  # no kernel starts in less


@dataclass(frozen=True, slots=True)
class NodeCalibration:
    """What profiled nodes cost without the profiler: ``scale`` · profiled + ``node_ms`` each, on a quiet machine."""

    scale: float
    node_ms: float

    def durations_ms(self, profiled_ms: Array, whole_ms: float) -> Array:
        """Durations (n,) of the nodes of a run of ``whole_ms``, profiled at (n,), at the scale that it was profiled at.

        None is below what a kernel takes to start.
        """
        scale = (whole_ms - self.node_ms * len(profiled_ms)) / profiled_ms.sum()
        raw = np.maximum(scale * profiled_ms + self.node_ms, LEAST_NODE_MS)
        return np.asarray(raw * (whole_ms / raw.sum()), dtype=np.float64)


def _relative_fit(terms: Sequence[Array], target: Array) -> Array:
    design = np.stack(terms, axis=1) / target[:, None]
    return np.asarray(np.linalg.lstsq(design, np.ones(len(target)), rcond=None)[0], dtype=np.float64)


def inside_ms(variant: MeasuredVariant, overhead_ms: float) -> float:
    """Latency of a variant without the overhead of a call."""
    return max(variant.latency_ms - overhead_ms, 0.1 * variant.latency_ms)


def fit_nodes(variants: Sequence[MeasuredVariant], overhead_ms: float) -> NodeCalibration:
    """Fit both; with too few or too similar variants to tell the two apart, a factor alone."""
    profiled = np.array([sum(run.profiled_ms for run in v.kernels) for v in variants])
    nodes = np.array([float(len(v.kernels)) for v in variants])
    whole = np.array([inside_ms(v, overhead_ms) for v in variants])
    scale, node_ms = _relative_fit([profiled, nodes], whole) if len(variants) > 2 else (0.0, 0.0)
    if scale <= 0:
        return NodeCalibration(float(_relative_fit([profiled], whole)[0]), 0.0)
    return NodeCalibration(float(scale), float(node_ms))


NODE_MULTIPLES: Final = (1.0, 1.3, 1.6, 2.0, 2.5, 3.2)  # of the profiler's own time, tried while they gain
SMOOTHINGS: Final = (0.1, 1.0, 10.0)
FEW_SMOOTHING: Final = 1.0  # where too few variants are there to choose by
ROUNDS: Final = 3
FACTOR_BOUNDS: Final = (0.5, 2.0)
PRIOR: Final = 0.17  # a factor one off 1 costs as much as one variant mispredicted by this share
EXCESS: Final = 0.02  # share by which kernels and what is borrowed may together be slower than the whole
HALVINGS: Final = 5  # of what is borrowed, before nothing is
LEAST_STREAMED: Final = 0.3  # of a kernel's time that stays its own, however much the caches would take


@dataclass(frozen=True)
class Calibration:
    """Everything fitted on the variants of one network.

    ``factors`` multiply kernel times by family; ``residuals`` are the relative errors of variants that were left out
    when they were predicted, (V,); the relative standard deviation of a prediction is ``sigma_floor``, and
    ``sigma_octave`` for each octave of width between a kernel and its nearest measurement.
    """

    nodes: NodeCalibration
    smoothing: float = 0.0
    constant_ms: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict)
    overflow: CacheOverflow = field(default_factory=lambda: CacheOverflow({}))
    sigma_floor: float = 0.0
    sigma_octave: float = 0.0
    residuals: tuple[float, ...] = ()


def _streamed_mib(variant: MeasuredVariant, weight_bytes: int) -> dict[str, float]:
    """Weights of the layers whose kernels stream them, by layer, in MiB."""
    by_layer = variant.kernels_by_layer
    streaming = [layer for layer in variant.layers if not any(map(is_plain, by_layer.get(layer.name, ())))]
    return {layer.name: weight_mib(layer, weight_bytes) for layer in streaming}


def _extra_ms(variant: MeasuredVariant, overflow: CacheOverflow, weight_bytes: int) -> float:
    """What a variant's weights cost beyond the caches, in ms."""
    total = sum(weight_mib(layer, weight_bytes) for layer in variant.layers)
    streamed = sum(_streamed_mib(variant, weight_bytes).values())
    return float(overflow.extra_ms(np.array([total]), np.array([streamed]))[0])


def observe(
    variant: MeasuredVariant, nodes: NodeCalibration, overhead_ms: float, overflow: CacheOverflow, weight_bytes: int
) -> list[Observation]:
    """Kernel times of every layer of a profiled variant, stretched to its whole run (step 2)."""
    durations = nodes.durations_ms(
        np.array([run.profiled_ms for run in variant.kernels]), inside_ms(variant, overhead_ms)
    )
    by_layer = variant.kernels_by_layer
    streamed = _streamed_mib(variant, weight_bytes)
    extra = _extra_ms(variant, overflow, weight_bytes)
    a_mib = extra / sum(streamed.values()) if extra else 0.0
    observations = []
    for layer in variant.layers:
        kernels: dict[str, tuple[float, float | None]] = {}
        positions = by_layer.get(layer.name, {})
        main = max(positions, key=lambda kernel: sum(durations[i] for i in positions[kernel]), default="")
        for kernel, at in positions.items():
            ms = float(sum(durations[i] for i in at))
            if kernel == main:
                ms = max(ms - a_mib * streamed.get(layer.name, 0.0), LEAST_STREAMED * ms)
            kernels[kernel] = (float(len(at)), ms / len(at))
        observations.append(Observation(layer, kernels))
    return observations


def _fit_whole(
    left: LeftOut, weights_mib: Array, whole: Array, overhead_ms: float
) -> tuple[Array, float, CacheOverflow, Array]:
    """Factors, constant, cost beyond the caches and relative residuals (V,) from predictions of left-out variants.

    ``weights_mib`` are (V, 2), all and streamed.
    """
    from scipy.optimize import lsq_linear  # half a second of imports that no search needs

    total, streamed = weights_mib.T
    knots = [knot for knot in KNOTS_MIB if total.max() - knot > 0.02 * total.max()]
    beyond = [CacheOverflow({knot: 1.0}).extra_ms(total, streamed) for knot in knots]
    n = left.sums.shape[1]
    design = np.column_stack([left.sums, np.ones(len(whole)), *beyond]) / whole[:, None]
    start = np.concatenate([np.ones(n), [overhead_ms], np.zeros(len(knots))])
    pull = np.concatenate([np.full(n, PRIOR), [PRIOR / whole.mean()], np.full(len(knots), 1e-3)])
    low = np.concatenate([np.full(n, FACTOR_BOUNDS[0]), np.zeros(1 + len(knots))])
    high = np.concatenate([np.full(n, FACTOR_BOUNDS[1]), np.full(1 + len(knots), np.inf)])
    fitted = lsq_linear(
        np.concatenate([design, np.diag(pull)]),
        np.concatenate([np.ones(len(whole)), pull * start]),
        bounds=(low, high),
    ).x
    slopes = {knot: float(slope) for knot, slope in zip(knots, fitted[n + 1 :], strict=True) if slope > 1e-9}
    return fitted[:n], float(fitted[n]), CacheOverflow(slopes), design @ fitted - 1.0


def fit_sigma(residuals: Array, far: Array) -> tuple[float, float]:
    """Variance of relative residuals as floor² + octave² · far²: (floor, octave)."""
    from scipy.optimize import lsq_linear  # half a second of imports that no search needs

    design = np.column_stack([np.ones(len(far)), far**2])
    floor, octave = lsq_linear(design, residuals**2, bounds=(0.0, np.inf)).x
    return float(np.sqrt(floor)), float(np.sqrt(octave))


def calibrate(
    variants: Sequence[MeasuredVariant],
    overhead_ms: float,
    block: int,
    *,
    weight_bytes: int = 4,
    like: CacheOverflow | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit everything on profiled variants of one network.

    Args:
        variants: V profiled and timed variants; below twelve nothing is left out and only step 1 is fitted.
        overhead_ms: latency of an empty call.
        block: channels in a block of the runtime's layout, 0 if it has none.
        weight_bytes: of one weight.
        like: what weights beyond the caches cost a network of about this size on the same device, taken where there
            are fewer than twelve variants. None where that is not known.
        seed: of the folds.
    """
    nodes = fit_nodes(variants, overhead_ms)
    if len(variants) < 2 * FOLDS:
        overflow = _borne(like or CacheOverflow({}), variants, nodes, overhead_ms, weight_bytes)
        return Calibration(nodes, FEW_SMOOTHING, overhead_ms, {}, overflow, sigma_floor=0.05, sigma_octave=0.1)
    fit = _Fit(variants, overhead_ms, block, weight_bytes, seed)
    best, models = fit.first(nodes)
    for multiple in NODE_MULTIPLES[1:]:
        tried, others = fit.first(NodeCalibration(nodes.scale, multiple * nodes.node_ms))
        if _error(tried) >= _error(best):
            break
        best, models = tried, others
    return min((fit.fitted(best.nodes, smoothing, models) for smoothing in SMOOTHINGS), key=_error)


def _borne(
    like: CacheOverflow,
    variants: Sequence[MeasuredVariant],
    nodes: NodeCalibration,
    overhead_ms: float,
    weight_bytes: int,
) -> CacheOverflow:
    """What another network's weights cost beyond the caches, halved until the variants' own kernels leave room for it.

    Where they do not, kernels keep ``LEAST_STREAMED`` of their time, and all together is slower than the whole run.
    """

    def excess(variant: MeasuredVariant, overflow: CacheOverflow) -> float:
        observed = observe(variant, nodes, overhead_ms, overflow, weight_bytes)
        kernels = sum(count * (ms or 0.0) for layer in observed for count, ms in layer.kernels.values())
        return (kernels + _extra_ms(variant, overflow, weight_bytes)) / inside_ms(variant, overhead_ms) - 1.0

    for _ in range(HALVINGS):
        if max((excess(variant, like) for variant in variants), default=0.0) <= EXCESS:
            return like
        like = CacheOverflow({knot: slope / 2.0 for knot, slope in like.slopes.items()})
    return CacheOverflow({})


def _error(calibration: Calibration) -> float:
    """Mean relative error of predictions of left-out variants; infinite where one is not a number."""
    return at_worst(float(np.abs(calibration.residuals).mean()))


class _Fit:
    """Steps 2 to 4 for variants of one network."""

    def __init__(
        self, variants: Sequence[MeasuredVariant], overhead_ms: float, block: int, weight_bytes: int, seed: int
    ) -> None:
        self._variants, self._overhead_ms, self._bytes = variants, overhead_ms, weight_bytes
        self._whole = np.array([variant.latency_ms for variant in variants])
        self._kernels = sorted({run.kernel for variant in variants for run in variant.kernels})
        self._folds = Folds(variants, self._kernels, block, seed)
        self._weights_mib = np.array(
            [
                (sum(weight_mib(x, weight_bytes) for x in v.layers), sum(_streamed_mib(v, weight_bytes).values()))
                for v in variants
            ]
        )

    def first(self, nodes: NodeCalibration) -> tuple[Calibration, list[KernelModel]]:
        """One round of the least smoothing with what the profiler takes given, and the models of its folds."""
        models = self._models(nodes, CacheOverflow({}))
        return self._round(nodes, SMOOTHINGS[0], models), models

    def fitted(self, nodes: NodeCalibration, smoothing: float, models: Sequence[KernelModel]) -> Calibration:
        """Fit with a smoothing given, the cost beyond the caches refined in ``ROUNDS``; ``models`` are the first's."""
        before, calibration = CacheOverflow({}), self._round(nodes, smoothing, models)
        for _ in range(ROUNDS - 1):
            if not calibration.overflow.slopes and not before.slopes:
                break
            before = calibration.overflow
            calibration = self._round(nodes, smoothing, self._models(nodes, before))
        return calibration

    def _models(self, nodes: NodeCalibration, overflow: CacheOverflow) -> list[KernelModel]:
        return self._folds.models([observe(v, nodes, self._overhead_ms, overflow, self._bytes) for v in self._variants])

    def _round(self, nodes: NodeCalibration, smoothing: float, models: Sequence[KernelModel]) -> Calibration:
        left = self._folds.left_out([model.smoothed(smoothing) for model in models])
        factors, constant_ms, overflow, residuals = _fit_whole(left, self._weights_mib, self._whole, self._overhead_ms)
        floor, octave = fit_sigma(residuals, left.far / self._whole)
        by_name = {name: float(factor) for name, factor in zip(self._kernels, factors, strict=True)}
        errors = tuple(map(float, residuals))
        return Calibration(nodes, smoothing, constant_ms, by_name, overflow, floor, octave, errors)
