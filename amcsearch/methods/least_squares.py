"""Rules that refit a layer's weight when input channels leave it, all from the Gram matrix alone.

With Y = X W^T, kept columns K, removed R, G = E[x x^T] (centred where a constant is refitted too, see
``layer_inputs``):

    none           W_K stays
    bias           W_K stays; the means of what leaves are folded into the constant
    scales         slice c of W_K is multiplied by b_c:  b_K = 1 + M_KK^-1 M_KR 1   (ThiNet, 2017, arXiv 1707.06342)
    least_squares  W_K* = W_K + W_R G_RK G_KK^-1                                    (He 2017, 1707.06168; AMC,
    1802.03494)

M_cd = tr(W_c G_cd W_d^T) is the Gram matrix of the channels' contributions to Y. Errors E = tr(D G D^T), D = W - W',
obey E(least_squares) <= E(scales) <= E(bias). Under every rule but ``none`` the constant moves by (W - W') E[x].

Departures: G_KK (and M_KK) get damping * mean(diag) on the diagonal, which draws the CHANGE of the weights to 0, not
the weights; where that leaves 0, it gets 1. Everything is solved in double precision by Cholesky.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from amcsearch.core import BadInputError

__all__ = [
    "DAMPING",
    "REFITS",
    "channel_gram",
    "damped",
    "inverse",
    "output_error",
    "refit_drifted",
    "refit_least_squares",
    "refit_scales",
    "solve",
]

DAMPING: Final = 0.01  # SparseGPT's share of the mean diagonal (arXiv 2301.00774)

Refit = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
"""(weight (g, O, D), gram (g, D, D), removed channels (D / taps,) bool, taps, damping) → weight, 0 where removed."""


def damped(gram: Tensor, damping: float) -> Tensor:
    """Return gram + damping * mean(diag) * I, with 1 on the diagonal where that leaves 0; shape (…, D, D)."""
    matrix = gram.clone()
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    diagonal += damping * diagonal.mean(-1, keepdim=True)
    diagonal += (diagonal == 0).to(gram)
    return matrix


def solve(gram: Tensor, right: Tensor) -> Tensor:
    """Return gram^-1 @ right for a positive definite gram (…, D, D) and right (…, D, K).

    Raises:
        BadInputError: the matrix is not positive definite.
    """
    solved: Tensor = torch.cholesky_solve(right, _factor(gram))
    return solved


def inverse(gram: Tensor) -> Tensor:
    """Return gram^-1 for a positive definite gram (…, D, D).

    Raises:
        BadInputError: the matrix is not positive definite.
    """
    inverted: Tensor = torch.cholesky_inverse(_factor(gram))
    return inverted


def _factor(gram: Tensor) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool(info.any()) or not bool(torch.isfinite(factor).all()):
        raise BadInputError(
            f"a Gram matrix of {gram.shape[-1]} inputs is singular or not finite; raise damping above 0 "
            f"({DAMPING} as a rule), give more calibration samples, or look for NaN in the network"
        )
    return factor


def channel_gram(weight: Tensor, gram: Tensor, columns: Tensor) -> Tensor:
    """Return M (U, U), M_uv = sum over conv groups of tr(W_u G_uv W_v^T), for units that own ``columns`` (U, w)."""
    product = ((weight.mT @ weight) * gram).sum(0)
    return product[columns][:, :, columns].sum((1, 3))


def output_error(weight: Tensor, refitted: Tensor, gram: Tensor) -> float:
    """Return E||y - y'||^2 = tr(D G D^T), D = weight - refitted, summed over outputs and conv groups."""
    change = weight - refitted
    return float(((change @ gram) * change).sum())


def refit_none(weight: Tensor, gram: Tensor, removed: Tensor, taps: int, damping: float) -> Tensor:  # noqa: ARG001
    """Zero the removed channels."""
    return weight * ~removed.repeat_interleave(taps)


def refit_scales(weight: Tensor, gram: Tensor, removed: Tensor, taps: int, damping: float) -> Tensor:
    """Zero the removed channels and multiply each kept one by a scale of its own."""
    columns = torch.arange(weight.shape[-1]).reshape(-1, taps)
    contributions = damped(channel_gram(weight, gram, columns), damping)
    lost = contributions[~removed][:, removed].sum(1, keepdim=True)
    scales = torch.zeros(len(removed), dtype=weight.dtype)
    scales[~removed] = 1.0 + solve(contributions[~removed][:, ~removed], lost)[:, 0]
    return weight * scales.repeat_interleave(taps)


def refit_least_squares(weight: Tensor, gram: Tensor, removed: Tensor, taps: int, damping: float) -> Tensor:
    """Zero the removed channels and choose all kept weights anew."""
    gone = removed.repeat_interleave(taps)
    matrix = damped(gram, damping)
    change = solve(matrix[:, ~gone][:, :, ~gone], matrix[:, ~gone][:, :, gone] @ weight[:, :, gone].mT).mT
    refitted = torch.zeros_like(weight)
    refitted[:, :, ~gone] = weight[:, :, ~gone] + change
    return refitted


def refit_drifted(weight: Tensor, gram: Tensor, cross: Tensor, damping: float) -> Tensor:
    """Return W* (…, O, K) for inputs that have drifted: G = E[x' x'^T] (…, K, K), P = E[x' y^T] (…, K, O).

    W* = argmin E||y - x' W^T||^2 + ridge ||W - weight||^2: with damping 0 it is P^T G^-1, and the damping draws it to
    the weight it had, not to 0.
    """
    matrix = damped(gram, damping)
    return weight + solve(matrix, cross - gram @ weight.mT).mT


REFITS: Final[Mapping[str, Refit]] = {
    "none": refit_none,
    "bias": refit_none,
    "scales": refit_scales,
    "least_squares": refit_least_squares,
}
