"""Policies of least error within a budget: exact dynamic programming, and the limits that it does not cover.

One limit is the axis of the dynamic programme. There the sum over layers is exact up to rounding (``min_sum``). All
else is checked afterwards with the true price of the policy:

- what a cost adds for all layers together (``JointCost``: weights beyond the caches) is no sum over layers. The axis
  leaves it out. It is never negative, so the programme's optimum is a lower bound. Where the true price of its policy
  exceeds the limit, the axis is bisected for the largest budget whose policy does not;
- a limit on a cost that is a maximum over moments (``PeakCost``) is exact: choices that exceed it at a moment are
  excluded. Where nothing else is limited, the maximum is the axis;
- further limits are weighed: minimise error + w · Σ cost/limit over those exceeded, w doubled until they hold, then
  bisected. This finds the lower convex hull only: a better policy may lie between two weights.

A last step spends what rounding and weighing left over, one group at a time on the wider choice that lowers the error
most. Where there are too many choices for the work allowed, the programme sees fewer of every group, evenly spaced.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PolicySpace
from amcsearch.evaluation import spread
from amcsearch.search.budget import FeasibleSet
from amcsearch.search.exact.elimination import elimination_steps, largest_table, work
from amcsearch.search.exact.factors import cost_factors, layer_scopes, peak_factors, peak_scopes
from amcsearch.search.exact.min_sum import BudgetedSum, Solution

__all__ = ["BUCKETS", "ROUNDS", "SUMS", "Allocator", "Errors"]

Errors = Sequence[NDArray[np.float64]]
"""Error of every choice of every group: (choices,) for each, finite, never rising with the width."""

BUCKETS: Final = 4_000
SUMS: Final = 3e8
ROUNDS: Final = 8

_WIDER: Final = 12  # wider choices of one group tried when what is left over is spent
_TABLE_BYTES: Final = 1 << 29
_CALL: Final = 4000  # what one shift-and-add of a row costs beside its additions, in additions


class Allocator:
    """Finds policies of least error within a feasible set, for any errors.

    Args:
        feasible: the budget, and the true price of everything.
        buckets: resolution of the budget axis.
        sums: most additions a solution may take; at about 10⁹ a second.
        rounds: most solutions tried for further limits.
        axis: the cost on the axis; by default the limited one that binds the largest uniform policy, a sum over layers
            where any is limited.

    Raises:
        BadInputError: a layer, or a moment of a limited peak, depends on so many groups that even two choices for each
            are too many.
    """

    def __init__(
        self,
        feasible: FeasibleSet,
        buckets: int = BUCKETS,
        sums: float = SUMS,
        rounds: int = ROUNDS,
        axis: str | None = None,
    ) -> None:
        self.feasible, self.buckets, self.rounds = feasible, buckets, rounds
        self._sums = sums
        self.axis = axis or self._binding()

    @property
    def offered(self) -> int:
        """Most choices of one group that the programme looks at."""
        return max(map(len, self._offered), default=0)

    def best(self, errors: Errors) -> NDArray[np.int64]:
        """Return the policy (G,) of least error found within every limit."""
        dense = self.feasible.space.dense
        if self.axis is None or self.feasible.contains(dense[None, :])[0]:
            return dense
        weighed = self._weighed(errors)
        return self._improved(self.feasible.repair(dense) if weighed is None else weighed, errors)

    def solve(self, errors: Errors, weights: Mapping[str, float] | None = None) -> Solution:
        """Return the least errors for every budget of the axis."""
        return self._problem.solve([e[i] for e, i in zip(errors, self._offered, strict=True)], weights)

    def policy(self, solution: Solution, bucket: int) -> NDArray[np.int64]:
        """Return the kept counts (G,) of a solution for one budget, whether or not its true price is within it.

        Raises:
            InfeasibleBudgetError: nothing fits.
        """
        chosen = zip(self._thinned.choices, solution.choice(bucket), strict=True)
        return np.array([choices[i] for choices, i in chosen], dtype=np.int64)

    def along_front(self, solution: Solution, share: float) -> NDArray[np.int64]:
        """Return the policy (G,) of the largest budget up to a place on the front, repaired where its price is over.

        ``share`` goes from 0, the cheapest policy, to 1, the whole budget.
        """
        front = solution.front
        if not len(front):
            return self.feasible.repair(self.feasible.space.floor)
        place = front[0] + share * (front[-1] - front[0])
        bucket = front[np.searchsorted(front, place, side="right") - 1]
        return self.feasible.repair(self.policy(solution, int(bucket)))

    def front(self, errors: Errors, points: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return policies (R, G) of least error along the whole axis, each dearer than the last, and their errors (R,).

        One solution gives all of them. Up to ``points`` budgets, evenly spaced, are read off it. Prices are the true
        ones: a policy that is no cheaper than one of no more error is left out.
        """
        solution = self.solve(errors)
        front = solution.front
        even = np.linspace(front[0], front[-1], points)
        buckets = np.unique(front[np.searchsorted(front, even, side="right") - 1])
        # what is rounded up may leave the whole network no budget
        kept = np.vstack([self._thinned.counts(solution.choices(buckets)), self.feasible.space.dense])
        error = self._errors(errors, kept)
        assert self.axis is not None
        price = self.feasible.grid.price(kept)[self.axis]
        order = np.lexsort((error, price))
        kept, error = kept[order], error[order]
        falls = error < np.minimum.accumulate(np.append(np.inf, error[:-1]))
        return kept[falls], error[falls]

    def sequence(self, errors: Errors, levels: int) -> NDArray[np.int64]:
        """Return policies (R, G) of least error for up to ``levels`` budgets of the axis, dense first, each cheaper."""
        assert self.axis is not None
        solution, rows = self.solve(errors), [self.feasible.space.dense, self.best(errors)]
        rows += [self.along_front(solution, float(share)) for share in np.linspace(1.0, 0.0, levels)[1:]]
        prices = self.feasible.grid.price(np.stack(rows))[self.axis]
        least = np.minimum.accumulate(np.append(np.inf, prices[:-1]))
        return np.stack(rows)[prices < least]

    def _binding(self) -> str | None:
        limits, peaks = self.feasible.budget.limits, self.feasible.grid.peaks
        prices = self.feasible.grid.price(self.feasible.largest_uniform()[None, :])
        sums = [name for name in limits if name not in peaks]
        return max(sums or limits, key=lambda name: float(prices[name][0]) / limits[name], default=None)

    @property
    def _caps(self) -> dict[str, float]:
        """Limits of peaks beside the axis."""
        limits, peaks = self.feasible.budget.limits, self.feasible.grid.peaks
        return {name: limit for name, limit in limits.items() if name in peaks and name != self.axis}

    @cached_property
    def _allowed(self) -> dict[str, float]:
        """Bytes of peaks that never exclude a policy: the caps, and of the axis what the narrowest policy needs."""
        feasible, axis = self.feasible, self.axis
        if axis is None or axis not in feasible.grid.peaks:
            return self._caps
        least = float(feasible.grid.price(feasible.space.floor[None, :])[axis][0])
        return {**self._caps, axis: least * (1.0 - 1e-9)}

    @cached_property
    def _offered(self) -> list[NDArray[np.int64]]:
        """Positions of the choices each group offers to the programme, as many as the work allows."""
        sizes = [len(choices) for choices in self.feasible.space.choices]
        feasible = self.feasible
        layers = [*layer_scopes(feasible.grid.network)]
        peaks = [scope for _, scope in peak_scopes(feasible.space, feasible.grid, self._allowed)]
        steps = elimination_steps(sizes, [*layers, *peaks])

        def fits(most: int) -> bool:
            fewer = [min(most, size) for size in sizes]
            bytes_ = 4 * (self.buckets + 1) * largest_table(steps, fewer)
            return work(steps, fewer) * (self.buckets + _CALL) <= self._sums and bytes_ <= _TABLE_BYTES

        most = next((n for n in range(max(sizes, default=1), 1, -1) if fits(n)), None)
        if most is None and max(sizes, default=1) > 1:
            widest, wide = max(map(len, layers)), max(map(len, peaks), default=0)
            dependence = f"layers that depend on up to {widest} groups"
            if wide > widest:
                dependence = f"{' and '.join(self._allowed)}, which depends on up to {wide} groups at one moment"
            raise BadInputError(
                f"dynamic_programming: sums = {self._sums:.3g} are too few for {dependence}; "
                "raise search.agent_params.sums, or choose nsga2"
            )
        return [spread(np.arange(size), most or 1) for size in sizes]

    @cached_property
    def _thinned(self) -> PolicySpace:
        space = self.feasible.space
        return PolicySpace(space.groups, tuple(c[i] for c, i in zip(space.choices, self._offered, strict=True)))

    @cached_property
    def _problem(self) -> BudgetedSum:
        assert self.axis is not None
        grid, dense = self.feasible.grid, self.feasible.space.dense
        limit = self.feasible.budget.limits.get(self.axis, float(grid.price(dense[None, :])[self.axis][0]))
        sizes = [len(choices) for choices in self._thinned.choices]
        peaks = peak_factors(self._thinned, grid, self._allowed)
        return BudgetedSum(sizes, cost_factors(self._thinned, grid), self.axis, limit, self.buckets, peaks, self._caps)

    def _weighed(self, errors: Errors) -> NDArray[np.int64] | None:
        """The best of a few weights of the further limits; None where no budget of the axis is within every limit."""
        excluded = {self.axis, *self._caps}
        others = {name: limit for name, limit in self.feasible.budget.limits.items() if name not in excluded}
        best: NDArray[np.int64] | None = None
        low, high, weight = 0.0, inf, 0.0
        for _ in range(self.rounds):
            solution = self.solve(errors, {name: weight / limit for name, limit in others.items()} if weight else None)
            kept = self._largest_within(solution)
            if kept is not None and (best is None or self._error(errors, kept) < self._error(errors, best)):
                best = kept
            if not np.isfinite(solution.least[-1]):
                break
            unbounded = self.policy(solution, -1)
            prices = self.feasible.grid.price(unbounded[None, :])
            if all(prices[name][0] <= limit for name, limit in others.items()):
                high = weight
            else:
                low = weight
            if high == 0.0:
                break
            first = max(self._error(errors, unbounded), 1e-6)
            weight = (low + high) / 2 if high < inf else max(2 * low, first)
        return best

    def _largest_within(self, solution: Solution) -> NDArray[np.int64] | None:
        """The policy (G,) of the largest budget of the axis, by bisection, whose true price is within all limits."""
        front, largest = solution.front, None
        low, high = 0, len(front)  # buckets before low are within the limits, those from high on are not
        middle = high - 1  # the whole budget first: without joint costs and further limits it is within
        while low < high:
            kept = self.policy(solution, int(front[middle]))
            if self.feasible.contains(kept[None, :])[0]:
                largest, low = kept, middle + 1
            else:
                high = middle
            middle = (low + high) // 2
        return largest

    def _improved(self, kept: NDArray[np.int64], errors: Errors) -> NDArray[np.int64]:
        """Widen one group at a time, by the choice within the limits that lowers the error most, until none does."""
        space = self.feasible.space
        while True:
            rows, gains = [], []
            for g, choices in enumerate(space.choices):
                at = int(np.searchsorted(choices, kept[g]))
                wider = np.arange(at + 1, len(choices))
                for i in spread(wider, _WIDER).tolist() if len(wider) else []:
                    rows.append(np.where(np.arange(len(kept)) == g, choices[i], kept))
                    gains.append(errors[g][at] - errors[g][i])
            if not rows:
                return kept
            within = self.feasible.contains(np.array(rows))
            gain = np.where(within, gains, 0.0)
            if gain.max() <= 0.0:
                return kept
            kept = rows[int(np.argmax(gain))]

    def _error(self, errors: Errors, kept: NDArray[np.int64]) -> float:
        return float(self._errors(errors, kept[None, :])[0])

    def _errors(self, errors: Errors, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Summed errors (P,) of kept counts (P, G)."""
        total = np.zeros(len(kept))
        for e, choices, counts in zip(errors, self.feasible.space.choices, kept.T, strict=True):
            total += e[np.searchsorted(choices, counts)]
        return total
