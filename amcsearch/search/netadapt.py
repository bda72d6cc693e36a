"""NetAdapt: in every step, lower the cost a little by narrowing the one group whose narrowing hurts the metric least.

    R_i = R_(i-1) - dR * decay^(i-1)    each group ALONE keeps the most channels that meet R_i; the most accurate
                                        of these proposals is adopted; until the budget is met

Yang et al. 2018, NetAdapt, ECCV (arXiv 1804.03230). The resource R is the worst cost as a share of its limit, so that
several budgets are one resource. Departures: proposals are evaluated by the proxy instead of a short fine-tuning each,
channels are those of the configured criterion (theirs: L2 norm), dR grows where its steps would not fit the
evaluations, and the remaining evaluations go into hill climbing from the best policy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, Metric, Trial
from amcsearch.search.local_search import climb, evaluate_one
from amcsearch.search.study import Study

__all__ = ["NetAdapt", "proposals", "resources"]


@dataclass(frozen=True)
class NetAdapt:
    """Step by step the one group narrowed whose narrowing hurts the metric least (NetAdapt, Yang 2018).

    ``step`` is dR as a share of the dense network's resource.

    Raises:
        BadInputError: a step outside (0, 1), or a decay outside (0, 1].
    """

    step: float = 0.025
    decay: float = 0.96

    def __post_init__(self) -> None:
        if not 0.0 < self.step < 1.0 or not 0.0 < self.decay <= 1.0:
            raise BadInputError(
                f"netadapt: step = {self.step}, decay = {self.decay}; expected a step in (0, 1), a decay in (0, 1]"
            )

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``."""
        evaluate_one(study, study.feasible.repair(self._adapted(study)))
        climb(study, np.random.default_rng([seed, 1]))

    def _adapted(self, study: Study) -> NDArray[np.int64]:
        """Kept counts (G,) after the last step that could be paid for; one evaluation is left over."""
        kept = study.space.dense
        movable = sum(len(choices) > 1 for choices in study.space.choices)
        over = float(study.feasible.overshoot(kept[None, :])[0])
        if over <= 1.0 or not movable:
            return kept
        affordable = (study.remaining - 1) // movable
        if not affordable:
            study.note(f"netadapt: {study.remaining} evaluations are too few for a step of {movable} groups; climbing")
            return study.feasible.largest_uniform()
        targets = resources(over, self.step * over, self.decay, affordable)
        study.note(f"netadapt: {len(targets)} steps from {over:.3f} of the budget, the first to {targets[0]:.3f}")
        while not study.feasible.contains(kept[None, :])[0]:
            over = float(study.feasible.overshoot(kept[None, :])[0])
            rows = proposals(study, kept, next((target for target in targets if target < over), 1.0))
            policies = [study.network.policy(row) for row in rows]
            if not len(rows) or sum(not study.seen(policy) for policy in policies) >= study.remaining:
                break
            trials = study.evaluate(policies, probe=True)
            kept = rows[max(range(len(rows)), key=lambda i: _worth(trials[i], study.metric))]
        return kept


def resources(over: float, step: float, decay: float, most: int) -> list[float]:
    """Targets R_1 > … > R_n = 1 from ``over`` > 1: steps in the ratio of ``decay``, at most ``most`` of them.

    The first is ``step`` long, or as long as ``most`` steps require.
    """
    gap, count = over - 1.0, 1
    while count < most and step * sum(decay**i for i in range(count)) < gap:
        count += 1
    lengths = np.array([decay**i for i in range(count)])
    targets = over - gap * np.cumsum(lengths) / lengths.sum()
    return [*targets[:-1].tolist(), 1.0]


def proposals(study: Study, kept: NDArray[np.int64], target: float) -> NDArray[np.int64]:
    """Return policies (P, G), each ``kept`` (G,) with one group narrowed to the most channels that meet ``target``.

    Where no group alone can, every group that saves anything comes as cheap as it gets.
    """
    now = float(study.feasible.overshoot(kept[None, :])[0])
    meeting, cheapest = [], []
    for g, choices in enumerate(study.space.choices):
        narrower = choices[choices < kept[g]]
        if not len(narrower):
            continue
        rows = np.repeat(kept[None, :], len(narrower), axis=0)
        rows[:, g] = narrower
        over = study.feasible.overshoot(rows)
        meets = np.flatnonzero(over <= target * (1.0 + 1e-9))
        if len(meets):
            meeting.append(rows[meets[-1]])
        elif over.min() < now:
            cheapest.append(rows[int(np.argmin(over))])
    return np.array(meeting or cheapest, dtype=np.int64).reshape(-1, len(kept))


def _worth(trial: Trial, metric: Metric) -> tuple[float, float]:
    """The metric, then loss; the worst of all where one of them is not finite."""
    evaluation = trial.evaluation
    worth = metric.gain(evaluation.metric, 0.0), -evaluation.loss
    return worth if np.isfinite(worth).all() else (-np.inf, -np.inf)
