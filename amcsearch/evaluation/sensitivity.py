"""Sensitivity curves: loss and metric when one group alone is pruned, and whether these losses add up.

Effects of single groups do not add up at high ratios. So a curve can rank groups and limit how far each is pruned, but
it cannot predict the loss of a whole policy.

    expected(policy) = sum over groups of loss_g(n_keep_g) - dense loss, between a curve's points on a line

The rank correlation of expected and measured losses says how well the curves order whole policies. Every search on
per-group losses relies on that order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PolicySpace, PruningPolicy, Trial

__all__ = ["Curve", "Curves", "check_points", "curves", "expected_increase", "policies", "rank_correlation", "spread"]


@dataclass(frozen=True)
class Curve:
    """One group: ``kept`` channels ascending, ending with all of them; the loss and the metric at each."""

    kept: NDArray[np.int64]
    loss: NDArray[np.float64]
    metric: NDArray[np.float64]


@dataclass(frozen=True)
class Curves(Mapping[str, Curve]):
    """Curves by group name, in the order of the space's groups."""

    by_group: Mapping[str, Curve]

    def __getitem__(self, name: str) -> Curve:
        return self.by_group[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_group)

    def __len__(self) -> int:
        return len(self.by_group)

    def rows(self) -> Iterator[tuple[str, int, float, float]]:
        """Yield (group, kept channels, loss, metric), one row a point, as for a CSV."""
        for name, curve in self.items():
            for kept, loss, metric in zip(curve.kept, curve.loss, curve.metric, strict=True):
                yield name, int(kept), float(loss), float(metric)


def check_points(points: int) -> None:
    """Refuse fewer widths of a group than a curve has ends.

    Raises:
        BadInputError: fewer than 2 points.
    """
    if points < 2:
        raise BadInputError(f"sensitivity points = {points}, must be at least 2 (the narrowest and the dense one)")


def policies(space: PolicySpace, points: int) -> list[PruningPolicy]:
    """Return the dense policy, then for each group its single-group policies from narrow to wide.

    Each group gets at most ``points`` kept counts, spread evenly over its choices from the floor on; the dense one is
    shared by all and comes first.

    Raises:
        BadInputError: fewer than 2 points.
    """
    check_points(points)
    dense = {group.name: group.channels for group in space.groups}
    chosen = [PruningPolicy(dense)]
    for group, choices in zip(space.groups, space.choices, strict=True):
        chosen += [PruningPolicy({**dense, group.name: int(n)}) for n in spread(choices, points)[:-1]]
    return chosen


def curves(
    evaluate: Callable[[Sequence[PruningPolicy]], Sequence[Trial]], space: PolicySpace, points: int = 6
) -> Curves:
    """Measure the curves of every group through ``evaluate``, in one batch of at most 1 + G x (points - 1) policies.

    ``evaluate`` returns one trial a policy, in order: ``lambda batch: study.evaluate(batch, probe=True)``.

    Raises:
        BadInputError: as ``policies``.
    """
    wanted = policies(space, points)
    evaluations = {p: trial.evaluation for p, trial in zip(wanted, evaluate(wanted), strict=True)}
    dense = {group.name: group.channels for group in space.groups}
    by_group = {}
    for group, choices in zip(space.groups, space.choices, strict=True):
        kept = spread(choices, points)
        points_of = [evaluations[PruningPolicy({**dense, group.name: int(n)})] for n in kept]
        loss, metric = [e.loss for e in points_of], [e.metric for e in points_of]
        by_group[group.name] = Curve(kept, np.array(loss), np.array(metric))
    return Curves(by_group)


def spread(choices: NDArray[np.int64], points: int) -> NDArray[np.int64]:
    """Return at most ``points`` of ascending choices, evenly spaced, with the first and the last."""
    return choices[np.unique(np.linspace(0, len(choices) - 1, points).round().astype(np.int64))]


def expected_increase(curves: Curves, policy: PruningPolicy) -> float:
    """Increase of the loss over the dense network's, nats, if groups did not matter to each other."""
    return sum(
        float(np.interp(policy[name], curve.kept, curve.loss)) - float(curve.loss[-1]) for name, curve in curves.items()
    )


def rank_correlation(expected: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's correlation of increases over policies, (P,) each; None where fewer than three differ."""
    if min(len(set(expected)), len(set(measured))) < 3:
        return None
    from scipy.stats import spearmanr  # a second of imports that no search needs

    return float(spearmanr(expected, measured)[0])
