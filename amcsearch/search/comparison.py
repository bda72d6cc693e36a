"""Agents compared on equal terms: the best reward so far against evaluations and against seconds, over several seeds.

    interval of a mean over S seeds = mean +- t(0.975, S - 1) sd / sqrt(S)

The difference between two agents is taken seed by seed, so that what a seed does to both cancels (a paired t interval).
The hypervolume (Zitzler & Thiele 1999, "Multiobjective evolutionary algorithms", IEEE Trans. Evol. Comput. 3(4)) of a
front is the share of the box between the worst and the best value of every objective, over the trials of all agents,
that the front dominates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import BadInputError, Trial, TrialState
from amcsearch.runs import Document
from amcsearch.search.pareto import non_dominated
from amcsearch.search.study import Study
from amcsearch.search.study_store import direction, objective

__all__ = ["AgentRun", "Mean", "equal_seconds", "hypervolume", "hypervolumes", "mean_over_seeds", "paired_difference"]

CONFIDENCE: Final = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mean(Document):
    """A mean over ``seeds``; ``half_width`` of its 95 % interval is None where there is no more than one seed."""

    value: float
    half_width: float | None
    seeds: int


@dataclass(frozen=True)
class AgentRun:
    """The search of one agent under one seed: its trials, in order, and what it computed itself.

    ``own_s`` (n,) are the seconds that the agent itself had computed for when each of its n trials was served. The
    seconds of an evaluation that another agent paid for count here too.

    Raises:
        BadInputError: no trials, or another number of seconds.
    """

    agent: str
    seed: int
    trials: tuple[Trial, ...]
    own_s: Array

    @classmethod
    def of(cls, study: Study) -> Self:
        """Return what a study's agent did.

        Raises:
            BadInputError: it evaluated nothing.
        """
        return cls(study.agent, study.seed, tuple(study.trials), np.array(study.own_s))

    def __post_init__(self) -> None:
        if not self.trials or self.own_s.shape != (len(self.trials),):
            raise BadInputError(
                f"{self.agent}, seed {self.seed}: {len(self.trials)} trials and {self.own_s.shape} seconds, expected "
                "one or more trials and as many seconds"
            )

    @property
    def best(self) -> Array:
        """Best reward so far after each evaluation, (n,); minus infinity before the first complete trial."""
        rewards = [trial.reward if trial.state is TrialState.COMPLETE else -math.inf for trial in self.trials]
        return np.maximum.accumulate(np.array(rewards))

    @property
    def seconds(self) -> Array:
        """Seconds spent after each evaluation, (n,): of all evaluations so far, and of the agent itself."""
        return np.cumsum([trial.evaluation.seconds for trial in self.trials]) + self.own_s

    @property
    def best_trial(self) -> Trial | None:
        """The first complete trial of the highest reward."""
        complete = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        return max(complete, key=lambda trial: trial.reward, default=None)

    def best_after(self, seconds: float) -> float:
        """Best reward within so many seconds; minus infinity where no complete trial ended within them."""
        count = int(np.searchsorted(self.seconds, seconds, side="right"))
        return float(self.best[count - 1]) if count else -math.inf

    def evaluations_to(self, reward: float) -> int | None:
        """Evaluations until the reward was reached, None where it was not."""
        reached = self.best >= reward
        return int(np.argmax(reached)) + 1 if reached.any() else None


def equal_seconds(runs: Sequence[AgentRun]) -> float:
    """Seconds at which agents are compared: those of the fastest agent, the median over its seeds.

    Only searches that spent as many evaluations as any count. An agent that ends early, because it has no new policy
    left, keeps its best for the time that remains.
    """
    most = max(len(run.trials) for run in runs)
    whole = [run for run in runs if len(run.trials) == most]
    agents = {run.agent for run in whole}
    return min(float(np.median([run.seconds[-1] for run in whole if run.agent == agent])) for agent in agents)


def hypervolume(points: Array) -> float:
    """Volume of the unit box that points (N, M) dominate: every column is to be minimised, 1 is the reference.

    Points outside the box are cut to it. By slices along the last objective (While, Hingston, Barone & Huband 2006,
    IEEE Trans. Evol. Comput. 10(1)): exact, for fronts of some hundred points and few objectives.
    """
    points = np.clip(points[(points < 1.0).all(axis=1)], 0.0, 1.0)
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(1.0 - points.min())
    points = points[non_dominated(points)]
    points = points[np.argsort(points[:, -1], kind="stable")]
    ends = np.append(points[1:, -1], 1.0)
    depths = ends - points[:, -1]
    return float(sum(d * hypervolume(points[: i + 1, :-1]) for i, d in enumerate(depths) if d > 0.0))


def hypervolumes(runs: Sequence[AgentRun], objectives: Sequence[str]) -> list[float]:
    """Return the hypervolume of every run's complete trials, as shares of the box that all runs span.

    ``objectives`` are the metric by its name, and costs. An objective that is the same for all trials does not count.
    """
    metric = runs[0].trials[0].judged_by
    signs = np.array([-1.0 if direction(name, metric) == "maximize" else 1.0 for name in objectives])
    complete = [[trial for trial in run.trials if trial.state is TrialState.COMPLETE] for run in runs]
    values = [
        np.array([[objective(trial, name, metric) for name in objectives] for trial in trials]).reshape(
            len(trials), len(objectives)
        )
        * signs
        for trials in complete
    ]
    together = np.concatenate(values)
    if not len(together):
        return [0.0] * len(runs)
    low, high = together.min(axis=0), together.max(axis=0)
    varies = high > low
    if not varies.any():
        return [float(len(part) > 0) for part in values]
    return [hypervolume((part[:, varies] - low[varies]) / (high - low)[varies]) for part in values]


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Return the mean of one value a seed with its 95 % interval.

    Raises:
        BadInputError: no values.
    """
    if not len(values):
        raise BadInputError("no seeds: a mean needs at least one value")
    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean()) if np.isfinite(numbers).all() else float(numbers.min())
    if len(numbers) < 2 or not math.isfinite(mean):
        return Mean(mean, None, len(numbers))
    from scipy.stats import t  # a second of imports that few runs need

    half = t.ppf(0.5 + CONFIDENCE / 2, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return Mean(mean, float(half), len(numbers))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Mean:
    """Return the mean difference, ours less theirs, over the seeds that both have.

    Raises:
        BadInputError: they share no seed.
    """
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        raise BadInputError(f"no common seed: {sorted(ours)} and {sorted(theirs)}")
    return mean_over_seeds([ours[seed] - theirs[seed] for seed in seeds])
