"""What it costs that a network's weights do not fit into the caches.

Run again and again, a small network finds its weights in cache; a large one has to fetch them, and which of the two
holds depends on all layers together. So this share of latency belongs to no single layer:

    extra(F, S) = S / F · Σ_j slope_j · max(0, F − knot_j)

F is the size of all weights, S that of the layers whose kernels stream their weights (all but the plain convolutions,
which are too slow to notice), both in MiB. Slopes are non-negative: more weights never make it faster. Measured: VGG-16
on a core with 1 MiB of second and a share of 32 MiB of third level cache lost a third of its speed between 16 and 32
MiB of weights; without this term its table erred by 11 %, with it by 5 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerKind, LayerSpec

__all__ = ["KNOTS_MIB", "CacheOverflow", "bytes_a_weight", "is_plain", "weight_mib", "weight_mib_at"]

KNOTS_MIB: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0)
_PLAIN_CONVOLUTIONS: Final = ("Conv", "ms.FusedConv")
_BYTES: Final = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}
_MIB: Final = 2.0**20
_MOST: Final = 1e12  # MiB, or ms a MiB
_Count = TypeVar("_Count", int, NDArray[np.int64])
_WEIGHTED: Final = (LayerKind.CONV, LayerKind.LINEAR)


def is_plain(kernel: str) -> bool:
    """Whether a kernel is a convolution outside the blocked layout, whatever is fused to it."""
    return kernel.split("+")[0] in _PLAIN_CONVOLUTIONS


def bytes_a_weight(dtype: str | None) -> int:
    """Size of one weight in a data type, float32 where it is not known."""
    return _BYTES.get(dtype or "float32", 4)


def weight_mib(layer: LayerSpec, bytes_each: int) -> float:
    """Size of the weights a layer reads in each call, in MiB (an embedding reads but a few of its rows: 0)."""
    if layer.kind not in _WEIGHTED:
        return 0.0
    return _weights(layer, layer.in_channels, layer.out_channels) * bytes_each / _MIB


def weight_mib_at(layer: LayerSpec, bytes_each: int, widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """``weight_mib``, (L,), of the layer resized to each of the widths (in, out), (L, 2)."""
    if layer.kind not in _WEIGHTED:
        return np.zeros(len(widths))
    return np.asarray(_weights(layer, *widths.T) * (bytes_each / _MIB), dtype=np.float64)


def _weights(layer: LayerSpec, c_in: _Count, c_out: _Count) -> _Count:
    return c_in * c_out * layer.kernel[0] * layer.kernel[1] // layer.groups_at(c_in, c_out)


@dataclass(frozen=True)
class CacheOverflow:
    """Slopes in ms a MiB beyond each of ``KNOTS_MIB``."""

    slopes: Mapping[float, float]

    def __post_init__(self) -> None:
        knots = [knot for knot in self.slopes if not 0.0 <= knot <= _MOST]
        if knots:
            raise BadInputError(f"latency table: residency knots {knots!s:.200}, must be from 0 to {_MOST:g} MiB")
        wrong = {knot: slope for knot, slope in self.slopes.items() if not 0.0 <= slope <= _MOST}
        if wrong:
            bound = f"at most {_MOST:g}" if max(wrong.values()) > _MOST else "at least 0"
            raise BadInputError(f"latency table: residency slopes {wrong!s:.200}, must be finite and {bound} ms a MiB")

    @classmethod
    def from_mapping(cls, data: Mapping[Any, Any] | None) -> "CacheOverflow":
        """Read ``{knot in MiB: ms a MiB}``; None is no such cost.

        Raises:
            BadInputError: a knot or slope that is no number, or a negative slope.
        """
        try:
            slopes = {float(knot): float(slope) for knot, slope in (data or {}).items()}
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise BadInputError(f"latency table: residency = {data!r:.200}, must map MiB to ms a MiB") from error
        return cls(slopes)

    def extra_ms(self, total_mib: NDArray[np.float64], streamed_mib: NDArray[np.float64]) -> NDArray[np.float64]:
        """Extra latency (P,) of networks with weights (P,), of which (P,) are streamed."""
        beyond = np.zeros_like(total_mib)
        for knot, slope in self.slopes.items():
            beyond += slope * np.maximum(0.0, total_mib - knot)
        return beyond * np.divide(streamed_mib, total_mib, out=np.zeros_like(total_mib), where=total_mib > 0.0)
