"""Exact allocation corrected by what evaluations teach: optima of learnt tables and exchanges between groups.

The first policies are those of the exact programme and the uniform one (``starting_policies``), so the first evaluation
is of a real policy. An optimum of the same errors times random factors follows. From then on, every proposal

1. fits a surrogate to all evaluations (``surrogate.py``): errors that add up, what single groups count for beyond
   their errors, and a Gaussian process for what adding up cannot say;
2. gathers policies within the budget: optima of the corrected tables, at the mean of what was learnt and at draws of
   it (Thompson sampling); policies along their front; random ones; and around the best ones all exchanges: some groups
   narrower by 1, 2 or 4 steps, others wider;
3. evaluates the policy of the largest expected improvement. Exchanges around the best candidates refine it first. A
   batch takes one policy after another, each as if it had turned out as predicted.

It stops after ``patience`` evaluations in a row of which none was better than the best before and none was expected to
improve by more than ``tolerance`` of the noise. The noise is what the surrogate cannot tell apart.

Earlier studies of the same evaluations (``Study.earlier``), under other budgets and on other devices, teach the
surrogate too: it is asked from the third evaluation on, and their policies within the budget are among the candidates.

Without errors (``Study.errors``), r² / (1 - r) stands in for them, r the share of a group that is removed, the uniform
policy is first, and the surrogate learns the groups' weights from policies within the budget alone: no probes. With
several objectives, every proposal draws weights for them and improves the largest weighted distance to the best value
of each.

SPDY (Frantar & Alistarh 2022) searches coefficients of an exact programme at random; here they are learnt. Jones 1998,
Efficient global optimization. Russo et al. 2018, A tutorial on Thompson sampling, arXiv 1707.02038. Knowles 2006,
ParEGO (several objectives).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PolicySpace, PruningPolicy, Trial
from amcsearch.search.exact.allocator import BUCKETS, ROUNDS, Allocator, Errors
from amcsearch.search.exact.dynamic_programming import cost_objectives, starting_policies
from amcsearch.search.local_search import unseen
from amcsearch.search.study import Study
from amcsearch.search.surrogate import Surrogate, expected_improvement

__all__ = ["Ladder"]

Counts = NDArray[np.int64]

_STEPS: Final = (1, 2, 4)  # of one group in an exchange
_CENTRES: Final = 3  # policies whose exchanges are looked at
_RANDOM: Final = 512  # random policies among the candidates, before the budget
_ALONG: Final = 3  # policies along the front of the corrected tables
_LEARNT: Final = 300  # most policies that the surrogate learns from: the best
_ATTEMPTS: Final = 8  # draws of factors for one new policy


@dataclass(frozen=True)
class Ladder:
    """Learn what adding up errors gets wrong, and evaluate where the most improvement is expected.

    Args:
        starts: evaluations before the surrogate is asked, one more where something stands in for the errors; those
            beyond the exact and the uniform policy are optima of the errors times random factors.
        spread: largest of these factors, log-uniform from 1 / spread.
        draws: corrected tables that are drawn for one proposal, beside those at the mean.
        exchanges: most exchanges around one policy that are looked at.
        refinements: how often exchanges around the best candidates join them.
        patience: evaluations in a row without improvement, expected or real, after which it stops.
        tolerance: expected improvement that counts, as a share of the noise.
        buckets: resolution of the budget when the tables are solved.
        sums: most additions one of these solutions may take (10⁹ a second); wider choices are thinned out beyond.

    Raises:
        BadInputError: a parameter out of its range.
    """

    starts: int = 3
    spread: float = 2.0
    draws: int = 6
    exchanges: int = 2048
    refinements: int = 2
    patience: int = 24
    tolerance: float = 0.1
    buckets: int = BUCKETS // 4
    sums: float = 3e7

    def __post_init__(self) -> None:
        least = {"starts": 2, "draws": 0, "exchanges": 1, "refinements": 0, "patience": 1, "buckets": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise BadInputError(f"ladder: {name} = {getattr(self, name)}, must be at least {bound}")
        if not 1.0 < self.spread < math.inf:
            raise BadInputError(f"ladder: spread = {self.spread}, must be a number above 1")
        if not 0.0 <= self.tolerance < math.inf:
            raise BadInputError(f"ladder: tolerance = {self.tolerance}, must be a number of at least 0")
        if not 0.0 < self.sums < math.inf:
            raise BadInputError(f"ladder: sums = {self.sums}, must be a positive number")

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``; a note says where it stopped before all evaluations were spent."""
        if study.errors is None:
            study.note("ladder: no errors are known without an evaluation; it begins with the uniform policy")
        _Run(self, study, seed).until_settled()


class _Run:
    """One search: the surrogate, the exact programmes, and how long nothing better was in sight."""

    def __init__(self, settings: Ladder, study: Study, seed: int) -> None:
        self.settings, self.study = settings, study
        self.rng = np.random.default_rng([seed, 1])
        self.errors: Errors = study.errors or _stand_ins(study.space)
        self.costs = cost_objectives(study)
        looked_at = {*study.feasible.budget.limits, *self.costs}
        guessed = study.errors is None
        self.starts = settings.starts + guessed
        self.surrogate = Surrogate(study.space, study.grid, self.errors, sorted(looked_at) or None, guessed=guessed)
        self.allocators = self._allocators()
        self.signs = np.array([1.0 if way == "maximize" else -1.0 for way in study.directions])
        self._served: set[bytes] = set()  # kept counts of every trial: ten thousand candidates are looked up in it
        self.promise = math.inf  # expected improvement of the last proposal, as a share of the noise

    def until_settled(self) -> None:
        """Evaluate until nothing remains, nothing new is left or nothing better is in sight."""
        study, idle = self.study, 0
        study.evaluate(starting_policies(study))
        while study.remaining:
            best = study.best
            policies = self._propose(min(study.batch, study.remaining))
            if not policies:
                return
            study.evaluate(policies)
            is_promising = self.promise > self.settings.tolerance or study.best is not best
            idle = 0 if is_promising else idle + len(policies)
            if idle >= self.settings.patience and study.remaining:
                study.note(
                    f"ladder: stopped after {len(study.trials)} evaluations: the last {idle} brought nothing better, "
                    f"and none was expected to improve by more than {self.settings.tolerance:g} of the noise"
                )
                return

    def _allocators(self) -> list[Allocator]:
        """The exact programme for the budget, or one for each cost among several objectives; none if unsolvable."""
        settings, feasible = self.settings, self.study.feasible
        axes: Sequence[str | None] = self.costs or [None]
        try:
            made = [Allocator(feasible, settings.buckets, settings.sums, ROUNDS // 2, axis) for axis in axes]
            if any(allocator.offered < 1 for allocator in made if allocator.axis is not None):
                return []
        except BadInputError as error:
            self.study.note(f"ladder: without optima of the corrected tables; {error}")
            return []
        return made

    def _propose(self, count: int) -> list[PruningPolicy]:
        """Up to ``count`` new policies."""
        complete = [trial for trial in self.study.trials if trial.is_informative]
        policies: dict[PruningPolicy, None] = {}
        self.promise = math.inf
        if not complete or len(complete) + len(self.study.earlier) < self.starts:
            self._add_starts(policies, count)
        elif self.costs:
            for _ in range(count):
                self._add_expected(policies, complete, 1)
        else:
            self._add_expected(policies, complete, count)
        while len(policies) < count:
            neighbour = unseen(self.study, self._centre(), self.rng, policies)
            if neighbour is None:
                break
            policies[self.study.network.policy(neighbour)] = None
        return list(policies)

    def _centre(self) -> Counts:
        best = self.study.best
        return self.study.feasible.largest_uniform() if best is None else self._kept(best)

    def _add_starts(self, policies: dict[PruningPolicy, None], count: int) -> None:
        """Add optima of the errors times random factors, wider ones where they repeat themselves."""
        for _, attempt in product(range(count), range(_ATTEMPTS)):
            if len(policies) == count:
                return
            for row in self._solved(self._drawn_errors(1 + attempt)):
                policy = self.study.network.policy(row)
                if not self.study.seen(policy) and len(policies) < count:
                    policies[policy] = None

    def _add_expected(self, policies: dict[PruningPolicy, None], complete: Sequence[Trial], count: int) -> None:
        """Add the policies of the largest expected improvement, one after another."""
        rows = self._candidates(self._fit(complete))
        if policies:
            rows = rows[[policy not in policies for policy in map(self.study.network.policy, rows)]]
        while count and len(rows):
            gains = self._gains(rows)
            chosen = int(np.argmax(gains))
            if not policies:
                self.promise = float(gains[chosen]) / max(self.surrogate.noise, 1e-12)
            policies[self.study.network.policy(rows[chosen])] = None
            count -= 1
            if count:
                self.surrogate.believe(rows[chosen])
                rows = np.delete(rows, chosen, axis=0)

    def _fit(self, complete: Sequence[Trial]) -> Counts:
        """Teach the surrogate, and return the best policies so far, (at most ``_CENTRES``, G), best first."""
        earlier = [trial for trial in self.study.earlier if not self.study.seen(trial.policy)]
        trials = [*complete, *earlier]
        kept = np.stack([self._kept(trial) for trial in trials])
        worth = self._worths(trials)
        order = np.argsort(-worth, kind="stable")
        of_this_study = order[order < len(complete)]
        learnt = np.concatenate([of_this_study, order[order >= len(complete)]])[:_LEARNT]
        self.surrogate.fit(kept[learnt], worth[learnt], float(worth[of_this_study[0]]))
        return np.asarray(kept[of_this_study[:_CENTRES]])

    def _worths(self, complete: Sequence[Trial]) -> NDArray[np.float64]:
        """What trials are worth, (P,), larger is better: the reward, or a draw of weights for several objectives."""
        values = np.array([self.study.values(trial) for trial in complete]) * self.signs
        if values.shape[1] == 1:
            return np.asarray(values[:, 0])
        extent = np.ptp(values, axis=0)
        distance = (values.max(axis=0) - values) / np.where(extent > 0.0, extent, 1.0)
        weighted = self.rng.dirichlet(np.ones(len(self.signs))) * distance
        return np.asarray(-(weighted.max(axis=1) + 0.05 * weighted.sum(axis=1)))

    def _gains(self, rows: Counts) -> NDArray[np.float64]:
        """Expected improvement on the best policy so far, (P,)."""
        return expected_improvement(*self.surrogate.predict(rows), 0.0)

    def _candidates(self, centres: Counts) -> Counts:
        """New policies within the budget, (P, G): optima, random ones, exchanges, and exchanges around the best."""
        settings, study = self.settings, self.study
        mean = self.surrogate.tables()
        optima = [*self._solved(mean), *self._along(mean), *self._solved(self._drawn_errors(1))]
        for _ in range(settings.draws):
            optima += self._solved(self.surrogate.tables(self.rng))
        known = [study.space.nearest_counts(self._kept(trial))[None, :] for trial in study.earlier]
        parts = [study.space.random(_RANDOM, self.rng), *known, *map(self._exchanges, centres)]
        rows = self._new(np.concatenate([*(row[None, :] for row in optima), *parts]))
        for _ in range(settings.refinements if len(rows) else 0):
            best = rows[np.argsort(-self._gains(rows), kind="stable")[:_CENTRES]]
            near = self._new(np.concatenate([*map(self._exchanges, best)]))
            rows = _distinct(np.concatenate([rows, near]))
        return rows

    def _solved(self, errors: Errors) -> list[Counts]:
        """The policy (G,) of least error within the budget; with several objectives one at random along each front."""
        if not self.costs:
            return [allocator.best(errors) for allocator in self.allocators]
        return [a.along_front(a.solve(errors), float(self.rng.random())) for a in self.allocators]

    def _along(self, errors: Errors) -> list[Counts]:
        """Policies (G,) of least error at random places along the front of the budget."""
        rows = []
        for allocator in self.allocators:
            if allocator.axis is not None:
                solution = allocator.solve(errors)
                rows += [allocator.along_front(solution, float(share)) for share in self.rng.random(_ALONG)]
        return rows

    def _drawn_errors(self, reach: float) -> list[NDArray[np.float64]]:
        """The errors times random factors within the ``reach``-th power of ``spread``."""
        most = reach * math.log(self.settings.spread)
        return [math.exp(self.rng.uniform(-most, most)) * error for error in self.errors]

    def _new(self, rows: Counts) -> Counts:
        """The distinct ones of policies (P, G), in order, that are within the budget and were not evaluated."""
        rows = _distinct(rows)
        rows = rows[self.study.feasible.contains(rows)]
        self._served.update(self._kept(trial).tobytes() for trial in self.study.trials[len(self._served) :])
        return np.asarray(rows[np.array([row.tobytes() not in self._served for row in rows], dtype=np.bool_)])

    def _kept(self, trial: Trial) -> Counts:
        """Kept counts (G,) of the policy of a trial."""
        return self.study.network.kept_array(trial.policy)

    def _exchanges(self, kept: Counts) -> Counts:
        """Policies (P, G) with one group narrower, one wider, or both, than ``kept`` (G,); the budget is not asked."""
        space = self.study.space
        at = space.indices(kept)
        last = np.array([len(choices) - 1 for choices in space.choices])
        stay = np.zeros((1, len(kept)), dtype=np.int64)
        wider = np.concatenate([stay, *(step * np.eye(len(kept), dtype=np.int64) for step in _STEPS)])
        wider = wider[((at + wider) <= last).all(axis=1)]
        narrower = np.concatenate([stay, *(-step * np.eye(len(kept), dtype=np.int64) for step in _STEPS)])
        narrower = narrower[((at + narrower) >= 0).all(axis=1)]
        pairs = np.arange(len(wider) * len(narrower))
        if len(pairs) > self.settings.exchanges:
            pairs = self.rng.choice(pairs, self.settings.exchanges, replace=False)
        up, down = np.divmod(pairs, len(narrower))
        return space.counts(at + wider[up] + narrower[down])


def _distinct(rows: Counts) -> Counts:
    """The distinct ones of policies (P, G), in ascending order: ``np.unique`` takes seven times as long."""
    rows = rows[np.lexsort(rows.T[::-1])]
    return np.asarray(rows[np.append(True, (rows[1:] != rows[:-1]).any(axis=1))[: len(rows)]])


def _stand_ins(space: PolicySpace) -> list[NDArray[np.float64]]:
    """Return r² / (1 - r) for every choice, (choices,) each, r the share removed: least squares loses about so much.

    A group that keeps nothing counts as if it kept half of its narrowest choice.
    """
    kept = (np.maximum(c, 0.5 * c[c > 0][0]) / c[-1] for c in space.choices)
    return [(1.0 - share) ** 2 / share for share in kept]
