"""Every cost as tables over layer widths, so that a batch of policies is priced by indexing.

A layer's cost depends on a policy only through its two widths. Those move in fixed steps, so each distinct layer gets
one table over (steps off in_channels, steps off out_channels). All tables lie behind one another in one flat array:
the address of layer l under policy p is

    address[p, l] = base[l] + Σ_g removed_units[p, g] · stride[g, l]

which is one matrix product for the whole batch. Entries are asked of the cost models when first needed, once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import COST_NAMES, BadInputError, Cost, LayerSpec, NetworkSpec, PruningPolicy
from amcsearch.costs.base import CostModel, JointCost, layer_costs

__all__ = ["CostGrid"]

_CHUNK: Final = 8192  # policies a pass: addresses of 50 layers then stay within the cache
_CHUNKS_A_BLOCK: Final = 16  # models are asked once for all that a block of chunks lacks: they like many widths at once
_CLAIMED: Final = -1  # a slot that is about to be filled


@dataclass(frozen=True)
class _WidthTable:
    """The widths one layer can take: ``n_in`` x ``n_out`` entries, or ``n_in`` where both widths move together."""

    layer: LayerSpec
    step_in: int
    step_out: int
    n_in: int
    n_out: int
    together: bool

    @property
    def size(self) -> int:
        return self.n_in if self.together else self.n_in * self.n_out

    def widths(self, entries: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Channels (in, out) of the layer at entries of the table, all (E,)."""
        i, o = (entries, entries) if self.together else np.divmod(entries, self.n_out)
        return self.layer.in_channels - i * self.step_in, self.layer.out_channels - o * self.step_out


class CostGrid:
    """Prices policies of one network under several cost models.

    ``names`` are the costs, in the order of the models. Pickling keeps the network and the models, and drops the
    tables, which fill again on use.

    Raises:
        BadInputError: two models of one cost, or a name that is not a cost.
    """

    def __init__(self, network: NetworkSpec, models: Sequence[CostModel]) -> None:
        self.network = network
        self.models = tuple(models)
        self.names: tuple[str, ...] = tuple(model.name for model in models)
        if len(set(self.names)) < len(self.names) or not set(self.names) <= set(COST_NAMES):
            raise BadInputError(f"cost models {list(self.names)}: each of {list(COST_NAMES)} may appear once")
        self._units = np.array([group.unit for group in network.groups], dtype=np.int64)
        self._channels = np.array([group.channels for group in network.groups], dtype=np.int64)
        self._lay_out()
        # 0 in `_slots` means "not asked yet": fresh zero pages cost no memory until an entry is used
        self._slots = np.zeros(self._ends[-1] if self._ends else 0, dtype=np.int32)
        self._joint = {i: m for i, m in enumerate(self.models) if isinstance(m, JointCost) and m.has_joint}
        # one row a model, then two for each joint cost
        self._values = np.zeros((len(self.models) + 2 * len(self._joint), 1024), dtype=np.float64)
        self._used = 1

    def __reduce__(self) -> tuple[type["CostGrid"], tuple[NetworkSpec, tuple[CostModel, ...]]]:
        return CostGrid, (self.network, self.models)

    def _lay_out(self) -> None:
        """Place one table for each distinct layer; identical layers with identical steps share it."""
        places: dict[_WidthTable, int] = {}
        self._tables: list[_WidthTable] = []
        self._ends: list[int] = []
        bases, strides = [], []
        for index, layer in enumerate(self.network.layers):
            table, stride = self._table_of(index, layer)
            if table not in places:
                places[table] = self._ends[-1] if self._ends else 0
                self._tables.append(table)
                self._ends.append(places[table] + table.size)
            bases.append(places[table])
            strides.append(stride)
        shape = (len(self.network.layers), len(self.network.groups))
        # float64 for the fast matrix product; whole numbers below 2⁵³ stay exact
        self._bases = np.array(bases, dtype=np.float64)
        self._strides = np.array(strides, dtype=np.float64).reshape(shape).T

    def _table_of(self, index: int, layer: LayerSpec) -> tuple[_WidthTable, NDArray[np.int64]]:
        """Table of one layer, and what one removed unit of each group adds to the address, shape (G,)."""
        lost_in, lost_out = (matrix[:, index] * self._units for matrix in self.network.removal_matrices)
        step_in, step_out = (max(1, int(np.gcd.reduce(lost, initial=0))) for lost in (lost_in, lost_out))
        by_in, by_out = lost_in // step_in, lost_out // step_out
        most = self._channels // self._units - 1
        n_in, n_out = int(most @ by_in) + 1, int(most @ by_out) + 1
        together = bool(n_in > 1 and np.array_equal(by_in, by_out))
        table = _WidthTable(replace(layer, name=""), step_in, step_out, n_in, n_out, together)
        return table, by_in if together else by_in * n_out + by_out

    def price(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Costs of a batch of policies: kept counts (P, G) → name → (P,).

        Raises:
            BadInputError: a count out of range or splitting a unit, or a layer a model cannot price.
        """
        prices = {model.name: np.full(len(kept), model.constant, dtype=np.float64) for model in self.models}
        for start, slots in self._slot_chunks(kept):
            stop = start + len(slots)
            for values, price in zip(self._values, prices.values(), strict=False):
                price[start:stop] += values.take(slots).sum(axis=1)
            rows = iter(self._values[len(self.models) :])
            for i, model in self._joint.items():
                amounts = np.stack([next(rows).take(slots).sum(axis=1) for _ in range(2)], axis=1)
                prices[self.names[i]][start:stop] += model.joint(amounts)
        return prices

    def price_layers(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Costs layer by layer, without constants and joint costs: kept counts (P, G) → name → (P, L).

        Raises:
            BadInputError: as ``price``.
        """
        shape = (len(kept), len(self.network.layers))
        prices = {name: np.empty(shape, dtype=np.float64) for name in self.names}
        for start, slots in self._slot_chunks(kept):
            for values, price in zip(self._values, prices.values(), strict=False):
                price[start : start + len(slots)] = values.take(slots)
        return prices

    def cost(self, policy: PruningPolicy) -> Cost:
        """Cost of one policy; costs without a model stay None.

        Raises:
            BadInputError: the policy does not fit the network, or a layer a model cannot price.
        """
        prices = self.price(self.network.kept_array(policy)[None, :])
        return Cost(**{name: float(price[0]) for name, price in prices.items()})

    def _slot_chunks(self, kept: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Columns of ``_values`` for a batch, in pieces: (first policy, slots (p, L)). Missing entries are filled."""
        self._check(kept)
        starts = range(0, len(kept), _CHUNK)
        for block in range(0, len(starts), _CHUNKS_A_BLOCK):
            own = starts[block : block + _CHUNKS_A_BLOCK]
            addresses = [self._addresses(kept[start : start + _CHUNK]) for start in own]
            self._fill(np.concatenate([self._claimed(chunk) for chunk in addresses]))
            for start, chunk in zip(own, addresses, strict=True):
                yield start, self._slots.take(chunk)

    def _addresses(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of kept counts (p, G) in ``_slots``, (p, L)."""
        removed_units = (self._channels - kept) // self._units
        return (self._bases + removed_units.astype(np.float64) @ self._strides).astype(np.int64)

    def _claimed(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those among addresses that no model was asked for yet, each once, and from now on not again."""
        lacking = np.unique(addresses[self._slots.take(addresses) == 0])
        self._slots[lacking] = _CLAIMED
        return lacking

    def _check(self, kept: NDArray[np.int64]) -> None:
        if kept.ndim != 2 or kept.shape[1] != len(self._channels):
            raise BadInputError(f"kept counts have shape {kept.shape}, must be (policies, {len(self._channels)})")
        wrong = (kept < 1) | (kept > self._channels) | (kept % self._units != 0)
        if wrong.any():
            p, g = np.argwhere(wrong)[0]
            group = self.network.groups[g]
            raise BadInputError(
                f"group {group.name!r}: n_keep = {kept[p, g]}, must be a multiple of {group.unit} "
                f"from {group.unit} to {group.channels}"
            )

    def _fill(self, addresses: NDArray[np.int64]) -> None:
        """Ask every model for the claimed entries at ``addresses`` and remember them, or give up the claim."""
        try:
            self._ask(addresses)
        finally:
            self._slots[addresses[self._slots[addresses] == _CLAIMED]] = 0

    def _ask(self, addresses: NDArray[np.int64]) -> None:
        needed = self._used + len(addresses)
        if needed > self._values.shape[1]:
            grown = np.zeros((len(self._values), max(needed, 2 * self._values.shape[1])), dtype=np.float64)
            grown[:, : self._used] = self._values[:, : self._used]
            self._values = grown
        of_table = np.searchsorted(self._ends, addresses, side="right")
        for t in np.unique(of_table).tolist():
            chosen = addresses[of_table == t]
            table = self._tables[t]
            widths = table.widths(chosen - (self._ends[t] - table.size))
            first, end = self._used, self._used + len(chosen)
            for values, model in zip(self._values, self.models, strict=False):
                values[first:end] = layer_costs(model, table.layer, *widths)
            for row, joint in zip(range(len(self.models), len(self._values), 2), self._joint.values(), strict=True):
                self._values[row : row + 2, first:end] = joint.layer_amounts(table.layer, *widths).T
            self._slots[chosen] = np.arange(first, end)
            self._used = end
