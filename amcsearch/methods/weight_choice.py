"""Choose exactly so many weights: the best of a row, of a run in it, of a tensor, of all tensors, or by densities.

A threshold at a sorted score keeps too many or too few where scores tie; a stable order cut at a count does not.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from amcsearch.core import BadInputError

__all__ = [
    "apportion",
    "keep_by_count",
    "keep_most",
    "keep_n_of_m",
    "keep_overall",
    "keep_rows",
    "keep_top",
    "n_kept",
]


def n_kept(count: int, sparsity: float) -> int:
    """Weights left of ``count``: count - round(sparsity * count), at least 1."""
    return max(1, count - round(sparsity * count))


def keep_top(scores: Tensor, n_keep: int) -> Tensor:
    """Return the mask, shape of ``scores``, of the ``n_keep`` largest; equal scores keep the lower index."""
    return _first(torch.argsort(scores.flatten(), descending=True, stable=True), n_keep).view(scores.shape)


def keep_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Mask, shape of ``scores`` (rows first): every row drops its round(sparsity * n) lowest; ties keep the first."""
    rows = scores.flatten(1)
    return _best_of_rows(rows, rows.shape[1] - round(sparsity * rows.shape[1])).view(scores.shape)


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask, shape of ``scores`` (rows first): the ``n`` best of every ``m`` consecutive columns stay.

    Columns left over at the end of a row, fewer than m, all stay.

    Raises:
        BadInputError: n outside 1 … m.
    """
    if not 1 <= n <= m:
        raise BadInputError(f"n:m = {n}:{m}: n weights are KEPT of every m, so n must be from 1 to m")
    rows = scores.flatten(1)
    whole = rows.shape[1] // m * m
    best = _best_of_rows(rows[:, :whole].reshape(-1, m), n).view(len(rows), whole)
    left_over = torch.ones(len(rows), rows.shape[1] - whole, dtype=torch.bool, device=scores.device)
    return torch.cat([best, left_over], 1).view(scores.shape)


def _best_of_rows(rows: Tensor, n_keep: int) -> Tensor:
    order = torch.argsort(rows, dim=1, descending=True, stable=True)
    return torch.zeros_like(rows, dtype=torch.bool).scatter(1, order[:, :n_keep], True)


def keep_overall(scores: Mapping[str, Tensor], n_keep: int) -> dict[str, Tensor]:
    """Return masks of the ``n_keep`` largest scores of all tensors together; every tensor keeps its largest.

    Raises:
        BadInputError: fewer kept weights than tensors.
    """
    if n_keep < len(scores):
        raise BadInputError(
            f"{n_keep} weights kept of {len(scores)} tensors, each must keep at least 1; lower the target sparsity"
        )
    return _split(scores, _first(_order(scores), n_keep))


def keep_most(scores: Mapping[str, Tensor], fits: Callable[[Mapping[str, int]], bool]) -> dict[str, Tensor]:
    """Return masks of as many of the largest scores of all tensors together as fit; every tensor keeps its largest.

    ``fits`` takes kept weights by tensor; what fits must fit with fewer, and one weight a tensor must.
    """
    order = _order(scores)
    owners = torch.cat([torch.full((v.numel(),), i) for i, v in enumerate(scores.values())])[order.cpu()]
    low, high = len(scores), len(order) + 1  # fits, does not
    while high - low > 1:
        middle = (low + high) // 2
        counts = torch.bincount(owners[:middle], minlength=len(scores)).tolist()
        low, high = (middle, high) if fits(dict(zip(scores, counts, strict=True))) else (low, middle)
    return _split(scores, _first(order, low))


def _order(scores: Mapping[str, Tensor]) -> Tensor:
    """Places in all tensors one after another, best first; each tensor's largest comes before all others."""
    flat = []
    for values in scores.values():
        line = values.flatten().double()
        best = keep_top(line, 1)
        flat.append(torch.where(best, torch.full_like(line, torch.inf), line))
    return torch.cat(flat).argsort(descending=True, stable=True)


def _first(order: Tensor, n_keep: int) -> Tensor:
    mask = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    mask[order[:n_keep]] = True
    return mask


def _split(scores: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    parts = torch.split(mask, [values.numel() for values in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def keep_by_count(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Return masks that keep the ``counts`` largest scores of each tensor."""
    return {name: keep_top(values, counts[name]) for name, values in scores.items()}


def apportion(densities: Mapping[str, float], sizes: Mapping[str, int], n_keep: int) -> dict[str, int]:
    """Round densities to whole weights a tensor that add up to ``n_keep``: the largest remainders round up.

    Each tensor keeps from 1 to all of its weights.

    Raises:
        BadInputError: a total below one weight a tensor, or above all of them.
    """
    if not len(sizes) <= n_keep <= sum(sizes.values()):
        raise BadInputError(
            f"{n_keep} weights kept of {len(sizes)} tensors with {sum(sizes.values())} weights; "
            "every tensor must keep at least 1; lower the target sparsity"
        )
    wanted = {name: min(max(densities[name] * size, 1.0), float(size)) for name, size in sizes.items()}
    counts = {name: int(value) for name, value in wanted.items()}
    while sum(counts.values()) != n_keep:
        missing = n_keep - sum(counts.values())
        sign = 1 if missing > 0 else -1
        free = [name for name in sizes if (counts[name] < sizes[name] if sign > 0 else counts[name] > 1)]
        free.sort(key=lambda name: sign * (counts[name] - wanted[name]))
        for name in free[: abs(missing)]:
            counts[name] += sign
    return counts
