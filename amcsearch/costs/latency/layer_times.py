"""Times of layers from the kernel models of a table: one layer at a time, or one layer at many widths at once."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerKind, LayerSpec
from amcsearch.costs.latency.cache import is_plain, weight_mib, weight_mib_at
from amcsearch.costs.latency.kernels.kernel_model import KernelModel, KernelTime
from amcsearch.costs.latency.kernels.signature import keeps_signature
from amcsearch.costs.latency.rows import ADD

__all__ = ["LayerTimes"]

_NOTHING: Final = np.empty((3, 0))
_FOLDED: Final = frozenset({LayerKind.BATCH_NORM, LayerKind.PARAMETER})


class LayerTimes:
    """What layers cost.

    Args:
        model: what is asked.
        weight_bytes: of one weight.
    """

    def __init__(self, model: KernelModel, weight_bytes: int) -> None:
        self._model, self._bytes = model, weight_bytes
        self._times: dict[LayerSpec, tuple[KernelTime, ...]] = {}
        self._last: tuple[LayerSpec | None, NDArray[np.int64], NDArray[np.float64]] = (
            None,
            np.empty((0, 2), dtype=np.int64),
            _NOTHING,
        )

    def knows(self, layer: LayerSpec) -> bool:
        """Whether layers that differ from this one in widths alone were measured."""
        return self._model.knows(layer)

    def times(self, layer: LayerSpec) -> tuple[KernelTime, ...]:
        """Kernels of a layer with their times, () where it is folded away.

        Raises:
            BadInputError: nothing like this layer was measured; names the layer and how to add it.
        """
        if layer not in self._times:
            times = self._model.times(layer)
            if times is None:
                _check_folded(layer)
            self._times[layer] = times or ()
        return self._times[layer]

    def amounts(self, layer: LayerSpec) -> tuple[float, float]:
        """Weights of a layer in MiB, all and streamed.

        Raises:
            BadInputError: as ``times``.
        """
        mib = weight_mib(layer, self._bytes)
        return mib, 0.0 if any(is_plain(time.kernel) for time in self.times(layer)) else mib

    def priced(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Milliseconds and both amounts, (3, L), of a layer at many widths (L,).

        The last answer is remembered, for times and amounts are asked for in turn.

        Raises:
            BadInputError: as ``times``.
        """
        widths = np.stack([in_channels, out_channels], axis=1)
        if self._last[0] != layer or not np.array_equal(self._last[1], widths):
            found = np.empty((3, len(widths)))
            alike = keeps_signature(layer, widths)
            for at in np.flatnonzero(~alike).tolist():
                one = layer.resized(*widths[at].tolist())
                found[:, at] = (sum(time.ms for time in self.times(one)), *self.amounts(one))
            if alike.all() and len(widths):
                found = self._priced_alike(layer, widths)
            elif alike.any():
                found[:, alike] = self._priced_alike(layer.resized(*widths[alike][0].tolist()), widths[alike])
            self._last = (layer, widths, found)
        return self._last[2]

    def _priced_alike(self, layer: LayerSpec, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        """As ``priced`` for widths (L, 2) that keep the layer's signature."""
        found = self._model.summed_at(layer, widths)
        if found is None:
            _check_folded(layer)
        ms, plain = found or (np.zeros(len(widths)), np.zeros(len(widths), dtype=np.bool_))
        mib = weight_mib_at(layer, self._bytes, widths)
        return np.stack([ms, mib, np.where(plain, 0.0, mib)])


def _check_folded(layer: LayerSpec) -> None:
    """Refuse a layer of which nothing is known, unless the runtime folds its kind away."""
    if layer.kind not in _FOLDED:
        raise BadInputError(f"latency table has no row for {_describe(layer)}; {ADD}")


def _describe(layer: LayerSpec) -> str:
    size = "x".join(map(str, layer.in_size))
    words = f"{layer.kind.value} {layer.in_channels}→{layer.out_channels}, input {size}"
    if layer.kind is LayerKind.CONV:
        words += f", kernel {layer.kernel}, stride {layer.stride}, padding {layer.padding}, groups {layer.conv_groups}"
    return f"{words} ({layer.name})" if layer.name else words
