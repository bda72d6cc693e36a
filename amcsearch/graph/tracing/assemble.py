"""Assembly of a trace: groups, slices, norms and attributes from units and the places that they occupy."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amcsearch.core import ChannelGroup, Coupling, LayerKind, NetworkSpec, Side
from amcsearch.graph.slices import NormSlice, Skipped, TensorSlice, Trace, WidthAttribute
from amcsearch.graph.tracing.flow import Cut, Split
from amcsearch.graph.tracing.grouping import Place, RawGroup, grouped, renumbered_channels
from amcsearch.graph.tracing.labels import Axis, Slots
from amcsearch.graph.tracing.layer_types import layer_type
from amcsearch.graph.tracing.recorder import Observation, loose_dim
from amcsearch.graph.tracing.width_attributes import CodeWidths

__all__ = ["Assembler"]

Indices = NDArray[np.int64]


class Assembler:
    """Writes down where the channels of each group live; groups are named after their first producer."""

    def __init__(
        self, model: nn.Module, observation: Observation, slots: Slots, code: tuple[Sequence[Split], Sequence[Cut]]
    ) -> None:
        self.observation, self.slots, self.produced = observation, slots, slots.is_produced()
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        self.specs = {layer.name: layer for layer in observation.layers}
        self.order = {layer.name: i for i, layer in enumerate(observation.layers)}
        self.layer_of = {path: name for name, path in reversed(observation.modules.items())}
        self.taken: dict[str, int] = {}
        self.code = CodeWidths(model, self.tensors, code, self.produced)
        self.unit_of = slots.units()

    def trace(self) -> Trace:
        """Return the trace of the groups that have no problem; the others are named with theirs."""
        groups = list(grouped(self.slots, self.observation.channels))
        ordered = sorted((renumbered_channels(group, self._first(group)[1]) for group in groups), key=self._start)
        lost: list[Skipped] = []
        channel_groups: list[ChannelGroup] = []
        slices: dict[str, tuple[TensorSlice, ...]] = {}
        norms: dict[str, tuple[NormSlice, ...]] = {}
        units: dict[str, Indices] = {}
        attributes: list[WidthAttribute] = []
        for group in ordered:
            name = self._fresh_name(self._first(group)[0])
            if group.problem:
                lost.append(Skipped(name, group.problem))
                continue
            couplings = tuple(self._couplings(group))
            channel_groups.append(ChannelGroup(name, group.units.size, couplings, group.units.shape[1]))
            slices[name], norms[name] = tuple(self._slices(group)), tuple(self._norms(group))
            units[name] = group.units
            attributes += self._attributes(name, group)
            attributes += self.code.of(name, group, self.unit_of)
        network = NetworkSpec(tuple(self.observation.layers), tuple(channel_groups))
        return Trace(
            network, slices, units, (*self.observation.skipped, *lost), norms, tuple(dict.fromkeys(attributes))
        )

    def _first(self, group: RawGroup) -> tuple[str, Place]:
        """The first layer that writes the group, and a place of it there."""
        written: dict[str, Place] = {}
        for place in group.positions:
            if isinstance(place, tuple) and place[1] is Side.OUT:
                written[place[0]] = place
        for place in group.positions:
            if isinstance(place, Axis):
                for layer, side, _ in self._owners(place):
                    if side is Side.OUT:
                        written.setdefault(layer, place)
        name = min(written, key=self.order.__getitem__)
        return name.split("#")[0], written[name]

    def _start(self, group: RawGroup) -> tuple[int, int]:
        name, place = self._first(group)
        return self.order[name], int(group.positions[place].min())

    def _fresh_name(self, layer: str) -> str:
        """The layer's name; a second group that starts in the same layer is ``layer:2``."""
        self.taken[layer] = self.taken.get(layer, 0) + 1
        return layer if self.taken[layer] == 1 else f"{layer}:{self.taken[layer]}"

    def _owners(self, axis: Axis) -> Iterator[tuple[str, Side, int]]:
        """Layer, side and rank among its axes of a tensor's axis, once for each name of the tensor."""
        for name in axis.names:
            path, _, leaf = name.rpartition(".")
            kind = layer_type(self.modules[path])
            layer = self.layer_of.get(path, "") if kind is not None else ""
            if kind is not None and layer:
                for rank, known in enumerate(kind.axes(self.modules[path])):
                    if (known.tensor, known.dim) == (leaf, axis.dim):
                        yield layer, known.side, rank
                continue
            yield from self._loose_owner(name, axis)

    def _loose_owner(self, name: str, axis: Axis) -> Iterator[tuple[str, Side, int]]:
        known = [name, name.removesuffix(".weight"), name.removesuffix("_weight"), name.replace("bias", "weight")]
        layer = next((x for x in known if x in self.specs), "")
        if not layer:
            return
        if self.specs[layer].kind is LayerKind.PARAMETER:
            side = Side.OUT if axis.dim == loose_dim(self.tensors[name]) else Side.IN
        else:
            side = Side.OUT if self.tensors[name].ndim == 1 or self.produced[axis.base] else Side.IN
        yield layer, side, axis.dim

    def _slices(self, group: RawGroup) -> list[TensorSlice]:
        entries = []
        default = self._first(group)[0]
        for place, positions in group.positions.items():
            if not isinstance(place, Axis):
                continue
            owners = list(self._owners(place)) or [(default, Side.OUT, 9)]
            for name in place.names:
                layer, side, rank = next((o for o in owners if self._is_named(name, o[0])), owners[0])
                entries.append((self.order[layer], side, rank, TensorSlice(name, place.dim, positions, side, layer)))
        entries.sort(key=lambda entry: entry[:3])
        return [entry[3] for entry in entries]

    def _is_named(self, tensor: str, layer: str) -> bool:
        return tensor == layer or tensor.rpartition(".")[0] == self.observation.modules[layer]

    def _couplings(self, group: RawGroup) -> Iterator[Coupling]:
        widths: dict[tuple[str, Side], int] = {}
        for place, positions in group.positions.items():
            if isinstance(place, tuple):
                widths[place] = positions.shape[1]
            else:
                for layer, side, factor in self._parameters(place, positions.shape[1]):
                    widths[layer, side] = widths.get((layer, side), 0) + factor
        for (layer, side), factor in sorted(widths.items(), key=lambda item: self._rank(*item[0])):
            yield Coupling(layer, side, factor)

    def _parameters(self, axis: Axis, count: int) -> Iterator[tuple[str, Side, int]]:
        """Widths lost by a parameter that is counted as rows of a width."""
        for name in axis.names:
            spec = self.specs.get(name)
            if spec is None or spec.kind is not LayerKind.PARAMETER or self.observation.modules[name] != name:
                continue
            if axis.dim == loose_dim(self.tensors[name]):
                yield name, Side.OUT, count
            else:
                yield name, Side.IN, count * spec.in_channels // axis.size
            return

    def _rank(self, layer: str, side: Side) -> tuple[int, Side, int]:
        base = layer.split("#")[0]
        return self.order.get(base, self.order[layer]), side, self.order[layer]

    def _norms(self, group: RawGroup) -> Iterator[NormSlice]:
        for (layer, _), positions in self._sides(group, Side.OUT):
            path = self.observation.modules[layer]
            kind = layer_type(self.modules.get(path))
            if kind is not None and kind.mixes and "#" not in layer:
                yield NormSlice(path, self.specs[layer].out_channels, positions)

    @staticmethod
    def _sides(group: RawGroup, side: Side) -> Iterator[tuple[tuple[str, Side], Indices]]:
        for place, positions in group.positions.items():
            if isinstance(place, tuple) and place[1] is side:
                yield place, positions

    def _attributes(self, name: str, group: RawGroup) -> Iterator[WidthAttribute]:
        """Integers of the layers that state a width."""
        for side in Side:
            for (layer, _), positions in sorted(self._sides(group, side), key=lambda item: self.order[item[0][0]]):
                path = self.observation.modules[layer]
                kind = layer_type(self.modules.get(path))
                if kind is not None and "#" not in layer:
                    for attribute, stated in kind.attributes(self.modules[path]):
                        if stated is side:
                            yield WidthAttribute(path, attribute, name, positions.shape[1])
