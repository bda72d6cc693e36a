"""Exact allocation for measured errors, then a local search over coefficients of these errors.

    minimise Σ_g e_g(k_g) within the budget,   e_g(k) = c_g · (harm_g(k) + prior · scale · r²),   r = 1 - k / channels

harm_g is the rise of the loss when group g alone shrinks, measured by probes; r² is SPDY's prior, which also tells
choices apart that the probes do not (scale: the median rise at the narrowest choices; 1 without probes). With c = 1 the
least sum within the budget comes from exact dynamic programming (``allocator.py``). Effects of single groups do not add
up, so a search over c follows, as in SPDY: draw a few of the best coefficients again, solve, evaluate, and keep the
better ones. Draws start at ``resample`` of the coefficients and shrink with the evaluations left, to one.

With several objectives, one of them a cost, the last row of the programme is a whole front. The first policies lie
evenly along it. Then coefficients are drawn again at random positions of the front, and kept when their policy joins
the front of the study.

Frantar & Alistarh 2022, SPDY: Accurate Pruning with Speedup Guarantees. Departures: measured curves rather than the
prior alone; costs that depend on two widths; rounding up, so that no policy exceeds the budget; coefficients are
factors within 1/spread … spread, log-uniform, where SPDY's lie in [0, 1]; full draws at the start without probes alone.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PruningPolicy, Trial
from amcsearch.search.exact.allocator import Allocator, Errors
from amcsearch.search.exact.harm import errors_of, harms, probed_curves
from amcsearch.search.local_search import unseen
from amcsearch.search.study import Study

__all__ = ["DynamicProgramming"]


@dataclass(frozen=True)
class DynamicProgramming:
    """Probe every group alone, allocate by exact dynamic programming, then search over the errors' coefficients (SPDY).

    Args:
        points: most kept counts a group that are probed, for at most half of the evaluations; 0 is SPDY's prior alone.
        prior: weight of the quadratic prior beside measured curves.
        buckets: resolution of the budget; the solution is no worse than for a budget smaller by groups / buckets.
        sums: most additions a solution may take (10⁹ a second); wider choices are thinned out beyond.
        rounds: most solutions tried to meet further limits.
        resample: share of the coefficients drawn anew at first.
        spread: largest factor of a coefficient.
        starts: evaluations of coefficients all drawn anew, where nothing was probed.
        front_points: policies along the front, for several objectives.
        tries: draws for one new policy, each of twice as many coefficients; then a neighbour of the last one.

    Raises:
        BadInputError: a parameter out of its range.
    """

    points: int = 6
    prior: float = 0.1
    buckets: int = 4_000
    sums: float = 3e8
    rounds: int = 8
    resample: float = 0.1
    spread: float = 8.0
    starts: int = 20
    front_points: int = 16
    tries: int = 6

    def __post_init__(self) -> None:
        least = {"points": 0, "buckets": 1, "rounds": 1, "starts": 0, "front_points": 1, "tries": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise BadInputError(f"dynamic_programming: {name} = {getattr(self, name)}, must be at least {bound}")
        for name in ("prior", "sums"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise BadInputError(f"dynamic_programming: {name} = {getattr(self, name)}, must be a positive number")
        if not 0.0 < self.resample <= 1.0:
            raise BadInputError(f"dynamic_programming: resample = {self.resample}, must be in (0, 1]")
        if not 1.0 < self.spread < math.inf:
            raise BadInputError(f"dynamic_programming: spread = {self.spread}, must be a number above 1")

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``.

        Raises:
            BadInputError: a layer depends on too many groups to be solved exactly.
        """
        measured = probed_curves(study, self.points)
        if measured is None:
            study.note(f"dynamic_programming: no probes, the quadratic prior alone ({study.remaining} evaluations)")
        rises = harms(study.space, measured) if measured else [np.zeros(len(c)) for c in study.space.choices]
        errors = errors_of(study.space, rises, self.prior)
        costs = [name for name in study.objectives or () if name in study.grid.names]
        several = len(study.objectives or ()) > 1 and bool(costs)
        allocator = Allocator(study.feasible, self.buckets, self.sums, self.rounds, costs[0] if several else None)
        most = max(map(len, study.space.choices), default=0)
        if allocator.offered < most:
            study.note(f"dynamic_programming: {allocator.offered} of up to {most} kept counts a group fit `sums`")
        starts = 0 if measured else self.starts
        (_FrontSearch if several else _Search)(self, study, allocator, errors, starts, seed).run()


class _Search:
    """The local search over coefficients: the best so far, (G,), and what their policy was worth."""

    def __init__(
        self, settings: DynamicProgramming, study: Study, allocator: Allocator, errors: Errors, starts: int, seed: int
    ) -> None:
        self.settings, self.study, self.allocator, self.errors, self.starts = settings, study, allocator, errors, starts
        self.rng = np.random.default_rng([seed, 1])
        self.coefficients, self.worth = np.ones(len(errors)), (-math.inf, -math.inf)
        self.draws_of_ones = self.first_draws()
        self._total = max(1, study.remaining)
        self._free = np.flatnonzero([len(choices) > 1 for choices in study.space.choices])

    def run(self) -> None:
        """Evaluate until nothing remains or nothing new is left."""
        while self.study.remaining:
            proposals = self._propose(min(self.study.batch, self.study.remaining))
            if not proposals:
                return
            for coefficients, trial in zip(proposals.values(), self.study.evaluate(list(proposals)), strict=True):
                if coefficients is not None:
                    self.learn(coefficients, trial)

    def first_draws(self) -> int:
        """Return how many draws have all coefficients at one."""
        return 1

    def draw(self, attempt: int) -> NDArray[np.float64]:
        """Coefficients (G,) to try: ones at first, then the best so far with a few drawn anew."""
        if self.draws_of_ones:
            self.draws_of_ones -= 1
            return np.ones(len(self.errors))
        drawn = self.coefficients.copy()
        left = self.study.remaining / self._total
        count = min(len(self._free), math.ceil(self.settings.resample * len(self._free) * left) * 2**attempt)
        if self._total - self.study.remaining < self.starts:
            count = len(self._free)
        reach = math.log(self.settings.spread)
        chosen = self.rng.choice(self._free, count, replace=False)
        drawn[chosen] = np.exp(self.rng.uniform(-reach, reach, count))
        return drawn

    def solve(self, errors: Errors) -> NDArray[np.int64]:
        """The policy (G,) to evaluate for these errors, within the budget."""
        return self.allocator.best(errors)

    def learn(self, coefficients: NDArray[np.float64], trial: Trial) -> None:
        """Keep coefficients whose policy was worth more, of equal ones that of the lower loss."""
        worth = (trial.reward, -trial.evaluation.loss)
        if worth > self.worth:
            self.coefficients, self.worth = coefficients, worth

    def _propose(self, count: int) -> dict[PruningPolicy, NDArray[np.float64] | None]:
        """Up to ``count`` new policies with their coefficients (None for a neighbour)."""
        proposals: dict[PruningPolicy, NDArray[np.float64] | None] = {}
        while len(proposals) < count:
            for attempt in range(self.settings.tries):
                coefficients = self.draw(attempt)
                kept = self.solve([c * e for c, e in zip(coefficients, self.errors, strict=True)])
                policy = self.study.network.policy(kept)
                if self.study.seen(policy):
                    self.learn(coefficients, self.study.evaluate([policy])[0])
                elif policy not in proposals:
                    proposals[policy] = coefficients
                    break
            else:
                neighbour = unseen(self.study, kept, self.rng, proposals)
                if neighbour is None:
                    break
                proposals[self.study.network.policy(neighbour)] = None
        return proposals


class _FrontSearch(_Search):
    """The same along a front: ``share`` is a place on it, from 0, the cheapest policy, to 1, the whole budget."""

    share = 1.0

    def first_draws(self) -> int:
        """As ``_Search.first_draws``: one for each of the first places."""
        return self.settings.front_points

    def draw(self, attempt: int) -> NDArray[np.float64]:
        """As ``_Search.draw``, and a place on the front: evenly spaced while coefficients are ones, then random."""
        self.share = self.draws_of_ones / self.settings.front_points or float(self.rng.random())
        return super().draw(attempt)

    def solve(self, errors: Errors) -> NDArray[np.int64]:
        """The policy (G,) of the largest budget up to the place on the front, repaired where its true price is over."""
        solution = self.allocator.solve(errors)
        front = solution.front
        if not len(front):
            return self.study.feasible.repair(self.study.space.floor)
        place = front[0] + self.share * (front[-1] - front[0])
        bucket = front[np.searchsorted(front, place, side="right") - 1]
        return self.study.feasible.repair(self.allocator.policy(solution, int(bucket)))

    def learn(self, coefficients: NDArray[np.float64], trial: Trial) -> None:
        """Keep coefficients whose policy nothing dominates."""
        if any(trial is member for member in self.study.front):
            self.coefficients = coefficients
