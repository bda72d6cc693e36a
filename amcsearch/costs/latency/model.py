"""Latency of one network, predicted from a table's rows.

In milliseconds a call,

    constant + Σ layer_cost + joint,        layer_cost = Σ_kernels count · latency

``count`` comes from the runtime's optimised graphs (``lowering``), ``latency`` from rows (``surface``), ``joint`` from
the size of all weights together (``CacheOverflow``). Calibration on whole runs is folded into the rows already.

A network that was measured is answered from its own rows first; where they are few or none the other networks' rows
are asked too. A network that was never measured is answered from all rows, with the settings of the network nearest in
weights; one that was calibrated by whole runs alone (``anchored``) has settings of its own and no rows.

Batch norms and bare parameters that were never seen cost 0: the runtime folds them into their neighbours. Any other
layer without a like in the table is an error that says how to add it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerKind, LayerSpec
from amcsearch.costs.latency.cache import is_plain, weight_mib, weight_mib_at
from amcsearch.costs.latency.entry import Accuracy, NetworkEntry, Provenance
from amcsearch.costs.latency.kernels.kernel_model import KernelLatency, KernelModel
from amcsearch.costs.latency.kernels.signature import by_signature, keeps_signature
from amcsearch.costs.latency.rows import ADD, observations

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FOLDED", "LatencyModel"]

_BLOCK: Final = 16  # channels in a block of the runtime's layout where the table does not say
FOLDED: Final = frozenset({LayerKind.BATCH_NORM, LayerKind.PARAMETER})


class LatencyModel:
    """The latency of one network as a cost; ``LatencyTable.bind`` makes it.

    Args:
        rows: checked rows of a table, of all its networks.
        provenance: of the table.
        entry: the settings: of the network, or of the nearest one.
        network: the network's name in the table, None where it was never measured.

    Attributes:
        constant: ms a call that no layer has.
    """

    name = "latency_ms"

    def __init__(self, rows: "pd.DataFrame", provenance: Provenance, entry: NetworkEntry, network: str | None) -> None:
        self.network, self.provenance, self.entry = network, provenance, entry
        self.constant = entry.constant_ms
        self._bytes = provenance.weight_bytes
        self._kernels = _kernel_model(rows, provenance, entry, network)
        self._of_layer: dict[LayerSpec, tuple[KernelLatency, ...]] = {}
        self._last: tuple[LayerSpec | None, NDArray[np.int64], NDArray[np.float64]]
        self._last = (None, np.empty((0, 2), dtype=np.int64), np.empty((3, 0)))

    @property
    def channel_multiple(self) -> int | None:
        """Channel grid the device prefers, None where the table does not say."""
        return self.entry.channel_multiple or None

    @property
    def accuracy(self) -> Accuracy | None:
        """Errors on variants of the network that were not used to build the table; None if not measured."""
        return self.entry.accuracy if self.network else None

    def kernel_latencies(self, layer: LayerSpec) -> tuple[KernelLatency, ...]:
        """Kernels of a layer with their latencies, () where it is folded away.

        Raises:
            BadInputError: nothing like this layer was measured; names the layer and how to add it.
        """
        if layer not in self._of_layer:
            latencies = self._kernels.latencies(layer)
            if latencies is None:
                _check_folded(layer)
            self._of_layer[layer] = latencies or ()
        return self._of_layer[layer]

    def knows(self, layer: LayerSpec) -> bool:
        """Whether layers that differ from this one in widths alone were measured."""
        return self._kernels.knows(layer)

    def predicts(self, layers: Sequence[LayerSpec]) -> bool:
        """Whether the table says something of each of these layers."""
        try:
            return self.predict(layers) > 0.0
        except BadInputError:
            return False

    def layer_cost(self, layer: LayerSpec) -> float:
        """Latency of one layer in ms, what its weights cost beyond the caches left out.

        Raises:
            BadInputError: as ``kernel_latencies``.
        """
        return sum(kernel.ms for kernel in self.kernel_latencies(layer))

    def layer_costs(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """``layer_cost`` of a layer at many widths (L,).

        Raises:
            BadInputError: as ``kernel_latencies``.
        """
        return np.asarray(self._priced(layer, in_channels, out_channels)[0], dtype=np.float64)

    def amounts(self, layer: LayerSpec) -> tuple[float, float]:
        """Weights of a layer in MiB, all and streamed: what ``joint`` is a function of, once summed over layers.

        Raises:
            BadInputError: as ``kernel_latencies``.
        """
        mib = weight_mib(layer, self._bytes)
        return mib, 0.0 if any(is_plain(latency.kernel) for latency in self.kernel_latencies(layer)) else mib

    def layer_amounts(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """``amounts`` of a layer at many widths (L,): (L, 2).

        Raises:
            BadInputError: as ``kernel_latencies``.
        """
        return self._priced(layer, in_channels, out_channels)[1:].T

    @property
    def has_joint(self) -> bool:
        """Whether the size of all weights together matters."""
        return any(self.entry.residency.slopes.values())

    def joint(self, amounts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Latency in ms that no single layer has: summed ``amounts`` (P, 2) → (P,)."""
        return self.entry.residency.extra_ms(amounts[:, 0], amounts[:, 1])

    def predict(self, layers: Sequence[LayerSpec]) -> float:
        """Latency of a whole network in ms.

        Raises:
            BadInputError: as ``kernel_latencies``.
        """
        amounts = np.sum([self.amounts(layer) for layer in layers], axis=0).reshape(1, 2)
        return self.constant + sum(map(self.layer_cost, layers)) + float(self.joint(amounts)[0])

    def predict_all(self, networks: Sequence[Sequence[LayerSpec]]) -> NDArray[np.float64]:
        """``predict`` of networks (P,), faster than one after another.

        Raises:
            BadInputError: as ``kernel_latencies``.
        """
        of_network = np.repeat(np.arange(len(networks)), [len(layers) for layers in networks])
        parts = np.zeros((3, len(networks)))
        for layer, at, widths in by_signature(layer for layers in networks for layer in layers):
            for part, of_layer in zip(parts, self._priced(layer, *widths.T), strict=True):
                part += np.bincount(of_network[at], of_layer, len(networks))
        return np.asarray(self.constant + parts[0] + self.joint(parts[1:].T), dtype=np.float64)

    def uncertainty(self, layers: Sequence[LayerSpec]) -> float:
        """Standard deviation of ``predict`` in ms.

        Two parts: a share of the whole that stays even for kernels that were measured, and one that grows with
        each kernel's distance from a measurement; both were fitted on variants left out in turn.

        Raises:
            BadInputError: as ``kernel_latencies``.
        """
        sigma = self.entry.sigma
        far = [kernel.ms * kernel.octaves for layer in layers for kernel in self.kernel_latencies(layer)]
        return float(np.hypot(sigma.floor * self.predict(layers), sigma.per_octave * np.linalg.norm(far)))

    def _priced(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Milliseconds and both amounts, (3, L), of a layer at many widths (L,).

        The last answer is remembered, for latencies and amounts are asked for in turn.
        """
        widths = np.stack([in_channels, out_channels], axis=1)
        if self._last[0] != layer or not np.array_equal(self._last[1], widths):
            priced = np.empty((3, len(widths)))
            alike = keeps_signature(layer, widths)
            for at in np.flatnonzero(~alike).tolist():
                resized = layer.resized(*widths[at].tolist())
                priced[:, at] = (self.layer_cost(resized), *self.amounts(resized))
            if alike.all() and len(widths):
                priced = self._priced_alike(layer, widths)
            elif alike.any():
                priced[:, alike] = self._priced_alike(layer.resized(*widths[alike][0].tolist()), widths[alike])
            self._last = (layer, widths, priced)
        return self._last[2]

    def _priced_alike(self, layer: LayerSpec, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        """As ``_priced`` for widths (L, 2) that keep the layer's signature."""
        summed = self._kernels.summed_at(layer, widths)
        if summed is None:
            _check_folded(layer)
        ms, plain = summed or (np.zeros(len(widths)), np.zeros(len(widths), dtype=np.bool_))
        mib = weight_mib_at(layer, self._bytes, widths)
        return np.stack([ms, mib, np.where(plain, 0.0, mib)])


def _kernel_model(
    rows: "pd.DataFrame", provenance: Provenance, entry: NetworkEntry, network: str | None
) -> KernelModel:
    """A model of the network's own rows that asks one of all rows, or of all rows alone where it has none, or all."""
    measured_block = provenance.nchwc_block if entry.block is None else entry.block
    block = _BLOCK if measured_block is None else measured_block
    of_network = rows[rows["network"] == network]
    if len(of_network) in (0, len(rows)):
        return KernelModel(observations(rows), block, entry.smoothing)
    everything = KernelModel(observations(rows), block, entry.smoothing)
    return KernelModel(observations(of_network), block, entry.smoothing, everything)


def _check_folded(layer: LayerSpec) -> None:
    """Refuse a layer of which nothing is known, unless the runtime folds its kind away."""
    if layer.kind not in FOLDED:
        raise BadInputError(f"latency table has no row for {_describe(layer)}; {ADD}")


def _describe(layer: LayerSpec) -> str:
    size = "x".join(map(str, layer.in_size))
    words = f"{layer.kind.value} {layer.in_channels}→{layer.out_channels}, input {size}"
    if layer.kind is LayerKind.CONV:
        words += f", kernel {layer.kernel}, stride {layer.stride}, padding {layer.padding}, groups {layer.conv_groups}"
    return f"{words} ({layer.name})" if layer.name else words
