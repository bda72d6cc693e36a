"""Costs as pure functions of shapes: MACs, parameters, measured latency, energy; no torch.

A network costs its model's ``constant`` plus the sum over its layers. ``CostGrid`` prices policies in batches.
"""

from amcsearch.costs.base import BatchedCostModel, CostModel, JointCost
from amcsearch.costs.compute import Macs, Params, macs, params
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy import EnergyModel
from amcsearch.costs.grid import CostGrid
from amcsearch.costs.latency_table import LatencyTable

__all__ = [
    "BatchedCostModel",
    "CostGrid",
    "CostModel",
    "DeviceProfile",
    "EnergyModel",
    "JointCost",
    "LatencyTable",
    "Macs",
    "MemoryLevel",
    "Params",
    "macs",
    "params",
]
