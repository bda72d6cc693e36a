"""Labels: which channel every element of a tensor belongs to, and which channels must leave together.

A slot is one index of one axis of a parameter or buffer. A label tensor has the shape of the tensor that it labels and
holds slot numbers: an element exists as long as its slot is kept. A tensor has a label tensor for every axis of
channels (a weight: its rows and its columns). A label that does not vary along a dimension has stride 0 there, so that
following a network of pictures costs little. ``NONE`` marks what belongs to no channel, and ``FRESH`` what plain code
fills in (zeros, ones), which goes with anything.

Two relations are gathered: slots that are one channel (the same index of layers that feed each other), and slots that
leave together (the channels of a head). Both are solved at the end, by ``components``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FRESH", "NONE", "Axis", "Slots", "components", "loose_dim", "small", "tidy", "varying"]

NONE: Final = 0
FRESH: Final = -1
_MANY: Final = 2048  # pairs beyond which repeated ones are worth removing

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """The slots of one axis of one tensor: ``base`` … ``base + size - 1``. ``names``: a shared tensor has several."""

    names: tuple[str, ...]
    dim: int
    base: int
    size: int


def varying(label: Tensor) -> tuple[int, ...]:
    """Dimensions along which a label tensor may vary."""
    return tuple(d for d, (n, stride) in enumerate(zip(label.shape, label.stride(), strict=True)) if n > 1 and stride)


def small(label: Tensor) -> Tensor:
    """Return the label tensor with size 1 where it does not vary."""
    for dim, (size, stride) in enumerate(zip(label.shape, label.stride(), strict=True)):
        if size > 1 and not stride:
            label = label.narrow(dim, 0, 1)
    return label


def tidy(label: Tensor) -> Tensor:
    """Return the same labels with stride 0 along every dimension where they do not vary."""
    shape = label.shape
    label = small(label)
    for dim in varying(label):
        first = label.narrow(dim, 0, 1)
        if torch.equal(first, label.narrow(dim, 1, 1)) and bool((label == first).all()):
            label = first
    return label.expand(shape)


class Slots:
    """The slots of some tensors, and the relations between them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        names: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            names.setdefault(id(tensor), []).append(name)
        self.size = 1
        self.axes: list[Axis] = []
        self.of: dict[int, tuple[Tensor, ...]] = {}  # id of a tensor → its label tensors
        self._same: list[Indices] = []
        self._together: list[Indices] = []
        self.blocked: list[tuple[Indices, str]] = []
        self.produced: list[Indices] = []
        for tensor in tensors.values():
            if id(tensor) not in self.of:
                self.of[id(tensor)] = tuple(self._labelled(tensor, tuple(names[id(tensor)])))

    def _labelled(self, tensor: Tensor, names: tuple[str, ...]) -> Iterable[Tensor]:
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                self.axes.append(Axis(names, dim, self.size, size))
                shape = [1] * tensor.ndim
                shape[dim] = size
                yield self.fresh(size).view(shape).expand(tensor.shape)

    def fresh(self, count: int) -> Tensor:
        """Return new slots, (count,), that belong to no tensor yet."""
        first, self.size = self.size, self.size + count
        return torch.arange(first, self.size)

    def same(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Element by element, the labels of two tensors that broadcast are one channel.

        Where one of them belongs to no channel, the other is blocked with ``reason``.
        """
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._same.append(_pairs(a, b))
        self.block(a[b == NONE], reason)
        self.block(b[a == NONE], reason)

    def together(self, a: Tensor, b: Tensor) -> None:
        """Element by element, the labels of two tensors that broadcast leave together."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]  # as above
        self._together.append(_pairs(a, b))

    def block(self, labels: Tensor, reason: str) -> None:
        """Leave alone whatever leaves together with these slots."""
        slots = np.unique(labels.numpy())
        slots = slots[slots > NONE]
        if len(slots):
            self.blocked.append((slots, reason))

    def produces(self, labels: Tensor) -> None:
        """Note slots that some layer writes: only they can make a group."""
        self.produced.append(np.unique(labels.numpy()))

    def contracted(self, label: Tensor, dims: Sequence[int]) -> Tensor:
        """Return the labels after a sum over ``dims`` (kept with size 1); what each sum reads leaves together.

        Where all sums read the same channels, the result belongs to none.
        """
        label = small(label)
        others = [d for d in range(label.ndim) if d not in dims]
        moved = label.permute(*others, *dims)
        rows = moved.reshape(int(np.prod([label.shape[d] for d in others])), -1)
        shape = [1 if d in dims else label.shape[d] for d in range(label.ndim)]
        if len(rows) == 1:
            return torch.zeros(shape, dtype=torch.int64)
        ordered = rows.sort(1).values
        sets, number = torch.unique(ordered, dim=0, return_inverse=True)
        if len(sets) == 1:
            return torch.zeros(shape, dtype=torch.int64)
        new = self.fresh(len(sets))
        self.together(sets, new[:, None])
        return new[number].reshape(shape)

    def is_produced(self) -> NDArray[np.bool_]:
        """Return for every slot whether some layer writes it."""
        mask = np.zeros(self.size, dtype=bool)
        for slots in self.produced:
            mask[slots[slots > NONE]] = True
        return mask

    def channels(self) -> Indices:
        """Return for every slot the smallest slot of its channel."""
        return components(self.size, self._same)

    def units(self) -> Indices:
        """Return for every slot the smallest slot that leaves with it."""
        return components(self.size, [*self._same, *self._together])


def _pairs(a: Tensor, b: Tensor) -> Indices:
    """Distinct pairs (n, 2) of slots at the same place."""
    pairs = torch.stack([a.reshape(-1), b.reshape(-1)], 1).numpy()
    pairs = pairs[(pairs > NONE).all(1) & (pairs[:, 0] != pairs[:, 1])]
    return np.unique(pairs, axis=0) if len(pairs) > _MANY else pairs


def components(size: int, pairs: Sequence[Indices]) -> Indices:
    """Return for each of 0 … size − 1 the smallest member of its set; the two of every pair (n, 2) are in one set."""
    root = np.arange(size)
    a, b = np.concatenate([*pairs, np.zeros((0, 2), dtype=np.int64)]).T
    while True:
        first, second = root[a], root[b]
        apart = first != second
        if not apart.any():
            return root
        a, b, first, second = a[apart], b[apart], first[apart], second[apart]
        np.minimum.at(root, np.maximum(first, second), np.minimum(first, second))
        while True:
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped


def loose_dim(tensor: Tensor) -> int:
    """Channel dimension of a parameter outside any layer: the last that is longer than one (0 if none is).

    Of the weight of a convolution on images that does not run, the first: both of its widths may be cut.
    """
    if tensor.ndim > 3 and min(tensor.shape[:2]) > 1:
        return 0
    return max((i for i, size in enumerate(tensor.shape) if size > 1), default=0)
