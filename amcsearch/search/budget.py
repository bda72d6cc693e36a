"""Budgets, the policies that meet them, and the repair of a policy that does not.

``FeasibleSet`` is the action bound of AMC (He et al., 2018, arXiv 1802.03494), which keeps a limit reachable with all
later layers at their smallest ratio, for any number of costs. Departures:

- each limited cost is priced by a model of its own, and after rounding to the device's channel grid, not before;
- a cost may fall when a width grows: latency is a staircase, and 12 channels can cost more than 16. So the range of a
  layer is a set and not an interval, and the smallest policy is not always the cheapest. Later layers are completed
  from several cheap policies (``cheapest_policies``): the smallest choices, the smallest choices on coarser channel
  grids and policies of one ratio are starting points, and coordinate descent goes on from the best of them, for every
  cost alone and for the worst overshoot of all limits together. It is a heuristic and proves no lower bound.

``without_dominated`` takes out of a space the widths that no search should propose, because a wider choice of the same
group is no slower on the device. Choice w of group g is dominated by a wider choice w' of g if, with the other groups
held at each of three contexts,

    latency(w', context) <= latency(w, context)        context: all channels, half of them, the fewest

for one and the same w' in all three. Three contexts are tried because the latency of a layer depends on the width of
its neighbour.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, Cost, InfeasibleBudgetError, Limit, PolicySpace
from amcsearch.costs import CostGrid

__all__ = ["Budget", "FeasibleSet", "Price", "cheapest_policies", "overshoot", "resolve_budget", "without_dominated"]

LATENCY = "latency_ms"


def without_dominated(space: PolicySpace, grid: CostGrid) -> PolicySpace:
    """Return the space without choices that a wider choice of the same group dominates; all channels always stay.

    Every choice left out is dominated by one that stays. A space whose latency nothing predicts comes back as it is.

    Raises:
        BadInputError: a layer the latency model cannot price.
    """
    if LATENCY not in grid.names or not space.groups:
        return space
    contexts = np.stack([space.dense, space.nearest(np.full(len(space.groups), 0.5)), space.floor])  # (3, G)
    kept = (choices[_stays(_latencies(g, contexts, space, grid))] for g, choices in enumerate(space.choices))
    return PolicySpace(space.groups, tuple(kept))


def _latencies(g: int, contexts: NDArray[np.int64], space: PolicySpace, grid: CostGrid) -> NDArray[np.float64]:
    """Latency in ms of every choice of group ``g`` in every context: (choices, contexts)."""
    choices = space.choices[g]
    rows = np.tile(contexts, (len(choices), 1))
    rows[:, g] = np.repeat(choices, len(contexts))
    return grid.price(rows)[LATENCY].reshape(len(choices), len(contexts))


def _stays(latency_ms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows (N, contexts) no later row dominates: (N,). Dominance is transitive, so kept rows suffice to ask."""
    stays = np.zeros(len(latency_ms), dtype=np.bool_)
    for i in range(len(latency_ms) - 1, -1, -1):
        stays[i] = not (latency_ms[stays] <= latency_ms[i]).all(axis=1).any()
    return stays


Price = Callable[[NDArray[np.int64]], Mapping[str, NDArray[np.float64]]]
Score = Callable[[NDArray[np.int64]], NDArray[np.float64]]

_GRIDS: Final = (2, 4, 8, 16, 32)
_UNIFORM: Final = 17  # policies of one ratio tried as starts
_MAX_SWEEPS: Final = 20
_SMALLEST, _COARSE = 16, 48  # choices of one group that descent tries: the smallest, and those on a coarse grid
_MEAN_WEIGHT: Final = 1e-3  # breaks ties of the worst overshoot, so that descent moves on a plateau


def overshoot(prices: Mapping[str, NDArray[np.float64]], limits: Mapping[str, float]) -> NDArray[np.float64]:
    """Worst cost as a share of its limit, (P,) from prices (P,); at most 1 is within every limit."""
    return np.asarray(np.max([prices[name] / limit for name, limit in limits.items()], axis=0))


def cheapest_policies(space: PolicySpace, price: Price, limits: Mapping[str, float]) -> NDArray[np.int64]:
    """Return distinct policies (A, G), the smallest choices first, then the cheapest by every measure."""
    cheapest = [space.floor]
    starts = _starts(space)
    for score in _scores(price, limits):
        best_start = starts[int(np.argmin(score(starts)))]
        cheapest += [_descend(start, space, score) for start in np.unique([space.floor, best_start], axis=0)]
    rows, first = np.unique(np.array(cheapest), axis=0, return_index=True)
    return rows[np.argsort(first)]


def _scores(price: Price, limits: Mapping[str, float]) -> list[Score]:
    """Every cost alone, then the worst overshoot."""

    def alone(name: str) -> Score:
        return lambda kept: price(kept)[name]

    def joint(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        prices = price(kept)
        mean = np.mean([prices[name] / limit for name, limit in limits.items()], axis=0)
        return np.asarray(overshoot(prices, limits) + _MEAN_WEIGHT * mean)

    return [*map(alone, limits), joint] if len(limits) > 1 else [alone(name) for name in limits]


def _starts(space: PolicySpace) -> NDArray[np.int64]:
    """Starting policies (S, G); the first is the smallest."""
    aligned = [[_first_multiple(choices, grid) for choices in space.choices] for grid in _GRIDS]
    uniform = [space.nearest(np.full(len(space.groups), r)) for r in np.linspace(0.0, 1.0, _UNIFORM)]
    return np.array([space.floor, *aligned, *uniform], dtype=np.int64)


def _first_multiple(choices: NDArray[np.int64], grid: int) -> int:
    on_grid = choices[(choices % grid == 0) & (choices > 0)]
    return int(on_grid[0] if len(on_grid) else choices[0])


def _thinned(choices: NDArray[np.int64]) -> NDArray[np.int64]:
    """A few dozen of the choices: the smallest, and those on the finest power-of-two grid that is coarse enough."""
    step = 1
    while np.count_nonzero(choices % step == 0) > _COARSE:
        step *= 2
    return np.union1d(choices[:_SMALLEST], choices[choices % step == 0])


def _descend(start: NDArray[np.int64], space: PolicySpace, score: Score) -> NDArray[np.int64]:
    """Move one group at a time to its cheapest choice until a whole sweep changes nothing; returns (G,)."""
    kept, best = start.copy(), float(score(start[None, :])[0])
    for _ in range(_MAX_SWEEPS):
        before = best
        for g, choices in enumerate(space.choices):
            thinned = _thinned(choices)
            rows = np.repeat(kept[None, :], len(thinned), axis=0)  # (C, G)
            rows[:, g] = thinned
            scores = score(rows)
            i = int(np.argmin(scores))
            if scores[i] < best * (1.0 - 1e-12):
                kept, best = rows[i], float(scores[i])
        if best == before:
            break
    return kept


_TOLERANCE: Final = 1e-9  # relative: the same cost summed in another order is still the same cost
_LINE_POINTS: Final = 129


@dataclass(frozen=True)
class Budget:
    """Upper limits by cost name, in the units of the names; no limits at all is a budget that everything meets.

    Raises:
        BadInputError: a limit that is not a finite positive number.
    """

    limits: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if isinstance(limit, str) or not (math.isfinite(limit) and limit > 0.0):
                raise BadInputError(
                    f"budget.{name} = {limit!r}, must be a positive number; resolve_budget reads shares such as 0.5x"
                )


def resolve_budget(spec: Mapping[str, str | float], dense: Cost) -> Budget:
    """Turn a budget as written by the user into absolute limits, each as ``Limit`` reads it.

    Raises:
        BadInputError: a cost that ``dense`` lacks, or a limit outside (0, dense cost].
    """
    limits = {}
    for name, written in spec.items():
        limit = Limit.parse(name, written, f"budget.{name}", dense.get(name))
        limits[name] = limit.resolve(limit.dense_cost(dense))
    return Budget(limits)


class FeasibleSet:
    """The policies of a space whose every budgeted cost, priced after rounding, is within its limit.

    Why ``allowed`` never leads into a dead end: let S be the stored completions, of which at least one is feasible
    as a whole (else the constructor raises). Claim: after g steps over allowed choices, some s in S makes
    (prefix, s[g:]) feasible. g = 0: the feasible s itself. Step: choice c is allowed only if some s' in S makes
    (prefix, c, s'[g+1:]) feasible, which is the claim for g + 1; and a choice is always left, for s[g] followed by
    s[g+1:] is the policy of the claim for g. After the last step the suffix is empty and the policy itself is feasible.
    No monotony of any cost is used.

    Args:
        space: kept counts each group may choose from.
        grid: prices policies.
        budget: the limits.

    Raises:
        BadInputError: a limit on a cost the grid does not price.
        InfeasibleBudgetError: no feasible policy was found; the message names the smallest value of each cost.
    """

    def __init__(self, space: PolicySpace, grid: CostGrid, budget: Budget) -> None:
        for name in budget.limits:
            if name not in grid.names:
                raise BadInputError(f"budget.{name}: nothing here predicts {name}; choose from {', '.join(grid.names)}")
        self.space, self.grid, self.budget = space, grid, budget
        self._limited = grid.only(budget.limits)
        self._sizes = np.array([len(choices) for choices in space.choices], dtype=np.int64)
        self._completions = space.floor[None, :]
        if budget.limits:
            self._completions = cheapest_policies(space, self._limited.price, budget.limits)
        feasible = self.contains(self._completions)
        if not feasible.any():
            raise InfeasibleBudgetError(self._why_infeasible())
        self._anchors = self._completions[feasible]

    def overshoot(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """Worst cost as a share of its limit for kept counts (P, G): (P,); 0 where nothing is limited."""
        if not self.budget.limits:
            return np.zeros(len(kept))
        return overshoot(self._limited.price(kept), self.budget.limits)

    def contains(self, kept: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which policies (P, G) are within every limit: (P,); whether counts are on the grid is not asked."""
        return np.asarray(self.overshoot(kept) <= 1.0 + _TOLERANCE)

    def admits(self, cost: Cost) -> bool:
        """Whether a cost is within every limit; that of a policy is where the policy is contained."""
        return all(cost[name] / limit <= 1.0 + _TOLERANCE for name, limit in self.budget.limits.items())

    def allowed(self, prefix: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Choices of the next group from which a known completion stays within every limit.

        Args:
            prefix: kept counts (g,) of the groups decided so far, g < G; each was allowed when it was chosen.

        Returns:
            One flag for each of ``space.choices[g]``; at least one is true.
        """
        g, choices = len(prefix), self.space.choices[len(prefix)]
        allowed = np.zeros(len(choices), dtype=np.bool_)
        for completion in self._completions:
            open_ = np.flatnonzero(~allowed)
            rows = np.repeat(completion[None, :], len(open_), axis=0)  # (open choices, G)
            rows[:, :g], rows[:, g] = prefix, choices[open_]
            allowed[open_] = self.contains(rows)
        return allowed

    def completion(self, prefix: NDArray[np.int64]) -> NDArray[np.int64]:
        """The known completion (G,) of a prefix (g,) with the smallest worst overshoot."""
        rows = self._completions.copy()
        rows[:, : len(prefix)] = prefix
        return np.asarray(rows[int(np.argmin(self.overshoot(rows)))])

    def nearest_allowed(self, prefix: NDArray[np.int64], pruning_ratio: float) -> int:
        """Round a pruning ratio of the next group to the nearest kept count that is ``allowed`` after a prefix (g,)."""
        return self.space.nearest_choice(len(prefix), pruning_ratio, self.allowed(prefix))

    def repair(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Project kept counts (G,) into the set, deterministically; a feasible policy comes back unchanged.

        All groups move from a cheap feasible policy towards the proposal in proportion, as far as the budget lets
        them; groups that can take one more grid step go on in proportion, until none can. So the result is feasible,
        and no single step of one group towards the proposal is: little budget is wasted.

        Raises:
            BadInputError: a count off the channel grid; nothing is rounded here.
        """
        target = self.space.indices(kept)
        if self.contains(kept[None, :])[0]:
            return kept
        reached = [self._farthest(self.space.indices(anchor), target) for anchor in self._anchors]
        gaps = [float((np.abs(target - point) / self._sizes).sum()) for point in reached]
        point: NDArray[np.int64] | None = reached[int(np.argmin(gaps))]
        while point is not None:
            last, point = point, self._closer(point, target)
        return np.asarray(self.space.counts(last[None, :])[0])

    def largest_uniform(self) -> NDArray[np.int64]:
        """Kept counts (G,) of the smallest pruning ratio, one for all groups, in thousandths, within the budget.

        Where no single ratio is feasible (possible on a staircase), the repaired smallest policy.
        """
        return self._largest_uniform.copy()

    @cached_property
    def _largest_uniform(self) -> NDArray[np.int64]:
        ratios = np.linspace(0.0, 1.0, 1001)
        rows = np.array([self.space.nearest(np.full(len(self._sizes), ratio)) for ratio in ratios])
        rows = rows[np.append(True, (rows[1:] != rows[:-1]).any(1))]  # many ratios round to the same counts
        feasible = self.contains(rows)
        return np.asarray(rows[np.argmax(feasible)] if feasible.any() else self.repair(self.space.floor))

    def _closer(self, point: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The next feasible choice indices (G,) from ``point`` towards another ``target``; None where no step is."""
        groups = np.flatnonzero(point != target)
        single = np.repeat(point[None, :], len(groups), axis=0)  # (groups, G): one grid step of one group each
        single[np.arange(len(groups)), groups] += np.sign(target - point)[groups]
        feasible = self.contains(self.space.counts(single))
        if not feasible.any():
            return None
        goal, movers = point.copy(), groups[feasible]
        goal[movers] = target[movers]
        far = self._farthest(point, goal)
        if np.any(far != point):
            return far
        gap = np.abs(target - point)[movers] / self._sizes[movers]
        return np.asarray(single[feasible][int(np.argmax(gap))])

    def _farthest(self, start: NDArray[np.int64], goal: NDArray[np.int64]) -> NDArray[np.int64]:
        """The feasible point nearest to ``goal`` on the line from a feasible ``start``, in choice indices (G,).

        The whole line is tried, not bisected: on a staircase feasibility can come and go along it.
        """
        shares = np.linspace(1.0, 0.0, _LINE_POINTS)[:, None]
        points = start + np.rint(shares * (goal - start)).astype(np.int64)  # (points, G), goal first, start last
        feasible = self.contains(self.space.counts(points))
        return np.asarray(points[int(np.argmax(feasible))] if feasible.any() else start)

    def _why_infeasible(self) -> str:
        prices, dense = self.grid.price(self._completions), self.grid.price(self.space.dense[None])
        closest = int(np.argmin(self.overshoot(self._completions)))
        parts = [
            f"{name} ≤ {limit:.6g}: smallest found {prices[name].min():.6g}"
            + f", closest to all limits {prices[name][closest]:.6g}" * (len(self.budget.limits) > 1)
            for name, limit in self.budget.limits.items()
        ]
        shares = (f"{name} {prices[name].min() / dense[name][0]:.4g}x" for name in self.budget.limits if dense[name][0])
        return (
            f"no policy within the budget was found ({'; '.join(parts)}); smallest as a share of dense: "
            f"{', '.join(shares)}; raise the limits or allow more pruning (search.max_pruning_ratio, "
            "device.channel_multiple)"
        )
