"""Channel pruning by LASSO: shrink one coefficient a channel until few are left, then refit by least squares.

    min_b  1/2 (1 - b)^T M (1 - b) + lambda |b|_1,   M_cd = E[x_c . x_d] of the channels' contributions x_c to a reader
    coordinate descent:  b_j <- soft((M1)_j - sum_{i != j} M_ji b_i, lambda) / M_jj;   lambda_max = max |M1| empties b

He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017 (arXiv 1707.06168). The path runs from
lambda_max downwards and is halved wherever the number kept jumps by more than a tenth (their rank_tol). A unit's place
is the lambda at which it first enters, so one path serves every count; units that enter together are placed by b_j^2
M_jj. Weights come from full least squares (rule ``least_squares``).

Departures: M is taken from the readers' Gram matrices over all gathered rows, not from some hundred sampled outputs; a
unit that leaves the path again keeps its place, so sets are nested; several readers sum their M as in ``thinet``;
layers are judged in the dense network, and lambda is never carried from layer to layer.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError
from amcsearch.methods.ranking import Ranking
from amcsearch.methods.selector import Problem, contributions

__all__ = ["Lasso", "lasso", "lasso_order", "lasso_path"]

_HALVINGS: Final = 6  # of an interval of the path
_SWEEPS: Final = 1000


def lasso(
    m: NDArray[np.float64], strength: float, start: NDArray[np.float64] | None = None, tolerance: float = 1e-9
) -> NDArray[np.float64]:
    """Return b (U,) for one lambda = ``strength``, by coordinate descent from ``start``.

    It ends when no coordinate moves its own gradient by more than ``tolerance`` of max |M1|: sweeps over the support
    until that holds there, then one over everything, until that holds too.
    """
    coefficients = np.zeros(len(m)) if start is None else start.copy()
    target = m.sum(1)
    residual = target - m @ coefficients
    limit = tolerance * float(np.abs(target).max(initial=0.0))
    every = np.flatnonzero(m.diagonal() > 0)
    for _ in range(_SWEEPS):
        if _sweep(m, strength, every, coefficients, residual) <= limit:
            break
        for _ in range(_SWEEPS):
            if _sweep(m, strength, every[coefficients[every] != 0], coefficients, residual) <= limit:
                break
    return coefficients


def _sweep(
    m: NDArray[np.float64],
    strength: float,
    places: NDArray[np.int64],
    coefficients: NDArray[np.float64],
    residual: NDArray[np.float64],
) -> float:
    """Update each of ``places`` once, in place; returns the largest |step| * M_jj."""
    moved = 0.0
    for j in places.tolist():
        energy, old = float(m[j, j]), float(coefficients[j])
        free = float(residual[j]) + energy * old
        new = math.copysign(max(abs(free) - strength, 0.0), free) / energy
        if new != old:
            residual -= m[j] * (new - old)
            coefficients[j] = new
            moved = max(moved, abs(new - old) * energy)
    return moved


def lasso_path(
    m: NDArray[np.float64], points: int = 40, smallest: float = 1e-4
) -> list[tuple[float, NDArray[np.float64]]]:
    """Return (lambda, b) from lambda_max down to ``smallest`` of it, finer where many coefficients enter at once."""
    largest = float(np.abs(m.sum(1)).max(initial=0.0))
    path = [(largest, np.zeros(len(m)))]
    for strength in largest * np.geomspace(1.0, smallest, points)[1:]:
        path += _between(m, path[-1], (float(strength), lasso(m, float(strength), path[-1][1])), _HALVINGS)
    return path


def _between(
    m: NDArray[np.float64],
    high: tuple[float, NDArray[np.float64]],
    low: tuple[float, NDArray[np.float64]],
    halvings: int,
) -> list[tuple[float, NDArray[np.float64]]]:
    """The points after ``high`` up to ``low``, so close that the number kept grows by at most a tenth, or one."""
    before, after = (int(np.count_nonzero(b)) for _, b in (high, low))
    if halvings == 0 or after - before <= max(1.0, 0.1 * before):
        return [low]
    middle = (high[0] * low[0]) ** 0.5
    point = (middle, lasso(m, middle, high[1]))
    return _between(m, high, point, halvings - 1) + _between(m, point, low, halvings - 1)


def lasso_order(m: NDArray[np.float64], points: int = 40) -> NDArray[np.int64]:
    """Return the units of M (U, U) in the order in which they enter the path; those that never do come last."""
    entry, size = np.full(len(m), np.inf), m.diagonal().copy()
    for place, (_, coefficients) in enumerate(lasso_path(m, points)):
        new = np.isinf(entry) & (coefficients != 0)
        entry[new] = place
        size[new] *= coefficients[new] ** 2
    return np.lexsort((-size, entry)).astype(np.int64)


@dataclass(frozen=True)
class Lasso:
    """The LASSO path over channels of the readers' outputs, then least squares; ``points`` of the path before halving.

    Raises:
        BadInputError: fewer than 2 points.
    """

    points: int = 40
    refit: ClassVar[str] = "least_squares"
    labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.points < 2:
            raise BadInputError(f"lasso: points = {self.points}, must be at least 2 (40 as a rule)")

    def orders(self, problem: Problem) -> Ranking:
        """Return every group's units, first to enter first."""
        return {g: lasso_order(contributions(readers), self.points) for g, readers in problem.readers.items()}
