"""Energy from memory accesses: words moved at each level of a device's memories, priced, beside their lower bounds."""

from amcsearch.costs.energy.breakdown import LayerEnergy, MemoryTraffic
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.energy.storage import DENSE, Sparsity, StorageFormat, stored_bits

__all__ = ["DENSE", "EnergyModel", "LayerEnergy", "MemoryTraffic", "Sparsity", "StorageFormat", "stored_bits"]
