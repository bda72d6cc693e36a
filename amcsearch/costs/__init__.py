"""Costs as pure functions of shapes: MACs, parameters, measured latency, energy; no torch.

A network costs its model's ``constant`` plus the sum over its layers. ``CostGrid`` prices policies in batches.
"""

from amcsearch.costs.base import CostModel
from amcsearch.costs.compute import Macs, Params, macs, params
from amcsearch.costs.device import DeviceProfile
from amcsearch.costs.energy import EnergyModel
from amcsearch.costs.grid import CostGrid
from amcsearch.costs.latency_table import LatencyTable

__all__ = [
    "CostGrid",
    "CostModel",
    "DeviceProfile",
    "EnergyModel",
    "LatencyTable",
    "Macs",
    "Params",
    "macs",
    "params",
]
