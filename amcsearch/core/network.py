"""Networks as shapes: layers in order of execution, and the groups that couple their widths."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from amcsearch.core.errors import BadInputError
from amcsearch.core.execution import Execution
from amcsearch.core.group import ChannelGroup, Side
from amcsearch.core.layer import LayerSpec
from amcsearch.core.policy import PruningPolicy

__all__ = ["NetworkSpec"]


@dataclass(frozen=True)
class NetworkSpec:
    """Layers in order of execution, and the channel groups in order of their first layer.

    ``execution`` says which tensors are live together; it follows from the module, so networks are compared without it.

    Raises:
        BadInputError: two layers or groups of one name, or a coupling to a layer, or a tensor of a group, that does not
            exist.
    """

    layers: tuple[LayerSpec, ...]
    groups: tuple[ChannelGroup, ...]
    execution: Execution = field(default=Execution(), compare=False)

    def __post_init__(self) -> None:
        for kind, names in (
            ("layer", [x.name for x in self.layers]),
            ("group", [x.name for x in self.groups]),
        ):
            repeated = {name for name, count in Counter(names).items() if count > 1}
            if repeated:
                raise BadInputError(f"{kind} names must differ: {sorted(repeated)}")
        known = {layer.name for layer in self.layers}
        for group in self.groups:
            lost = {*(c.layer for c in group.couplings), *group.idle_layers} - known
            if lost:
                raise BadInputError(f"group {group.name!r} is coupled to unknown layers {sorted(lost)}")
        unknown = self.execution.groups - {group.name for group in self.groups}
        if unknown:
            raise BadInputError(f"live tensors depend on unknown groups {sorted(unknown)}")

    @cached_property
    def dense(self) -> PruningPolicy:
        """The policy that keeps every channel."""
        return PruningPolicy({group.name: group.channels for group in self.groups})

    @cached_property
    def layer_index(self) -> Mapping[str, int]:
        """Position of each layer by name."""
        return {layer.name: i for i, layer in enumerate(self.layers)}

    @cached_property
    def removal_matrices(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(in, out) matrices of shape (G, L): widths lost by each layer for each channel removed of a group.

        They are whole numbers for each unit of a group.
        """
        matrices = {side: np.zeros((len(self.groups), len(self.layers))) for side in Side}
        for g, group in enumerate(self.groups):
            for coupling in group.couplings:
                matrices[coupling.side][g, self.layer_index[coupling.layer]] += coupling.factor / coupling.removed
        return matrices[Side.IN], matrices[Side.OUT]

    @cached_property
    def idles(self) -> NDArray[np.bool_]:
        """Which layers (L,) nothing reads any more where a group (G,) keeps no channels: (G, L)."""
        idle = np.zeros((len(self.groups), len(self.layers)), dtype=np.bool_)
        for g, group in enumerate(self.groups):
            idle[g, [self.layer_index[name] for name in group.idle_layers]] = True
        return idle

    def kept_array(self, policy: PruningPolicy) -> NDArray[np.int64]:
        """Kept channels of each group, shape (G,), in the order of ``groups``.

        Raises:
            BadInputError: the policy names other groups, or a count that is out of range or splits a unit.
        """
        names = [group.name for group in self.groups]
        if set(policy) != set(names):
            unknown, missing = sorted(set(policy) - set(names)), sorted(set(names) - set(policy))
            raise BadInputError(f"policy does not fit the network: unknown groups {unknown}, missing groups {missing}")
        for group in self.groups:
            group.check(policy[group.name])
        return np.array([policy[name] for name in names], dtype=np.int64)

    def policy(self, kept: NDArray[np.int64]) -> PruningPolicy:
        """Return the policy of a row of kept counts, shape (G,): the inverse of ``kept_array``."""
        return PruningPolicy({group.name: int(n) for group, n in zip(self.groups, kept, strict=True)})

    def widths(self, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Channels (in, out) of every layer for kept counts (P, G): two arrays of shape (P, L)."""
        removed = np.array([group.channels for group in self.groups], dtype=np.int64) - kept
        lost_in, lost_out = self.removal_matrices
        dense_in = np.array([layer.in_channels for layer in self.layers], dtype=np.int64)
        dense_out = np.array([layer.out_channels for layer in self.layers], dtype=np.int64)
        lost = (np.rint(removed @ matrix).astype(np.int64) for matrix in (lost_in, lost_out))
        return dense_in - next(lost), dense_out - next(lost)

    def with_channels(self, policy: PruningPolicy) -> "NetworkSpec":
        """Return the shapes after removing what ``policy`` does not keep; the groups shrink too.

        Layers without outputs and idle ones are gone, and those without inputs are their bias alone. Groups that no
        layer reads any more are gone too.

        Raises:
            BadInputError: as ``kept_array``.
        """
        kept = self.kept_array(policy)
        width_in, width_out = (w[0] for w in self.widths(kept[None, :]))
        idle = self.idles[kept == 0].any(axis=0)
        left = {
            layer.name: None if is_idle else _resized(layer, int(i), int(o))
            for layer, i, o, is_idle in zip(self.layers, width_in, width_out, idle, strict=True)
        }
        shrunk = (_shrunk(group, int(n), left) for group, n in zip(self.groups, kept, strict=True))
        groups = tuple(group for group in shrunk if group is not None)
        layers = tuple(layer for layer in left.values() if layer is not None)
        return NetworkSpec(layers, groups, self.execution if kept.all() else Execution())

    def without_groups(self, lost: Collection[str]) -> "NetworkSpec":
        """Return the same layers without some groups, whose channels all stay."""
        channels = {group.name: group.channels for group in self.groups if group.name in lost}
        groups = tuple(group for group in self.groups if group.name not in channels)
        return NetworkSpec(self.layers, groups, self.execution.without(channels))


def _resized(layer: LayerSpec, in_channels: int, out_channels: int) -> LayerSpec | None:
    """The layer at other widths, its bias alone where it reads nothing, None where nothing of it is left."""
    if in_channels and out_channels:
        return layer.resized(in_channels, out_channels)
    alone = layer.bias_alone() if out_channels else None
    return alone and alone.resized(1, out_channels)


def _shrunk(group: ChannelGroup, n_keep: int, left: Mapping[str, LayerSpec | None]) -> ChannelGroup | None:
    """The group of ``n_keep`` channels, coupled to what is left of its layers; None where no layer reads it now."""
    couplings = []
    for coupling in group.couplings:
        layer = left[coupling.layer]
        if layer is not None and (layer.name == coupling.layer or coupling.side is Side.OUT):
            couplings.append(replace(coupling, layer=layer.name))
    reads, still_reads = (any(c.side is Side.IN for c in each) for each in (group.couplings, couplings))
    if not n_keep or (reads and not still_reads):
        return None
    idle = tuple(name for name in group.idle_layers if left[name] is not None)
    return replace(group, channels=n_keep, couplings=tuple(couplings), idle_layers=idle)
