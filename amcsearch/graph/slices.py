"""Traces: the shapes of a network, its channel groups, and where each channel lives in its tensors."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, ChannelGroup, Coupling, NetworkSpec, Side
from amcsearch.graph.plain_code import GridAxis
from amcsearch.graph.tracing.labels import components

__all__ = [
    "ArgumentSlice",
    "Kept",
    "NormSlice",
    "Skipped",
    "StatedSize",
    "TensorSlice",
    "Trace",
    "Vanishing",
    "WidthAttribute",
    "check_kept",
    "joined",
]

Kept = Mapping[str, NDArray[np.int64]]
"""Group name → sorted channel indices kept, of ``range(group.channels)``."""


@dataclass(frozen=True)
class TensorSlice:
    """Where the channels of a group live in one tensor.

    ``tensor`` is a state-dict name; ``positions`` (channels, factor) are indices along ``dim``. ``OUT`` is what a
    producer writes (weight rows, biases, norm vectors), ``IN`` what a consumer reads. Grouped convolutions share
    one input position among the channels of a unit, so positions of different channels may repeat.
    """

    tensor: str
    dim: int
    positions: NDArray[np.int64]
    side: Side
    layer: str


@dataclass(frozen=True)
class NormSlice:
    """Where a group lives in a norm that mixes channels: ``positions`` (channels, factor) among ``width`` channels."""

    module: str
    width: int
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class ArgumentSlice:
    """Where a group lives in a tensor that a module is given at its full width, as slopes of all heads are.

    ``positions`` (channels, factor) are indices among ``width`` along ``dim``, within each sample where the dimension
    is samples x width. ``name`` is a keyword or the number of an argument.
    """

    module: str
    name: str | int
    dim: int
    width: int
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class WidthAttribute:
    """A Python attribute that states a width: it falls by ``lost`` for every ``removed`` channels of ``group``."""

    module: str
    attribute: str
    group: str
    lost: int = 1
    removed: int = 1


@dataclass(frozen=True)
class StatedSize:
    """A number in the code of a module that states a width: what is made of it falls as a ``WidthAttribute`` does.

    ``place`` says where (``plain_code``), ``now`` what the module takes for it.
    """

    module: str
    place: GridAxis
    now: int
    group: str
    lost: int = 1
    removed: int = 1


@dataclass(frozen=True)
class Skipped:
    """A layer, operation or group that is left alone or could not be followed, and why.

    ``layers``: those whose widths the group would have changed.
    """

    name: str
    reason: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vanishing:
    """What becomes of the modules of a group that keeps no channels, by their paths.

    ``readers`` write a constant, ``writers`` nothing, and ``norms`` (also PReLU) pass on what they are given. ``idle``
    are layers of other groups that nothing reads then: they pass on what they are given, or write zeros. ``width``
    channels of zeros flow in between, so that the forward of the network runs as it is: 0 where it can. A constant is
    spread over all positions where ``spread``; else it has size 1 there, and the addition spreads it.
    """

    readers: tuple[str, ...]
    writers: tuple[str, ...]
    norms: tuple[str, ...]
    idle: tuple[str, ...] = ()
    width: int = 0
    spread: bool = False


@dataclass(frozen=True)
class Trace:
    """A module's shapes with its channel groups; holds no tensors and can be pickled.

    ``slices``, ``units``, ``norms`` and ``arguments`` are keyed by group name. ``units`` are (n_units, unit) channel
    indices that leave together: a head's channels, or one channel of each group of a grouped convolution. ``vanishing``
    names the groups that may keep no channels. ``folded`` are the layers whose computed weights were made plain first.
    """

    network: NetworkSpec
    slices: Mapping[str, tuple[TensorSlice, ...]]
    units: Mapping[str, NDArray[np.int64]]
    skipped: tuple[Skipped, ...] = ()
    norms: Mapping[str, tuple[NormSlice, ...]] = field(default_factory=dict)
    attributes: tuple[WidthAttribute, ...] = ()
    vanishing: Mapping[str, Vanishing] = field(default_factory=dict)
    arguments: Mapping[str, tuple[ArgumentSlice, ...]] = field(default_factory=dict)
    sizes: tuple[StatedSize, ...] = ()
    folded: tuple[str, ...] = ()

    def without(self, lost: Mapping[str, str]) -> "Trace":
        """Return the trace without some groups; ``lost`` maps each to the reason, which joins ``skipped``."""
        network = self.network.without_groups(lost)
        layers = {group.name: tuple(coupling.layer for coupling in group.couplings) for group in self.network.groups}
        names = {group.name for group in network.groups}
        return Trace(
            network,
            {name: value for name, value in self.slices.items() if name in names},
            {name: value for name, value in self.units.items() if name in names},
            self.skipped + tuple(Skipped(name, reason, layers[name]) for name, reason in lost.items()),
            {name: value for name, value in self.norms.items() if name in names},
            tuple(a for a in self.attributes if a.group in names),
            {name: value for name, value in self.vanishing.items() if name in names},
            {name: value for name, value in self.arguments.items() if name in names},
            tuple(size for size in self.sizes if size.group in names),
            self.folded,
        )

    def reason(self, layer: str) -> str:
        """Why a layer is left alone: by its own name, as part of a group, by the module that holds it, or by a part."""
        reasons = {skipped.name: skipped.reason for skipped in reversed(self.skipped)}
        if layer in reasons:
            return reasons[layer]
        groups = [skipped.reason for skipped in self.skipped if layer in skipped.layers]
        if groups:
            return groups[0]
        holding = [name for name in reasons if name and layer.startswith(f"{name}.")]
        if holding:
            return reasons[max(holding, key=len)]
        begins = f"{layer.split('#')[0]}"
        inside = [name for name in reasons if name.startswith((f"{begins}.", f"{begins}:"))]
        return reasons[inside[0]] if inside else "none of the channels that it reads and writes can be pruned"


def joined(trace: Trace, names: Sequence[str]) -> Trace | None:
    """Return the trace with groups of equally many channels as one, under the first's name; None if units clash.

    Channel c of the joint group is channel c of each; units that share a channel leave together.
    """
    groups = [group for group in trace.network.groups if group.name in names]
    first = groups[0].name
    ties = [np.stack(np.broadcast_arrays(u[:, :1], u), -1).reshape(-1, 2) for u in (trace.units[n] for n in names)]
    number = components(groups[0].channels, ties)
    roots, counts = np.unique(number, return_counts=True)
    if len(roots) < 2 or len(set(counts.tolist())) > 1:
        return None
    units = np.argsort(number, kind="stable").reshape(len(roots), -1)
    lost: dict[tuple[str, Side], Fraction] = defaultdict(Fraction)
    for coupling in (coupling for group in groups for coupling in group.couplings):
        lost[coupling.layer, coupling.side] += Fraction(coupling.factor, coupling.removed)
    order = trace.network.layer_index
    couplings = tuple(
        Coupling(layer, side, n.numerator, n.denominator)
        for (layer, side), n in sorted(lost.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    )
    whole = ChannelGroup(first, groups[0].channels, couplings, units.shape[1])
    others = {group.name for group in groups} - {first}
    attributes = (replace(a, group=first if a.group in others else a.group) for a in trace.attributes)
    return Trace(
        NetworkSpec(
            trace.network.layers,
            tuple(whole if g.name == first else g for g in trace.network.groups if g.name not in others),
            trace.network.execution.joined(others, first),
        ),
        {n: _slices_of(trace, groups) if n == first else s for n, s in trace.slices.items() if n not in others},
        {n: units if n == first else u for n, u in trace.units.items() if n not in others},
        trace.skipped,
        {n: _norms_of(trace, groups) if n == first else s for n, s in trace.norms.items() if n not in others},
        tuple(dict.fromkeys(attributes)),
        arguments={name: value for name, value in trace.arguments.items() if name not in {first, *others}},
        sizes=tuple(replace(size, group=first if size.group in others else size.group) for size in trace.sizes),
        folded=trace.folded,
    )


def _slices_of(trace: Trace, groups: Sequence[ChannelGroup]) -> tuple[TensorSlice, ...]:
    positions: dict[tuple[str, int, Side, str], list[NDArray[np.int64]]] = defaultdict(list)
    for part in (part for group in groups for part in trace.slices[group.name]):
        positions[part.tensor, part.dim, part.side, part.layer].append(part.positions)
    return tuple(
        TensorSlice(tensor, dim, np.concatenate(parts, 1), side, layer)
        for (tensor, dim, side, layer), parts in positions.items()
    )


def _norms_of(trace: Trace, groups: Sequence[ChannelGroup]) -> tuple[NormSlice, ...]:
    positions: dict[tuple[str, int], list[NDArray[np.int64]]] = defaultdict(list)
    for part in (part for group in groups for part in trace.norms.get(group.name, ())):
        positions[part.module, part.width].append(part.positions)
    return tuple(NormSlice(module, width, np.concatenate(parts, 1)) for (module, width), parts in positions.items())


def check_kept(trace: Trace, kept: Kept) -> dict[str, NDArray[np.int64]]:
    """Return the REMOVED channels of each group that loses some; groups not named keep everything.

    Raises:
        BadInputError: an unknown group, indices that are not sorted or out of range, none of a group that cannot
            vanish, or a split unit.
    """
    groups = {group.name: group for group in trace.network.groups}
    removed = {}
    for name, indices in kept.items():
        if name not in groups:
            raise BadInputError(f"kept names unknown group {name!r}; known are {sorted(groups)}")
        group, index = groups[name], np.asarray(indices, dtype=np.int64)
        least = int(not group.can_vanish)
        is_sorted = index.ndim == 1 and not (np.diff(index) < 1).any()
        if not is_sorted or len(index) < least or (len(index) and not 0 <= index[0] <= index[-1] < group.channels):
            raise BadInputError(
                f"group {name!r}: kept channels must be sorted, distinct and {'at least one ' * least}"
                f"of 0 … {group.channels - 1}"
            )
        present = np.zeros(group.channels, dtype=bool)
        present[index] = True
        split = present[trace.units[name]]
        if (split.any(axis=1) != split.all(axis=1)).any():
            raise BadInputError(f"group {name!r}: its channels leave in units of {group.unit}; kept splits a unit")
        if index.size < group.channels:
            removed[name] = np.flatnonzero(~present)
    return removed
