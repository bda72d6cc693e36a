"""Baseline agents: uniform, random, Erdos-Renyi-Kernel, and guided by the sensitivity of single groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, LayerKind, PolicySpace, PruningPolicy
from amcsearch.evaluation import Curves
from amcsearch.methods import erk_densities, policy_from_densities
from amcsearch.search.exact.harm import harms, probed_curves
from amcsearch.search.local_search import climb, evaluate_one, explore, random_policies, unseen
from amcsearch.search.study import Study

__all__ = ["ErkSearch", "RandomSearch", "SensitivitySearch", "UniformSearch", "allocations"]

_DRAWS: Final = 4096  # random policies tried for a new one


@dataclass(frozen=True)
class RandomSearch:
    """Independent random feasible policies (``random_policies``).

    Where the budget is so tight that rejection finds none, policies come from the sequential bound instead: group by
    group, uniformly among the choices that leave the budget within reach.
    """

    fills_workers: ClassVar[bool] = True

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``."""
        for _ in study.stream(self._policies(study, np.random.default_rng([seed, 1])), study.ahead):
            continue

    def _policies(self, study: Study, rng: np.random.Generator) -> Iterator[PruningPolicy]:
        draws = self._draws(study, rng)
        while (policy := self._new(study, draws, rng)) is not None:
            yield policy

    def _new(self, study: Study, draws: Iterator[NDArray[np.int64]], rng: np.random.Generator) -> PruningPolicy | None:
        """The first new one of the draws, or a new neighbour of one; None when nothing new is left."""
        for policy in map(study.network.policy, islice(draws, _DRAWS)):
            if not study.seen(policy) and policy not in study.under_way:
                return policy
            if (len(study.trials) + len(study.under_way)) * 2 > study.space.size:
                break  # most of a small space is spent: look for the rest directly
        kept = unseen(study, next(draws), rng, study.under_way)
        return None if kept is None else study.network.policy(kept)

    def _draws(self, study: Study, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        while True:
            rows = random_policies(study, rng)
            if rows is None:
                yield self._sequential(study, rng)
            else:
                yield from rows

    def _sequential(self, study: Study, rng: np.random.Generator) -> NDArray[np.int64]:
        prefix = np.zeros(0, dtype=np.int64)
        for choices in study.space.choices:
            pick = rng.choice(choices[study.feasible.allowed(prefix)])
            prefix = np.append(prefix, pick)
        return prefix


@dataclass(frozen=True)
class UniformSearch:
    """One ratio for all groups: the largest policy within the budget, the next ``heavier`` uniform ones, then
    near-uniform policies around the first (a baseline that spends as many evaluations as the agents it is held to).

    Raises:
        BadInputError: ``heavier`` below 0.
    """

    heavier: int = 4
    fills_workers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.heavier < 0:
            raise BadInputError(f"uniform: heavier = {self.heavier}, must be at least 0")

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``."""
        rng = np.random.default_rng([seed, 1])
        first = [study.network.policy(kept) for kept in self._sequence(study)]
        study.evaluate(list(dict.fromkeys(policy for policy in first if not study.seen(policy)))[: study.remaining])
        explore(study, study.feasible.largest_uniform, rng, study.ahead)

    def _sequence(self, study: Study) -> NDArray[np.int64]:
        """Distinct feasible uniform policies (P, G), largest first."""
        space, largest = study.space, study.feasible.largest_uniform()
        keep_ratios = np.unique(np.concatenate([choices / choices[-1] for choices in space.choices]))[::-1]
        rows = np.array([largest, *(space.nearest(np.full(len(space.choices), 1.0 - r)) for r in keep_ratios)])
        rows = rows[(rows <= largest).all(axis=1) & study.feasible.contains(rows)]
        return np.array(list(dict.fromkeys(map(tuple, rows.tolist())))[: 1 + self.heavier], dtype=np.int64)


@dataclass(frozen=True)
class ErkSearch:
    """Erdos-Renyi-Kernel allocation: small layers stay denser; the least sparsity within the budget, then near it.

    ERK gives a layer of shape (kH, kW, C_in, C_out) a density in proportion to the sum of these over their product
    (Evci 2020, 1911.11134); channels follow by ``policy_from_densities``. A baseline of shapes alone, without data.

    Raises:
        BadInputError: ``halvings`` below 1.
    """

    halvings: int = 12
    fills_workers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.halvings < 1:
            raise BadInputError(f"erk: halvings = {self.halvings}, must be at least 1")

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``."""
        rng = np.random.default_rng([seed, 1])
        first = self._first(study)
        evaluate_one(study, first)
        explore(study, lambda: first, rng, study.ahead)

    def _first(self, study: Study) -> NDArray[np.int64]:
        """The policy (G,) of the least sparsity within the budget, by bisection."""
        low, high, kept = 0.0, 1.0, self._policy(study, 0.0)
        feasible = kept if study.feasible.contains(kept[None, :])[0] else None
        for _ in range(self.halvings if feasible is None else 0):
            middle = (low + high) / 2
            kept = self._policy(study, middle)
            if study.feasible.contains(kept[None, :])[0]:
                high, feasible = middle, kept
            else:
                low = middle
        return study.feasible.repair(kept) if feasible is None else feasible

    def _policy(self, study: Study, sparsity: float) -> NDArray[np.int64]:
        weighted = [layer for layer in study.network.layers if layer.kind in (LayerKind.CONV, LayerKind.LINEAR)]
        shapes = {x.name: (*x.kernel, x.in_channels // x.conv_groups, x.out_channels) for x in weighted}
        densities = erk_densities(shapes, sparsity)
        return study.network.kept_array(policy_from_densities(study.network, study.space, densities))


def allocations(space: PolicySpace, measured: Curves) -> NDArray[np.int64]:
    """Return policies (T, G) for every loss tolerance the curves tell apart, from strict to lenient.

    For a tolerance each group keeps the fewest channels whose harm (``harms``) is no more.
    """
    rises = harms(space, measured)
    tolerances = np.unique(np.concatenate(rises))
    columns = [
        c[np.argmax(h[None, :] <= tolerances[:, None], axis=1)] for c, h in zip(space.choices, rises, strict=True)
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class SensitivitySearch:
    """Probe every group alone, allocate by one loss tolerance for all, then climb from there.

    At most half of the evaluations go into probes (``points`` kept counts a group, fewer where they do not fit); they
    may exceed the budget. The strictest tolerance that meets the budget gives the first policy. The next stricter
    allocation, repaired into the budget, gives the second, which uses more of the budget. Li 2017 (1608.08710)
    prunes by such curves. Effects of single groups do not add up, so hill climbing follows.

    Raises:
        BadInputError: ``points`` below 2.
    """

    points: int = 6

    def __post_init__(self) -> None:
        if self.points < 2:
            raise BadInputError(f"sensitivity: points = {self.points}, must be at least 2")

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``."""
        measured = probed_curves(study, self.points)
        if measured is None:
            study.note(f"sensitivity: {study.remaining} evaluations are too few to probe every group; climbing only")
            evaluate_one(study, study.feasible.largest_uniform())
        else:
            for kept in self._candidates(study, measured):
                evaluate_one(study, kept)
        climb(study, np.random.default_rng([seed, 1]))

    def _candidates(self, study: Study, measured: Curves) -> list[NDArray[np.int64]]:
        rows = allocations(study.space, measured)
        feasible = study.feasible.contains(rows)
        if not feasible.any():  # costs that fall with width: even the smallest widths are over budget
            return [study.feasible.repair(rows[-1])]
        first = int(np.argmax(feasible))
        return [rows[first], study.feasible.repair(rows[max(0, first - 1)])]
