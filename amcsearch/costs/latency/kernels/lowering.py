"""Which kernels a layer becomes, learnt from the runtime's own optimised graphs.

Whether ONNX Runtime keeps a layer in its blocked layout, and where it reorders between layouts, depends on how widths
divide: by powers of two up to a block, and on whether a width fills one. A width of 1 is a case of its own (a bias of
one number is not fused to its product). These properties of both widths are the features; the kernels of a layer never
seen are those of the seen layers with the most properties in common, averaged where several are equally near (a
residual block's two convolutions differ only in what is fused to them). Layers of other networks are asked where they
have clearly more in common.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import LayerSpec
from amcsearch.costs.distinct import distinct_places

__all__ = ["Lowering"]

_STRANGER = 1  # properties in common that being of this network is worth
_NO_BLOCK = 16  # widths are told apart up to this divisor where the runtime has no blocked layout


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
        seen: Sequence[tuple[LayerSpec, Mapping[str, float], int]],
        block: int,
        others: "Lowering | None" = None,
    ) -> None:
        self._others = others
        steps = [2]
        while steps[-1] < (block or _NO_BLOCK):
            steps.append(2 * steps[-1])
        self._steps = tuple(steps)
        totals: dict[tuple[bool, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
        times: dict[tuple[bool, ...], int] = defaultdict(int)
        widths = np.array([(layer.in_channels, layer.out_channels) for layer, _, _ in seen], dtype=np.int64)
        classes = self.classes(widths).tolist()
        properties = {number: self._properties(number) for pair in classes for number in pair}
        for (c_in, c_out), (_, kernels, places) in zip(classes, seen, strict=True):
            features = properties[c_in] + properties[c_out]
            times[features] += places
            for kernel, count in kernels.items():
                totals[features][kernel] += places * count
        self._table = np.array(list(times), dtype=np.int64)
        self._times = list(times.values())
        self._totals = [totals[features] for features in times]
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
        both, place = distinct_places(at_in * len(columns) + at_out)
        pairs = [(int(rows[one // len(columns)]), int(columns[one % len(columns)])) for one in both.tolist()]
        return {name: count[place] for name, count in self._by_class(pairs).items()}

    def classes(self, widths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Properties of widths of any shape, a number each: of one channel, how many steps divide it, below a block."""
        divided = sum((widths % step == 0).astype(np.int64) for step in self._steps)
        return np.asarray(2 * (divided + (len(self._steps) + 1) * (widths == 1)) + (widths < self._steps[-1]))

    def counts_by_class(self, c_in: NDArray[np.int64], c_out: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """How many of each kernel at every pair of ``classes`` (A,), (B,): (A, B)."""
        pairs = list(product(c_in.tolist(), c_out.tolist()))
        shape = (len(c_in), len(c_out))
        return {name: count.reshape(shape) for name, count in self._by_class(pairs).items()}

    def _by_class(self, pairs: Sequence[tuple[int, int]]) -> dict[str, NDArray[np.float64]]:
        """How many of each kernel at pairs of classes (in, out): (C,) each."""
        found = [self._nearest(self._properties(c_in) + self._properties(c_out)) for c_in, c_out in pairs]
        names = dict.fromkeys(name for kernels in found for name in kernels)
        return {name: np.array([kernels.get(name, 0.0) for kernels in found]) for name in names}

    def _properties(self, number: int) -> tuple[bool, ...]:
        one, divided = divmod(number // 2, len(self._steps) + 1)
        return one == 1, number % 2 == 1, *(step < divided for step in range(len(self._steps)))

    def _distance(self, features: tuple[bool, ...]) -> NDArray[np.int64]:
        """Properties in which every row differs."""
        return np.asarray(np.abs(self._table - np.array(features, dtype=np.int64)).sum(axis=1), dtype=np.int64)

    def _nearest(self, features: tuple[bool, ...]) -> Mapping[str, float]:
        if features not in self._known:
            distance = self._distance(features)
            if self._others is not None and self._others._distance(features).min() + _STRANGER < distance.min():
                return self._others._nearest(features)
            nearest = np.flatnonzero(distance == distance.min())
            times = sum(self._times[i] for i in nearest)
            counts: dict[str, float] = defaultdict(float)
            for i in nearest:
                for kernel, total in self._totals[i].items():
                    counts[kernel] += total / times
            self._known[features] = dict(counts)
        return self._known[features]
