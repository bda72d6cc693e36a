"""Exact allocation for measured errors, then a local search over coefficients of these errors.

    minimise Σ_g c_g · e_g(k_g) within the budget

e_g(k) is known for every count where a selector knows its errors (``evaluation.errors_at_outputs``): no evaluation is
spent on it. Otherwise, by probes,

    e_g(k) = harm_g(k) + prior · scale · r²,   r = 1 - k / channels

where harm_g is the rise of the loss when group g alone shrinks; r² is SPDY's prior, which also tells choices apart that
the probes do not (scale: the median rise at the narrowest choices; 1 without probes).

With c = 1 the least sum within the budget comes from exact dynamic programming (``allocator.py``). Effects of single
groups do not add up, so a search over c follows, as in SPDY: draw a few of the best coefficients again, solve,
evaluate, and keep the better ones. Draws start at ``resample`` of the coefficients and shrink with the evaluations
left, to one.

With several objectives, one of them a cost, the last row of the programme is a whole front. The first policies lie
evenly along it. Then coefficients are drawn again at random positions of the front, and kept when their policy joins
the front of the study.

Frantar & Alistarh 2022, SPDY: Accurate Pruning with Speedup Guarantees. Departures: measured curves rather than the
prior alone; costs that depend on two widths; rounding up, so that no policy exceeds the budget; coefficients are
factors within 1/spread … spread, log-uniform, where SPDY's lie in [0, 1]; full draws at the start without probes alone.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PruningPolicy, Trial
from amcsearch.search.exact.allocator import BUCKETS, ROUNDS, SUMS, Allocator, Errors
from amcsearch.search.exact.harm import errors_of, harms, probed_curves
from amcsearch.search.local_search import unseen
from amcsearch.search.study import Study

__all__ = ["DynamicProgramming", "cost_objectives", "starting_policies"]

_STARTS_SHARE: Final = 8  # one in so many evaluations goes to the first policies along a front …
_MOST_STARTS: Final = 8  # … and at most so many


def starting_policies(study: Study) -> list[PruningPolicy]:
    """Return policies to evaluate first: those of the exact programme for ``study.errors``, then the largest uniform.

    One of least error within the budget, or with several objectives some of least error along the front of each cost
    among them. Without errors, or where layers depend on too many groups, the uniform one alone. None costs more than
    the budget; there are at most as many as evaluations left.
    """
    policies = [*map(study.network.policy, _allocated(study)), study.network.policy(study.feasible.largest_uniform())]
    return list(dict.fromkeys(policies))[: study.remaining]


def _allocated(study: Study) -> list[NDArray[np.int64]]:
    if study.errors is None:
        return []
    costs = cost_objectives(study)
    try:
        if not costs:
            return [Allocator(study.feasible).best(study.errors)]
        count = min(_MOST_STARTS, max(1, study.remaining // _STARTS_SHARE // len(costs)))
        rows = []
        for cost in costs:
            allocator = Allocator(study.feasible, axis=cost)
            solution = allocator.solve(study.errors)
            rows += [allocator.along_front(solution, (i + 1) / count) for i in reversed(range(count))]
        return rows
    except BadInputError as error:
        study.note(f"search.start: starts from the uniform policy alone; {error}")
        return []


def cost_objectives(study: Study) -> list[str]:
    """Costs among several objectives; none where there is one goal."""
    several = study.objectives is not None and len(study.objectives) > 1
    return [name for name in study.objectives or () if name in study.grid.names] if several else []


@dataclass(frozen=True)
class DynamicProgramming:
    """Allocate by exact dynamic programming, then search over the errors' coefficients (SPDY).

    The errors are those that the study knows without an evaluation (``Study.errors``). Where it knows none, every group
    is probed alone.

    Args:
        probe: probe, whatever the study knows.
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

    probe: bool = False
    points: int = 6
    prior: float = 0.1
    buckets: int = BUCKETS
    sums: float = SUMS
    rounds: int = ROUNDS
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
        errors, starts = (study.errors, 0) if study.errors and not self.probe else self._probed(study)
        costs = cost_objectives(study)
        allocator = Allocator(study.feasible, self.buckets, self.sums, self.rounds, next(iter(costs), None))
        most = max(map(len, study.space.choices), default=0)
        if allocator.offered < most:
            study.note(f"dynamic_programming: {allocator.offered} of up to {most} kept counts a group fit `sums`")
        (_FrontSearch if costs else _Search)(self, study, allocator, errors, starts, seed).run()

    def _probed(self, study: Study) -> tuple[Errors, int]:
        """Errors by probes, or the prior's where there are none; and evaluations of coefficients all drawn anew."""
        measured = probed_curves(study, self.points)
        if measured is None:
            study.note(f"dynamic_programming: no probes, the quadratic prior alone ({study.remaining} evaluations)")
        rises = harms(study.space, measured) if measured else [np.zeros(len(c)) for c in study.space.choices]
        return errors_of(study.space, rises, self.prior), 0 if measured else self.starts


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
        return self.allocator.along_front(self.allocator.solve(errors), self.share)

    def learn(self, coefficients: NDArray[np.float64], trial: Trial) -> None:
        """Keep coefficients whose policy nothing dominates."""
        if any(trial is member for member in self.study.front):
            self.coefficients = coefficients
