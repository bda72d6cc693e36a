"""A cost of one's own: the mebibytes that all activations of one inference fill.

device: {costs: {activation_mib: "examples/my_cost.py:ActivationMemory"}}
budget: {activation_mib: 0.5x}
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from amcsearch.core import LayerSpec


@dataclass(frozen=True)
class ActivationMemory:
    """Outputs of all layers, in MiB of ``bits`` an element."""

    bits: int = 32
    name: ClassVar[str] = "activation_mib"
    constant: ClassVar[float] = 0.0

    def layer_cost(self, layer: LayerSpec) -> float:
        """Return the MiB that the layer's output fills."""
        return layer.out_channels * prod(layer.out_size) * self.bits / 8 / 2**20
