"""Energy of one call: compulsory DRAM traffic, arithmetic, and what the device draws while it waits.

    E = MACs·N·e_mac + (|W| + N·|I| + N·|O|)·bytes·e_dram + P_static·T

N samples in a batch; |W|, |I|, |O| words of weights, inputs and outputs of a layer, each moved once; T from the latency
model. The traffic is the least that any schedule moves when nothing stays on chip between layers, so this is a lower
bound for layer-by-layer execution; tiling and on-chip buffers raise it (Chen et al., Eyeriss, ISCA 2016).

Counted as the runtime runs it: batch norms, activations and additions are fused into the convolution before them and
move nothing. Layer and group norms read and write their map. Attention reads Q, K and V and writes its output; the
scores are taken to stay on chip. Embeddings read only the rows looked up. A weight used twice is fetched twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.base import CostModel
from amcsearch.costs.compute import macs
from amcsearch.costs.device import DeviceProfile

__all__ = ["EnergyModel", "Words", "words_moved"]

_MJ_PER_PJ: Final = 1e-9
_MJ_PER_MW_MS: Final = 1e-3
_BITS_PER_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class Words:
    """Words a layer moves: weights once a call, inputs and outputs once a sample."""

    weights: int
    inputs: int
    outputs: int

    def total(self, batch: int) -> int:
        """Words moved in one call with ``batch`` samples."""
        return self.weights + batch * (self.inputs + self.outputs)


def _map_words(layer: LayerSpec) -> tuple[int, int]:
    return layer.in_channels * prod(layer.in_size), layer.out_channels * prod(layer.out_size)


def _conv_words(layer: LayerSpec) -> Words:
    weights = layer.out_channels * (layer.in_channels // layer.conv_groups) * prod(layer.kernel)
    return Words(weights + layer.out_channels * layer.has_bias, *_map_words(layer))


def _linear_words(layer: LayerSpec) -> Words:
    return Words(layer.out_channels * (layer.in_channels + layer.has_bias), *_map_words(layer))


def _attention_words(layer: LayerSpec) -> Words:
    queries, keys = prod(layer.out_size), prod(layer.in_size)
    return Words(0, layer.in_channels * (queries + 2 * keys), layer.out_channels * queries)


def _norm_words(layer: LayerSpec) -> Words:
    return Words(layer.out_channels * (layer.has_weight + layer.has_bias), *_map_words(layer))


def _embedding_words(layer: LayerSpec) -> Words:
    looked_up = layer.out_channels * prod(layer.out_size)
    return Words(0, looked_up, looked_up)


def _parameter_words(layer: LayerSpec) -> Words:
    return Words(layer.in_channels * layer.out_channels, 0, 0)


def _fused_words(layer: LayerSpec) -> Words:  # noqa: ARG001 (one signature for the whole table)
    return Words(0, 0, 0)


_WORDS: Final[Mapping[LayerKind, Callable[[LayerSpec], Words]]] = {
    LayerKind.CONV: _conv_words,
    LayerKind.LINEAR: _linear_words,
    LayerKind.ATTENTION: _attention_words,
    LayerKind.BATCH_NORM: _fused_words,
    LayerKind.LAYER_NORM: _norm_words,
    LayerKind.GROUP_NORM: _norm_words,
    LayerKind.EMBEDDING: _embedding_words,
    LayerKind.PARAMETER: _parameter_words,
}


def words_moved(layer: LayerSpec) -> Words:
    """Words one layer must move between DRAM and chip."""
    return _WORDS[layer.kind](layer)


@dataclass(frozen=True)
class EnergyModel:
    """Energy of one call with ``batch`` samples, in mJ.

    ``latency`` prices the static power; without it, or at 0 mW, only work and traffic count.
    """

    profile: DeviceProfile
    batch: int = 1
    latency: CostModel | None = None

    @property
    def name(self) -> str:
        """Energy in mJ."""
        return "energy_mj"

    @property
    def constant(self) -> float:
        """Static energy of the call overhead, in mJ."""
        return 0.0 if self.latency is None else self._static_mj(self.latency.constant)

    def layer_cost(self, layer: LayerSpec) -> float:
        """Energy of one layer in mJ.

        Raises:
            BadInputError: static power counts and the latency model does not know the layer.
        """
        bytes_moved = words_moved(layer).total(self.batch) * self.profile.word_bits / _BITS_PER_BYTE
        dynamic_pj = macs(layer) * self.batch * self.profile.mac_pj + bytes_moved * self.profile.dram_pj_per_byte
        static_mj = 0.0
        if self.latency is not None and self.profile.static_power_mw > 0.0:
            static_mj = self._static_mj(self.latency.layer_cost(layer))
        return dynamic_pj * _MJ_PER_PJ + static_mj

    def _static_mj(self, latency_ms: float) -> float:
        return self.profile.static_power_mw * latency_ms * _MJ_PER_MW_MS
