"""Exhaustive grids of few ratios: every group alone where that fits, else whole stages together.

A grid has V variables of L evenly spaced ratios, from nothing removed to the most the space allows. The variables are
the groups, or, when even two ratios a group are too many, the stages (groups whose maps have the same size), or all
groups at once. L grows until the grid's feasible policies no longer fit the evaluations. The evaluations that are left
go to the next finer grid, policies closest to the budget first, and then to neighbours that no grid contained. So every
evaluation is spent while a new policy exists. Infeasible points are priced in batches and never evaluated.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, NetworkSpec, PruningPolicy, Side
from amcsearch.search.local_search import climb
from amcsearch.search.study import Study

__all__ = ["GridSearch", "grid_points", "stages"]

MAX_POINTS: Final = 1 << 18
"""Largest grid that is priced; bigger ones would spend more time on pricing than on evaluating."""

_BATCH: Final = 8192


def stages(network: NetworkSpec) -> list[int]:
    """Return a stage number for each group: groups whose first layer has maps of the same size share one."""
    sizes: list[tuple[int, int]] = []
    for group in network.groups:
        first = min(group.couplings, key=lambda coupling: network.layer_index[coupling.layer])
        layer = network.layers[network.layer_index[first.layer]]
        sizes.append(layer.out_size if first.side is Side.OUT else layer.in_size)
    order = list(dict.fromkeys(sizes))
    return [order.index(size) for size in sizes]


def grid_points(study: Study, tying: list[int], levels: int) -> NDArray[np.int64]:
    """Return the distinct feasible policies (P, G) of ``levels`` ratios for each variable of ``tying`` (G,).

    A variable's ratios run to the largest of its groups; each group rounds to its nearest choice.
    """
    space = study.space
    variables = max(tying) + 1
    most = np.zeros(variables)
    np.maximum.at(most, tying, 1.0 - space.floor / space.dense)
    table = np.stack([space.nearest((most * share)[tying]) for share in np.linspace(0.0, 1.0, levels)])  # (L, G)
    feasible = []
    columns = np.arange(len(tying))
    for start in range(0, levels**variables, _BATCH):
        flat = np.arange(start, min(start + _BATCH, levels**variables))
        level = np.stack(np.unravel_index(flat, (levels,) * variables), axis=1)[:, tying]  # (P, G)
        kept = table[level, columns]
        feasible.append(kept[study.feasible.contains(kept)])
    return np.unique(np.concatenate(feasible), axis=0)


@dataclass(frozen=True)
class GridSearch:
    """As the module says; the seed only orders the neighbours tried after the last grid.

    Raises:
        BadInputError: ``max_points`` below 2.
    """

    max_points: int = MAX_POINTS
    fills_workers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_points < 2:
            raise BadInputError(f"grid: max_points = {self.max_points}, must be at least 2")

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``."""
        tying, label = self._tying(study)
        for levels, points in self._grids(study, tying):
            fresh = self._unseen(study, points)
            whole = len(fresh) <= study.remaining
            if fresh:
                part = "all" if whole else f"{study.remaining} of"
                study.note(f"grid over {label}: {levels} ratios each, {part} {len(fresh)} new feasible policies")
            self._evaluate(study, fresh[: study.remaining])
            if not study.remaining:
                return
        self._neighbours(study, np.random.default_rng([seed, 1]))

    def _tying(self, study: Study) -> tuple[list[int], str]:
        """The finest tying whose two-ratio grid has no more feasible policies than evaluations."""
        count = len(study.network.groups)
        by_stage = stages(study.network)
        for tying, label in ((list(range(count)), f"{count} groups"), (by_stage, f"{max(by_stage) + 1} stages")):
            points = 2 ** (max(tying) + 1)
            if points <= self.max_points and len(grid_points(study, tying, 2)) <= study.remaining:
                return tying, label
        return [0] * count, "one ratio for all groups"

    def _grids(self, study: Study, tying: list[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Grids that grow until they overflow the evaluations: the last that fits, then the finer one after it."""
        variables, most = max(tying) + 1, max(len(choices) for choices in study.space.choices)
        last: tuple[int, NDArray[np.int64]] | None = None
        for levels in itertools.count(2):
            if levels > 2 * most or levels**variables > self.max_points:
                break
            points = grid_points(study, tying, levels)
            if len(points) > study.remaining:
                if last is not None:
                    yield last
                yield levels, points
                return
            last = (levels, points)
        if last is not None:
            yield last

    def _unseen(self, study: Study, points: NDArray[np.int64]) -> list[PruningPolicy]:
        """New policies of a grid, those that use most of the budget (or keep most channels) first."""
        kept_share = points @ (1.0 / study.space.dense)
        order = np.lexsort((-kept_share, -study.feasible.overshoot(points)))
        policies = [study.network.policy(points[i]) for i in order]
        return [policy for policy in policies if not study.seen(policy)]

    def _evaluate(self, study: Study, policies: list[PruningPolicy]) -> None:
        for _ in study.stream(policies, study.ahead):
            continue

    def _neighbours(self, study: Study, rng: np.random.Generator) -> None:
        if study.remaining:
            study.note(f"grid exhausted with {study.remaining} evaluations left: going on near the best policy")
        climb(study, rng)
