"""What the profiler itself takes: from profiled nodes to what they take without it.

Fitted on whole runs by least squares of the RELATIVE error:

    T − overhead = scale · Σ profiled + node_ms · nodes

``node_ms`` is negative (about −2 µs); forcing it to be positive tripled the error of predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.runtime.measured import MeasuredVariant

__all__ = ["NodeCalibration", "fit_nodes", "inside_ms"]

LEAST_NODE_MS: Final = 2e-4  # no kernel starts in less

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NodeCalibration:
    """What profiled nodes cost without the profiler: ``scale`` · profiled + ``node_ms`` each, on a quiet machine."""

    scale: float
    node_ms: float

    def times_ms(self, profiled_ms: Array, whole_ms: float) -> Array:
        """Times (n,) of the nodes of a run of ``whole_ms``, profiled at (n,), at the scale that it was profiled at.

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
