"""Latency as measured on the device: kernels of really pruned networks, and what lies between them.

A table belongs to one device and setting, and may hold several networks. Bound to a network (``for_network``), it
predicts in milliseconds a call

    constant + Σ layer_cost + joint,        layer_cost = Σ_kernels count · latency

``count`` comes from the runtime's optimised graphs (``lowering``), ``latency`` from rows (``surface``), ``joint`` from
the size of all weights together (``residency``). Calibration on whole runs is folded into the rows already. A bound
table answers from its network's own rows first; where they are few or none it asks the other networks' rows too. A
network that was never measured is answered from all rows, with the settings of the network nearest in weights;
one that was calibrated by whole runs alone (``anchoring``) has settings of its own and no rows.

Batch norms and bare parameters that were never seen cost 0: the runtime folds them into their neighbours. Any other
layer without a like in the table is an error that says how to add it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerSpec, NetworkSpec
from amcsearch.costs.latency.cache import Residency, bytes_a_weight, weight_mib
from amcsearch.costs.latency.kernels.kernel_model import KernelModel, KernelTime
from amcsearch.costs.latency.kernels.signature import by_signature
from amcsearch.costs.latency.layer_times import LayerTimes
from amcsearch.costs.latency.rows import checked_rows, observations, row_key

__all__ = ["COMPARED", "LatencyTable", "fingerprint"]

COMPARED: Final = {
    "cpu": "CPU",
    "cpu_flags": "CPU features",
    "ort_version": "ONNX Runtime",
    "provider": "execution provider",
    "optimisation": "optimisation level",
    "nchwc_block": "NCHWc block",
    "threads": "threads",
    "batch": "batch size",
    "dtype": "data type",
}


def fingerprint(network: NetworkSpec) -> str:
    """Twelve digits that name a dense network by the shapes of its layers."""
    text = json.dumps([row_key(layer) for layer in network.layers])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class LatencyTable:
    """A measured latency table as a cost, in milliseconds a call.

    Args:
        rows: at least ``COLUMNS`` of ``rows``.
        info: ``provenance`` (cpu, ort_version, threads, batch, nchwc_block, …) and ``networks``: name →
            ``fingerprint``, ``constant_ms``, and optionally ``smoothing``, ``residency``, ``sigma``, ``weights_mib``,
            ``channel_multiple`` and ``accuracy`` (held-out errors, None until checked).
        network: name of the network the table is bound to; None for all, or the only one.
        settings: name of the network whose settings an unbound table uses.

    Raises:
        BadInputError: rows or info that cannot be used; names the row, the value and the bound.
    """

    name = "latency_ms"

    def __init__(
        self, rows: pd.DataFrame, info: Mapping[str, Any], network: str | None = None, settings: str | None = None
    ) -> None:
        self.rows = checked_rows(rows)
        self.info = dict(info)
        self.networks: Mapping[str, Mapping[str, Any]] = self._networks()
        alone = len(self.networks) == 1 and settings is None
        self.network = network or (next(iter(self.networks)) if alone else None)
        self.entry = self.networks[self.network or settings or next(iter(self.networks))]
        self.constant = _number(self.entry, "constant_ms", None)
        self._residency = Residency.from_mapping(self.entry.get("residency"))
        self._bytes = bytes_a_weight(self.provenance)
        self._layers = LayerTimes(self._make_model(), self._bytes)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where, with what and how the table was measured."""
        found = self.info.get("provenance")
        if not isinstance(found, Mapping):
            raise BadInputError(
                "latency table has no `provenance` (cpu, ort_version, threads, batch); measure it again"
            )
        return found

    def _networks(self) -> Mapping[str, Mapping[str, Any]]:
        found = self.info.get("networks")
        named = set(map(str, self.rows["network"].unique()))
        if not isinstance(found, Mapping) or not found or not all(isinstance(v, Mapping) for v in found.values()):
            raise BadInputError("latency table has no `networks` (fingerprint, constant_ms); measure it again")
        if not named <= set(map(str, found)):
            raise BadInputError(
                f"latency table: rows are of the networks {sorted(named)}, `networks` names {sorted(map(str, found))}"
            )
        return found

    def _make_model(self) -> KernelModel:
        block = int(self.provenance.get("nchwc_block", 16))
        smoothing = _number(self.entry, "smoothing", 0.0)
        own = self.rows[self.rows["network"] == self.network]
        if len(own) in (0, len(self.rows)):
            return KernelModel(observations(self.rows), block, smoothing)
        everything = KernelModel(observations(self.rows), block, smoothing)
        return KernelModel(observations(own), block, smoothing, everything)

    def for_network(self, network: NetworkSpec) -> "LatencyTable":
        """The table bound to a network by its dense shapes; to none where it was not measured."""
        wanted = fingerprint(network)
        found = next((name for name, entry in self.networks.items() if entry.get("fingerprint") == wanted), None)
        mib = max(sum(weight_mib(layer, self._bytes) for layer in network.layers), 1e-3)

        def octaves(name: str) -> float:
            return abs(float(np.log2(max(_number(self.networks[name], "weights_mib", 1.0), 1e-3) / mib)))

        return LatencyTable(self.rows, self.info, found, min(self.networks, key=octaves))

    @property
    def channel_multiple(self) -> int | None:
        """Channel grid the device prefers, None where the table does not say."""
        value = self.entry.get("channel_multiple")
        return int(value) if value else None

    @property
    def accuracy(self) -> Mapping[str, Any] | None:
        """Errors on variants of the bound network that were not used to build the table; None if not measured."""
        return self.entry.get("accuracy") if self.network else None

    def kernel_times(self, layer: LayerSpec) -> tuple[KernelTime, ...]:
        """Kernels of a layer with their times, () where it is folded away.

        Raises:
            BadInputError: nothing like this layer was measured; names the layer and how to add it.
        """
        return self._layers.times(layer)

    def knows(self, layer: LayerSpec) -> bool:
        """Whether layers that differ from this one in widths alone were measured."""
        return self._layers.knows(layer)

    def layer_cost(self, layer: LayerSpec) -> float:
        """Latency of one layer in ms, what its weights cost beyond the caches left out.

        Raises:
            BadInputError: as ``kernel_times``.
        """
        return sum(time.ms for time in self.kernel_times(layer))

    def layer_costs(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """``layer_cost`` of a layer at many widths (L,).

        Raises:
            BadInputError: as ``kernel_times``.
        """
        return np.asarray(self._layers.priced(layer, in_channels, out_channels)[0], dtype=np.float64)

    def amounts(self, layer: LayerSpec) -> tuple[float, float]:
        """Weights of a layer in MiB, all and streamed: what ``joint`` is a function of, once summed over layers."""
        return self._layers.amounts(layer)

    def layer_amounts(
        self, layer: LayerSpec, in_channels: NDArray[np.int64], out_channels: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """``amounts`` of a layer at many widths (L,): (L, 2).

        Raises:
            BadInputError: as ``kernel_times``.
        """
        return self._layers.priced(layer, in_channels, out_channels)[1:].T

    @property
    def has_joint(self) -> bool:
        """Whether the size of all weights together matters."""
        return any(self._residency.slopes.values())

    def joint(self, amounts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Latency in ms that no single layer has: summed ``amounts`` (P, 2) → (P,)."""
        return self._residency.extra_ms(amounts[:, 0], amounts[:, 1])

    def predict(self, layers: Sequence[LayerSpec]) -> float:
        """Latency of a whole network in ms.

        Raises:
            BadInputError: as ``kernel_times``.
        """
        amounts = np.sum([self.amounts(layer) for layer in layers], axis=0).reshape(1, 2)
        return self.constant + sum(map(self.layer_cost, layers)) + float(self.joint(amounts)[0])

    def predict_all(self, networks: Sequence[Sequence[LayerSpec]]) -> NDArray[np.float64]:
        """``predict`` of networks (P,), faster than one after another.

        Raises:
            BadInputError: as ``kernel_times``.
        """
        of_network = np.repeat(np.arange(len(networks)), [len(layers) for layers in networks])
        parts = np.zeros((3, len(networks)))
        for layer, at, widths in by_signature(layer for layers in networks for layer in layers):
            for part, own in zip(parts, self._layers.priced(layer, *widths.T), strict=True):
                part += np.bincount(of_network[at], own, len(networks))
        return np.asarray(self.constant + parts[0] + self.joint(parts[1:].T), dtype=np.float64)

    def uncertainty(self, layers: Sequence[LayerSpec]) -> float:
        """Standard deviation of ``predict`` in ms.

        Two parts: a share of the whole that stays even for kernels that were measured, and one that grows with
        each kernel's distance from a measurement; both were fitted on variants left out in turn.

        Raises:
            BadInputError: as ``kernel_times``.
        """
        sigma = self.entry.get("sigma") or {}
        floor, per_octave = _number(sigma, "floor", 0.03), _number(sigma, "per_octave", 0.1)
        far = [time.ms * time.octaves for layer in layers for time in self.kernel_times(layer)]
        return float(np.hypot(floor * self.predict(layers), per_octave * np.linalg.norm(far)))

    def mismatches(self, provenance: Mapping[str, Any]) -> list[str]:
        """Say in sentences how the table's device and settings differ from ``provenance``; [] where they agree.

        What either side does not know is not compared.
        """
        own = self.provenance
        return [
            f"{words}: the table was measured with {own[key]!r}, this run has {provenance[key]!r}"
            for key, words in COMPARED.items()
            if own.get(key) is not None and provenance.get(key) is not None and own[key] != provenance[key]
        ]


def _number(entry: Mapping[str, Any], key: str, default: float | None) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
        raise BadInputError(f"latency table: {key} = {value!r}, must be a finite number of at least 0")
    return float(value)
