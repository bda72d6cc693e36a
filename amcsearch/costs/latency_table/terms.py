"""What the latency of a kernel is a sum of.

    t(layer) ≈ a · work + b + c · outputs + d · inputs + remainders

in multiply-accumulates and tensor elements, with widths as the kernel computes them (``tiling``). Layers of other map
and kernel sizes are comparable in these terms, so a kernel's fit may hold points of many signatures.

A kernel that takes some channels at a time computes those left over more slowly, each by itself or all in one more
step; both times for output and for input channels are the remainders. How many it takes is tried (``lanes``).
(Measured: a depthwise int8 convolution of 127 channels took three times as long as one of 128, of 120 twice as long.)
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.costs.latency_table.tiling import Tiling

__all__ = ["OF_INPUT_LANES", "OF_OUTPUT_LANES", "TERMS", "factors", "terms"]

TERMS: Final = 8
OF_OUTPUT_LANES: Final = (0, 4, 5)  # the terms that depend on output lanes
OF_INPUT_LANES: Final = (6, 7)

Array = NDArray[np.float64]


def terms(own: Array, at: Array, tiling: Tiling) -> Array:
    """Terms (L, 8) of layers of ``sizes`` (L, 5) at ``places`` (L, 4): work, 1, outputs, inputs, and the remainders."""
    of_in, of_out = factors(own, at[:, 0], at[:, 1], tiling)
    return of_in * of_out


def factors(own: Array, c_in: Array, c_out: Array, tiling: Tiling) -> tuple[Array, Array]:
    """Terms as products: what of them depends on the inputs computed, (I, 8), and on the outputs, (O, 8).

    ``own`` are ``sizes`` of layers (I = O = L of them), or of one, (1, 5), at I widths and O others.
    """
    outputs, taps, inputs, mixes, _ = own.T
    lanes_in, lanes_out = tiling.lanes
    left_in, left_out = c_in % lanes_in * mixes, c_out % lanes_out
    a_pair = outputs * taps  # of channels
    of_in, of_out = np.ones((len(c_in), TERMS)), np.ones((len(c_out), TERMS))
    of_in[:, OF_OUTPUT_LANES] = np.where(mixes > 0.0, c_in, 1.0)[:, None]
    of_in[:, 3] = inputs * c_in * mixes
    of_in[:, 6], of_in[:, 7] = left_in, left_in > 0
    of_out[:, 0] = a_pair * (tiling.effective(c_out) - left_out)
    of_out[:, 2] = outputs * c_out * mixes
    of_out[:, 4], of_out[:, 5] = a_pair * left_out, a_pair * (left_out > 0)
    of_out[:, OF_INPUT_LANES] = (a_pair * c_out)[:, None]
    return of_in, of_out
