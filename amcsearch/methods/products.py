"""Sums and products of the rows that a layer multiplies its weight with, in float64, from parts of less precision.

Rows are cut out, and X^T X is computed in blocks of ``WIDTH`` columns, of which one half is enough. Of a convolution
with stride 1 the products of two taps t and t' are those of the map with itself, moved by d = t' - t:

    (X^T X)[t, t'] = sum over outputs o of x[o + t] x[o + t']^T = sum over p = o + t of x[p] x[p + d]^T

Pairs of taps with the same d share these sums but for the borders, and no row has to be cut out. A 3x3 kernel has 45
pairs of taps and 13 moves. Sums over rows of the map are kept apart, so that each pair adds up those it wants; columns
that not every pair wants are multiplied apart.

At most ``ROWS`` products are added up in the precision of the rows, float32 as a rule; these sums in float64.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from amcsearch.methods.patches import padded

__all__ = ["ROWS", "Products", "RunningMoments", "are_shifts_cheaper"]

ROWS: Final = 2**11  # summed in the network's own precision; so many of a wide layer still fit a cache
WIDTH: Final = 128  # columns of a block of products
_NARROWEST: Final = 8  # channels; products of narrower maps are no work, and calls would be most of it
_WRITTEN: Final = 200  # multiplications, as measured with 256 and 512 channels on 14x14 and 7x7 maps


@dataclass(frozen=True)
class Products:
    """Of rows: their number, sums (conv_groups, columns), and blocks of X^T X on and above its diagonal, float64.

    Columns are in the order [tap, channel]. Each block (conv_groups, …, …) comes with its first row and column.
    """

    rows: int
    sums: Tensor
    blocks: tuple[tuple[int, int, Tensor], ...]

    @classmethod
    def of(cls, parts: Iterable[Tensor]) -> "Products":
        """Multiply rows (conv_groups, n, columns), each part in its own precision, and add the parts up."""
        rows, sums, blocks = 0, torch.zeros(()), list[Tensor]()
        for part in parts:
            products = [part[..., i : i + WIDTH].mT @ part[..., i:] for i in range(0, part.shape[2], WIDTH)]
            if not rows:
                sums, blocks = part.sum(1).double(), [product.double() for product in products]
            else:
                sums += part.sum(1)
                for block, product in zip(blocks, products, strict=True):
                    block += product
            rows += part.shape[1]
        return cls(rows, sums, tuple((i * WIDTH, i * WIDTH, block) for i, block in enumerate(blocks)))

    @classmethod
    def of_shifts(cls, module: nn.Conv2d, x: Tensor, shift: Tensor | None) -> "Products":
        """Multiply the input x (N, C, H, W) of a convolution of stride 1 with itself, for all output positions.

        ``shift`` (1, C), where given, is subtracted from every channel of the padded input.
        """
        height, width = module.kernel_size
        maps = padded(module, x.detach())
        out_height, out_width = maps.shape[2] - height + 1, maps.shape[3] - width + 1
        channels = maps.shape[1]
        sums = maps.new_zeros(height * width, channels, dtype=torch.float64)
        blocks: dict[tuple[int, int], Tensor] = {}
        for part in torch.split(maps, max(1, ROWS // out_width)):
            last = part.permute(2, 3, 0, 1)  # (H, W, n, C): whatever lies beside another in a row is one run of memory
            values = torch.empty(last.shape, dtype=last.dtype, device=last.device)
            torch.sub(last, 0.0 if shift is None else shift[0], out=values)
            along = values.sum(2).double().unfold(1, out_width, 1).sum(-1)  # (H, kW, C)
            sums += along.unfold(0, out_height, 1).sum(-1).flatten(0, 1)
            for first, second, block in _moved(values, height, width):
                key = first * channels, second * channels
                blocks[key] = blocks[key] + block if key in blocks else block
        flat = tuple((row, column, block[None]) for (row, column), block in blocks.items())
        return cls(len(x) * out_height * out_width, sums.flatten()[None], flat)


def _moved(values: Tensor, height: int, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield pairs of taps t <= t' with their products (C, C), of a map (H, W, n, C) and a kernel's size."""
    rows, columns = values.shape[0] - height + 1, values.shape[1] - width + 1
    for down in range(height):
        above, below = values[: len(values) - down], values[down:]
        for right in range(1 - width if down else 0, width):
            taps = range(max(0, -right), width - max(0, right))  # the first tap's column
            borders = sorted({edge for tap in taps for edge in (tap, tap + columns)})
            strips = {
                (first, last): _multiplied(above[:, first:last], below[:, first + right : last + right])
                for first, last in pairwise(borders)
            }
            for tap in taps:
                wanted = [p for (first, last), p in strips.items() if tap <= first and last <= tap + columns]
                by_row = torch.stack(wanted).sum(0)  # (H - down, C, C)
                for row in range(height - down):
                    first = row * width + tap
                    yield first, first + down * width + right, by_row[row : row + rows].sum(0)


def _multiplied(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of maps (H, W, n, C), summed over W and n: (H, C, C), float64."""
    return (left.flatten(1, 2).mT @ right.flatten(1, 2)).double()


def are_shifts_cheaper(module: nn.Conv2d, x: Tensor, positions: int | None) -> bool:
    """Whether ``Products.of_shifts`` takes less work than rows cut out at ``positions`` of the outputs do.

    Work counts multiplications for a pair of channels. Every row of a strip is a product of its own, whose result is
    written and added up: that takes as long as ``_WRITTEN`` multiplications.
    """
    (height, width), channels = module.kernel_size, module.in_channels
    is_plain = module.groups == 1 and {*module.stride, *module.dilation} == {1}
    if not is_plain or x.ndim != 4 or height * width == 1 or channels < _NARROWEST:
        return False
    left, right, top, bottom = module._reversed_padding_repeated_twice
    rows, columns = x.shape[2] + top + bottom, x.shape[3] + left + right
    outputs, taps = (rows - height + 1) * (columns - width + 1), height * width
    samples = min(len(x), max(1, ROWS // (columns - width + 1)))
    moved = 0.0
    for down in range(height):
        for across in range(1 - width if down else 0, width):
            strips = 2 * (width - abs(across)) - 1
            moved += (rows - down) * (columns - abs(across) + strips * _WRITTEN / samples)
    cut = outputs if positions is None else min(positions, outputs)
    return moved < cut * taps * (taps + 1) / 2


@dataclass
class RunningMoments:
    """Running sums of one layer's rows, columns in the order [tap, channel], about ``shift`` where it is centred."""

    is_centred: bool
    shift: Tensor | None = None
    rows: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(()))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, products: Products) -> None:
        """Add the products of more rows."""
        if not self.rows:
            columns = products.sums.shape[1]
            self.sums = torch.zeros_like(products.sums)
            self.scatter = products.sums.new_zeros(len(products.sums), columns, columns)
        self.rows += products.rows
        self.sums += products.sums
        for row, column, block in products.blocks:
            self.scatter[:, row : row + block.shape[1], column : column + block.shape[2]] += block

    def finish(self, taps: int, noise: float) -> tuple[Tensor, Tensor]:
        """Return mean (conv_groups, columns) and Gram matrix, columns channel-major, on the CPU; the sums are used up.

        Where the rows are not centred, the mean is 0. Columns whose variance is a share ``noise`` or less of their mean
        square about the shift are constants as far as the rows' precision tells, and get exact zeros.
        """
        gram = self.scatter.div_(self.rows)
        if self.shift is None:
            mean = torch.zeros_like(self.sums)
        else:
            offset = self.sums / self.rows
            gram.baddbmm_(offset[:, :, None], offset[:, None], alpha=-1.0)
            varies = gram.diagonal(dim1=1, dim2=2) > noise * offset.square()
            gram *= varies[:, :, None]
            gram *= varies[:, None]
            mean = offset + self.shift.double().repeat(1, taps)
        for first in range(0, gram.shape[2], WIDTH):
            last = first + WIDTH
            square = gram[:, first:last, first:last]
            square.copy_(square.triu() + square.triu(1).mT)
            gram[:, last:, first:last] = gram[:, first:last, last:].mT
        groups, columns = mean.shape
        if taps > 1:
            by_tap = gram.reshape(groups, taps, columns // taps, taps, columns // taps)
            gram = by_tap.permute(0, 2, 1, 4, 3).reshape(groups, columns, columns)
            mean = mean.reshape(groups, taps, -1).mT.flatten(1)
        return mean.cpu(), gram.cpu()
