"""Channel pruning by LASSO: shrink one coefficient a channel until few are left, then refit by least squares.

    min_b  1/2 (1 - b)^T M (1 - b) + lambda |b|_1,   M_cd = E[x_c . x_d] of the channels' contributions x_c to a reader
    optimal where, with c = M (1 - b):  c_j = lambda sign(b_j) where b_j != 0, |c_j| <= lambda elsewhere
    lambda_max = max |M1| empties b;  on a support A with signs s:  b_A = M_AA^-1 ((M1)_A - lambda s)

He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017 (arXiv 1707.06168). b is piecewise linear in
lambda, so the whole path is followed exactly from one change of the support to the next (Efron et al. 2004, arXiv
math/0406456), which serves every count at once: a unit's place is the lambda at which it first enters. Weights come
from full least squares (rule ``least_squares``).

Departures: they bisect lambda until the count is at most a tenth too large, on some hundred sampled outputs, where M
comes from the readers' Gram matrices over all gathered rows; a unit that leaves the path again keeps its place, so sets
are nested; M gets a billionth of its mean diagonal, without which copies have no unique path; several readers sum their
M as in ``thinet``; layers are judged in the dense network.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, contributions

__all__ = ["Lasso", "lasso_order", "lasso_path"]

_RIDGE: Final = 1e-9  # of the mean diagonal
_SMALLEST: Final = 1e-6  # of lambda_max: where the path ends
_STEPS_A_UNIT: Final = 8


@dataclass
class _State:
    """Where the path is: lambda, the support in order of entry with its signs, and who just changed sides."""

    strength: float
    support: list[int]
    signs: dict[int, float]
    fresh: int


def lasso_path(m: NDArray[np.float64]) -> list[tuple[float, NDArray[np.float64]]]:
    """Return (lambda, b (U,)) at every change of the support, from lambda_max down; b is linear between two of them."""
    target, matrix = m.sum(1), m + _RIDGE * m.diagonal().mean() * np.eye(len(m))
    first = int(np.abs(target).argmax())
    largest = float(abs(target[first]))
    path = [(largest, np.zeros(len(m)))]
    if largest == 0.0:
        return path
    now = _State(largest, [first], {first: float(np.sign(target[first]))}, first)
    for _ in range(_STEPS_A_UNIT * len(m)):
        inside = matrix[np.ix_(now.support, now.support)]
        signs = np.array([now.signs[j] for j in now.support])
        start, slope = np.linalg.solve(
            inside, np.stack([target[now.support], signs], 1)
        ).T  # b_A = start - lambda slope
        end, change = _next_change(matrix, target, now, start, slope)
        end = max(end, _SMALLEST * largest)
        coefficients = np.zeros(len(m))
        coefficients[now.support] = start - end * slope
        if change in now.support:
            coefficients[change] = 0.0
        path.append((end, coefficients))
        if change < 0 or end <= _SMALLEST * largest:
            break
        _swap(now, change, end, target - matrix @ coefficients)
    return path


def _next_change(
    matrix: NDArray[np.float64],
    target: NDArray[np.float64],
    now: _State,
    start: NDArray[np.float64],
    slope: NDArray[np.float64],
) -> tuple[float, int]:
    """Return the largest lambda below the present one at which a unit enters or leaves, and the unit; (0, -1): none."""
    constant = target - matrix[:, now.support] @ start  # c_j = constant + lambda * rate
    rate = matrix[:, now.support] @ slope
    with np.errstate(divide="ignore", invalid="ignore"):
        meets = np.stack([constant / (1.0 - rate), -constant / (1.0 + rate)])  # where c_j = lambda, where c_j = -lambda
        leaves = start / slope
    below = (meets > 0.0) & (meets < now.strength * (1.0 + 1e-12))
    events = np.where(below, meets, 0.0).max(0)
    events[now.support] = np.where((leaves > 0.0) & (leaves < now.strength), leaves, 0.0)
    events[now.fresh] = 0.0
    unit = int(events.argmax())
    return (min(float(events[unit]), now.strength), unit) if events[unit] > 0.0 else (0.0, -1)


def _swap(now: _State, unit: int, strength: float, correlation: NDArray[np.float64]) -> None:
    """Move a unit into the support or out of it."""
    now.strength, now.fresh = strength, unit
    if unit in now.signs:
        now.support.remove(unit)
        del now.signs[unit]
    else:
        now.support.append(unit)
        now.signs[unit] = float(np.sign(correlation[unit]))


def lasso_order(m: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the units of M (U, U) in the order in which they enter the path; those that never do come last."""
    entry = np.full(len(m), np.inf)
    path = lasso_path(m)
    for place, (_, coefficients) in enumerate(path):
        entry[np.isinf(entry) & (coefficients != 0.0)] = place
    return np.lexsort((-m.diagonal(), entry)).astype(np.int64)


@dataclass(frozen=True)
class Lasso:
    """The LASSO path over channels of the readers' outputs, then least squares."""

    refit: ClassVar[str] = "least_squares"
    labels: ClassVar[bool] = False

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, first to enter first."""
        return {group: lasso_order(contributions(readers)) for group, readers in problem.readers.items()}
