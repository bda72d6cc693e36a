"""Sizes of sparse tensors: by hand, and against the codes written out bit by bit."""

from itertools import pairwise
from math import ceil, log2

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.costs.energy.storage import Sparsity, StorageFormat, stored_bits


def bits(form: StorageFormat, density: float, rows: int, columns: int, word: int = 16) -> float:
    return float(stored_bits(form, density, np.array([float(rows)]), np.array([float(columns)]), word)[0])


def test_sizes_by_hand() -> None:
    """A quarter of 8 x 16 numbers of 16 bits: 128 numbers, 32 not zero."""
    assert bits(StorageFormat.DENSE, 0.25, 8, 16) == 128 * 16
    assert bits(StorageFormat.BITMAP, 0.25, 8, 16) == 128 + 32 * 16
    # 4 bits of column each; 9 row pointers of 6 bits
    assert bits(StorageFormat.CSR, 0.25, 8, 16) == 32 * (16 + 4) + 9 * 6
    # three entries in 64 bits; a run above 31 is rare
    assert bits(StorageFormat.RUN_LENGTH, 0.25, 8, 16) == pytest.approx(32 * 64 / 3, rel=2e-4)


@pytest.mark.parametrize(
    ("form", "break_even"),
    [(StorageFormat.BITMAP, 31 / 32), (StorageFormat.CSR, 32 / (32 + 16)), (StorageFormat.RUN_LENGTH, 1 / 2)],
)
def test_a_format_beats_dense_below_its_break_even(form: StorageFormat, break_even: float) -> None:
    """32-bit numbers: a bit each; 16 bits of column for each that is not zero; 64 bits for each that is not zero."""
    columns = 1 << 16
    assert bits(form, break_even - 0.001, 1, columns, 32) < columns * 32
    assert bits(form, break_even + 0.001, 1, columns, 32) == columns * 32


@pytest.mark.parametrize(("word", "entries"), [(8, 4), (16, 3), (32, 1)])
def test_a_run_length_word_holds_whole_entries(word: int, entries: int) -> None:
    assert bits(StorageFormat.RUN_LENGTH, 0.1, 1000, 1000, word) == pytest.approx(1e5 * 64 / entries, rel=0.04)


@pytest.mark.parametrize("form", list(StorageFormat))
def test_a_format_never_exceeds_dense_and_shrinks_with_density(form: StorageFormat) -> None:
    sizes = [bits(form, density, 64, 576) for density in (0.01, 0.1, 0.5, 1.0)]
    assert sizes[-1] == 64 * 576 * 16
    assert all(less <= more for less, more in pairwise(sizes))


@pytest.mark.parametrize(("form", "density"), [(StorageFormat.CSR, 2 / 3), (StorageFormat.BITMAP, 31 / 32)])
def test_where_a_format_begins_to_pay(form: StorageFormat, density: float) -> None:
    """32-bit values: CSR with 16-bit columns below a density of 2/3, a bitmap below 31/32."""
    rows, columns = 4096, 1 << 16  # row pointers are one number in 65,536
    dense = rows * columns * 32
    assert bits(form, density - 1e-4, rows, columns, 32) < dense
    assert bits(form, density + 1e-4, rows, columns, 32) == dense


@pytest.mark.parametrize("density", [0.02, 0.2, 0.6])
def test_sizes_match_codes_written_out(density: float) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.random((200, 500)) < density
    share = matrix.mean()
    assert bits(StorageFormat.CSR, share, *matrix.shape) == min(csr_bits(matrix), matrix.size * 16)
    assert bits(StorageFormat.RUN_LENGTH, share, *matrix.shape) == pytest.approx(run_length_bits(matrix), rel=0.02)


def csr_bits(matrix: np.ndarray) -> int:
    rows = [np.flatnonzero(row) for row in matrix]
    nonzero = sum(map(len, rows))
    pointers = len(rows) + 1
    return nonzero * (16 + ceil(log2(matrix.shape[1]))) + pointers * ceil(log2(nonzero + 1))


def run_length_bits(matrix: np.ndarray) -> int:
    entries, run = 0, 0
    for nonzero in matrix.ravel():
        if nonzero or run == 31:  # the 32nd zero is written as a number
            entries, run = entries + 1, 0
        else:
            run += 1
    return min(ceil(entries / 3) * 64, matrix.size * 16)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_densities_outside_their_range_are_refused(density: float) -> None:
    with pytest.raises(BadInputError, match="must be above 0 and at most 1"):
        Sparsity(weights=density)
