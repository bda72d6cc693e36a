"""Energy of one call: arithmetic, every memory's traffic, and what the device draws while it computes.

    E = s·(MACs·e_mac + (b_w + 3·b_a)·MACs·e_0 + Σ_l Q_l·e_l) + P_static·T

MACs of the whole batch; e_0 the innermost memory's energy a byte, reached four times a MAC (two operands, the partial
sum read and written; the published ratio for AlexNet on Eyeriss is 3.98 to 4.01); Q_l the bytes over the inner edge
of memory l (``traffic``, ``work``), e_l its energy a byte; T from the latency model; s a scale calibrated by
measurement, else 1. After Chen, Emer and Sze, Eyeriss (ISCA 2016), and Yang, Chen and Sze (CVPR 2017, arXiv
1611.05128).

Each memory's tiling is chosen by itself, as if the inner ones followed suit. A map no larger than a memory's
``map_share`` stays there between the layer that writes it and the one that reads it, and neither moves it further
out; this is decided by its size alone, so that writer and reader agree. Weights are fetched in every call. Compressed
tensors are small in DRAM and whole inside the chip.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerSpec
from amcsearch.costs.base import CostModel, layer_costs
from amcsearch.costs.device import WORD_BITS, DeviceProfile
from amcsearch.costs.energy.bounds import least_bytes
from amcsearch.costs.energy.breakdown import LayerEnergy, MemoryTraffic
from amcsearch.costs.energy.storage import DENSE, Sparsity, stored_bits
from amcsearch.costs.energy.traffic import INPUTS, OUTPUTS, WEIGHTS, Edge, weigh
from amcsearch.costs.energy.work import Widths, least_words, map_words, moved_words, products

__all__ = ["EnergyModel"]

Array = NDArray[np.float64]
_MJ_PER_PJ: Final = 1e-9
_MJ_PER_MW_MS: Final = 1e-3
_BITS_PER_BYTE: Final = 8


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
        return 0.0 if self.latency is None else self.profile.static_power_mw * self.latency.constant * _MJ_PER_MW_MS

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
        for memory, edge in zip(self.profile.memories[1:], self._edges(widths, self.sparsity), strict=True):
            total += weigh(moved_words(widths, edge), edge.moved) * memory.pj_per_byte
        return self.scale * total * _MJ_PER_PJ + self._static_mjs(layer, in_channels, out_channels)

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
        pairs = zip(self.profile.memories, self.profile.memories[1:], strict=False)
        for (inner, outer), edge in zip(pairs, self._edges(widths, sparsity), strict=True):
            inside += inner.capacity_bytes or 0
            weights, inputs, outputs = (moved_words(widths, edge) * edge.moved)[:, 0].tolist()
            least = float(least_bytes(widths, edge, np.array([inside]))[0])
            traffic.append(MemoryTraffic(outer.name, outer.pj_per_byte, weights, inputs, outputs, least))
        return LayerEnergy(
            layer.name,
            float(products(widths)[0]),
            self.scale * float(mac_pj[0]) * _MJ_PER_PJ,
            self.scale * float(register_pj[0]) * _MJ_PER_PJ,
            tuple(traffic),
            float(self._static_mjs(layer, in_channels, out_channels)[0]),
            self.scale,
        )

    def _widths(self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]) -> Widths:
        return Widths(layer, self.batch, in_channels.astype(np.float64), out_channels.astype(np.float64))

    def _work_pj(self, widths: Widths, sparsity: Sparsity) -> tuple[Array, Array]:
        """Energy of MACs and of the innermost memory, in pJ; without MACs each word passes that memory once."""
        weight_bits, map_bits = self._bits
        macs = products(widths) * (sparsity.weights if self.profile.skips_zero_weights else 1.0)
        bytes_a_word = np.array([weight_bits, map_bits, map_bits])[:, None] / _BITS_PER_BYTE
        passed = np.where(
            macs > 0.0,
            macs * (weight_bits + 3 * map_bits) / _BITS_PER_BYTE,
            (least_words(widths) * bytes_a_word).sum(axis=0),
        )
        return macs * self.profile.mac_energy_pj(weight_bits, map_bits), passed * self.profile.memories[0].pj_per_byte

    def _edges(self, widths: Widths, sparsity: Sparsity) -> list[Edge]:
        """Edges of every memory but DRAM, innermost first."""
        words = np.array(self._bits)[[0, 1, 1], None] / _BITS_PER_BYTE  # bytes of a weight, an input, an output
        maps = np.stack(map_words(widths)) * words[INPUTS]  # (2, L) bytes
        edges = []
        for memory in self.profile.memories[:-1]:
            capacity = float(memory.capacity_bytes or 0)
            leaves = maps > memory.map_share * capacity
            free = capacity - np.where(leaves, 0.0, maps).sum(axis=0)
            held = np.concatenate([np.broadcast_to(words[:1], free[None].shape), words[INPUTS:] * leaves])
            edges.append(Edge(free, held, held))
        outermost = edges[-1]
        edges[-1] = Edge(outermost.capacity, outermost.held, outermost.held * self._stored(widths, sparsity))
        return edges

    def _stored(self, widths: Widths, sparsity: Sparsity) -> Array:
        """Share of its dense size that each tensor takes in DRAM, (3, L)."""
        least = least_words(widths)
        rows = widths.out_channels, least[INPUTS] / widths.layer.in_size[1], least[OUTPUTS] / widths.layer.out_size[1]
        densities = sparsity.weights, sparsity.inputs, sparsity.outputs
        formats = sparsity.weight_format, sparsity.map_format, sparsity.map_format
        shares = []
        for tensor in (WEIGHTS, INPUTS, OUTPUTS):
            bits = self._bits[min(tensor, 1)]
            numbers = np.maximum(least[tensor], 1.0)
            lines = np.clip(rows[tensor], 1.0, numbers)
            stored = stored_bits(formats[tensor], densities[tensor], lines, numbers / lines, bits)
            shares.append(stored / (numbers * bits))
        return np.stack(shares)

    def _static_mjs(self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]) -> Array:
        if self.latency is None or self.profile.static_power_mw == 0.0:
            return np.zeros(len(in_channels))
        return (
            self.profile.static_power_mw * _MJ_PER_MW_MS * layer_costs(self.latency, layer, in_channels, out_channels)
        )
