"""The walk over coupled slices: from saliency per weight to an order of units, and to the channels kept."""

import math
from collections.abc import Iterator, Mapping
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.core import BadInputError, PruningPolicy
from amcsearch.graph import Batches, Kept, Trace
from amcsearch.methods.criterion import Criterion, saliency_of
from amcsearch.methods.first_order import LossFunction
from amcsearch.methods.needs import Draw, Need
from amcsearch.methods.reduction import REDUCTIONS, Member
from amcsearch.methods.statistics import Statistics, gather

__all__ = ["Ranking", "UnitScores", "keep", "rank", "rank_units", "score_draw", "score_units"]

UnitScores = Mapping[str, NDArray[np.float64]]  # group name -> importance of each unit, shape (n_units,)
Ranking = Mapping[str, NDArray[np.int64]]  # group name -> unit indices, most important first, shape (n_units,)


def rank_units(
    model: nn.Module,
    trace: Trace,
    criterion: Criterion,
    batches: Batches,
    loss_fn: LossFunction,
) -> Ranking:
    """Rank the units of every group by one criterion on calibration data.

    Raises:
        BadInputError: as ``gather`` and ``rank``.
    """
    scores = score_units(model, trace, {"": criterion}, batches, loss_fn)
    return rank(scores[""])


def score_units(
    model: nn.Module,
    trace: Trace,
    criteria: Mapping[str, Criterion],
    batches: Batches,
    loss_fn: LossFunction,
) -> dict[str, UnitScores]:
    """Score the units of every group by several criteria from ONE calibration pass; the model is left as found.

    Raises:
        BadInputError: as ``gather``.
    """
    needs = frozenset[Need]().union(*(criterion.needs for criterion in criteria.values()))
    draws = {name: _draw(name, criterion) for name, criterion in criteria.items()}
    totals: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in criteria}
    sample_counts = dict.fromkeys(criteria, 0)
    with closing(gather(model, trace, batches, loss_fn, needs)) as stream:
        for statistics in stream:
            for name, criterion in criteria.items():
                if draws[name] is not statistics.draw:
                    continue
                sample_counts[name] += statistics.samples
                for group, scores in score_draw(trace, criterion, statistics).items():
                    totals[name][group] = totals[name].get(group, 0.0) + scores * statistics.samples
    return {
        name: {group: scores / max(sample_counts[name], 1) for group, scores in groups.items()}
        for name, groups in totals.items()
    }


def score_draw(trace: Trace, criterion: Criterion, statistics: Statistics) -> UnitScores:
    """Score the units of every group from one draw's statistics: the mean over its samples where they come apart.

    Raises:
        BadInputError: a group of which the criterion scores no tensor, saliency that is not one of the weights, or as
            ``saliency_of``.
    """
    saliency = _checked(type(criterion).__name__, saliency_of(criterion, statistics), statistics)
    reduce = REDUCTIONS[criterion.reduction]
    sums: dict[tuple[str, int], Tensor] = {}
    scores = {}
    for group in trace.network.groups:
        members = list(_members(trace, group.name, saliency, statistics, sums))
        if not members:
            raise BadInputError(
                f"{type(criterion).__name__} scores no tensor of group {group.name!r}; choose another criterion"
            )
        score = reduce(members)
        scores[group.name] = (score.mean(0) if statistics.draw is Draw.SAMPLE else score).cpu().numpy()
    return scores


def rank(scores: UnitScores) -> Ranking:
    """Order the units of every group, most important first; equal scores keep the order of their indices.

    Raises:
        BadInputError: a score that is not finite.
    """
    for group, values in scores.items():
        if not np.isfinite(values).all():
            raise BadInputError(
                f"importance of group {group!r} is not finite: the model's weights or its loss on the calibration data "
                "are NaN or infinite; retrain the model or repair the data"
            )
    return {group: np.argsort(-values, kind="stable").astype(np.int64) for group, values in scores.items()}


def keep(trace: Trace, ranking: Ranking, policy: PruningPolicy) -> Kept:
    """Return the channels each group keeps, sorted: exactly ``policy[group]`` of them, the best-ranked units.

    Nested: fewer kept channels are always a subset of more.

    Raises:
        BadInputError: the policy does not fit the network.
    """
    trace.network.kept_array(policy)
    kept = {}
    for group in trace.network.groups:
        units = ranking[group.name][: policy[group.name] // group.unit]
        kept[group.name] = np.sort(trace.units[group.name][units].ravel())
    return kept


def _checked(criterion: str, saliency: object, statistics: Statistics) -> dict[str, Tensor]:
    """Return saliency without gradient, once every tensor of it is known to fit the weight of its name."""
    if not isinstance(saliency, Mapping):
        raise BadInputError(
            f"{criterion}: saliency returned a {type(saliency).__name__}; return a mapping of tensor names to tensors"
        )
    samples = (statistics.samples,) if statistics.draw is Draw.SAMPLE else ()
    for name, values in saliency.items():
        if name not in statistics.weights:
            raise BadInputError(f"{criterion}: saliency names the tensor {name!r}, which is none of statistics.weights")
        if not isinstance(values, Tensor):
            raise BadInputError(f"{criterion}: saliency of {name!r} is a {type(values).__name__}; return a Tensor")
        shape = (*samples, *statistics.weights[name].shape)
        if not _broadcasts(values.shape, shape):
            raise BadInputError(
                f"{criterion}: saliency of {name!r} has shape {tuple(values.shape)}, must broadcast to {shape}, "
                f"{'samples and ' * bool(samples)}the shape of the weight"
            )
    return {name: values.detach() for name, values in saliency.items()}


def _broadcasts(shape: torch.Size, target: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in pairs)


def _draw(name: str, criterion: Criterion) -> Draw:
    draws = {statistic.draw for statistic in criterion.needs}
    if len(draws) > 1:
        raise ValueError(f"criterion {name!r} needs draws of several kinds: {sorted(draws)}")
    return draws.pop() if draws else Draw.SET


def _members(
    trace: Trace,
    group: str,
    saliency: Mapping[str, Tensor],
    statistics: Statistics,
    sums: dict[tuple[str, int], Tensor],
) -> Iterator[Member]:
    """Yield each coupled tensor's saliency summed over the slice of every unit; ``sums`` caches sums along a dim."""
    units = trace.units[group]  # (n_units, unit)
    for part in trace.slices[group]:
        if part.tensor not in saliency:
            continue
        key = part.tensor, part.dim
        if key not in sums:
            shape = statistics.weights[part.tensor].shape
            sums[key] = _summed(saliency[part.tensor], shape, part.dim, statistics.draw is Draw.SAMPLE)
        positions = np.sort(part.positions[units].reshape(len(units), -1), axis=1)
        is_new = np.diff(positions, axis=1, prepend=-1) != 0  # channels of a unit may share an index (grouped conv)
        scores = (sums[key].cpu()[..., torch.from_numpy(positions)] * torch.from_numpy(is_new)).sum(-1)
        index = trace.network.layer_index[part.layer]
        yield Member(trace.network.layers[index], index, part.side, scores)


def _summed(saliency: Tensor, shape: torch.Size, dim: int, has_samples: bool) -> Tensor:
    """Sum a saliency broadcastable to ``shape`` (after an axis of samples) over all axes of the weight but ``dim``."""
    lead = 1 if has_samples else 0
    full = saliency if has_samples else saliency[(None,) * (len(shape) - saliency.ndim)]
    others = [axis for axis in range(len(shape)) if axis != dim]
    shared = math.prod(shape[axis] // full.shape[lead + axis] for axis in others)  # weights behind one number
    kept = full.sum([lead + axis for axis in others], dtype=torch.float64) if others else full.double()
    return (kept * shared).expand(*full.shape[:lead], shape[dim])
