"""Costs as pure functions of shapes: MACs, parameters, measured latency, energy; no torch."""

from amcsearch.costs.base import CostModel
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid

__all__ = ["CostGrid", "CostModel", "Macs", "Params"]
