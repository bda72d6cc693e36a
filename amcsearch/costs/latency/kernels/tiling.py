"""How a kernel of the blocked layout (NCHWc) computes widths: whole blocks, and sets of four blocks of outputs.

Inputs and outputs are padded to whole blocks of channels, but for inputs narrower than a block, which are read as they
are. Outputs are computed four blocks at a time (MLAS, ``snchwc.cpp``), and a last set of one to three blocks leaves
registers idle: with 16 of them (AVX2, blocks of 8) one block was measured to cost 1.8 and two to cost 2.3 quarters of a
full set; with 32 (AVX-512, blocks of 16) it is 1.0 and 2.0. So the three numbers are learnt from rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["LANES", "SET_BLOCKS", "SetWork", "Tiling", "refined_tiling"]

SET_BLOCKS: Final = 4
LANES: Final = (4, 8, 16, 32, 64)
_PROPORTIONAL: Final = (1.0, 2.0, 3.0)
_PRIOR: Final = 0.5  # measurements of nothing but work that would say: proportional

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tiling:
    """``block`` is 1 for a kernel that computes what it is given; ``last_set`` what one, two and three blocks cost.

    ``lanes`` are the input and output channels that a kernel without blocks takes at a time, one of ``LANES``, or 1.
    """

    block: int = 1
    last_set: tuple[float, ...] = _PROPORTIONAL
    lanes: tuple[int, int] = (1, 1)

    def computed(self, widths: NDArray[np.int64], depthwise: NDArray[np.bool_]) -> Array:
        """Widths (in, out), (L, 2), as the kernel computes them; those of a depthwise layer, (L,), move together."""
        c_in, c_out = self.inputs(widths[:, 0]), self.outputs(widths[:, 1])
        return np.stack([np.where(depthwise & (self.block > 1), c_out, c_in), c_out], axis=1)

    def inputs(self, c_in: NDArray[np.int64]) -> Array:
        """Input widths (I,) as the kernel computes them, but for those of a depthwise layer."""
        return np.where(c_in < self.block, c_in * 1.0, self.outputs(c_in))

    def outputs(self, c_out: NDArray[np.int64]) -> Array:
        """Output widths (O,) as the kernel computes them."""
        return np.asarray(-(-c_out // self.block) * self.block, dtype=np.float64)

    def sets(self, c_out: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Full sets, and blocks in the last one if it is not full, of computed output channels: (L,) each."""
        sets, left = np.divmod((c_out / self.block).astype(np.int64), SET_BLOCKS)
        return sets, left

    def effective(self, c_out: Array) -> Array:
        """Output channels that would cost as much in full sets, (L,)."""
        if self.last_set == _PROPORTIONAL:
            return c_out
        sets, left = self.sets(c_out)
        blocks = SET_BLOCKS * sets + np.array([0.0, *self.last_set])[left]
        return np.asarray(blocks * self.block, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class SetWork:
    """What a fit says of N measurements of one kernel, with which ``refined_tiling`` goes on.

    ``blocks``: the time that is proportional to work, in full sets' blocks; ``share``: of the whole; ``c_out``: widths.
    """

    blocks: Array
    share: Array
    c_out: Array


def refined_tiling(tiling: Tiling, works: Sequence[SetWork]) -> Tiling:
    """The tiling whose last sets agree best with fits that were made with ``tiling``."""
    totals, weights = np.zeros(SET_BLOCKS), np.zeros(SET_BLOCKS)
    for work in works:
        sets, left = tiling.sets(work.c_out)
        np.add.at(totals, left, work.share**2 * (work.blocks - SET_BLOCKS * sets))
        np.add.at(weights, left, work.share**2)
    last_set = (totals[1:] + _PRIOR * np.array(_PROPORTIONAL)) / (weights[1:] + _PRIOR)
    return Tiling(tiling.block, tuple(np.clip(last_set, _PROPORTIONAL, SET_BLOCKS).tolist()))
