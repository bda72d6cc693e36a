"""Optuna's samplers as agents: NSGA-II, TPE, Gaussian process, CMA-ES.

The sampler sees one integer per group, a position in ``space.choices`` (the Gaussian process a real number that is
rounded to one: its acquisition function is then climbed by gradient, about five times faster). What it asks for may be
over budget, so it is repaired into the feasible set before evaluation, and a repeated policy is never evaluated again.
With g = f∘repair the sampler searches an unconstrained space, and what it is told is always a true value of g:

- TPE and GP are told both the asked and the repaired point (repair leaves a feasible point alone, so g agrees on both);
  no point is told twice, because copies would make TPE's densities collapse.
- NSGA-II is told the repaired point in place of the asked one (Lamarckian repair): its children inherit feasible genes.
- CMA-ES is told the asked point, since its update is only valid for points drawn from its own distribution; repeats
  are told too, at no cost, because its population has to fill.

After ``asks`` proposals without a new policy, a random unseen neighbour of the last one is evaluated instead. Every
sampler starts from the largest uniform policy within the budget. What the study evaluated before (``search.start``) is
told first, as if the sampler had asked for it.

Deb 2002 (NSGA-II); Bergstra 2011 and Watanabe 2023, 2304.11127 (TPE); Hansen 2016, 1604.00772 (CMA-ES); Hamano 2022,
2205.13482 (CMA-ES with margin, for integers); Optuna: Akiba 2019, 1907.10902.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from amcsearch.core import BadInputError, PruningPolicy, Trial
from amcsearch.search.local_search import unseen
from amcsearch.search.study import Study

__all__ = ["OptunaAgent", "Told", "cmaes", "gp", "nsga2", "tpe"]


class Told(StrEnum):
    """The point that the sampler is told of when the repair changed its proposal."""

    ASKED = "asked"
    REPAIRED = "repaired"
    BOTH = "both"


@dataclass(frozen=True)
class Start:
    """What a sampler may be built from: its seed, the evaluations to spend and the proposals under way at once."""

    seed: int
    evaluations: int
    batch: int


@dataclass(frozen=True)
class OptunaAgent:
    """One sampler as an ``Agent``.

    ``asks`` bounds the proposals made for one new policy; ``rounded`` lets the sampler propose real numbers.
    """

    name: str
    make_sampler: Callable[[Start], BaseSampler]
    told: Told
    asks: int = 16
    several_objectives: bool = True
    rounded: bool = False

    def check_objectives(self, objectives: tuple[str, ...]) -> None:
        """Refuse several objectives for a sampler of one.

        Raises:
            BadInputError: there are several, and this sampler takes one.
        """
        if len(objectives) > 1 and not self.several_objectives:
            raise BadInputError(
                f"agent {self.name} optimises one objective, not {', '.join(objectives)}; "
                "set search.objectives to null, or choose nsga2, tpe or gp"
            )

    def run(self, study: Study, seed: int) -> None:
        """As ``Agent.run``.

        Raises:
            BadInputError: as ``check_objectives``.
        """
        self.check_objectives(study.objectives or ())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            session = _Session(self, study, seed)
            for trial in study.stream(session.propose()):
                session.learn(trial)


class _Positions(IntDistribution):
    """Positions in the choices of a group; nothing changes it, so that copies of a trial share it."""

    def __deepcopy__(self, memo: dict[int, object]) -> "_Positions":
        return self


@dataclass(frozen=True)
class _Draw:
    """Choice indices (G,) that a sampler asks for, before the repair, and its trial in Optuna's study.

    A sampler that is told the repaired point has no trial there, only ``attributes`` for the one that will be added.
    """

    indices: NDArray[np.int64]
    trial: optuna.Trial | None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Proposal:
    """A policy to evaluate, and the draw that it came from (but is no repair of, where ``moved``)."""

    policy: PruningPolicy
    draw: _Draw
    moved: bool


class _Session:
    """One run of a sampler in an Optuna study held in memory."""

    def __init__(self, agent: OptunaAgent, study: Study, seed: int) -> None:
        self._agent, self._study = agent, study
        self._rng = np.random.default_rng([seed, 1])
        distribution = FloatDistribution if agent.rounded else _Positions
        self._distributions: dict[str, BaseDistribution] = {
            group.name: distribution(0, len(choices) - 1)
            for group, choices in zip(study.network.groups, study.space.choices, strict=True)
            if len(choices) > 1
        }
        self._told: set[tuple[int, ...]] = set()
        self._given: deque[NDArray[np.int64]] = deque()
        self._proposals: dict[PruningPolicy, _Proposal] = {}
        start = Start(seed, study.remaining, study.batch)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna.create_study(sampler=agent.make_sampler(start), directions=study.directions)
        for trial in study.trials:
            self._begin_with(trial)
        self._give(study.space.indices(study.feasible.largest_uniform()))

    def _begin_with(self, trial: Trial) -> None:
        """Tell the sampler of a policy that was evaluated before, as if it had asked for it."""
        if not trial.is_informative:
            return
        self._give(self._indices(trial))
        self._learn(_Proposal(trial.policy, self._draw(), moved=False), trial)

    def _indices(self, trial: Trial) -> NDArray[np.int64]:
        """Choice indices (G,) of a trial's policy."""
        return self._study.space.indices(self._study.network.kept_array(trial.policy))

    def propose(self) -> Iterator[PruningPolicy]:
        """Yield new feasible policies until nothing new is left."""
        while (proposal := self._ask()) is not None:
            self._proposals[proposal.policy] = proposal
            yield proposal.policy

    def learn(self, trial: Trial) -> None:
        """Tell the sampler what a proposal was worth."""
        self._learn(self._proposals.pop(trial.policy), trial)

    def _learn(self, proposal: _Proposal, trial: Trial) -> None:
        indices = self._indices(trial)
        if self._agent.told is Told.REPAIRED:
            self._add(indices, trial, proposal.draw.attributes)
            return
        if proposal.moved:
            self._drop(proposal.draw)
        else:
            self._tell(proposal.draw, trial)
        if self._agent.told is Told.BOTH:
            self._add(indices, trial, {})

    def _ask(self) -> _Proposal | None:
        """One new policy: the sampler's, repaired, or after ``asks`` repeats a neighbour of the last."""
        study = self._study
        for attempt in range(1, self._agent.asks + 1):
            draw = self._draw()
            kept = study.feasible.repair(study.space.counts(draw.indices[None, :])[0])
            policy = study.network.policy(kept)
            repeated = study.seen(policy)
            if not repeated and policy not in self._proposals:
                return _Proposal(policy, draw, moved=False)
            if attempt == self._agent.asks:
                break
            if repeated and self._agent.told is not Told.REPAIRED:
                self._tell(draw, study.evaluate([policy])[0])
            else:
                self._drop(draw)
        neighbour = unseen(study, kept, self._rng, self._proposals)
        if neighbour is None:
            self._drop(draw)
            return None
        return _Proposal(study.network.policy(neighbour), draw, moved=True)

    def _give(self, indices: NDArray[np.int64]) -> None:
        """Let the sampler ask for these choices (G,) next."""
        if self._agent.told is Told.REPAIRED:
            self._given.append(indices)
        else:
            self._optuna.enqueue_trial(self._params(indices))

    def _draw(self) -> _Draw:
        if self._agent.told is Told.REPAIRED:
            return self._drawn_alone()
        trial = self._optuna.ask(self._distributions)
        _ = trial.relative_params  # drawn lazily, and not at all for what is given
        return _Draw(self._rounded(trial.params), trial)

    def _drawn_alone(self) -> _Draw:
        """A draw without a trial in the study, which would copy it at every step and end it for the repaired one."""
        trial, study = create_trial(state=OptunaState.RUNNING), self._optuna
        space = study.sampler.infer_relative_search_space(study, trial)
        params = study.sampler.sample_relative(study, trial, space)  # for what is given, too: it joins a generation
        if self._given:
            return _Draw(self._given.popleft(), None, trial.system_attrs)
        for name, distribution in self._distributions.items():
            if name not in params:
                params[name] = study.sampler.sample_independent(study, trial, name, distribution)
        return _Draw(self._rounded(params), None, trial.system_attrs)

    def _tell(self, draw: _Draw, trial: Trial) -> None:
        key = tuple(draw.indices.tolist())
        if not trial.is_informative or (self._agent.told is Told.BOTH and key in self._told):
            self._drop(draw)
            return
        self._told.add(key)
        assert draw.trial is not None
        self._optuna.tell(draw.trial, self._study.values(trial))

    def _drop(self, draw: _Draw) -> None:
        if draw.trial is not None:
            self._optuna.tell(draw.trial, state=OptunaState.FAIL)

    def _add(self, indices: NDArray[np.int64], trial: Trial, attributes: Mapping[str, Any]) -> None:
        key = tuple(indices.tolist())
        if not trial.is_informative or key in self._told:
            return
        self._told.add(key)
        self._optuna.add_trial(
            create_trial(
                params=self._params(indices),
                distributions=self._distributions,
                values=self._study.values(trial),
                system_attrs=dict(attributes),
            )
        )

    def _rounded(self, params: Mapping[str, float]) -> NDArray[np.int64]:
        """Choice indices (G,) of the sampler's numbers; a group of one choice has no number."""
        return np.array([round(params.get(group.name, 0)) for group in self._study.network.groups], dtype=np.int64)

    def _params(self, indices: NDArray[np.int64]) -> dict[str, int]:
        """The sampler's numbers for choice indices (G,)."""
        names = [group.name for group in self._study.network.groups]
        return {name: int(i) for name, i in zip(names, indices, strict=True) if name in self._distributions}


class _GenerationSampler(NSGAIISampler):
    """NSGA-II that reads a finished trial once, where Optuna's reads all of them for each proposal.

    It proposes the same for a study whose trials are all complete and have the same parameters.
    """

    def __init__(self, seed: int, population_size: int) -> None:
        super().__init__(seed=seed, population_size=population_size)
        self._read = 0
        self._space: dict[str, BaseDistribution] = {}
        self._populations: list[list[FrozenTrial]] = [[]]
        self._parents: dict[int, list[FrozenTrial]] = {}

    def infer_relative_search_space(self, study: optuna.Study, _trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters of the trials so far, in the order of their names."""
        for finished in study.get_trials(deepcopy=False)[self._read :]:
            self._read += 1
            self._space = self._space or dict(sorted(finished.distributions.items()))
            generation = finished.system_attrs[self._get_generation_key()]
            self._populations.extend([] for _ in range(generation + 1 - len(self._populations)))
            self._populations[generation].append(finished)
        return self._space

    def get_trial_generation(self, _study: optuna.Study, trial: FrozenTrial) -> int:
        """Return the last generation, or a new one where it is full, and note it in the trial."""
        last = len(self._populations) - 1
        generation = last + (len(self._populations[last]) >= (self.population_size or 0))
        trial.system_attrs[self._get_generation_key()] = generation
        return generation

    def get_population(self, _study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Return the complete trials of a generation."""
        return list(self._populations[generation])

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Return the parents of a generation, selected when it begins; in the order of their numbers after that."""
        if generation == 0:
            return []
        if generation not in self._parents:
            selected = self.select_parent(study, generation)
            self._parents[generation] = sorted(selected, key=lambda parent: parent.number)
            return selected
        return self._parents[generation]


MIN_POPULATION: Final = 8
MAX_POPULATION: Final = 50


def nsga2(population: int | None = None) -> OptunaAgent:
    """NSGA-II; by default the population is an eighth of the evaluations, from 8 to 50, so that short searches evolve.

    Raises:
        BadInputError: a population below 2.
    """
    if population is not None and population < 2:
        raise BadInputError(f"nsga2: population = {population}, must be at least 2")

    def sampler(start: Start) -> BaseSampler:
        size = population or min(MAX_POPULATION, max(MIN_POPULATION, start.evaluations // 8))
        return _GenerationSampler(start.seed, size)

    return OptunaAgent("nsga2", sampler, Told.REPAIRED)


def tpe() -> OptunaAgent:
    """Tree-structured Parzen estimator; proposals under way at once keep apart by the constant liar."""
    return OptunaAgent("tpe", lambda start: TPESampler(seed=start.seed, constant_liar=start.batch > 1), Told.BOTH)


def gp() -> OptunaAgent:
    """Gaussian process with expected improvement (hypervolume improvement for several objectives)."""
    return OptunaAgent("gp", lambda start: GPSampler(seed=start.seed), Told.BOTH, asks=2, rounded=True)


def cmaes() -> OptunaAgent:
    """CMA-ES with margin, so that no width of the grid becomes unreachable; one objective."""

    def sampler(start: Start) -> BaseSampler:
        return CmaEsSampler(seed=start.seed, with_margin=True, warn_independent_sampling=False)

    return OptunaAgent("cmaes", sampler, Told.ASKED, several_objectives=False)
