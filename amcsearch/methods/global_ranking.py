"""Scores of different groups on one scale, and the steps that remove units over all groups, lowest score first.

Normalisers of one layer's scores s, by name:

    none, mean (s / mean|s|), l2 (s / ||s||_2; Molchanov et al. 2017, arXiv 1611.06440), max (s / max|s|),
    sum (s / sum|s|), standardise ((s - mean) / deviation; FLAP, arXiv 2312.11983),
    lamp (s_u / sum of all s_v >= s_u; Lee et al. 2021, arXiv 2010.07611, with s = w^2)

A gate shared by several readers (a residual stream) gathers the gradient of each: ``comparable`` divides by their
number, as Molchanov et al. 2019 (arXiv 1906.10771) do by the blocks of a stage.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amcsearch.core import BadInputError, PolicySpace, Side
from amcsearch.graph import Trace
from amcsearch.methods.first_order import readers
from amcsearch.methods.ranking import UnitScores

__all__ = ["NORMALISERS", "comparable", "normalised", "removal_steps"]


def _lamp(scores: Tensor) -> Tensor:
    if (scores < 0).any():
        raise BadInputError("normaliser lamp: scores below 0 have no share of a sum; choose another normaliser")
    ordered = scores.flatten().sort().values
    suffix = ordered.flip(0).cumsum(0).flip(0)  # sum of all that are not smaller; ties share the whole of theirs
    return _over(scores, suffix[torch.searchsorted(ordered, scores.flatten())].view(scores.shape))


def _over(scores: Tensor, size: Tensor) -> Tensor:
    """Divide, and leave a layer of zeros at 0."""
    return torch.where(size > 0, scores / size.clamp(min=torch.finfo(scores.dtype).tiny), torch.zeros_like(scores))


NORMALISERS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "none": lambda s: s,
    "mean": lambda s: _over(s, s.abs().mean()),
    "l2": lambda s: _over(s, s.square().sum().sqrt()),
    "max": lambda s: _over(s, s.abs().max()),
    "sum": lambda s: _over(s, s.abs().sum()),
    "standardise": lambda s: _over(s - s.mean(), s.std(correction=0)),
    "lamp": _lamp,
}


def normalised(scores: Tensor, name: str) -> Tensor:
    """Return one layer's scores, any shape, in double precision, comparable with those of other layers.

    Raises:
        BadInputError: an unknown normaliser, or scores it cannot take.
    """
    if name not in NORMALISERS:
        raise BadInputError(f"normaliser = {name!r} is unknown; known: {', '.join(NORMALISERS)}")
    return NORMALISERS[name](scores.double())


def comparable(scores: UnitScores, trace: Trace, normaliser: str = "mean") -> UnitScores:
    """Return the scores of all groups, (n_units,) each, on one scale: divided by the number of readers, normalised.

    Raises:
        BadInputError: as ``normalised``.
    """
    reading = readers(trace)
    by_group: dict[str, NDArray[np.float64]] = {}
    for group, values in scores.items():
        tensors = {part.tensor for part in trace.slices[group] if part.side is Side.IN} & reading
        per_reader = np.asarray(values / max(len(tensors), 1))
        by_group[group] = normalised(torch.from_numpy(per_reader), normaliser).numpy()
    return by_group


def removal_steps(scores: UnitScores, space: PolicySpace) -> list[tuple[float, int, int]]:
    """Return every grid step as (score, group index, kept channels after it), lowest score first.

    A step removes a group's lowest units and scores their mean, so that steps of one group come in order.
    """
    steps: list[tuple[float, int, int]] = []
    for g, (group, choices) in enumerate(zip(space.groups, space.choices, strict=True)):
        units, score = np.sort(scores[group.name]), -np.inf
        for high, low in zip(choices[:0:-1], choices[-2::-1], strict=True):
            lost = units[(group.channels - high) // group.unit : (group.channels - low) // group.unit]
            score = max(score, float(lost.mean()))  # equal scores have means that differ by a rounding error
            steps.append((score, g, int(low)))
    return sorted(steps, key=lambda step: step[0])
