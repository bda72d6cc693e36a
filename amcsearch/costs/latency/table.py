"""A measured latency table as a document: rows of one device and setting, and what is said of them.

A table may hold several networks. It predicts nothing itself: ``bind`` makes the model of one network, and learns its
kernels then.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from amcsearch.core import BadInputError, NetworkSpec
from amcsearch.costs.latency.cache import weight_mib
from amcsearch.costs.latency.entry import NetworkEntry, Provenance
from amcsearch.costs.latency.model import LatencyModel
from amcsearch.costs.latency.rows import checked_rows, row_key

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LatencyTable", "fingerprint"]

_LEAST_MIB: Final = 1e-3  # of weights, so that networks can be compared
_UNKNOWN_MIB: Final = 1.0  # of a network that does not say


def fingerprint(network: NetworkSpec) -> str:
    """Twelve digits that name a dense network by the shapes of its layers."""
    text = json.dumps([row_key(layer) for layer in network.layers])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """A measured latency table; two are equal where they are the same object.

    Args:
        rows: at least ``COLUMNS`` of ``rows``; checked, and never changed.
        provenance: where and how all of it was measured.
        networks: what is said of each network that has rows, by name; one without rows was calibrated by whole runs.
        extra: what else a file holds at its top level, kept as it is.

    Raises:
        BadInputError: rows that cannot be used (names the row, the value and the bound), no network, or rows of a
            network that is not in ``networks``.
    """

    rows: "pd.DataFrame"
    provenance: Provenance
    networks: Mapping[str, NetworkEntry]
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", checked_rows(self.rows))
        if not self.networks:
            raise BadInputError("latency table has no `networks` (fingerprint, constant_ms); measure it again")
        with_rows = set(map(str, self.rows["network"].unique()))
        if not with_rows <= set(self.networks):
            raise BadInputError(
                f"latency table: rows are of the networks {sorted(with_rows)}, `networks` names {sorted(self.networks)}"
            )

    @classmethod
    def from_mapping(cls, rows: "pd.DataFrame", info: Mapping[str, Any]) -> "LatencyTable":
        """A table of rows and of plain values: ``provenance``, and ``networks`` by name.

        Raises:
            BadInputError: as the class, or values that a document cannot have; names the key and the value.
        """
        provenance, networks = info.get("provenance"), info.get("networks")
        if not isinstance(provenance, Mapping):
            raise BadInputError(
                "latency table has no `provenance` (cpu, ort_version, threads, batch); measure it again"
            )
        if not isinstance(networks, Mapping) or not all(isinstance(entry, Mapping) for entry in networks.values()):
            raise BadInputError("latency table has no `networks` (fingerprint, constant_ms); measure it again")
        entries = {str(name): NetworkEntry.from_mapping(entry) for name, entry in networks.items()}
        extra = {key: value for key, value in info.items() if key not in ("provenance", "networks")}
        return cls(rows, Provenance.from_mapping(provenance), entries, extra)

    def as_mapping(self) -> dict[str, Any]:
        """Everything but the rows as plain values; see ``from_mapping``."""
        networks = {name: entry.as_mapping() for name, entry in self.networks.items()}
        return {"provenance": self.provenance.as_mapping(), "networks": networks, **self.extra}

    def with_entry(self, name: str, entry: NetworkEntry) -> "LatencyTable":
        """The table with ``entry`` for a network."""
        return replace(self, networks={**self.networks, name: entry})

    def name_of(self, network: NetworkSpec) -> str | None:
        """Under which name the table holds a network, found by its dense shapes; None where it was not measured."""
        wanted = fingerprint(network)
        return next((name for name, entry in self.networks.items() if entry.fingerprint == wanted), None)

    def settings_for(self, network: NetworkSpec) -> NetworkEntry:
        """The entry of a network, or of the one nearest in weights where it was not measured."""
        name = self.name_of(network)
        if name is not None:
            return self.networks[name]
        each = self.provenance.weight_bytes
        mib = max(sum(weight_mib(layer, each) for layer in network.layers), _LEAST_MIB)

        def octaves(entry: NetworkEntry) -> float:
            weights_mib = _UNKNOWN_MIB if entry.weights_mib is None else entry.weights_mib
            return abs(float(np.log2(max(weights_mib, _LEAST_MIB) / mib)))

        return min(self.networks.values(), key=octaves)

    def bind(self, network: NetworkSpec | str) -> LatencyModel:
        """The predictor of one network, which learns its kernels now: make it once and keep it.

        Args:
            network: dense shapes, of a network that need not be in the table, or the name of one that is.

        Raises:
            BadInputError: a name that the table does not hold.
        """
        if not isinstance(network, str):
            return LatencyModel(self.rows, self.provenance, self.settings_for(network), self.name_of(network))
        if network not in self.networks:
            raise BadInputError(f"latency table holds no network {network!r}; it holds {', '.join(self.networks)}")
        return LatencyModel(self.rows, self.provenance, self.networks[network], network)
