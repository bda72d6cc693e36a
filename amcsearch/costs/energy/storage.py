"""Bits that a tensor takes in memory when many of its numbers are zero: dense, bitmap, CSR, run-length.

n numbers of b bits, a share d of them not zero, nnz = d·n:

    dense        n·b
    bitmap       n + nnz·b                                            one bit a number, then the non-zero ones
    csr          nnz·(b + ⌈log₂ columns⌉) + (rows + 1)·⌈log₂(nnz + 1)⌉   column of each, and where each row begins
    run_length   64 bits for ⌊63 / (b + 5)⌋ entries; an entry is a run of 0 to 31 zeros and the number after it

Run-length is the code of the Eyeriss chip (Chen et al., JSSC 2017): three 16-bit numbers in 64 bits, so that d·64/48
of the dense size is left. A run above 31 takes further entries; zeros are taken to fall independently, so that a
number needs q³²/(1 − q³²) of them with q = 1 − d. Every format but dense falls back to dense where that is smaller.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError

__all__ = ["DENSE", "Sparsity", "StorageFormat", "stored_bits"]

Array = NDArray[np.float64]
_RUN_BITS: Final = 5
_PACK_BITS: Final = 64


class StorageFormat(StrEnum):
    """How a tensor with zeros lies in memory."""

    DENSE = "dense"
    BITMAP = "bitmap"
    CSR = "csr"
    RUN_LENGTH = "run_length"


@dataclass(frozen=True)
class Sparsity:
    """Shares of weights, inputs and outputs that are not zero, and how weights and maps lie in DRAM.

    Raises:
        BadInputError: a density outside (0, 1].
    """

    weights: float = 1.0
    inputs: float = 1.0
    outputs: float = 1.0
    weight_format: StorageFormat = StorageFormat.DENSE
    map_format: StorageFormat = StorageFormat.DENSE

    def __post_init__(self) -> None:
        for name in ("weights", "inputs", "outputs"):
            density = getattr(self, name)
            if not 0.0 < density <= 1.0:
                raise BadInputError(f"density of {name} = {density}, must be above 0 and at most 1")


DENSE: Final = Sparsity()


def stored_bits(form: StorageFormat, density: float, rows: Array, columns: Array, bits: int) -> Array:
    """Bits of matrices ``rows`` x ``columns`` of ``bits``-bit numbers, (L,); fractions are expectations."""
    numbers = rows * columns
    smaller: Array = np.minimum(_FORMATS[form](density, rows, columns, bits), numbers * bits)
    return smaller


def _dense(density: float, rows: Array, columns: Array, bits: int) -> Array:  # noqa: ARG001 (one signature)
    return rows * columns * bits


def _bitmap(density: float, rows: Array, columns: Array, bits: int) -> Array:
    return rows * columns * (1 + density * bits)


def _csr(density: float, rows: Array, columns: Array, bits: int) -> Array:
    nonzero = density * rows * columns
    index = np.ceil(np.log2(np.maximum(columns, 2)))
    pointer = np.ceil(np.log2(nonzero + 1))
    total: Array = nonzero * (bits + index) + (rows + 1) * pointer
    return total


def _run_length(density: float, rows: Array, columns: Array, bits: int) -> Array:
    long_runs = (1 - density) ** (1 << _RUN_BITS)
    entries = density * rows * columns / (1 - long_runs)
    packed: Array = entries * _PACK_BITS / ((_PACK_BITS - 1) // (bits + _RUN_BITS))
    return packed


_FORMATS: Final[Mapping[StorageFormat, Callable[[float, Array, Array, int], Array]]] = {
    StorageFormat.DENSE: _dense,
    StorageFormat.BITMAP: _bitmap,
    StorageFormat.CSR: _csr,
    StorageFormat.RUN_LENGTH: _run_length,
}
