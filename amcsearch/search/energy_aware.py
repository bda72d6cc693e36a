"""Energy-aware pruning: groups in the order of their energy, each pruned as far as a loss tolerance allows.

Yang, Chen and Sze 2017, Designing Energy-Efficient CNNs using Energy-Aware Pruning, CVPR (arXiv 1611.05128): a layer
that is pruned early loses more than one that is pruned late, because later steps also compensate earlier errors. So
the layers that use most energy are pruned first. The paper's steps inside a layer are not done here.
``selection.criterion: magnitude`` removes small magnitudes, a selector such as ``obc`` keeps the weights that the
layer's output needs most, and ``recovery.reconstruction: least_squares`` refits the layers that read them. Unlike the
paper, this agent also restores channels among groups. Once the budget is met, it widens the groups whose narrowing
raised the loss most per energy, step by step, and narrows the group that raised it least. A step is kept where an
evaluation shows a lower loss.

Departures: channels in place of single weights; the order is computed again after every group, because narrowing one
group saves energy in its neighbours; passes over all groups repeat with twice the tolerance until the budget is met;
remaining evaluations go into hill climbing.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, NetworkSpec, at_worst
from amcsearch.costs import CostGrid
from amcsearch.search.local_search import climb, evaluate_one
from amcsearch.search.study import Study

__all__ = ["EnergyAware", "energy_of_groups", "exchange", "restore"]

_PASSES: Final = 24
_ENERGY: Final = "energy_mj"
_LEAST: Final = 1e-12  # mJ, or MACs


@dataclass(frozen=True)
class EnergyAware:
    """Groups in the order of their energy, highest first, each as far as a loss tolerance allows (Yang 2017).

    ``tolerance`` is the rise of the loss in nats that narrowing one group may cost in the first pass.

    Raises:
        BadInputError: a tolerance that is not above 0.
    """

    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not self.tolerance > 0.0:
            raise BadInputError(f"energy_aware: tolerance = {self.tolerance} nats, must be above 0")

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``."""
        if _ENERGY not in study.grid.names:
            study.note("energy_aware: nothing here predicts energy; groups go in the order of their MACs")
        hurts: dict[int, float] = {}
        kept = study.feasible.repair(self._pruned(study, hurts))
        evaluate_one(study, kept)
        restore(study, kept, hurts)
        climb(study, np.random.default_rng([seed, 1]))

    def _pruned(self, study: Study, hurts: dict[int, float]) -> NDArray[np.int64]:
        """Kept counts (G,), within the budget unless the evaluations ran out; one of these is left over.

        ``hurts`` takes what narrowing each group was last seen to cost, nats per mJ.
        """
        kept = study.space.dense
        for doublings in range(_PASSES):
            waiting = set(range(len(kept)))
            while waiting:
                if study.feasible.contains(kept[None, :])[0] or study.remaining < 2:
                    return kept
                energy = energy_of_groups(study.network, study.grid, kept)
                g = max(sorted(waiting), key=lambda group: energy[group])
                waiting.remove(g)
                kept = self._narrowed(study, kept, g, self.tolerance * 2.0**doublings, hurts)
        return kept

    def _narrowed(
        self, study: Study, kept: NDArray[np.int64], g: int, tolerance: float, hurts: dict[int, float]
    ) -> NDArray[np.int64]:
        """Narrow group ``g``, by bisection, as far as the loss rises by at most ``tolerance``, and not below the
        widest choice that meets the budget."""
        rows = np.array([_with(kept, g, n) for n in study.space.choices[g] if n <= kept[g]], dtype=np.int64)
        within = np.flatnonzero(study.feasible.contains(rows))
        rows = rows[within[-1] if len(within) else 0 :]
        limit = _loss(study, kept) + tolerance if len(rows) > 1 and study.remaining > 1 else np.nan
        low, high = -1, len(rows) - 1  # too narrow, narrow enough
        while high - low > 1 and study.remaining > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _loss(study, rows[middle]) <= limit else (middle, high)
        tried = high if high < len(rows) - 1 else low
        if tried >= 0 and study.seen(study.network.policy(rows[tried])):
            rise = _loss(study, rows[tried]) - _loss(study, kept)
            hurt = at_worst(rise / max(_saved(study, kept, rows[tried]), _LEAST))
            hurts[g] = min(hurt, sys.float_info.max)  # finite, for it is multiplied by savings of 0
        return np.asarray(rows[high])


def restore(study: Study, kept: NDArray[np.int64], hurts: Mapping[int, float]) -> None:
    """Widen groups of kept counts (G,) step by step, those that hurt most per energy first, while the loss falls.

    Every step is evaluated within the budget (``exchange``); it ends when no group's next one lowers the loss.
    """
    if not study.feasible.contains(kept[None, :])[0] or not study.seen(study.network.policy(kept)):
        return
    now, falling = _loss(study, kept), True
    while falling:
        falling = False
        for g in sorted(range(len(kept)), key=lambda group: -hurts.get(group, 0.0)):
            row = exchange(study, kept, g, hurts)
            if row is None or study.seen(study.network.policy(row)):
                continue
            if not study.remaining:
                return
            loss = _loss(study, row)
            if loss < now:
                now, kept, falling = loss, row, True


def exchange(study: Study, kept: NDArray[np.int64], g: int, hurts: Mapping[int, float]) -> NDArray[np.int64] | None:
    """Return ``kept`` (G,) with group ``g`` a step wider, and where the budget asks for it one other group narrowed.

    That one is the group whose narrowing, as far as the budget needs, is to hurt least; None where none alone pays.
    """
    wider = study.space.choices[g][study.space.choices[g] > kept[g]]
    if not len(wider):
        return None
    row = _with(kept, g, wider[0])
    if study.feasible.contains(row[None, :])[0]:
        return row
    paid = []
    for other, choices in enumerate(study.space.choices):
        rows = np.array([_with(row, other, n) for n in choices[choices < kept[other]]], dtype=np.int64)
        if other != g and len(rows):
            paid += [(other, rows[i]) for i in np.flatnonzero(study.feasible.contains(rows))[-1:]]
    costs = [hurts.get(other, 0.0) * _saved(study, row, narrower) for other, narrower in paid]
    return paid[int(np.argmin(costs))][1] if paid else None


def _saved(study: Study, wide: NDArray[np.int64], narrow: NDArray[np.int64]) -> float:
    """Energy in mJ (MACs where it has no model) that ``narrow`` saves of ``wide``, kept counts (G,)."""
    before, after = study.grid.price(np.stack([wide, narrow]))[_priced(study.grid)]
    return float(before - after)


def energy_of_groups(network: NetworkSpec, grid: CostGrid, kept: NDArray[np.int64]) -> NDArray[np.float64]:
    """Energy in mJ, (G,), of all layers whose width each group moves, at kept counts (G,); MACs where energy has no
    model."""
    layers = grid.price_layers(kept[None, :])[_priced(grid)][0]
    coupled = [{network.layer_index[c.layer] for c in group.couplings} for group in network.groups]
    return np.array([layers[sorted(indices)].sum() for indices in coupled], dtype=np.float64)


def _priced(grid: CostGrid) -> str:
    return _ENERGY if _ENERGY in grid.names else "macs"


def _with(kept: NDArray[np.int64], g: int, n_keep: int) -> NDArray[np.int64]:
    row = kept.copy()
    row[g] = n_keep
    return row


def _loss(study: Study, kept: NDArray[np.int64]) -> float:
    loss = study.evaluate([study.network.policy(kept)], probe=True)[0].evaluation.loss
    return loss if np.isfinite(loss) else np.inf
