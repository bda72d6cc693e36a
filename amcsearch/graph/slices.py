"""Traces: the shapes of a network, its channel groups, and where each channel lives in its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, NetworkSpec, Side

__all__ = ["Kept", "NormSlice", "Skipped", "TensorSlice", "Trace", "WidthAttribute", "check_kept"]

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
class WidthAttribute:
    """A Python attribute that states a width: it falls by ``lost`` for every ``removed`` channels of ``group``."""

    module: str
    attribute: str
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
class Trace:
    """A module's shapes with its channel groups; holds no tensors and can be pickled.

    ``slices``, ``units`` and ``norms`` are keyed by group name. ``units`` are (n_units, unit) channel indices that
    leave together: a head's channels, or one channel of each group of a grouped convolution.
    """

    network: NetworkSpec
    slices: Mapping[str, tuple[TensorSlice, ...]]
    units: Mapping[str, NDArray[np.int64]]
    skipped: tuple[Skipped, ...] = ()
    norms: Mapping[str, tuple[NormSlice, ...]] = field(default_factory=dict)
    attributes: tuple[WidthAttribute, ...] = ()

    def without(self, lost: Mapping[str, str]) -> "Trace":
        """Return the trace without some groups; ``lost`` maps each to the reason, which joins ``skipped``."""
        groups = tuple(group for group in self.network.groups if group.name not in lost)
        layers = {group.name: tuple(coupling.layer for coupling in group.couplings) for group in self.network.groups}
        names = {group.name for group in groups}
        return Trace(
            NetworkSpec(self.network.layers, groups),
            {name: value for name, value in self.slices.items() if name in names},
            {name: value for name, value in self.units.items() if name in names},
            self.skipped + tuple(Skipped(name, reason, layers[name]) for name, reason in lost.items()),
            {name: value for name, value in self.norms.items() if name in names},
            tuple(a for a in self.attributes if a.group in names),
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


def check_kept(trace: Trace, kept: Kept) -> dict[str, NDArray[np.int64]]:
    """Return the REMOVED channels of each group that loses some; groups not named keep everything.

    Raises:
        BadInputError: an unknown group, indices that are not sorted, out of range or none, or a split unit.
    """
    groups = {group.name: group for group in trace.network.groups}
    removed = {}
    for name, indices in kept.items():
        if name not in groups:
            raise BadInputError(f"kept names unknown group {name!r}; known are {sorted(groups)}")
        group, index = groups[name], np.asarray(indices, dtype=np.int64)
        if (
            index.ndim != 1
            or not index.size
            or index[0] < 0
            or index[-1] >= group.channels
            or (np.diff(index) < 1).any()
        ):
            raise BadInputError(
                f"group {name!r}: kept channels must be sorted, distinct and at least one of 0 … {group.channels - 1}"
            )
        present = np.zeros(group.channels, dtype=bool)
        present[index] = True
        split = present[trace.units[name]]
        if (split.any(axis=1) != split.all(axis=1)).any():
            raise BadInputError(f"group {name!r}: its channels leave in units of {group.unit}; kept splits a unit")
        if index.size < group.channels:
            removed[name] = np.flatnonzero(~present)
    return removed
