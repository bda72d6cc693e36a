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

Lower bounds of the bytes that cross the edge of a memory: what must move, and what a memory of its size forces.

    compulsory       |W|·c_w + |I|·c_i + |O|·c_o            every word once
    communication    2·MACs·√(min(c_w·c_i·f_o, c_i·c_o·f_w, c_w·c_o·f_i) / (ρ·B))

for B bytes inside the edge, inner memories included, ρ uses of an input word by one filter, and a word's bytes c in
crossing and f inside; 2·MACs·√(c/(ρ·B/c)) when all are alike: Hong and Kung (1981) with the window reuse of Chen, Han
and Wang (HPCA 2020, arXiv 1911.05662). It holds for every order and tiling of ``traffic``: each order keeps one
tensor's tile within B, so that the product of the other two tensors' traffic is at least MACs²·c·c·f/(ρ·B), and a sum
is at least twice the root of its product. Adding the outputs, as theirs does, is right only while partial sums stay;
weights that stay can go below it, so it is a bound of its own, to hold beside published output-stationary designs.

The edges of a device's memories for one layer: what is free inside, which maps stay there, what a word weighs.

A map no larger than a memory's ``map_share`` stays there between the layer that writes it and the one that reads it,
and neither moves it further out; this is decided by its size alone, so that writer and reader agree. Compressed tensors
are small in DRAM and whole inside the chip.

Energy that a device draws whatever it computes: its static power times the whole latency of the call.

    E = P · (constant + Σ layer + joint)

The three parts are those of the latency model: the overhead of a call, each layer, and what all layers cost together
(weights beyond the caches).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerKind, LayerSpec
from amcsearch.costs.base import CostModel, JointCost, layer_costs
from amcsearch.costs.device import WORD_BITS, DeviceProfile, MemoryLevel
from amcsearch.costs.energy.breakdown import LayerEnergy, MemoryTraffic
from amcsearch.costs.energy.storage import DENSE, Sparsity, stored_bits
from amcsearch.costs.energy.traffic import INPUTS, OUTPUTS, WEIGHTS, Edge, weigh
from amcsearch.costs.energy.work import Widths, least_words, map_words, moved_words, products, step_words

__all__ = [
    "BITS_PER_BYTE",
    "EnergyModel",
    "StaticEnergy",
    "communication_bytes",
    "compulsory_bytes",
    "edges_of",
    "least_bytes",
    "step_bytes",
]

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


BITS_PER_BYTE: Final = 8


def edges_of(
    memories: Sequence[MemoryLevel], bits: tuple[int, int], widths: Widths, sparsity: Sparsity = DENSE
) -> list[Edge]:
    """Edges of every memory but DRAM, innermost first; ``bits`` of a weight and of an activation."""
    words = np.array(bits)[[0, 1, 1], None] / BITS_PER_BYTE  # bytes of a weight, an input, an output
    maps = np.stack(map_words(widths)) * words[INPUTS]  # (2, L) bytes
    edges = []
    for memory in memories[:-1]:
        capacity = float(memory.capacity_bytes or 0)
        leaves = maps > memory.map_share * capacity
        free = capacity - np.where(leaves, 0.0, maps).sum(axis=0)
        held = np.concatenate([np.broadcast_to(words[:1], free[None].shape), words[INPUTS:] * leaves])
        edges.append(Edge(free, held, held))
    outermost = edges[-1]
    edges[-1] = Edge(outermost.capacity, outermost.held, outermost.held * _stored(bits, widths, sparsity))
    return edges


def step_bytes(
    memories: Sequence[MemoryLevel], bits: tuple[int, int], widths: Widths, sparsity: Sparsity = DENSE
) -> list[Array]:
    """Bytes that the layer's steps read and write over each of these edges, (2, L); in DRAM coded as its outputs."""
    map_bytes = bits[1] / BITS_PER_BYTE
    limits = [memory.map_share * (memory.capacity_bytes or 0) / map_bytes for memory in memories[:-1]]
    moved = [step_words(widths, limit) * map_bytes for limit in limits]
    moved[-1] *= _stored(bits, widths, sparsity)[OUTPUTS]
    return moved


def _stored(bits: tuple[int, int], widths: Widths, sparsity: Sparsity) -> Array:
    """Share of its dense size that each tensor takes in DRAM, (3, L)."""
    if sparsity == DENSE:
        return np.ones((3, len(widths.in_channels)))
    least = least_words(widths)
    rows = widths.out_channels, least[INPUTS] / widths.layer.in_size[1], least[OUTPUTS] / widths.layer.out_size[1]
    densities = sparsity.weights, sparsity.inputs, sparsity.outputs
    formats = sparsity.weight_format, sparsity.map_format, sparsity.map_format
    shares = []
    for tensor in (WEIGHTS, INPUTS, OUTPUTS):
        word = bits[min(tensor, 1)]
        numbers = np.maximum(least[tensor], 1.0)
        lines = np.clip(rows[tensor], 1.0, numbers)
        stored = stored_bits(formats[tensor], densities[tensor], lines, numbers / lines, word)
        shares.append(stored / (numbers * word))
    return np.stack(shares)


_NESTS = (LayerKind.CONV, LayerKind.LINEAR)


def compulsory_bytes(widths: Widths, edge: Edge) -> Array:
    """Bytes of every word that must cross once: (L,)."""
    return weigh(least_words(widths), edge.moved)


def communication_bytes(widths: Widths, edge: Edge, total: Array) -> Array:
    """Bytes forced by ``total`` bytes of memory inside the edge: (L,); 0 for layers that are no loop nest."""
    (held_w, held_i, held_o), (w, i, o) = edge.held, edge.moved
    return _forced(widths, np.minimum(np.minimum(w * i * held_o, i * o * held_w), w * o * held_i), total)


def least_bytes(widths: Widths, edge: Edge, total: Array) -> Array:
    """Return the larger of the bounds that hold for every order: (L,)."""
    least: Array = np.maximum(compulsory_bytes(widths, edge), communication_bytes(widths, edge, total))
    return least


def _forced(widths: Widths, bytes_cubed: Array, total: Array) -> Array:
    if widths.layer.kind not in _NESTS:
        return np.zeros_like(widths.in_channels)
    reuse = widths.nest.products / widths.nest.touched
    forced: Array = 2 * products(widths) * np.sqrt(bytes_cubed / (reuse * total))
    return forced


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
