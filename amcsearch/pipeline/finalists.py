"""Prediction is never the last word: the best policies are measured on the device, and one of them is chosen."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, PruningPolicy, Trial, TrialState
from amcsearch.runtime.verify import PairedLatency

__all__ = ["Finalist", "Measure", "choose", "latency_overshoot", "measure_finalists"]

ROUNDS: Final = 4

Measure = Callable[[Sequence[PruningPolicy]], Sequence[PairedLatency]]
"""Measures policies beside the dense network, all in the same interleaved rounds."""


@dataclass(frozen=True)
class Finalist:
    """A trial with its measured latency; ``overshoot`` is its share of the limit (0: no limit), see there."""

    trial: Trial
    latency: PairedLatency
    overshoot: float


def latency_overshoot(limit: str | float | None, latency: PairedLatency) -> float:
    """Measured latency as a share of the budget's entry: ``"0.5x"`` of dense, or absolute ms; 0 without an entry.

    The upper end of the 95 % interval counts: what is within the limit here should be so when measured again.
    """
    if limit is None:
        return 0.0
    if isinstance(limit, str) and limit.endswith("x"):
        return latency.ratio_high / float(limit[:-1])
    return latency.pruned_high / float(limit)


def measure_finalists(
    trials: Iterable[Trial], count: int, limit: str | float | None, limit_ms: float | None, measure: Measure
) -> list[Finalist]:
    """Measure the best trials, and go on to cheaper ones until one is within the latency limit as measured.

    Each round takes the ``count`` best trials by reward whose predicted latency, corrected by what the rounds before
    taught (median of measured over predicted), is within the limit. A predictor that is wrong by a constant factor so
    costs one more round, not the budget.

    Args:
        trials: of the search; only complete ones count.
        count: finalists of one round.
        limit: the budget's latency entry as written, None without one.
        limit_ms: the same in predicted ms.
        measure: measures policies beside the dense network.

    Raises:
        BadInputError: no complete trial.
    """
    ranked = sorted((t for t in trials if t.state is TrialState.COMPLETE), key=lambda t: (-t.reward, t.number))
    if not ranked:
        raise BadInputError("no policy was evaluated with a finite loss; look at trials.csv, or raise search.trials")
    finalists: list[Finalist] = []
    for _ in range(ROUNDS):
        chosen = _next(ranked, finalists, count, limit_ms)
        if not chosen:
            break
        for trial, latency in zip(chosen, measure([t.policy for t in chosen]), strict=True):
            finalists.append(Finalist(trial, latency, latency_overshoot(limit, latency)))
        if any(finalist.overshoot <= 1.0 for finalist in finalists):
            break
    return finalists


def choose(finalists: Sequence[Finalist]) -> Finalist:
    """Return the best reward among those within the limit as measured, or the smallest overshoot if none is."""
    within = [finalist for finalist in finalists if finalist.overshoot <= 1.0]
    if within:
        return max(within, key=lambda finalist: finalist.trial.reward)
    return min(finalists, key=lambda finalist: finalist.overshoot)


def _next(ranked: Sequence[Trial], measured: Sequence[Finalist], count: int, limit_ms: float | None) -> list[Trial]:
    done = {finalist.trial.policy for finalist in measured}
    left = list({trial.policy: trial for trial in reversed(ranked) if trial.policy not in done}.values())[::-1]
    if limit_ms is None or not measured:
        return left[:count]
    predicted: NDArray[np.float64] = np.array([f.trial.cost["latency_ms"] / limit_ms for f in measured])
    correction = float(np.median(np.array([f.overshoot for f in measured]) / predicted))
    within = [trial for trial in left if trial.cost["latency_ms"] / limit_ms * correction <= 1.0]
    return (within or sorted(left, key=lambda trial: trial.cost["latency_ms"]))[:count]
