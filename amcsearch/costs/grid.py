"""Every cost as tables over layer widths, so that a batch of policies is priced by indexing.

A layer's cost depends on a policy only through its two widths. Those move in fixed steps, so each distinct layer gets
one table over (steps off in_channels, steps off out_channels). All tables lie behind one another in one flat array:
the address of layer l under policy p is

    address[l, p] = base[l] + Σ_g stride[l, g] · removed_units[g, p]

A layer that nothing reads once a group keeps no channels costs nothing then.

A batch is priced table by table, so that the table at hand stays within the cache however many policies look it up.
Entries are asked of the cost models when first needed, once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, Cost, LayerSpec, MomentBytes, NetworkSpec, PruningPolicy
from amcsearch.costs.base import CostModel, JointCost, PeakCost, layer_amounts, layer_costs
from amcsearch.costs.distinct import distinct

__all__ = ["CostGrid"]

_ROWS: Final = 2**13  # policies whose moments are held at once
_BLOCK: Final = 2**17  # policies a pass: models are asked once for all that a pass lacks, and like many widths at once


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

    ``names`` are the costs, in the order of the models; ``peaks`` has the moments of those that are a maximum over
    moments. Pickling keeps the network and the models, and drops the
    tables, which fill again on use.

    Raises:
        BadInputError: two models of one cost.
    """

    def __init__(self, network: NetworkSpec, models: Sequence[CostModel]) -> None:
        self.network = network
        self.models = tuple(models)
        self.names: tuple[str, ...] = tuple(model.name for model in models)
        if len(set(self.names)) < len(self.names):
            raise BadInputError(f"cost models {list(self.names)}: each name may appear once; drop a model")
        self._units = np.array([group.unit for group in network.groups], dtype=np.int64)
        self._channels = np.array([group.channels for group in network.groups], dtype=np.int64)
        self._smallest = np.array([group.smallest for group in network.groups], dtype=np.int64)
        self._idles: list[list[int]] = [np.flatnonzero(column).tolist() for column in network.idles.T]  # of each layer
        self._lay_out()
        # 0 in `_slots` means "not asked yet": fresh zero pages cost no memory until an entry is used
        self._slots = np.zeros(self._bases[-1], dtype=np.int32)
        self._joint = {i: m for i, m in enumerate(self.models) if isinstance(m, JointCost) and m.has_joint}
        self.peaks: dict[str, MomentBytes] = {m.name: m.moments for m in self.models if isinstance(m, PeakCost)}
        # one row a model, then two for each joint cost
        self._values = np.zeros((len(self.models) + 2 * len(self._joint), 1024), dtype=np.float64)
        self._used = 1

    def __reduce__(self) -> tuple[type["CostGrid"], tuple[NetworkSpec, tuple[CostModel, ...]]]:
        return CostGrid, (self.network, self.models)

    def _lay_out(self) -> None:
        """Place one table for each distinct layer; identical layers with identical steps share it."""
        numbers: dict[_WidthTable, int] = {}
        self._tables: list[_WidthTable] = []
        self._layers: list[list[int]] = []  # of each table
        self._tables_of: list[int] = []  # of each layer
        self._strides: list[list[tuple[int, int]]] = []  # of each layer: groups, and addresses a removed unit of them
        for index, layer in enumerate(self.network.layers):
            table, stride = self._table_of(index, layer)
            if table not in numbers:
                numbers[table] = len(self._tables)
                self._tables.append(table)
                self._layers.append([])
            self._layers[numbers[table]].append(index)
            self._tables_of.append(numbers[table])
            self._strides.append([(g, int(stride[g])) for g in np.flatnonzero(stride).tolist()])
        self._bases = np.cumsum([0, *(table.size for table in self._tables)]).tolist()

    def _table_of(self, index: int, layer: LayerSpec) -> tuple[_WidthTable, NDArray[np.int64]]:
        """Table of one layer, and what one removed unit of each group adds to the address, shape (G,)."""
        lost_in, lost_out = (
            np.rint(matrix[:, index] * self._units).astype(np.int64) for matrix in self.network.removal_matrices
        )
        step_in, step_out = (max(1, int(np.gcd.reduce(lost, initial=0))) for lost in (lost_in, lost_out))
        by_in, by_out = lost_in // step_in, lost_out // step_out
        most = (self._channels - self._smallest) // self._units
        n_in, n_out = int(most @ by_in) + 1, int(most @ by_out) + 1
        together = bool(n_in > 1 and np.array_equal(by_in, by_out))
        table = _WidthTable(replace(layer, name=""), step_in, step_out, n_in, n_out, together)
        return table, by_in if together else by_in * n_out + by_out

    def only(self, names: Collection[str]) -> "CostGrid":
        """Return a grid of some of the costs; others, which may take long, are not asked then."""
        models = [model for model in self.models if model.name in names]
        return self if len(models) == len(self.models) else CostGrid(self.network, models)

    def price(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Costs of a batch of policies: kept counts (P, G) → name → (P,).

        Raises:
            BadInputError: a count out of range or splitting a unit, a layer a model cannot price, or a price that is
                not finite.
        """
        prices = {model.name: np.full(len(kept), model.constant, dtype=np.float64) for model in self.models}
        amounts = {i: np.zeros((2, len(kept))) for i in self._joint}
        sums = [*prices.values(), *(row for pair in amounts.values() for row in pair)]
        for policies, _, slots in self._looked_up(kept):
            for values, total in zip(self._values, sums, strict=True):
                for layer_slots in slots:
                    total[policies] += values.take(layer_slots)
        for i, model in self._joint.items():
            prices[self.names[i]] += model.joint(amounts[i].T)
        for name, moments in self.peaks.items():
            for start in range(0, len(kept), _ROWS):
                rows = slice(start, start + _ROWS)
                prices[name][rows] = moments.of(kept[rows]).max(axis=1)
        _check_finite(prices)
        return prices

    def price_layers(
        self, kept: NDArray[np.int64], layers: Sequence[int] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Costs layer by layer, without constants, joint costs and peaks: kept counts (P, G) → name → (P, L).

        ``layers`` are the positions of those to be priced, all by default.

        Raises:
            BadInputError: as ``price``.
        """
        wanted = range(len(self.network.layers)) if layers is None else layers
        prices = {name: np.empty((len(kept), len(wanted)), dtype=np.float64) for name in self.names}
        columns = {layer: column for column, layer in enumerate(wanted)}
        for policies, at, slots in self._looked_up(kept, wanted):
            for values, price in zip(self._values, prices.values(), strict=False):
                price[policies, [columns[layer] for layer in at]] = values.take(slots).T
        _check_finite(prices)
        return prices

    def cost(self, policy: PruningPolicy) -> Cost:
        """Cost of one policy; costs without a model stay None.

        Raises:
            BadInputError: the policy does not fit the network, or a layer a model cannot price.
        """
        return self.costs(self.network.kept_array(policy)[None, :])[0]

    def costs(self, kept: NDArray[np.int64]) -> list[Cost]:
        """Cost of each policy of a batch: kept counts (P, G) → P costs.

        Raises:
            BadInputError: as ``price``.
        """
        prices = {name: price.tolist() for name, price in self.price(kept).items()}
        return [Cost({name: price[p] for name, price in prices.items()}) for p in range(len(kept))]

    def _looked_up(
        self, kept: NDArray[np.int64], wanted: Iterable[int] | None = None
    ) -> Iterator[tuple[slice, list[int], NDArray[np.int32]]]:
        """Columns of ``_values`` for a batch, table by table: policies, layers, slots (layers, policies).

        Missing entries are filled. ``wanted`` are the layers, all by default.
        """
        self._check(kept)
        by_table = dict(enumerate(self._layers))
        if wanted is not None:
            by_table = {}
            for layer in wanted:
                by_table.setdefault(self._tables_of[layer], []).append(layer)
        for start in range(0, len(kept), _BLOCK):
            policies = slice(start, start + _BLOCK)
            removed_units = np.ascontiguousarray(((self._channels - kept[policies]) // self._units).T)
            for t, layers in by_table.items():
                entries = np.zeros((len(layers), removed_units.shape[1]), dtype=np.int64)
                for layer_entries, layer in zip(entries, layers, strict=True):
                    for group, stride in self._strides[layer]:
                        layer_entries += stride * removed_units[group]
                slots = self._slots_of(t, entries)
                for layer_slots, layer in zip(slots, layers, strict=True):
                    for group in self._idles[layer]:
                        layer_slots[kept[policies, group] == 0] = 0  # of which every value is 0
                yield policies, layers, slots

    def _slots_of(self, t: int, entries: NDArray[np.int64]) -> NDArray[np.int32]:
        """Slots of entries of a table, of any shape, those that no model was asked for yet filled first."""
        table_slots = self._slots[self._bases[t] : self._bases[t + 1]]
        slots = table_slots.take(entries)
        missing = slots == 0
        if not missing.any():
            return slots
        lacking = distinct(entries[missing], len(table_slots))
        table_slots[lacking] = self._asked(self._tables[t], lacking)
        return table_slots.take(entries)

    def _check(self, kept: NDArray[np.int64]) -> None:
        if kept.ndim != 2 or kept.shape[1] != len(self._channels):
            raise BadInputError(f"kept counts have shape {kept.shape}, must be (policies, {len(self._channels)})")
        wrong = (kept < self._smallest) | (kept > self._channels) | (kept % self._units != 0)
        if wrong.any():
            p, g = np.argwhere(wrong)[0]
            self.network.groups[g].check(int(kept[p, g]))

    def _asked(self, table: _WidthTable, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ask every model for entries (E,) of a table: their slots (E,)."""
        first, end = self._used, self._used + len(entries)
        if end > self._values.shape[1]:
            grown = np.zeros((len(self._values), max(end, 2 * self._values.shape[1])), dtype=np.float64)
            grown[:, :first] = self._values[:, :first]
            self._values = grown
        widths = table.widths(entries)
        for values, model in zip(self._values, self.models, strict=False):
            values[first:end] = layer_costs(model, table.layer, *widths)
        for row, joint in zip(range(len(self.models), len(self._values), 2), self._joint.values(), strict=True):
            self._values[row : row + 2, first:end] = layer_amounts(joint, table.layer, *widths).T
        self._used = end
        return np.arange(first, end)


def _check_finite(prices: Mapping[str, NDArray[np.float64]]) -> None:
    """Refuse NaN and infinity where they arise: no budget, reward or order has a place for them."""
    for name, values in prices.items():
        if not np.isfinite(values).all():
            raise BadInputError(
                f"cost {name}: the model prices a policy at {values[~np.isfinite(values)][0]}, must be finite; correct "
                "its layer or joint costs"
            )
