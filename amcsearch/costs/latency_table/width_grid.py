"""A layer at every pair of some widths at once: faster than pair by pair where most of the pairs are asked for.

Widths that divide alike become the same kernels (``lowering``). Sorted by these classes, the pairs at which a layer
becomes so many of a kernel are a few blocks of the grid, and a surface prices a block by matrix products.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerSpec
from amcsearch.costs.distinct import distinct_places
from amcsearch.costs.latency_table.lowering import Lowering
from amcsearch.costs.latency_table.residency import is_plain
from amcsearch.costs.latency_table.surface import AnySurface

__all__ = ["WidthGrid"]

_SPARSE: Final = 16  # pairs of a grid to one that is asked for: with more it is faster to go pair by pair


@dataclass(frozen=True)
class _Axis:
    """Distinct widths (W,) sorted by class, where each of the widths asked for lies, (L,), the classes, their ends."""

    widths: NDArray[np.int64]
    places: NDArray[np.int64]
    classes: NDArray[np.int64]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, widths: NDArray[np.int64], lowering: Lowering) -> "_Axis":
        distinct, places = distinct_places(widths)
        classes = lowering.classes(distinct)
        order = np.argsort(classes, kind="stable")
        found, starts = np.unique(classes[order], return_index=True)
        return cls(distinct[order], np.argsort(order)[places], found, (*starts.tolist(), len(order)))


class WidthGrid:
    """Every pair of the distinct widths of a layer that is not depthwise.

    Args:
        layer: which layer.
        widths: (in, out), (L, 2), that keep its signature.
        lowering: of its signature.
    """

    def __init__(self, layer: LayerSpec, widths: NDArray[np.int64], lowering: Lowering) -> None:
        self._layer, self._lowering = layer, lowering
        self._rows, self._columns = (_Axis.of(width, lowering) for width in widths.T)

    @property
    def is_dense(self) -> bool:
        """Whether enough of the pairs are asked for."""
        return len(self._rows.widths) * len(self._columns.widths) <= _SPARSE * len(self._rows.places)

    def summed(
        self, surface_of: Callable[[LayerSpec, str], AnySurface | None]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Milliseconds of all kernels, and whether any of them is plain, at the widths asked for: (L,) each."""
        rows, columns = self._rows, self._columns
        ms = np.zeros((len(rows.widths), len(columns.widths)))
        plain = np.zeros(ms.shape, dtype=np.bool_)
        for kernel, counts in self._lowering.counts_by_class(rows.classes, columns.classes).items():
            blocks = list(self._blocks(counts))
            if is_plain(kernel):
                for block, _ in blocks:
                    plain[block] = True
            surface = surface_of(self._layer, kernel)
            if surface is not None:
                found = surface.predict_blocks(self._layer, rows.widths, columns.widths, [block for block, _ in blocks])
                for (block, count), own_ms in zip(blocks, found, strict=True):
                    ms[block] += own_ms if count == 1.0 else count * own_ms
        pairs = rows.places * len(columns.widths) + columns.places
        return ms.take(pairs), plain.take(pairs)

    def _blocks(self, counts: NDArray[np.float64]) -> Iterator[tuple[tuple[slice, slice], float]]:
        """Rows and columns of the grid with the same count, given by classes (A, B), where it is not 0."""
        for (first, end), row in zip(pairwise(self._rows.ends), counts, strict=True):
            changes = (0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row))
            for start, stop in pairwise(changes):
                if row[start]:
                    yield (
                        (slice(first, end), slice(self._columns.ends[start], self._columns.ends[stop])),
                        float(row[start]),
                    )
