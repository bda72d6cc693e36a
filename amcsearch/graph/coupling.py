"""Join coupled channels: from "these two indices move together" to channel groups with their tensor slices.

A slot is one channel index on one side of one layer. Slots tied by the network's data flow form an atom, the
smallest thing that can be removed; atoms that live in the same layers the same number of times form a group.
Unit ties (attention heads, conv groups) join atoms that must leave together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, Side

__all__ = ["Atoms", "Forest", "RawGroup", "SlotTable"]


class Forest:
    """Disjoint sets over integers 0 … n − 1 (union by index, path halving)."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, i: int) -> int:
        """Smallest member of the set of i."""
        parent = self.parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        """Make one set of the sets of i and j."""
        i, j = self.find(i), self.find(j)
        if i != j:
            self.parent[max(i, j)] = min(i, j)


@dataclass(frozen=True)
class RawGroup:
    """Atoms of one signature: ``slots[(layer, side)]`` (channels, factor), ``units`` (n_units, unit) or a problem."""

    slots: Mapping[tuple[str, Side], NDArray[np.int64]]
    units: NDArray[np.int64] | None
    problem: str = ""

    @property
    def channels(self) -> int:
        """Number of atoms."""
        return len(next(iter(self.slots.values())))


class SlotTable:
    """Numbers every slot; layers in order of execution, so smaller numbers run first.

    ``widths[layer]`` is (in, out); ``passes`` are the layers whose input channel c is their output channel c.
    """

    def __init__(self, widths: Mapping[str, tuple[int, int]], passes: Iterable[str]) -> None:
        self.passes = set(passes)
        self.base: dict[tuple[str, Side], int] = {}
        self.width: dict[tuple[str, Side], int] = {}
        self.keys: list[tuple[str, Side]] = []
        self.size = 0
        for layer, (n_in, n_out) in widths.items():
            sides = [(Side.OUT, n_out)] if layer in self.passes else [(Side.OUT, n_out), (Side.IN, n_in)]
            for side, n in sides:
                self.base[layer, side] = self.size
                self.width[layer, side] = n
                self.keys.extend([(layer, side)] * n)
                self.size += n
        self.data = Forest(self.size)
        self.unit = Forest(self.size)
        self.blocked: dict[int, str] = {}

    def key(self, layer: str, side: Side) -> tuple[str, Side]:
        """Pass-through layers have one set of slots, on their output side."""
        return (layer, Side.OUT) if layer in self.passes else (layer, side)

    def slot(self, layer: str, side: Side, index: int) -> int:
        """Return the number of a slot.

        Raises:
            BadInputError: the index lies outside the layer's width.
        """
        key = self.key(layer, side)
        if not 0 <= index < self.width[key]:
            raise BadInputError(f"{layer}: channel {index} lies outside its {self.width[key]} {side.value}put channels")
        return self.base[key] + index

    def slots(self, layer: str, side: Side) -> range:
        """All slots of one side of a layer."""
        key = self.key(layer, side)
        return range(self.base[key], self.base[key] + self.width[key])

    def block(self, slots: Iterable[int], reason: str) -> None:
        """Leave alone whatever is tied to these slots."""
        for slot in slots:
            self.blocked.setdefault(slot, reason)

    def tie_units(self, layer: str, side: Side, labels: Sequence[int]) -> None:
        """Channels of one label leave together."""
        first: dict[int, int] = {}
        for slot, label in zip(self.slots(layer, side), labels, strict=True):
            self.unit.join(slot, first.setdefault(label, slot))

    def groups(self, producers: Iterable[str]) -> list[RawGroup]:
        """Return the groups that some producer writes to, in order of their first slot."""
        return Atoms(self, set(producers)).groups()


@dataclass
class Atoms:
    """The sets of tied slots of a table, sorted by signature."""

    table: SlotTable
    producers: set[str]
    members: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    of_signature: dict[tuple[tuple[str, Side], ...], list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        table = self.table
        for slot in range(table.size):
            self.members[table.data.find(slot)].append(slot)
        for root, slots in self.members.items():
            signature = tuple(sorted(table.keys[s] for s in slots))
            if any(layer in self.producers and side is Side.OUT for layer, side in signature):
                self.of_signature[signature].append(root)

    def groups(self) -> list[RawGroup]:
        """One group a signature, in order of execution."""
        units = self._unit_of()
        ordered = sorted(self.of_signature.values(), key=lambda roots: roots[0])
        return [self._group(roots, units) for roots in ordered]

    def _unit_of(self) -> dict[int, int]:
        """Atom → label of the unit it leaves with."""
        atom_ids = {root: i for i, root in enumerate(self.members)}
        forest = Forest(len(atom_ids))
        for slot in range(self.table.size):
            together = self.table.unit.find(slot)
            if together != slot:
                forest.join(atom_ids[self.table.data.find(slot)], atom_ids[self.table.data.find(together)])
        return {root: forest.find(i) for root, i in atom_ids.items()}

    def _group(self, roots: list[int], unit_of: dict[int, int]) -> RawGroup:
        table = self.table
        slots: dict[tuple[str, Side], list[list[int]]] = defaultdict(list)
        for root in roots:
            here: dict[tuple[str, Side], list[int]] = defaultdict(list)
            for slot in self.members[root]:
                here[table.keys[slot]].append(slot - table.base[table.keys[slot]])
            for key, indices in here.items():
                slots[key].append(indices)
        arrays = {key: np.array(rows, dtype=np.int64) for key, rows in slots.items()}
        blocked = next((table.blocked[s] for r in roots for s in self.members[r] if s in table.blocked), "")
        if blocked:
            return RawGroup(arrays, None, blocked)
        return RawGroup(arrays, *self._units(roots, unit_of))

    def _units(self, roots: list[int], unit_of: dict[int, int]) -> tuple[NDArray[np.int64] | None, str]:
        inside: dict[int, list[int]] = defaultdict(list)
        for channel, root in enumerate(roots):
            inside[unit_of[root]].append(channel)
        mine = set(roots)
        if any(unit_of[root] in inside for others in self.of_signature.values() for root in others if root not in mine):
            return None, "channels that must leave together (heads or conv groups) lie in differently coupled layers"
        sizes = {len(channels) for channels in inside.values()}
        if len(sizes) > 1:
            return None, f"channels that must leave together come in unequal numbers {sorted(sizes)}"
        if len(inside) == 1:
            return None, f"its {len(roots)} channels can only leave all together"
        return np.array(sorted(inside.values()), dtype=np.int64), ""
