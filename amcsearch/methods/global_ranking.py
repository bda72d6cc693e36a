"""Compare units of different groups: scores made comparable, then exactly so many channels chosen over all groups.

Normalisers of one layer's scores s, by name:

    none, mean (s / mean|s|), l2 (s / ||s||_2; Molchanov et al. 2017, arXiv 1611.06440), max (s / max|s|),
    sum (s / sum|s|), standardise ((s - mean) / deviation; FLAP, arXiv 2312.11983),
    lamp (s_u / sum of all s_v >= s_u; Lee et al. 2021, arXiv 2010.07611, with s = w^2)

A gate shared by several readers (a residual stream) gathers the gradient of each: ``group_mean`` divides by their
number, as Molchanov et al. 2019 (arXiv 1906.10771) do by the blocks of a stage. ``savings`` divides by what a unit's
removal saves, as Fisher pruning does with FLOPs (Liu et al. 2021, arXiv 2108.00708).
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amcsearch.core import BadInputError, LayerSpec, NetworkSpec, PolicySpace, PruningPolicy, Side
from amcsearch.graph import Trace
from amcsearch.methods.first_order import readers
from amcsearch.methods.ranking import UnitScores

__all__ = ["NORMALISERS", "comparable", "global_policy", "normalised", "removal_steps", "unit_savings"]


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


def comparable(
    scores: UnitScores,
    trace: Trace,
    normaliser: str = "mean",
    *,
    group_mean: bool = True,
    savings: Mapping[str, float] | None = None,
) -> UnitScores:
    """Return the scores of all groups on one scale: per reader, normalised, per cost saved.

    Raises:
        BadInputError: as ``normalised``, or a saving that is not above 0.
    """
    reading = readers(trace)
    by_group: dict[str, NDArray[np.float64]] = {}
    for group, values in scores.items():
        tensors = {part.tensor for part in trace.slices[group] if part.side is Side.IN} & reading
        shared = values / max(len(tensors), 1) if group_mean else values
        saved = 1.0 if savings is None else savings[group]
        if not saved > 0.0:
            raise BadInputError(f"removing a unit of group {group!r} saves {saved}, must be above 0 to be divided by")
        by_group[group] = normalised(torch.from_numpy(np.asarray(shared)), normaliser).numpy() / saved
    return by_group


def unit_savings(network: NetworkSpec, layer_cost: Callable[[LayerSpec], float]) -> dict[str, float]:
    """What removing one unit of each group from the dense network saves, in the unit of ``layer_cost``."""

    def total(spec: NetworkSpec) -> float:
        return sum(layer_cost(layer) for layer in spec.layers)

    dense = total(network)
    return {
        group.name: dense
        - total(network.with_channels(PruningPolicy({**network.dense, group.name: group.channels - group.unit})))
        for group in network.groups
        if group.channels > group.unit
    }


def global_policy(scores: UnitScores, space: PolicySpace, n_remove: int) -> PruningPolicy:
    """Remove ``n_remove`` channels, those of the lowest scores over all groups, on the space's grid.

    A group loses steps of its grid, in the order of ``removal_steps``. Exact where every step is one channel, else the
    most that fits without removing more. What the space's floors keep is never removed.

    Raises:
        BadInputError: more channels than the floors leave to remove.
    """
    free = int((space.dense - space.floor).sum())
    if not 0 <= n_remove <= free:
        raise BadInputError(f"n_remove = {n_remove} channels, must be from 0 to {free}: what the floors leave")
    kept = {g: group.channels for g, group in enumerate(space.groups)}
    left, closed = n_remove, set[int]()
    for _, g, low in removal_steps(scores, space):
        if g in closed or kept[g] - low > left:
            closed.add(g)
            continue
        left -= kept[g] - low
        kept[g] = low
    return PruningPolicy({group.name: kept[g] for g, group in enumerate(space.groups)})


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
