"""Variants left out in turn, and predicted by kernel models of all others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.costs.latency_table import KernelModel, Observation, by_signature
from amcsearch.runtime.measured import MeasuredVariant

__all__ = ["FOLDS", "Folds", "LeftOut"]

FOLDS: Final = 6

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LeftOut:
    """Predictions of variants by models that never saw them, before calibration."""

    sums: Array  # (V, families), ms
    far: Array  # (V,), root of the sum of (ms · octaves)²


class Folds:
    """Variants left out in turn: what the others' models predict of them.

    Which kernels layers become, and how far from measured ones they lie, does not depend on times and is found once.
    """

    def __init__(self, variants: Sequence[MeasuredVariant], kernels: Sequence[str], block: int, seed: int) -> None:
        self._of_variant = np.random.default_rng(seed).permutation(len(variants)) % FOLDS
        self._families = {name: i for i, name in enumerate(kernels)}
        self._layers = [
            [(v, layer) for v in np.flatnonzero(self._of_variant == fold).tolist() for layer in variants[v].layers]
            for fold in range(FOLDS)
        ]
        self._alike = [by_signature(layer for _, layer in own) for own in self._layers]
        self._block = block
        self._first: list[KernelModel] = []
        self._octaves: list[list[dict[str, Array]]] = []

    def models(self, observed: Sequence[Sequence[Observation]]) -> list[KernelModel]:
        """Of each fold a model of the variants in all others."""
        rest = [
            [one for v, variant in enumerate(observed) if self._of_variant[v] != fold for one in variant]
            for fold in range(FOLDS)
        ]
        if self._first:
            return [model.retimed(own) for model, own in zip(self._first, rest, strict=True)]
        self._first = [KernelModel(own, self._block) for own in rest]
        self._octaves = [
            [model.octaves_at(layer, widths) for layer, _, widths in alike]
            for model, alike in zip(self._first, self._alike, strict=True)
        ]
        return self._first

    def left_out(self, models: Sequence[KernelModel]) -> LeftOut:
        """Predictions of variants (V,), each by the model of those in other folds."""
        sums, squares = np.zeros((len(self._of_variant), len(self._families))), np.zeros(len(self._of_variant))
        for model, own, alike, far in zip(models, self._layers, self._alike, self._octaves, strict=True):
            for (layer, places, widths), octaves in zip(alike, far, strict=True):
                at = np.array([own[place][0] for place in places])
                for kernel, (ms, _) in (model.times_at(layer, widths) or {}).items():
                    np.add.at(sums[:, self._families[kernel]], at, ms)
                    np.add.at(squares, at, (ms * octaves[kernel]) ** 2)
        return LeftOut(sums, np.sqrt(squares))
