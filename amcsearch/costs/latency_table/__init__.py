"""Latency tables: rows measured on a device, and the model between them."""

from amcsearch.costs.latency.cache import KNOTS_MIB, Residency, bytes_a_weight, is_plain, weight_mib
from amcsearch.costs.latency.kernels.kernel_model import KernelModel, KernelTime
from amcsearch.costs.latency.kernels.points import Observation
from amcsearch.costs.latency.kernels.signature import Signature, by_signature, signature
from amcsearch.costs.latency.rows import (
    COLUMNS,
    GRAPH,
    KEY_COLUMNS,
    LAYER_COLUMNS,
    NO_KERNEL,
    RowKey,
    joined_rows,
    make_rows,
    measured_layers,
    read_rows,
    row_key,
    write_rows,
)
from amcsearch.costs.latency.table import COMPARED, LatencyTable, fingerprint

__all__ = [
    "COLUMNS",
    "COMPARED",
    "GRAPH",
    "KEY_COLUMNS",
    "KNOTS_MIB",
    "LAYER_COLUMNS",
    "NO_KERNEL",
    "KernelModel",
    "KernelTime",
    "LatencyTable",
    "Observation",
    "Residency",
    "RowKey",
    "Signature",
    "by_signature",
    "bytes_a_weight",
    "fingerprint",
    "is_plain",
    "joined_rows",
    "make_rows",
    "measured_layers",
    "read_rows",
    "row_key",
    "signature",
    "weight_mib",
    "write_rows",
]
