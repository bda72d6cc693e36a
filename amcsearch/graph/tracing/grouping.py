"""Channel groups from labels: units that occupy the same numbers of positions in the same tensors make one group.

A unit is a set of slots that leave together. Its positions in every tensor axis, and in the input and the output of
every layer, are its places. Units with equal places form a group, which is cut into channels as finely as the widths of
its layers allow: a head of width d is a unit of d channels.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import Side
from amcsearch.graph.tracing.flow import Choice, Crossing, Split
from amcsearch.graph.tracing.labels import Axis, Slots, varying

OUTPUT: Final = "part of the network's output, which is never pruned"

__all__ = ["OUTPUT", "Place", "RawGroup", "grouped", "of_all_rows", "renumbered_channels", "settle"]

Indices = NDArray[np.int64]
Place = Axis | tuple[str, Side]
"""An axis of a tensor, or one side of a layer."""


@dataclass(frozen=True)
class RawGroup:
    """Units of one signature; ``positions`` maps each place to (channels, factor).

    ``units`` (n_units, unit) are channel indices; ``problem`` says why the group cannot be offered, if it cannot.
    """

    positions: Mapping[Place, Indices]
    units: Indices
    slots: Indices
    problem: str = ""


def settle(slots: Slots, splits: Sequence[Split], crossings: Sequence[Crossing], choices: Sequence[Choice]) -> None:
    """Decide, for every dimension that plain code cuts into a grid, along which axis of the grid channels leave.

    Where a slice along an axis leaves as a whole already (a head in (heads, width)), it is that axis, and so do the
    other slices. Otherwise it is the longest, and channels at the same place of the other axes leave together (the
    halves of a chunk, the groups of a channel shuffle), so that the grid stays one.

    Where a grid meets labels of one of its axes (a rotation of each head's channels, a scale of each head), those keep
    their size if the grid shrinks along the other axes, and else leave with it.
    """
    units: Indices | None = None
    for split in splits:
        units = slots.units() if units is None else units
        labels = split.labels.numpy()
        grid = np.where(labels > 0, units[np.maximum(labels, 0)], labels)
        axes = range(grid.ndim - split.axes, grid.ndim)
        if any(_is_whole(grid, axis) for axis in axes):
            continue
        whole = {axis: _whole_slices(grid, axis) for axis in axes}
        most = max(axes, key=whole.__getitem__)
        if whole[most]:
            first = split.labels
            for axis in range(grid.ndim):
                first = first if axis == most else first.narrow(axis, 0, 1)
            slots.together(first, split.labels)
            units = None
            continue
        longest = max(axes, key=lambda axis: grid.shape[axis])
        for axis in axes:
            if axis != longest:
                slots.together(split.labels.narrow(axis, 0, 1), split.labels)
        units = None
    for crossing in crossings:
        units = slots.units() if units is None else units
        labels = crossing.grid.numpy()
        grid = np.where(labels > 0, units[np.maximum(labels, 0)], labels)
        spread = [axis for axis in varying(crossing.grid) if axis not in varying(crossing.other)]
        if any(_is_whole(grid, axis) for axis in spread):
            slots.block(crossing.other, crossing.reason)
        else:
            slots.together(crossing.grid, crossing.other)
            units = None
    _keep_widths(slots, choices)


def _keep_widths(slots: Slots, choices: Sequence[Choice]) -> None:
    units = slots.units() if choices else np.zeros(0, dtype=np.int64)
    for choice in choices:
        heads = np.unique(np.concatenate([units[label[label > 0].numpy()] for label in choice.heads]))
        blocked = np.concatenate([np.zeros(0, dtype=np.int64), *(numbers for numbers, _ in slots.blocked)])
        if len(heads) > 1 and not np.isin(heads, units[blocked]).all():
            slots.block(choice.widths, choice.reason)


def _is_whole(grid: Indices, axis: int) -> bool:
    """Whether each slice along an axis is of one unit."""
    moved = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    return bool((moved == moved[:, :1]).all())


def _whole_slices(grid: Indices, axis: int) -> int:
    """How many slices along an axis are of several channels of one unit."""
    moved = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    return int(((moved == moved[:, :1]) & (moved > 0)).all(axis=1).sum()) if moved.shape[1] > 1 else 0


def grouped(
    slots: Slots, layers: Mapping[str, tuple[Indices | None, Indices | None]], of_heads: Collection[str] = ()
) -> Iterator[RawGroup]:
    """Yield the groups that some layer writes, in no particular order.

    Args:
        slots: all relations, splits settled.
        layers: slots (n, width) of the input and output channels of every layer, or (n, rows, width) of channels that
            leave with all their rows; None where they hold none.
        of_heads: layers whose units are heads, which a layer may write as one number each (a bias of each head).
    """
    units, channels = slots.units(), slots.channels()
    all_places: list[Place] = [*slots.axes]
    vectors: list[Indices] = [np.arange(axis.base, axis.base + axis.size) for axis in slots.axes]
    for layer, sides in layers.items():
        for side, vector in zip((Side.IN, Side.OUT), sides, strict=True):
            for labels in vector if vector is not None else ():
                all_places.append((layer, side))
                vectors.append(np.maximum(labels if labels.ndim == 1 else of_all_rows(labels, units), 0))
    produced = slots.is_produced()
    reasons: dict[int, str] = {}
    for blocked, reason in sorted(slots.blocked, key=lambda entry: entry[1] != OUTPUT):
        for unit in np.unique(units[blocked]).tolist():
            reasons.setdefault(unit, reason)
    by_signature: dict[tuple[tuple[int, int], ...], list[tuple[int, dict[int, Indices]]]] = defaultdict(list)
    for unit, here in _by_unit(units, vectors, set(units[produced].tolist())):
        by_signature[tuple((place, len(positions)) for place, positions in here.items())].append((unit, here))
    heads = {i for i, place in enumerate(all_places) if isinstance(place, tuple) and place[0] in of_heads}
    for signature, members in by_signature.items():
        reason = next((reasons[unit] for unit, _ in members if unit in reasons), "")
        is_head = any(place in heads for place, _ in signature)
        yield _group(all_places, vectors, produced, channels, signature, members, reason, is_head)


def of_all_rows(labels: Indices, units: Indices) -> Indices:
    """Labels (width,) of channels that have one in each row, (rows, width): 0 where not all rows leave together."""
    of_row = units[np.maximum(labels, 0)]
    return np.where((of_row == of_row[:1]).all(axis=0), labels[0], 0)


def _by_unit(units: Indices, vectors: Sequence[Indices], wanted: set[int]) -> Iterator[tuple[int, dict[int, Indices]]]:
    """Yield each wanted unit with its positions by place."""
    number = np.concatenate([np.full(len(vector), i) for i, vector in enumerate(vectors)])
    position = np.concatenate([np.arange(len(vector)) for vector in vectors])
    slot = np.concatenate(vectors)
    unit = np.where(slot > 0, units[slot], 0)
    order = np.lexsort((position, number, unit))
    unit, number, position = unit[order], number[order], position[order]
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(unit)], strict=True):
        if int(unit[start]) in wanted:
            inner = np.flatnonzero(np.diff(number[start:end], prepend=-1)) + start
            yield (
                int(unit[start]),
                {int(number[a]): position[a:b] for a, b in zip(inner, [*inner[1:], end], strict=True)},
            )


def _group(
    all_places: Sequence[Place],
    vectors: Sequence[Indices],
    produced: NDArray[np.bool_],
    channels: Indices,
    signature: tuple[tuple[int, int], ...],
    members: Sequence[tuple[int, dict[int, Indices]]],
    reason: str,
    is_head: bool,
) -> RawGroup:
    """Cut the units of one signature into channels, numbered by their first position."""
    first = members[0][1]
    sides = [len(np.unique(vectors[p][first[p]])) for p, _ in signature if not isinstance(all_places[p], Axis)]
    if is_head:
        sides = [count for count in sides if count > 1] or sides
    axes = [count for place, count in signature if produced[vectors[place][first[place]]].any()]
    width = gcd(*(sides or axes))
    positions: dict[Place, Indices] = {}
    for place, count in signature:
        stacked = np.stack([here[place] for _, here in members])  # (units, count)
        if count % width == 0:
            blocks = stacked.reshape(len(members), width, -1)
            if len(set(channels[vectors[place][blocks[0, 0]]].tolist())) > 1:  # no map of one channel: parts, one each
                blocks = stacked.reshape(len(members), -1, width).swapaxes(1, 2)
            positions[all_places[place]] = blocks.reshape(len(members) * width, -1)
        elif width % count == 0:
            positions[all_places[place]] = np.repeat(stacked, width // count, axis=1).reshape(len(members) * width, 1)
        else:  # each channel has the positions of its whole unit
            positions[all_places[place]] = np.repeat(stacked, width, axis=0)
    slots = np.unique(np.concatenate([vectors[p][here[p]] for _, here in members for p in here]))
    problem = reason
    if not problem and len(members) == 1:
        problem = f"its {width} channels can only leave all together"
    units = np.arange(len(members) * width).reshape(len(members), width)
    return RawGroup(positions, units, slots, problem)


def renumbered_channels(group: RawGroup, first: Place) -> RawGroup:
    """Return the group with its channels in the order of their positions at ``first``."""
    order = np.argsort(group.positions[first].min(axis=1), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    units = np.sort(rank[group.units], axis=1)
    units = units[np.argsort(units[:, 0])]
    return RawGroup({p: x[order] for p, x in group.positions.items()}, units, group.slots, group.problem)
