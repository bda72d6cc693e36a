"""Energy that a device draws whatever it computes: its static power times the whole latency of the call.

    E = P · (constant + Σ layer + joint)

The three parts are those of the latency model: the overhead of a call, each layer, and what all layers cost together
(weights beyond the caches).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerSpec
from amcsearch.costs.base import CostModel, JointCost, layer_costs

__all__ = ["StaticEnergy"]

Array = NDArray[np.float64]
_MJ_PER_MW_MS: Final = 1e-3


@dataclass(frozen=True)
class StaticEnergy:
    """Static energy in mJ; 0 without power or without a latency model."""

    power_mw: float
    latency: CostModel | None

    @property
    def joint_latency(self) -> JointCost | None:
        """The latency model where it has a joint part that counts."""
        counts = self.power_mw > 0.0 and isinstance(self.latency, JointCost) and self.latency.has_joint
        return self.latency if counts else None  # type: ignore[return-value]

    @property
    def constant_mj(self) -> float:
        """Of the overhead of a call."""
        return 0.0 if self.latency is None else self.power_mw * self.latency.constant * _MJ_PER_MW_MS

    def layers_mj(self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]) -> Array:
        """Of one layer at many widths (L,)."""
        if self.latency is None or self.power_mw == 0.0:
            return np.zeros(len(in_channels))
        return self.power_mw * _MJ_PER_MW_MS * layer_costs(self.latency, layer, in_channels, out_channels)

    def amounts(self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]) -> Array:
        """What one layer adds to the sums of the joint part, (L, 2)."""
        joint = self.joint_latency
        return (
            np.zeros((len(in_channels), 2)) if joint is None else joint.layer_amounts(layer, in_channels, out_channels)
        )

    def joint_mj(self, amounts: Array) -> Array:
        """Of the joint part, from summed amounts (P, 2): (P,)."""
        joint = self.joint_latency
        return np.zeros(len(amounts)) if joint is None else self.power_mw * _MJ_PER_MW_MS * joint.joint(amounts)

    def shared_mj(self, layers: Sequence[LayerSpec]) -> float:
        """Of what no single layer of a network has: the constant and the joint part."""
        widths = [(np.array([layer.in_channels]), np.array([layer.out_channels])) for layer in layers]
        amounts = np.sum([self.amounts(layer, *w) for layer, w in zip(layers, widths, strict=True)], axis=0)
        return self.constant_mj + float(self.joint_mj(amounts)[0])
