"""Latency tables: rows measured on a device, and the model between them."""

from amcsearch.costs.latency_table.kernel_model import KernelModel, KernelTime, Observation
from amcsearch.costs.latency_table.residency import KNOTS_MIB, PLAIN_CONVOLUTIONS, Residency, weight_mib
from amcsearch.costs.latency_table.rows import (
    COLUMNS,
    GRAPH,
    KEY_COLUMNS,
    LAYER_COLUMNS,
    NO_KERNEL,
    RowKey,
    make_rows,
    read_rows,
    row_key,
    write_rows,
)
from amcsearch.costs.latency_table.table import COMPARED, LatencyTable, fingerprint

__all__ = [
    "COLUMNS",
    "COMPARED",
    "GRAPH",
    "KEY_COLUMNS",
    "KNOTS_MIB",
    "LAYER_COLUMNS",
    "NO_KERNEL",
    "PLAIN_CONVOLUTIONS",
    "KernelModel",
    "KernelTime",
    "LatencyTable",
    "Observation",
    "Residency",
    "RowKey",
    "fingerprint",
    "make_rows",
    "read_rows",
    "row_key",
    "weight_mib",
    "write_rows",
]
