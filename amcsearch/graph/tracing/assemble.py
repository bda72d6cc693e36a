"""Assembly of a trace: groups, slices, norms and attributes from units and the places that they occupy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import gcd

import numpy as np
from numpy.typing import NDArray
from torch import nn

from amcsearch.core import ChannelGroup, Coupling, LayerKind, LayerSpec, NetworkSpec, Side, Stored, described
from amcsearch.graph.slices import NormSlice, Skipped, TensorSlice, Trace, WidthAttribute
from amcsearch.graph.tracing.flow import Cut, Shape, Split
from amcsearch.graph.tracing.grouping import Place, RawGroup, grouped, renumbered_channels
from amcsearch.graph.tracing.labels import Axis, Slots, loose_dim
from amcsearch.graph.tracing.layer_types import layer_type
from amcsearch.graph.tracing.live_tensors import LiveLog, SlotsOf
from amcsearch.graph.tracing.recorder import Observation
from amcsearch.graph.tracing.width_attributes import CodeWidths, Guess

__all__ = ["Assembler"]

Indices = NDArray[np.int64]


class Assembler:
    """Writes down where the channels of each group live; groups are named after their first producer."""

    def __init__(
        self,
        model: nn.Module,
        observation: Observation,
        slots: Slots,
        code: tuple[Sequence[Split], Sequence[Cut], Sequence[Shape]],
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
        self.guesses: dict[str, list[Guess]] = {"": list(self.code.pins())}

    def trace(self, live: LiveLog) -> Trace:
        """Return the trace of the groups that have no problem; the others are named with theirs."""
        ordered = sorted(self._groups(), key=lambda entry: (self.order[entry[0]], entry[1]))
        lost: list[Skipped] = []
        channel_groups: list[ChannelGroup] = []
        slices: dict[str, tuple[TensorSlice, ...]] = {}
        norms: dict[str, tuple[NormSlice, ...]] = {}
        units: dict[str, Indices] = {}
        channels: dict[str, tuple[Indices, int]] = {}  # units of slots, and how many channels they are
        attributes: list[WidthAttribute] = []
        for layer, _, group in ordered:
            name = self._fresh_name(layer)
            if group.problem:
                lost.append(Skipped(name, group.problem, _layers(group)))
                continue
            try:
                couplings = tuple(self._couplings(group))
                whole = ChannelGroup(name, group.units.size, couplings, group.units.shape[1])
                parts, mixing = tuple(self._slices(group, layer)), tuple(self._norms(group))
                stated = [*self._attributes(name, group), *self.code.of(name, group, self.unit_of)]
            except Exception as error:  # a place of a kind not thought of costs this group alone
                lost.append(
                    Skipped(name, f"its channels cannot be assigned to weights: {described(error)}", _layers(group))
                )
                continue
            channel_groups.append(whole)
            slices[name], norms[name], units[name] = parts, mixing, group.units
            channels[name] = np.unique(self.unit_of[group.slots]), group.units.size
            attributes += stated
            self.guesses[name] = list(self.code.guesses(name, group, self.unit_of))
        execution, folded = live.execution(SlotsOf.of(self.unit_of, channels))
        network = NetworkSpec(tuple(self._stored(folded, chain(*slices.values()))), tuple(channel_groups), execution)
        return Trace(
            network, slices, units, (*self.observation.skipped, *lost), norms, tuple(dict.fromkeys(attributes))
        )

    def _stored(self, folded: Mapping[str, str], parts: Iterable[TensorSlice]) -> Iterator[LayerSpec]:
        """Yield the layers with what a file stores of them.

        ``folded`` maps a batch norm to its convolution, by path; ``parts`` are those of all groups.
        """
        leaving = {(part.tensor, self.tensors[part.tensor].shape[part.dim]) for part in parts}
        embeddings = {id(x.weight) for x in self.modules.values() if isinstance(x, nn.Embedding)}
        for layer in self.observation.layers:
            path = self.observation.modules[layer.name]
            weight = getattr(self.modules.get(path), "weight", None)
            if layer.kind is LayerKind.BATCH_NORM and path in folded:
                convolution = self.specs.get(self.layer_of.get(folded[path], ""))
                has_bias = convolution is not None and convolution.has_bias
                yield replace(layer, stored=Stored.NOTHING if has_bias else Stored.BIAS)
            elif layer.kind is LayerKind.LINEAR and not layer.has_weight and id(weight) in embeddings:
                yield replace(layer, stored=Stored.COPY)
            elif layer.is_product and path in self.tensors and (path, layer.conv_groups) not in leaving:
                yield replace(layer, stored=Stored.ELSEWHERE)
            else:
                yield layer

    def _groups(self) -> Iterator[tuple[str, int, RawGroup]]:
        """Yield the groups of channels that layers write, with the first such layer and position."""
        of_heads = {call.layer for call in self.observation.attentions}
        of_heads |= {
            x.name for x in self.specs.values() if x.is_product and self.observation.modules[x.name] not in self.tensors
        }
        for group in grouped(self.slots, self.observation.channels, of_heads):
            written: dict[str, Place] = {}
            for place in group.positions:
                if isinstance(place, tuple) and place[1] is Side.OUT:
                    written[place[0]] = place
            if not written:  # of parameters that no layer reads
                continue
            for place in group.positions:
                for layer, side, _ in self._owners(place) if isinstance(place, Axis) else ():
                    if side is Side.OUT:
                        written.setdefault(layer, place)
            name = min(written, key=self.order.__getitem__)
            numbered = renumbered_channels(group, written[name])
            yield name.split("#")[0], int(numbered.positions[written[name]].min()), numbered

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

    def _slices(self, group: RawGroup, default: str) -> list[TensorSlice]:
        entries = []
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
        widths: dict[tuple[str, Side], int] = {}  # lost by a unit
        for place, positions in group.positions.items():
            count = len(np.unique(positions[group.units[0]]))
            if isinstance(place, tuple):
                widths[place] = count
            else:
                for layer, side, lost in self._parameters(place, count):
                    widths[layer, side] = widths.get((layer, side), 0) + lost
        for (layer, side), lost in sorted(widths.items(), key=lambda item: self._rank(*item[0])):
            yield Coupling(layer, side, *_reduced(lost, group.units.shape[1]))

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
        for path, side, positions in self._modules_of(group):
            kind = layer_type(self.modules[path])
            for attribute, stated in kind.attributes(self.modules[path]) if kind is not None else ():
                if stated is side:
                    lost = len(np.unique(positions[group.units[0]]))
                    yield WidthAttribute(path, attribute, name, *_reduced(lost, group.units.shape[1]))

    def _modules_of(self, group: RawGroup) -> Iterator[tuple[str, Side, Indices]]:
        """Modules, sides and positions of a group; those that ran in training only are known by their tensors."""
        for side in Side:
            for (layer, _), positions in sorted(self._sides(group, side), key=lambda item: self.order[item[0][0]]):
                if self.observation.modules[layer] in self.modules and "#" not in layer:
                    yield self.observation.modules[layer], side, positions
        axes = [(place, positions) for place, positions in group.positions.items() if isinstance(place, Axis)]
        for place, positions in axes:
            for tensor in place.names:
                path, _, leaf = tensor.rpartition(".")
                kind = layer_type(self.modules[path])
                for axis in kind.axes(self.modules[path]) if kind is not None and path not in self.layer_of else ():
                    if (axis.tensor, axis.dim) == (leaf, place.dim):
                        yield path, axis.side, positions


def _layers(group: RawGroup) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place[0] for place in group.positions if isinstance(place, tuple)))


def _reduced(lost: int, channels: int) -> tuple[int, int]:
    """Return widths lost for channels removed, without a common divisor."""
    divisor = gcd(lost, channels)
    return lost // divisor, channels // divisor
