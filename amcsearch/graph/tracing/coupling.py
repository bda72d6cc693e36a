"""Coupling of channels: from "these two indices move together" to channel groups.

A slot is one channel index on one side of one layer. Slots tied by the network's data flow form an atom, the
smallest thing that can be removed; atoms that live in the same layers equally often form a group. Layers make ties of
their own: pass-through layers, groups of convolutions, attention heads. Unit ties (heads, conv groups) join atoms that
must leave together. Some layers are left alone, each with its reason.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, LayerKind, Side
from amcsearch.graph.slices import Skipped
from amcsearch.graph.tracing.attention import HeadTable
from amcsearch.graph.tracing.layer_types import layer_type, unit_period
from amcsearch.graph.tracing.recorder import Observation

__all__ = ["Atoms", "Forest", "RawGroup", "SlotTable", "module_of", "slot_table", "tie_heads"]


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


def slot_table(model: nn.Module, observation: Observation, skipped: list[Skipped]) -> SlotTable:
    """Number the channels of every layer, tie conv groups, and block what must be left alone."""
    specs = {x.name: x for x in observation.layers if "#" not in x.name}
    modules = {name: module_of(model, observation, name) for name in specs}
    passes = [
        name
        for name, spec in specs.items()
        if spec.kind in (LayerKind.ATTENTION, LayerKind.PARAMETER)
        or (spec.is_depthwise and spec.in_channels == spec.out_channels)
        or ((kind := layer_type(modules[name] or nn.Identity())) is not None and kind.passes)
    ]  # fmt: skip
    table = SlotTable({name: (spec.in_channels, spec.out_channels) for name, spec in specs.items()}, passes)
    tied = _tied_tensors(model, {observation.modules[x.name] for x in observation.layers if x.kind is LayerKind.LINEAR})
    for name, module in modules.items():
        if module is None and specs[name].kind in (LayerKind.LINEAR, LayerKind.CONV):
            table.block([*table.slots(name, Side.IN), *table.slots(name, Side.OUT)], f"{name} is used by plain code")
        if module is None:
            continue
        for side in Side:
            if period := unit_period(module, side):
                table.tie_units(name, side, [i % period for i in range(len(table.slots(name, side)))])
        if specs[name].is_depthwise and name not in table.passes:
            _tie_multiplier(table, name, specs[name].out_channels // specs[name].in_channels)
        if reason := _left_alone(module, observation.modules[name], tied, model):
            skipped.append(Skipped(name, reason))
            table.block([*table.slots(name, Side.IN), *table.slots(name, Side.OUT)], f"{name}: {reason}")
    return table


def module_of(model: nn.Module, observation: Observation, layer: str) -> nn.Module | None:
    """The module of a layer; None where a layer is a product or a bare parameter."""
    try:
        module = model.get_submodule(observation.modules[layer])
    except AttributeError:
        return None
    return module if layer_type(module) is not None else None


def _tie_multiplier(table: SlotTable, layer: str, multiplier: int) -> None:
    """Depthwise convolution with m filters a channel: input c writes outputs c·m … c·m + m − 1."""
    for out in range(len(table.slots(layer, Side.OUT))):
        table.data.join(table.slot(layer, Side.IN, out // multiplier), table.slot(layer, Side.OUT, out))


def _tied_tensors(model: nn.Module, linears: set[str]) -> dict[int, list[str]]:
    """Parameters used in two places, by id: the names of their holders, and those that plain code multiplies with."""
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            uses = [name, f"F.linear(…, {name})"] if name in linears else [name]
            holders.setdefault(id(parameter), []).extend(uses)
    return {key: names for key, names in holders.items() if len(names) > 1}


def _left_alone(module: nn.Module, path: str, tied: dict[int, list[str]], model: nn.Module) -> str:
    """Why a layer's channels must not change; empty if they may."""
    for parameter in module.parameters(recurse=False):
        if id(parameter) in tied:
            return f"its weight is tied ({' = '.join(tied[id(parameter)])}) and left alone"
    if any(isinstance(m, nn.MultiheadAttention) and path in (f"{n}.out_proj",) for n, m in model.named_modules()):
        return "part of nn.MultiheadAttention"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
        return f"normalises over several dimensions {tuple(module.normalized_shape)}"
    for axis in layer_type(module).axes(module):  # type: ignore[union-attr]
        value = getattr(module, axis.tensor, None)
        if isinstance(value, Tensor) and axis.tensor not in {**module._parameters, **module._buffers}:
            return f"its {axis.tensor} is computed from other tensors (a parametrisation)"
    return ""


def tie_heads(table: SlotTable, heads: list[HeadTable], lost: dict[str, str], observation: Observation) -> set[str]:
    """Tie query, key, value and output channels of every attention; return the layers whose outputs are inside one."""
    for head in heads:
        core, width = head.call.layer, head.call.head_width
        if "#" in core or any("#" in layer for layer in [head.output, *(x for x, _ in head.inputs)]):
            table.block(table.slots(core.split("#")[0], Side.OUT), f"{core}: its projections are called twice")
            continue
        for i, slot in enumerate(table.slots(core, Side.OUT)):
            for layer, offset in head.inputs:
                table.data.join(slot, table.slot(layer, Side.OUT, offset + i))
            table.data.join(slot, table.slot(head.output, Side.IN, i))
        table.tie_units(core, Side.OUT, [i // width for i in range(len(table.slots(core, Side.OUT)))])
    inside = {layer for head in heads for layer, _ in head.inputs}
    position = {call.layer: call.position for call in observation.attentions}
    for layer in lost:
        before = [
            x.name for x in observation.layers[: position[layer]] if x.kind is LayerKind.LINEAR and "#" not in x.name
        ]
        for name in before[-3:]:
            table.block(table.slots(name, Side.OUT), f"feeds {layer}, whose heads cannot be followed")
            inside.add(name)
    return inside
