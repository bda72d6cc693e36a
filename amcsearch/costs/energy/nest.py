"""The loop nest of a convolution or linear layer, without its widths: positions, windows, ways to cut them in tiles.

A tile of (images, rows, columns) of the output reads a window of every input channel; where the kernel is larger than
the stride neighbouring windows overlap (the halo) and are fetched again unless one tile slides into the next. Rows that
no output looks at (a stride above the kernel, the padding) are not fetched. A transposed convolution is gathered: each
output position reads the few input positions that spread to it. A 1x1 kernel has no halo, so that batch, rows and
columns become one axis; linear layers are the same.

Strided and dilated reads count the positions touched, not the memory lines around them.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.compute import is_transposed

__all__ = ["LoopNest", "SpatialTiles"]

Array = NDArray[np.float64]
_STEPS_AN_OCTAVE: Final = 4
_FLAT_STEPS_AN_OCTAVE: Final = 8


@dataclass(frozen=True)
class SpatialTiles:
    """K ways to cut the output positions; arrays (K,) of words of ONE channel, all samples of the batch included.

    - ``reads``, ``positions``: inputs and outputs of the largest tile.
    - ``fetched``: inputs over all tiles when each tile is fetched whole.
    - ``streamed``: inputs over all tiles when a tile slides along a row into the next and keeps the halo.
    - ``count``: tiles.
    """

    reads: Array
    positions: Array
    fetched: Array
    streamed: Array
    count: Array

    def unbeaten(self, *criteria: Array) -> "SpatialTiles":
        """Return the cuts that no other equals or beats in every one of the criteria, each (K,), less is better."""
        table, first = np.unique(np.stack(criteria), axis=1, return_index=True)
        no_worse = np.all(table[:, :, None] <= table[:, None, :], axis=0)  # [a, b]: a is nowhere worse than b
        chosen = np.sort(first[~np.any(no_worse & ~np.eye(len(first), dtype=np.bool_), axis=0)])
        return self.at(chosen)

    def at(self, chosen: NDArray[np.generic]) -> "SpatialTiles":
        """Return some of the cuts."""
        return SpatialTiles(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class _Axis:
    """One spatial axis cut in tiles of ``size`` outputs: the largest window, all windows, and the number of tiles."""

    size: int
    widest: int
    fetched: int
    count: int


@dataclass(frozen=True)
class LoopNest:
    """What a layer's traffic depends on besides its widths."""

    batch: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    transposed: bool = False

    @classmethod
    def of(cls, layer: LayerSpec, batch: int) -> "LoopNest":
        """Return the nest of a convolution, or of a linear layer with all its positions."""
        if layer.kind is LayerKind.LINEAR:
            return cls(batch, layer.out_size, layer.out_size)
        transposed = is_transposed(layer)
        return cls(
            batch, layer.in_size, layer.out_size, layer.kernel, layer.stride, layer.padding, layer.dilation, transposed
        )

    @property
    def window(self) -> int:
        """Weights of one pair of channels."""
        return prod(self.kernel)

    @property
    def positions(self) -> int:
        """Output positions of one channel."""
        return self.batch * prod(self.out_size)

    @property
    def products(self) -> int:
        """Multiply-accumulates of one pair of channels, those with padding included."""
        return self.batch * self.window * prod(self.in_size if self.transposed else self.out_size)

    @property
    def touched(self) -> int:
        """Input words of one channel that any output looks at."""
        return self.batch * prod(self._axis(axis, size).fetched for axis, size in enumerate(self.out_size))

    def tiles(self) -> SpatialTiles:
        """Return the candidate cuts, those that no other beats in every respect."""
        return _tiles(self)

    def strips(self, images: int, rows: int, *, padded: bool) -> SpatialTiles:
        """Return the one cut in strips of whole rows that a published mapping names; ``padded`` fetches zeros too."""
        height, width = self._axis(0, rows, padded=padded), self._axis(1, self.out_size[1], padded=padded)
        return _grid(self, [(images, height, width)])

    def _axis(self, axis: int, size: int, *, padded: bool = False) -> _Axis:
        reads = self._reads(axis, padded=padded)
        extent = int(reads.max()) + 1
        tile = np.arange(len(reads)) // size
        tile_of_read = np.unique((tile[:, None] * extent + reads)[reads >= 0]) // extent
        windows = np.bincount(tile_of_read, minlength=int(tile[-1]) + 1)
        return _Axis(size, max(1, int(windows.max())), max(1, int(windows.sum())), int(tile[-1]) + 1)

    def _reads(self, axis: int, *, padded: bool) -> NDArray[np.int64]:
        """Input positions that each output position multiplies: (outputs, kernel), −1 where there is none."""
        inputs, outputs, kernel = self.in_size[axis], self.out_size[axis], self.kernel[axis]
        stride, padding, dilation = self.stride[axis], self.padding[axis], self.dilation[axis]
        o, k = np.arange(outputs)[:, None], np.arange(kernel)[None, :]
        if self.transposed:
            spread = o + padding - k * dilation
            reads = np.where(spread % stride == 0, spread // stride, -1)
        else:
            reads = o * stride + k * dilation - (0 if padded else padding)
        return reads if padded else np.where((reads >= 0) & (reads < inputs), reads, -1)


@lru_cache(maxsize=4096)
def _tiles(nest: LoopNest) -> SpatialTiles:
    if nest.window == 1 and nest.padding == (0, 0) and not nest.transposed:
        sizes = np.array(_sizes(nest.positions, _FLAT_STEPS_AN_OCTAVE), dtype=np.float64)
        whole = np.full(len(sizes), float(nest.positions))
        return SpatialTiles(sizes, sizes, whole, whole, np.ceil(nest.positions / sizes))
    full = [nest._axis(axis, size) for axis, size in enumerate(nest.out_size)]
    heights, widths = (
        [nest._axis(axis, size) for size in _sizes(outputs, _STEPS_AN_OCTAVE)]
        for axis, outputs in enumerate(nest.out_size)
    )
    cuts = [(1, height, width) for height in heights for width in widths]
    cuts += [(images, full[0], full[1]) for images in _sizes(nest.batch, _STEPS_AN_OCTAVE) if images > 1]
    tiles = _grid(nest, cuts)
    return tiles.unbeaten(tiles.reads, tiles.positions, tiles.fetched, tiles.streamed, tiles.count)


def _grid(nest: LoopNest, cuts: list[tuple[int, _Axis, _Axis]]) -> SpatialTiles:
    columns = nest._axis(1, nest.out_size[1])
    rows = nest._axis(0, nest.out_size[0])
    tiles = [
        (
            images * height.widest * width.widest,
            images * height.size * width.size,
            nest.batch * height.fetched * width.fetched,
            # along a row the halo stays; whole rows slide down the image too
            nest.batch * (rows if width.count == 1 else height).fetched * columns.fetched,
            -(-nest.batch // images) * height.count * width.count,
        )
        for images, height, width in cuts
    ]
    return SpatialTiles(*np.array(tiles, dtype=np.float64).T)


def _sizes(length: int, steps_an_octave: int) -> list[int]:
    """Tile lengths that cut ``length`` in 1, 2, 3, … parts, growing geometrically."""
    parts = {min(length, round(2 ** (k / steps_an_octave))) for k in range(steps_an_octave * length.bit_length() + 1)}
    return sorted({-(-length // n) for n in parts})
