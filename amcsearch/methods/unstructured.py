"""Single weights chosen at once: exact counts within an output row, within a tensor, or over the whole network; n of m.

Scores come from ``weights.weight_scores``. Wanda compares within rows (Sun et al. 2023, arXiv 2306.11695), magnitude
and gradients within tensors or over all of them, where scores of layers are first made comparable by a normaliser
(``global_ranking.NORMALISERS``; LAMP, Lee et al. 2021, arXiv 2010.07611, is one). n of m keeps the n best of every m
consecutive columns of a row (2 of 4: Mishra et al. 2021, arXiv 2104.08378). Rows are those of the matrix over unfolded
patches: a convolution's row is C_in / groups * kH * kW columns, channel by channel.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from amcsearch.core import BadInputError
from amcsearch.methods.global_ranking import normalised
from amcsearch.methods.weight_choice import keep_overall, keep_top

__all__ = ["keep_n_of_m", "keep_rows", "masks"]

Within = Literal["row", "layer", "network"]


def masks(
    scores: Mapping[str, Tensor], sparsity: float, within: Within = "row", normaliser: str = "none"
) -> dict[str, Tensor]:
    """Return by tensor name the bool mask (true: kept) that drops exactly round(sparsity * n) of every n compared.

    Over the whole network every tensor keeps at least its best weight. ``normaliser`` counts there alone.

    Raises:
        BadInputError: a sparsity outside [0, 1), an unknown normaliser, or fewer weights kept than tensors.
    """
    if not 0.0 <= sparsity < 1.0:
        raise BadInputError(f"sparsity = {sparsity}, must be in [0, 1)")
    if within == "row":
        return {name: keep_rows(value, sparsity) for name, value in scores.items()}
    if within == "layer":
        return {name: keep_top(value, _kept(value.numel(), sparsity)) for name, value in scores.items()}
    comparable = {name: normalised(value, normaliser) for name, value in scores.items()}
    return keep_overall(comparable, _kept(sum(value.numel() for value in scores.values()), sparsity))


def keep_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Mask, shape of ``scores`` (rows first): every row drops its round(sparsity * n) lowest; ties keep the first."""
    rows = scores.flatten(1)
    return _best(rows, _kept(rows.shape[1], sparsity)).view(scores.shape)


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
    best = _best(rows[:, :whole].reshape(-1, m), n).view(len(rows), whole)
    rest = torch.ones(len(rows), rows.shape[1] - whole, dtype=torch.bool, device=scores.device)
    return torch.cat([best, rest], 1).view(scores.shape)


def _kept(count: int, sparsity: float) -> int:
    return count - round(sparsity * count)


def _best(rows: Tensor, n_keep: int) -> Tensor:
    order = torch.argsort(rows, dim=1, descending=True, stable=True)
    return torch.zeros_like(rows, dtype=torch.bool).scatter(1, order[:, :n_keep], True)
