"""Energy of one call: arithmetic, every memory's traffic, and what the device draws while it computes.

    E = s·(MACs·e_mac + (b_w + 3·b_a)·MACs·e_0 + Σ_l Q_l·e_l) + P_static·T

MACs of the whole batch; e_0 the innermost memory's energy a byte, reached four times a MAC (two operands, the partial
sum read and written; the published ratio for AlexNet on Eyeriss is 3.98 to 4.01); Q_l the bytes over the inner edge
of memory l (``traffic``, ``work``), e_l its energy a byte; T the whole predicted latency (``static``); s a scale
calibrated by measurement, else 1. After Chen, Emer and Sze, Eyeriss (ISCA 2016), and Yang, Chen and Sze (CVPR 2017,
arXiv 1611.05128).

Each memory's tiling is chosen by itself, as if the inner ones followed suit. Weights are fetched in every call.
Operations without weights that the runtime does not fuse into the layer (``steps``) move their maps and compute nothing
that counts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerSpec
from amcsearch.costs.base import CostModel
from amcsearch.costs.device import WORD_BITS, DeviceProfile
from amcsearch.costs.energy.bounds import least_bytes
from amcsearch.costs.energy.breakdown import LayerEnergy, MemoryTraffic
from amcsearch.costs.energy.edges import BITS_PER_BYTE, edges_of, step_bytes
from amcsearch.costs.energy.static import StaticEnergy
from amcsearch.costs.energy.steps import step_words
from amcsearch.costs.energy.storage import DENSE, Sparsity
from amcsearch.costs.energy.traffic import weigh
from amcsearch.costs.energy.work import Widths, least_words, moved_words, products

__all__ = ["EnergyModel"]

Array = NDArray[np.float64]
_MJ_PER_PJ: Final = 1e-9


@dataclass(frozen=True)
class EnergyModel:
    """Energy of one call with ``batch`` samples, in mJ.

    ``latency`` prices the static power; without it, or at 0 mW, only work and traffic count. ``weight_bits`` and
    ``activation_bits`` overrule the profile's; ``sparsity`` holds for every layer; ``scale`` multiplies all but the
    static.

    Raises:
        BadInputError: a batch below one, bits that are not 8, 16 or 32, or a scale that is not above zero.
    """

    profile: DeviceProfile
    batch: int = 1
    latency: CostModel | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    sparsity: Sparsity = DENSE
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise BadInputError(f"energy: batch = {self.batch}, must be at least 1")
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) not in (None, *WORD_BITS):
                raise BadInputError(f"energy: {name} = {getattr(self, name)}, must be one of {WORD_BITS}")
        if not 0.0 < self.scale < np.inf:
            raise BadInputError(f"energy: scale = {self.scale}, must be a finite number above 0")

    @property
    def name(self) -> str:
        """Energy in mJ."""
        return "energy_mj"

    @property
    def constant(self) -> float:
        """Static energy of the call overhead, in mJ."""
        return self.static.constant_mj

    @cached_property
    def static(self) -> StaticEnergy:
        """What the device draws while it computes."""
        return StaticEnergy(self.profile.static_power_mw, self.latency)

    @property
    def has_joint(self) -> bool:
        """Whether static power counts, and the latency model has a joint part."""
        return self.static.joint_latency is not None

    def layer_amounts(self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]) -> Array:
        """What one layer adds to the sums of the latency model's joint part, (L, 2)."""
        return self.static.amounts(layer, in_channels, out_channels)

    def joint(self, amounts: Array) -> Array:
        """Static energy in mJ of the latency model's joint part, from summed amounts (P, 2): (P,)."""
        return self.static.joint_mj(amounts)

    @cached_property
    def _bits(self) -> tuple[int, int]:
        """Bits of a weight and of an activation."""
        weights = self.weight_bits or self.profile.weight_bits or self.profile.word_bits
        return weights, self.activation_bits or self.profile.word_bits

    def layer_cost(self, layer: LayerSpec) -> float:
        """Energy of one layer in mJ.

        Raises:
            BadInputError: static power counts and the latency model does not know the layer.
        """
        widths = np.array([layer.in_channels]), np.array([layer.out_channels])
        return float(self.layer_costs(layer, *widths)[0])

    def layer_costs(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Energies in mJ of ``layer`` resized to each pair of widths, all (L,).

        Raises:
            BadInputError: as ``layer_cost``.
        """
        widths = self._widths(layer, in_channels, out_channels)
        mac_pj, register_pj = self._work_pj(widths, self.sparsity)
        total = mac_pj + register_pj
        setting = self.profile.memories, self._bits, widths, self.sparsity
        outer = self.profile.memories[1:]
        for memory, edge, steps in zip(outer, edges_of(*setting), step_bytes(*setting), strict=True):
            total += (weigh(moved_words(widths, edge), edge.moved) + steps.sum(axis=0)) * memory.pj_per_byte
        return self.scale * total * _MJ_PER_PJ + self.static.layers_mj(layer, in_channels, out_channels)

    def estimate(self, layer: LayerSpec, sparsity: Sparsity | None = None) -> LayerEnergy:
        """Return where the energy of one layer goes, with its lower bounds; ``sparsity`` overrules the model's.

        Raises:
            BadInputError: as ``layer_cost``.
        """
        sparsity = sparsity or self.sparsity
        in_channels, out_channels = np.array([layer.in_channels]), np.array([layer.out_channels])
        widths = self._widths(layer, in_channels, out_channels)
        mac_pj, register_pj = self._work_pj(widths, sparsity)
        inside, traffic = 0.0, []
        setting = self.profile.memories, self._bits, widths, sparsity
        pairs = zip(self.profile.memories, self.profile.memories[1:], strict=False)
        for (inner, outer), edge, steps in zip(pairs, edges_of(*setting), step_bytes(*setting), strict=True):
            inside += inner.capacity_bytes or 0
            weights, inputs, outputs = (moved_words(widths, edge) * edge.moved)[:, 0].tolist()
            read, written = steps[:, 0].tolist()
            least = float(least_bytes(widths, edge, np.array([inside]))[0]) + read + written
            traffic.append(
                MemoryTraffic(outer.name, outer.pj_per_byte, weights, inputs + read, outputs + written, least)
            )
        return LayerEnergy(
            layer.name,
            float(products(widths)[0]),
            self.scale * float(mac_pj[0]) * _MJ_PER_PJ,
            self.scale * float(register_pj[0]) * _MJ_PER_PJ,
            tuple(traffic),
            float(self.static.layers_mj(layer, in_channels, out_channels)[0]),
            self.scale,
        )

    def _widths(self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]) -> Widths:
        return Widths(layer, self.batch, in_channels.astype(np.float64), out_channels.astype(np.float64))

    def _work_pj(self, widths: Widths, sparsity: Sparsity) -> tuple[Array, Array]:
        """Energy of MACs and of the innermost memory, in pJ; without MACs each word passes that memory once."""
        weight_bits, map_bits = self._bits
        macs = products(widths) * (sparsity.weights if self.profile.skips_zero_weights else 1.0)
        bytes_a_word = np.array([weight_bits, map_bits, map_bits])[:, None] / BITS_PER_BYTE
        passed = np.where(
            macs > 0.0,
            macs * (weight_bits + 3 * map_bits) / BITS_PER_BYTE,
            (least_words(widths) * bytes_a_word).sum(axis=0),
        )
        passed += step_words(widths).sum(axis=0) * map_bits / BITS_PER_BYTE
        return macs * self.profile.mac_energy_pj(weight_bits, map_bits), passed * self.profile.memories[0].pj_per_byte
