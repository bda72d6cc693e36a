"""Which kernels a layer becomes, learnt from the runtime's own optimised graphs; at one pair of widths, or at many.

Whether ONNX Runtime keeps a layer in its blocked layout, and where it reorders between layouts, depends on how widths
divide: by powers of two up to a block, and on whether a width fills one. A width of 1 is a case of its own (a bias of
one number is not fused to its product). Of a grouped convolution the widths of one group count: with 16 channels each
it stays in the blocked layout, with 8 it does not, whatever all groups have together. These properties of both widths
are the features; the kernels of a layer never seen are those of the seen layers with the most properties in common,
averaged where several are equally near (a residual block's two convolutions differ only in what is fused to them).
Layers of other networks are asked where they have clearly more in common.

Widths of equal properties are a class, and become the same kernels. Sorted by class, the pairs of widths at which a
layer becomes so many of a kernel are a few blocks of a grid (``WidthGrid``), and a surface prices a block by matrix
products: faster than pair by pair where most of the pairs are asked for.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerSpec
from amcsearch.costs.distinct import distinct_places
from amcsearch.costs.latency.cache import is_plain
from amcsearch.costs.latency.kernels.signature import signature
from amcsearch.costs.latency.kernels.surface import AnySurface

__all__ = ["Lowering", "WidthGrid"]

_OTHERS_GAIN: Final = 1  # properties in common that being of this network is worth
_NO_BLOCK: Final = 16  # widths are told apart up to this divisor where the runtime has no blocked layout
_SPARSE: Final = 16  # pairs of a grid to one that is asked for: with more it is faster to go pair by pair


class Lowering:
    """Kernels by width of the layers of one signature.

    Args:
        seen: layers, their kernels (how many of each one layer becomes, {} if it was folded away), and how many such
            layers were seen.
        block: channels in a block of the runtime's layout, 0 if it has none.
        others: kernels of layers of the signature in other networks too.
    """

    def __init__(
        self,
        observed: Sequence[tuple[LayerSpec, Mapping[str, float], int]],
        block: int,
        others: "Lowering | None" = None,
    ) -> None:
        self._others = others
        steps = [2]
        while steps[-1] < (block or _NO_BLOCK):
            steps.append(2 * steps[-1])
        self._steps = tuple(steps)
        self._groups = max(signature(observed[0][0]).conv_groups, 1)
        totals: dict[tuple[bool, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        layers: dict[tuple[bool, ...], int] = defaultdict(int)
        widths = np.array([(layer.in_channels, layer.out_channels) for layer, _, _ in observed], dtype=np.int64)
        classes = self.classes(widths).tolist()
        properties = {number: self._properties(number) for pair in classes for number in pair}
        for (c_in, c_out), (_, kernels, n_layers) in zip(classes, observed, strict=True):
            features = properties[c_in] + properties[c_out]
            layers[features] += n_layers
            for kernel, count in kernels.items():
                totals[features][kernel] += n_layers * count
        self._table = np.array(list(layers), dtype=np.int64)
        self._layers = list(layers.values())
        self._totals = [totals[features] for features in layers]
        self._known: dict[tuple[bool, ...], Mapping[str, float]] = {}

    def _features(self, layer: LayerSpec) -> tuple[bool, ...]:
        c_in, c_out = self.classes(np.array([layer.in_channels, layer.out_channels])).tolist()
        return self._properties(c_in) + self._properties(c_out)

    def kernels(self, layer: LayerSpec) -> Mapping[str, float]:
        """How many of each kernel a layer of this signature becomes, on average."""
        return self._nearest(self._features(layer))

    def counts(self, widths: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """As ``kernels`` for many widths (in, out), (L, 2): how many of each kernel at each of them, (L,)."""
        (rows, at_in), (columns, at_out) = (distinct_places(self.classes(width)) for width in widths.T)
        both, pair_of = distinct_places(at_in * len(columns) + at_out)
        pairs = [(int(rows[pair // len(columns)]), int(columns[pair % len(columns)])) for pair in both.tolist()]
        return {name: count[pair_of] for name, count in self._by_class(pairs).items()}

    def classes(self, widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Properties of widths of any shape, a number each: of one channel, how many steps divide it, below a block."""
        widths = widths // self._groups
        divided = sum((widths % step == 0).astype(np.int64) for step in self._steps)
        return np.asarray(2 * (divided + (len(self._steps) + 1) * (widths == 1)) + (widths < self._steps[-1]))

    def counts_by_class(self, c_in: NDArray[np.int64], c_out: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """How many of each kernel at every pair of ``classes`` (A,), (B,): (A, B)."""
        pairs = list(product(c_in.tolist(), c_out.tolist()))
        shape = (len(c_in), len(c_out))
        return {name: count.reshape(shape) for name, count in self._by_class(pairs).items()}

    def _by_class(self, pairs: Sequence[tuple[int, int]]) -> dict[str, NDArray[np.float64]]:
        """How many of each kernel at pairs of classes (in, out): (C,) each."""
        of_pairs = [self._nearest(self._properties(c_in) + self._properties(c_out)) for c_in, c_out in pairs]
        names = dict.fromkeys(name for kernels in of_pairs for name in kernels)
        return {name: np.array([kernels.get(name, 0.0) for kernels in of_pairs]) for name in names}

    def _properties(self, number: int) -> tuple[bool, ...]:
        single, divided = divmod(number // 2, len(self._steps) + 1)
        return single == 1, number % 2 == 1, *(step < divided for step in range(len(self._steps)))

    def _distance(self, features: tuple[bool, ...]) -> NDArray[np.int64]:
        """Properties in which every row differs."""
        return np.asarray(np.abs(self._table - np.array(features, dtype=np.int64)).sum(axis=1), dtype=np.int64)

    def _nearest(self, features: tuple[bool, ...]) -> Mapping[str, float]:
        if features not in self._known:
            distance = self._distance(features)
            if self._others is not None and self._others._distance(features).min() + _OTHERS_GAIN < distance.min():
                return self._others._nearest(features)
            nearest = np.flatnonzero(distance == distance.min())
            layers = sum(self._layers[i] for i in nearest)
            counts: dict[str, float] = defaultdict(float)
            for i in nearest:
                for kernel, total in self._totals[i].items():
                    counts[kernel] += total / layers
            self._known[features] = dict(counts)
        return self._known[features]


@dataclass(frozen=True)
class _Axis:
    """Distinct widths (W,) sorted by class, which of them each width asked for is, (L,), the classes, their ends."""

    widths: NDArray[np.int64]
    index: NDArray[np.int64]
    classes: NDArray[np.int64]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, widths: NDArray[np.int64], lowering: Lowering) -> "_Axis":
        distinct, index = distinct_places(widths)
        classes = lowering.classes(distinct)
        order = np.argsort(classes, kind="stable")
        in_order, starts = np.unique(classes[order], return_index=True)
        return cls(distinct[order], np.argsort(order)[index], in_order, (*starts.tolist(), len(order)))


class WidthGrid:
    """Every pair of the distinct widths of a layer that is not depthwise.

    Args:
        layer: which layer.
        widths: (in, out), (L, 2), that keep its signature.
        lowering: of its signature.
    """

    def __init__(self, layer: LayerSpec, widths: NDArray[np.int64], lowering: Lowering) -> None:
        self._layer, self._lowering = layer, lowering
        self._rows, self._columns = (_Axis.of(width, lowering) for width in widths.T)

    @property
    def is_dense(self) -> bool:
        """Whether enough of the pairs are asked for."""
        return len(self._rows.widths) * len(self._columns.widths) <= _SPARSE * len(self._rows.index)

    def summed(
        self, surface_of: Callable[[LayerSpec, str], AnySurface | None]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Milliseconds of all kernels, and whether any of them is plain, at the widths asked for: (L,) each."""
        rows, columns = self._rows, self._columns
        ms = np.zeros((len(rows.widths), len(columns.widths)))
        plain = np.zeros(ms.shape, dtype=np.bool_)
        for kernel, counts in self._lowering.counts_by_class(rows.classes, columns.classes).items():
            blocks = list(self._blocks(counts))
            if is_plain(kernel):
                for block, _ in blocks:
                    plain[block] = True
            surface = surface_of(self._layer, kernel)
            if surface is not None:
                each = surface.predict_blocks(self._layer, rows.widths, columns.widths, [block for block, _ in blocks])
                for (block, count), kernel_ms in zip(blocks, each, strict=True):
                    ms[block] += kernel_ms if count == 1.0 else count * kernel_ms
        pairs = rows.index * len(columns.widths) + columns.index
        return ms.take(pairs), plain.take(pairs)

    def _blocks(self, counts: NDArray[np.float64]) -> Iterator[tuple[tuple[slice, slice], float]]:
        """Rows and columns of the grid with the same count, given by classes (A, B), where it is not 0."""
        for (first, end), row in zip(pairwise(self._rows.ends), counts, strict=True):
            changes = (0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row))
            for start, stop in pairwise(changes):
                if row[start]:
                    yield (
                        (slice(first, end), slice(self._columns.ends[start], self._columns.ends[stop])),
                        float(row[start]),
                    )
