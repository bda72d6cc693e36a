"""Costs as pure functions of shapes: MACs, parameters, measured latency, energy, memory; no torch.

A network costs its model's ``constant`` plus the sum over its layers. ``CostGrid`` prices policies in batches.
"""

from amcsearch.costs.base import BatchedCostModel, CostModel, JointCost, PeakCost, layer_costs
from amcsearch.costs.compute import Macs, Params, macs, params
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.breakdown import LayerEnergy
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.energy.storage import Sparsity, StorageFormat, stored_bits
from amcsearch.costs.grid import CostGrid
from amcsearch.costs.latency.cache import KNOTS_MIB, CacheOverflow, is_plain, weight_mib
from amcsearch.costs.latency.entry import (
    Accuracy,
    Anchors,
    CalibrationRecord,
    ChannelGrid,
    DriftRecord,
    GridStep,
    NetworkEntry,
    Provenance,
    Sigma,
)
from amcsearch.costs.latency.kernels.kernel_model import WHOLE, KernelModel
from amcsearch.costs.latency.kernels.points import Observation
from amcsearch.costs.latency.kernels.signature import (
    Signature,
    by_signature,
    keeps_signature,
    nearest_known,
    signature,
)
from amcsearch.costs.latency.kernels.tiling import Tiling
from amcsearch.costs.latency.model import FOLDED, LatencyModel
from amcsearch.costs.latency.rows import (
    COLUMNS,
    GRAPH,
    NO_KERNEL,
    RowKey,
    csv_of,
    joined_rows,
    make_rows,
    measured_layers,
    parse_rows,
    row_key,
)
from amcsearch.costs.latency.table import LatencyTable, fingerprint
from amcsearch.costs.memory import ModelBytes, PeakMemory

__all__ = [
    "COLUMNS",
    "FOLDED",
    "GRAPH",
    "KNOTS_MIB",
    "NO_KERNEL",
    "WHOLE",
    "Accuracy",
    "Anchors",
    "BatchedCostModel",
    "CacheOverflow",
    "CalibrationRecord",
    "ChannelGrid",
    "CostGrid",
    "CostModel",
    "DeviceProfile",
    "DriftRecord",
    "EnergyModel",
    "GridStep",
    "JointCost",
    "KernelModel",
    "LatencyModel",
    "LatencyTable",
    "LayerEnergy",
    "Macs",
    "MemoryLevel",
    "ModelBytes",
    "NetworkEntry",
    "Observation",
    "Params",
    "PeakCost",
    "PeakMemory",
    "Provenance",
    "RowKey",
    "Sigma",
    "Signature",
    "Sparsity",
    "StorageFormat",
    "Tiling",
    "by_signature",
    "csv_of",
    "fingerprint",
    "is_plain",
    "joined_rows",
    "keeps_signature",
    "layer_costs",
    "macs",
    "make_rows",
    "measured_layers",
    "nearest_known",
    "params",
    "parse_rows",
    "row_key",
    "signature",
    "stored_bits",
    "weight_mib",
]
