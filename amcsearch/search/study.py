"""The study of one agent: the only door to evaluation, the trials served so far, and what every agent promises.

Every evaluation is priced, executed, rewarded and stored before its trial is served, so a run killed at any moment
loses at most what was under way. Resuming is replay: an agent is a function of its seed and of the results it is
served. It runs again from the start and is served the stored results at once.

For the same reason several drivers can work on one study in a shared database: each runs the agent, which asks all of
them for the same policies in the same order. A driver evaluates the policies that it claims first, and is served what
the others store.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from amcsearch.core import (
    ACCURACY,
    BadInputError,
    Cost,
    Evaluation,
    Incumbent,
    Metric,
    NetworkSpec,
    PolicySpace,
    PruningPolicy,
    Trial,
    TrialState,
)
from amcsearch.search.pareto import non_dominated
from amcsearch.search.reward import metric_to_beat
from amcsearch.search.serving import Asked, Serving
from amcsearch.search.study_store import REWARD, TrialStore, direction, named_objectives, objective

if TYPE_CHECKING:
    from amcsearch.costs import CostGrid
    from amcsearch.evaluation import Executor
    from amcsearch.search.budget import FeasibleSet


__all__ = ["Agent", "AgentFactory", "Progress", "Study"]


_ROUNDS_AHEAD: Final = 2  # of all workers: while one evaluates, the others may do so many each


Progress = Callable[[Trial, Trial | None, int, int], None]
"""Called after each trial with (trial, best so far, evaluations done, evaluations allowed)."""


class Study:
    """One agent's search under one seed: a fixed number of evaluations, each stored before its trial is served.

    ``reward`` maps (Evaluation, Cost) to a float, larger is better (``reward.bind`` makes one). ``objectives``, where
    given, names what a multi-objective agent trades off: the metric by its name, or as ``metric``, and costs. ``batch``
    is how many policies an agent should keep under way (twice the workers of the executor). ``fingerprint`` identifies
    everything that decides a result besides agent and seed (a hash of the configuration): a stored study goes on only
    under the same one. ``evaluates`` identifies what decides an evaluation alone: studies in the same storage that have
    it in common, of whatever budget and device, are ``earlier`` ones, and what they evaluated is not evaluated again.
    ``storage`` is the path of a SQLite file, or Optuna's URL of a database; ``warn`` is told where its server is away.
    ``errors`` are known without an evaluation: one for every choice of every group, (choices,) each, never rising with
    the width. ``stops`` lets an evaluation end once its policy cannot beat the best one that was known when it was
    proposed. That takes one objective, and a reward that rises with the metric and sees nothing else of an evaluation.

    Raises:
        BadInputError: no evaluations, an unknown objective, or as ``TrialStore``.
    """

    best: Trial | None = None

    def __init__(
        self,
        network: NetworkSpec,
        space: PolicySpace,
        grid: "CostGrid",
        feasible: "FeasibleSet",
        executor: "Executor",
        reward: Callable[[Evaluation, Cost], float],
        *,
        agent: str,
        seed: int,
        trials: int,
        storage: Path | str,
        name: str,
        progress: Progress | None = None,
        objectives: tuple[str, ...] | None = None,
        batch: int = 1,
        fingerprint: str = "",
        evaluates: str = "",
        metric: Metric = ACCURACY,
        errors: Sequence[NDArray[np.float64]] | None = None,
        stops: bool = False,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        if trials < 1 or batch < 1:
            raise BadInputError(f"search.trials = {trials}, batch = {batch}: both must be at least 1")
        self.network, self.space, self.grid, self.feasible = network, space, grid, feasible
        self.agent, self.seed, self.batch, self.metric, self.errors = agent, seed, batch, metric, errors
        self.objectives, self._stops = named_objectives(objectives, metric, grid.names), stops and objectives is None
        self.notes: list[str] = []
        self.trials: list[Trial] = []
        self.under_way: set[PruningPolicy] = set()  # drawn by ``stream``, and their trials not yet served
        self.own_s: list[float] = []
        """Seconds that the agent itself had computed for when each of ``trials`` was asked for."""
        self._own_s, self._served_at = 0.0, time.perf_counter()
        self._executor, self._reward, self._progress, self._total = executor, reward, progress, trials
        self._served: dict[PruningPolicy, Trial] = {}
        self._store = TrialStore(storage, name, agent, seed, fingerprint, self.objectives, metric, evaluates, warn=warn)
        self._serving = Serving(self._store, executor, grid, self._append, self._served, stops=self._stops)

    @cached_property
    def _channels(self) -> dict[str, int]:
        return {group.name: group.channels for group in self.network.groups}

    @cached_property
    def earlier(self) -> list[Trial]:
        """Complete trials of earlier studies, at this study's costs and reward; their policies may be over budget."""
        trials: list[Trial] = []
        for policy, evaluation in self._store.earlier().items():
            if math.isfinite(evaluation.loss) and math.isfinite(evaluation.metric):
                cost = self.grid.cost(policy)
                reward, of = self._reward(evaluation, cost), (self.agent, self.seed, TrialState.COMPLETE)
                trials.append(Trial(len(trials), *of, policy, evaluation, cost, reward, self.metric))
        return [trial for trial in trials if math.isfinite(trial.reward)]

    @property
    def remaining(self) -> int:
        """Evaluations left to spend."""
        return self._total - len(self.trials)

    @property
    def ahead(self) -> int:
        """How many policies an agent that looks at no result keeps under way, so that no worker is idle.

        ``batch`` where evaluations stop early: what a policy has to beat is the best before it was asked for.
        """
        workers = self._executor.capacity
        return self.batch if self._stops or workers == 1 else max(self.batch, _ROUNDS_AHEAD * workers)

    def extend(self, trials: int) -> None:
        """Allow further evaluations.

        Raises:
            BadInputError: not at least 1.
        """
        if trials < 1:
            raise BadInputError(f"search.further_trials: {trials}, must be at least 1")
        self._total += trials

    @property
    def front(self) -> list[Trial]:
        """Complete trials that no other dominates in ``objectives`` (the metric and the priced costs if none given)."""
        names = self.objectives or (self.metric.name, *self.grid.names)
        complete = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        if not complete:
            return []
        signs = np.array([-1.0 if direction(name, self.metric) == "maximize" else 1.0 for name in names])
        points = np.array([[objective(trial, name, self.metric) for name in names] for trial in complete])
        return [trial for trial, keep in zip(complete, non_dominated(points * signs), strict=True) if keep]

    def seen(self, policy: PruningPolicy) -> bool:
        """Whether this agent has been served the policy: asking again costs nothing."""
        return policy in self._served

    def values(self, trial: Trial) -> list[float]:
        """Return what a multi-objective agent trades off, in natural units; the reward alone without objectives."""
        return [objective(trial, name, self.metric) for name in self.objectives or REWARD]

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """``maximize`` or ``minimize`` for each of ``values``."""
        return [direction(name, self.metric) for name in self.objectives or REWARD]

    def note(self, text: str) -> None:
        """Record, in a sentence, something the agent decided; the report shows ``notes``."""
        self.notes.append(text)

    def evaluate(self, policies: Sequence[PruningPolicy], *, probe: bool = False) -> list[Trial]:
        """Return the trials of ``policies``, in order, spending one evaluation on each that is new.

        A policy served before is free. One found in storage counts but is not executed again. ``probe`` allows
        policies over budget, which become trials of state ``probe`` and never the best.

        Raises:
            ValueError: a new policy is over budget (and no probe), or more are new than ``remaining``.
            BadInputError: a policy does not fit the network, is off the channel grid, or storage fails.
        """
        new = [policy for policy in dict.fromkeys(policies) if policy not in self._served]
        if len(new) > self.remaining:
            raise ValueError(f"{len(new)} new policies asked for with {self.remaining} evaluations left")
        if new:
            request = Asked()
            self._ask(request, new, probe=probe)
            self._note_divergence(new)
            self._own_s += time.perf_counter() - self._served_at
            for trial in self._serving.trials(request):
                self._serve(trial)
        return [self._served[policy] for policy in policies]

    def stream(self, policies: Iterable[PruningPolicy], at_once: int | None = None) -> Iterator[Trial]:
        """Yield the trial of each of ``policies``, all new, in order, with ``at_once`` (``batch``) of them under way.

        Each is handed out as soon as it is drawn. Once so many are under way, one is drawn after each trial, when the
        reader asks for the next: what it is made from does not depend on the number of workers. The stream ends with
        the evaluations or the policies.

        Raises:
            ValueError: a policy is over budget, or was asked for before.
            BadInputError: as ``evaluate``.
        """
        drawn = iter(policies)
        request = Asked(draw=lambda: self._draw(drawn, request, at_once or self.batch))
        trials = self._serving.trials(request)
        try:
            while True:
                self._own_s += time.perf_counter() - self._served_at
                while self._serving.stored and request.draw():
                    pass  # what is stored is served at once: nobody waits for it
                self._note_divergence(self.under_way)
                trial = next(trials, None)
                while request.draw():
                    pass  # before the reader learns from this trial
                if trial is None:
                    return
                self.under_way.remove(trial.policy)
                yield self._serve(trial)
        finally:
            self.under_way.clear()

    def _draw(self, drawn: Iterator[PruningPolicy], request: Asked, at_once: int) -> bool:
        """Ask for the next policy; false where there is none, or enough are under way."""
        begun = time.perf_counter()
        policy = next(drawn, None) if len(self.under_way) < min(at_once, self.remaining) else None
        if policy is None:
            return False
        if policy in self._served or policy in self.under_way:
            raise ValueError(f"asked for twice: {policy}")
        self._ask(request, [policy], probe=False)
        self.under_way.add(policy)
        self._own_s += time.perf_counter() - begun
        return True

    def _ask(self, request: Asked, new: Sequence[PruningPolicy], *, probe: bool) -> None:
        """Add policies that were not served before to those asked for."""
        kept = np.stack([self.network.kept_array(policy) for policy in new])
        for row in kept:
            self.space.indices(row)  # refuses counts off the grid: nothing rounds after the agent
        costs = dict(zip(new, self.grid.costs(kept), strict=True))
        over = [policy for policy, cost in costs.items() if not self.feasible.admits(cost)]
        if over and not probe:
            raise ValueError(f"over budget, never to be evaluated: {over[0]}")
        self._serving.ask(request, new)
        request.costs.update(costs)
        request.probes.update(over)
        if not probe:
            request.incumbents.update(self._incumbents(costs))

    def _incumbents(self, costs: Mapping[PruningPolicy, Cost]) -> dict[PruningPolicy, Incumbent]:
        """What each policy has to beat: the best served before it, at the metric that makes their rewards equal."""
        best = self.best
        if best is None or not self._stops:
            return {}
        return {
            policy: Incumbent(best.policy, metric_to_beat(self._reward, best, cost)) for policy, cost in costs.items()
        }

    def _append(
        self, number: int, policy: PruningPolicy, cost: Cost, evaluation: Evaluation, *, probe: bool
    ) -> tuple[Trial, bool]:
        """Reward and store an evaluation; false where another driver stores it, or has."""
        complete = TrialState.COMPLETE if evaluation.stopped_after is None else TrialState.STOPPED
        state = TrialState.PROBE if probe else complete
        reward = -math.inf
        if math.isfinite(evaluation.loss) and math.isfinite(evaluation.metric):
            reward = self._reward(evaluation, cost)
        if not math.isfinite(reward):
            state, reward = TrialState.FAILED, -math.inf
        trial = Trial(number, self.agent, self.seed, state, policy, evaluation, cost, reward, self.metric)
        return trial, self._store.append(trial, self._channels, self.values(trial))

    def _serve(self, trial: Trial) -> Trial:
        self._served_at = time.perf_counter()
        if self._store.is_shared:
            trial = replace(trial, number=len(self.trials))  # whichever driver stored it when
        self._served[trial.policy] = trial
        self.trials.append(trial)
        self.own_s.append(self._own_s)
        if trial.state is TrialState.COMPLETE and (self.best is None or trial.reward > self.best.reward):
            self.best = trial
        if self._progress is not None:
            self._progress(trial, self.best, len(self.trials), self._total)
        return trial

    def _note_divergence(self, under_way: Iterable[PruningPolicy]) -> None:
        stored = self._serving.stored
        if not stored or any(policy in stored for policy in under_way):
            return
        text = (
            f"resuming {self.agent} (seed {self.seed}) left the stored path with {len(stored)} stored trials "
            "unused: another library version or machine computes differently"
        )
        if text not in self.notes:
            self.note(text)


class Agent(Protocol):
    """Proposes policies until the study's evaluations are spent.

    The promise, held by the contract tests over ``AGENTS``:

    - it evaluates through ``study.evaluate`` and ``study.stream`` alone, and only policies within the budget (probes
      excepted);
    - it spends every evaluation, and returns early, without an error, only when no new policy is left, or when it
      expects none that is better, which it notes;
    - where policies were evaluated before it began, which ``study.trials`` holds, it goes on from there;
    - it is a function of the seed and of the results it is served, and keeps no file of its own: resuming a
      killed run means running it again from the start, and the study serves what storage already holds.

    It keeps ``study.batch`` policies under way. One whose proposals look at no result may keep ``study.ahead``, as
    long as its trials are the same for any number; it says so by an attribute ``fills_workers``, true.
    """

    def run(self, study: Study, seed: int) -> None:
        """Search until ``study.remaining`` is zero or nothing new can be proposed.

        Raises:
            BadInputError: the study asks for something this agent cannot do (several objectives, say).
        """


AgentFactory = Callable[..., Agent]
"""Makes an agent; every parameter has a default (``search.agent_params`` in the configuration)."""
