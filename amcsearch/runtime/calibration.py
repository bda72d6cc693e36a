"""From profiles and whole runs to rows that add up to whole runs, and how far they are from it.

1. The profiler's inflation is a factor and a constant a node. Both are fitted on whole runs:
   T − overhead = scale · Σ profiled + node_ms · nodes, by least squares of the RELATIVE error. ``node_ms`` is negative
   (about −2 µs: the profiler's own work); forcing it to be positive tripled the error of predictions.
2. Each variant's shares are then stretched to its own whole run: the profile says who, the whole run says how much.
3. A row is the mean over all places where its shapes occur. Sums of rows are calibrated once more on whole runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from amcsearch.runtime.measuring import MeasuredVariant

__all__ = ["NodeCalibration", "accuracy", "fit_line", "fit_nodes", "shares"]

LEAST_NODE_MS = 2e-4  # no kernel starts in less


@dataclass(frozen=True, slots=True)
class NodeCalibration:
    """What a profiled node costs without the profiler: ``scale`` · profiled + ``node_ms``."""

    scale: float
    node_ms: float

    def ms(self, profiled_ms: float, nodes: int) -> float:
        """Time of ``nodes`` nodes profiled at ``profiled_ms`` together; never below what a kernel takes to start."""
        return max(self.scale * profiled_ms + self.node_ms * nodes, LEAST_NODE_MS * nodes)


def _relative_fit(terms: Sequence[NDArray[np.float64]], target: NDArray[np.float64]) -> NDArray[np.float64]:
    design = np.stack(terms, axis=1) / target[:, None]
    return np.asarray(np.linalg.lstsq(design, np.ones(len(target)), rcond=None)[0], dtype=np.float64)


def fit_nodes(variants: Sequence[MeasuredVariant], overhead_ms: float) -> NodeCalibration:
    """Fit step 1; with too few or too similar variants to tell the two apart, a factor alone."""
    profiled = np.array([sum(t.profiled_ms for t in v.profile.values()) for v in variants])
    nodes = np.array([float(sum(t.nodes for t in v.profile.values())) for v in variants])
    whole = np.array([max(v.latency_ms - overhead_ms, 0.1 * v.latency_ms) for v in variants])
    scale, node_ms = _relative_fit([profiled, nodes], whole) if len(variants) > 2 else (0.0, 0.0)
    if scale <= 0:
        return NodeCalibration(float(_relative_fit([profiled], whole)[0]), 0.0)
    return NodeCalibration(float(scale), float(node_ms))


def shares(variant: MeasuredVariant, nodes: NodeCalibration, overhead_ms: float) -> dict[str, float]:
    """Milliseconds of every layer of a variant, 0 for layers fused away; they sum to its latency less the overhead."""
    raw = {
        layer.name: nodes.ms(time.profiled_ms, time.nodes) if (time := variant.profile.get(layer.name)) else 0.0
        for layer in variant.layers
    }
    total = sum(raw.values())
    stretch = max(variant.latency_ms - overhead_ms, 0.1 * variant.latency_ms) / total if total else 0.0
    return {name: ms * stretch for name, ms in raw.items()}


def fit_line(sums: NDArray[np.float64], whole: NDArray[np.float64]) -> tuple[float, float]:
    """Least squares of the relative error of whole = scale · sums + constant, constant ≥ 0: (scale, constant)."""
    scale, constant = _relative_fit([sums, np.ones_like(sums)], whole) if len(sums) > 2 else (0.0, -1.0)
    if constant < 0 or scale <= 0:
        return float(_relative_fit([sums], whole)[0]), 0.0
    return float(scale), float(constant)


def accuracy(
    predicted: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> Mapping[str, Any]:
    """Errors of predictions (V,) against two measurements (V,), and of the two against each other, as shares.

    ``mape`` is the mean, ``median`` the median absolute relative error, ``within_5`` and ``within_10`` the shares of
    variants within 5 and 10 %; ``noise_mape`` is the error of one measurement taken as prediction of the other: no
    table can be expected to do better. The truth is the faster of the two.
    """
    truth = np.minimum(first, second)
    error = np.abs(predicted / truth - 1.0)
    return {
        "variants": len(truth),
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "worst": float(error.max()),
        "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.10).mean()),
        "bias": float((predicted / truth - 1.0).mean()),
        "spearman": float(spearmanr(predicted, truth)[0]) if len(truth) > 2 else None,
        "noise_mape": float(np.abs(first / second - 1.0).mean()),
    }
