"""Assembly of a trace: groups, slices, norms and attributes from coupled channels."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from amcsearch.core import ChannelGroup, Coupling, NetworkSpec, Side
from amcsearch.graph.slices import NormSlice, Skipped, TensorSlice, Trace, WidthAttribute
from amcsearch.graph.tracing.attention import HeadTable
from amcsearch.graph.tracing.coupling import RawGroup
from amcsearch.graph.tracing.layer_types import layer_type
from amcsearch.graph.tracing.recorder import Observation, loose_dim

__all__ = ["assemble"]


def assemble(
    model: nn.Module,
    observation: Observation,
    heads: Sequence[HeadTable],
    raw: Sequence[RawGroup],
    skipped: Sequence[Skipped],
) -> Trace:
    """Name the groups after their first producer and write down where their channels live."""
    builder = _Builder(model, observation, heads)
    lost: list[Skipped] = []
    order = {layer.name: i for i, layer in enumerate(observation.layers)}
    for group in sorted(raw, key=lambda g: min(order[layer] for layer, side in g.slots if side is Side.OUT)):
        name = builder.fresh_name(
            min((layer for layer, side in group.slots if side is Side.OUT), key=order.__getitem__)
        )
        if group.units is None and any(group.problem == f"{s.name}: {s.reason}" for s in skipped if s.name == name):
            continue  # already said of the layer itself
        if group.units is None:
            lost.append(Skipped(name, group.problem))
        else:
            builder.add(name, group, order)
    network = NetworkSpec(tuple(observation.layers), tuple(builder.groups))
    return Trace(
        network,
        builder.slices,
        builder.units,
        (*skipped, *lost),
        builder.norms,
        tuple(dict.fromkeys(builder.attributes)),
    )


class _Builder:
    def __init__(self, model: nn.Module, observation: Observation, heads: Sequence[HeadTable]) -> None:
        self.model, self.observation = model, observation
        self.heads = {head.call.layer: head for head in heads}
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.taken: dict[str, int] = {}
        self.groups: list[ChannelGroup] = []
        self.slices: dict[str, tuple[TensorSlice, ...]] = {}
        self.units: dict[str, np.ndarray] = {}
        self.norms: dict[str, tuple[NormSlice, ...]] = {}
        self.attributes: list[WidthAttribute] = []

    def fresh_name(self, layer: str) -> str:
        """The layer's name; a second group that starts in the same layer is ``layer:2``."""
        self.taken[layer] = self.taken.get(layer, 0) + 1
        return layer if self.taken[layer] == 1 else f"{layer}:{self.taken[layer]}"

    def add(self, name: str, group: RawGroup, order: dict[str, int]) -> None:
        assert group.units is not None
        keys = sorted(group.slots, key=lambda key: (order[key[0]], key[1]))
        slices: list[TensorSlice] = []
        norms: list[NormSlice] = []
        couplings: list[Coupling] = []
        for layer, side in keys:
            positions = group.slots[layer, side]
            slices += self._slices(layer, side, positions)
            norms += self._norms(layer, positions)
            couplings += self._couplings(layer, side, positions.shape[1])
            self._attributes(name, layer, side, positions.shape[1])
        self.groups.append(ChannelGroup(name, group.channels, tuple(couplings), group.units.shape[1]))
        self.slices[name], self.norms[name], self.units[name] = tuple(slices), tuple(norms), group.units

    def _module(self, layer: str) -> nn.Module | None:
        try:
            module = self.model.get_submodule(self.observation.modules[layer])
        except AttributeError:
            return None
        return None if layer in self.heads else module

    def _slices(self, layer: str, side: Side, positions: np.ndarray) -> list[TensorSlice]:
        path, module = self.observation.modules[layer], self._module(layer)
        if path in self.tensors:
            return [TensorSlice(path, loose_dim(self.tensors[path]), positions, side, layer)]
        kind = None if module is None else layer_type(module)
        slices = []
        for axis in kind.axes(module) if kind is not None and module is not None else ():
            tensor = f"{path}.{axis.tensor}".lstrip(".")
            matches = axis.side is side or (self._passes(layer) and axis.side is not Side.OUT)
            if tensor in self.tensors and matches:
                where = positions % axis.period if axis.period else positions
                slices.append(TensorSlice(tensor, axis.dim, where, side, layer))
        return slices

    def _passes(self, layer: str) -> bool:
        spec = next(x for x in self.observation.layers if x.name == layer)
        return spec.is_depthwise and spec.in_channels == spec.out_channels

    def _norms(self, layer: str, positions: np.ndarray) -> list[NormSlice]:
        module = self._module(layer)
        kind = None if module is None else layer_type(module)
        if kind is None or not kind.mixes:
            return []
        spec = next(x for x in self.observation.layers if x.name == layer)
        return [NormSlice(self.observation.modules[layer], spec.out_channels, positions)]

    def _couplings(self, layer: str, side: Side, factor: int) -> list[Coupling]:
        """Every call of the layer shrinks; a layer that passes channels through shrinks on both sides."""
        module = self._module(layer)
        kind = None if module is None else layer_type(module)
        both = layer in self.heads or self._passes(layer) or (kind is not None and kind.passes and self._is_wide(layer))
        sides = (Side.IN, Side.OUT) if both else (side,)
        calls = [x.name for x in self.observation.layers if x.name == layer or x.name.startswith(f"{layer}#")]
        return [Coupling(call, s, factor) for call in calls for s in sides]

    def _is_wide(self, layer: str) -> bool:
        spec = next(x for x in self.observation.layers if x.name == layer)
        return spec.in_channels == spec.out_channels

    def _attributes(self, group: str, layer: str, side: Side, factor: int) -> None:
        if layer in self.heads:
            head = self.heads[layer]
            width = head.call.head_width
            self.attributes += [WidthAttribute(m, a, group, factor, width) for m, a in head.counts]
            self.attributes += [WidthAttribute(m, a, group, factor) for m, a in head.widths]
            return
        module = self._module(layer)
        kind = None if module is None else layer_type(module)
        if kind is None or module is None:
            return
        path, both = self.observation.modules[layer], kind.passes or self._passes(layer)
        self.attributes += [
            WidthAttribute(path, a, group, factor) for a, s in kind.attributes(module) if s is side or both
        ]
