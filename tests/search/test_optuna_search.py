"""How the samplers are told, repaired and kept from repeating themselves."""

from itertools import islice

import numpy as np
import optuna
import pytest
from optuna.samplers import NSGAIISampler
from optuna.trial import create_trial

from amcsearch.core.errors import BadInputError
from amcsearch.search import AGENTS
from amcsearch.search.exact.dynamic_programming import starting_policies
from amcsearch.search.samplers import OptunaAgent, Told, _GenerationSampler, _Session, cmaes, gp, nsga2, tpe


class Scripted(optuna.samplers.BaseSampler):
    """Asks for the points of a list, again and again."""

    def __init__(self, points):
        self.points, self.asked = points, 0

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        self.asked += param_name == "g0"
        return self.points[(self.asked - 1) % len(self.points)][int(param_name[1:])]


def session_of(synthetic, told, points, **settings):
    study = synthetic.make_study(**settings)
    agent = OptunaAgent("scripted", lambda start: Scripted(points), told, asks=4)
    return study, _Session(agent, study, seed=0)


def step(study, session):
    (trial,) = study.evaluate([next(session.propose())])
    session.learn(trial)
    return trial


def told(session):
    return [
        (tuple(t.params.values()), t.value)
        for t in session._optuna.trials
        if t.state is optuna.trial.TrialState.COMPLETE
    ]


DENSE, FLOOR = (7, 7, 15, 15), (0, 0, 0, 0)


def test_starts_from_the_largest_uniform_policy(synthetic):
    study, session = session_of(synthetic, Told.BOTH, [FLOOR])
    trial = step(study, session)
    assert study.network.kept_array(trial.policy).tolist() == study.feasible.largest_uniform().tolist()


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize"]])
def test_trials_read_once_give_the_proposals_of_optunas_own_sampler(directions):
    space = {f"g{i}": optuna.distributions.IntDistribution(0, 15) for i in (2, 0, 1)}
    optunas = optuna.create_study(sampler=NSGAIISampler(population_size=4, seed=7), directions=directions)
    ours = optuna.create_study(sampler=_GenerationSampler(7, population_size=4), directions=directions)
    for _ in range(30):
        asked, drawn = optunas.ask(space), create_trial(state=optuna.trial.TrialState.RUNNING)
        params = ours.sampler.sample_relative(ours, drawn, ours.sampler.infer_relative_search_space(ours, drawn))
        for name in space:  # in this order: each takes a random number
            if name not in params:
                params[name] = ours.sampler.sample_independent(ours, drawn, name, space[name])
        assert params == asked.params
        values = [(asked.params["g0"] - 7) ** 2 + asked.params["g1"], asked.params["g2"]][: len(directions)]
        optunas.tell(asked, values)
        told = {"params": params, "distributions": space, "values": values, "system_attrs": drawn.system_attrs}
        ours.add_trial(create_trial(**told))
    assert max(drawn.system_attrs.values()) == 7


@pytest.mark.parametrize("mode", Told)
def test_what_was_evaluated_before_is_told_first(synthetic, mode):
    study = synthetic.make_study(errors=True)
    starts = starting_policies(study)
    trials = study.evaluate(starts)
    session = _Session(OptunaAgent("scripted", lambda start: Scripted([FLOOR]), mode), study, seed=0)
    indices = [tuple(study.space.indices(study.network.kept_array(policy)).tolist()) for policy in starts]
    assert told(session) == [(at, trial.reward) for at, trial in zip(indices, trials, strict=True)]
    assert step(study, session).policy not in starts


def test_a_population_of_nsga2_begins_with_what_was_evaluated_before(synthetic):
    study = synthetic.make_study(errors=True)
    starts = starting_policies(study)
    study.evaluate(starts)
    session = _Session(nsga2(), study, seed=0)
    complete = [t for t in session._optuna.trials if t.state is optuna.trial.TrialState.COMPLETE]
    assert len(complete) == len(starts)
    assert all(any("generation" in key for key in trial.system_attrs) for trial in complete)


@pytest.mark.parametrize(
    ("mode", "points"), [(Told.ASKED, ["asked"]), (Told.REPAIRED, ["repaired"]), (Told.BOTH, ["asked", "repaired"])]
)
def test_which_point_learns_from_a_repaired_proposal(synthetic, mode, points):
    study, session = session_of(synthetic, mode, [(7, 7, 15, 3)], budget={"macs": "0.3x"})
    step(study, session)
    before = len(told(session))
    trial = step(study, session)
    repaired = tuple(int(n) - 1 for n in study.network.kept_array(trial.policy))
    assert repaired != (7, 7, 15, 3)
    which = {"asked": (7, 7, 15, 3), "repaired": repaired}
    assert told(session)[before:] == [(which[name], trial.reward) for name in points]


def test_feasible_proposal_is_told_once(synthetic):
    study, session = session_of(synthetic, Told.BOTH, [FLOOR])
    step(study, session)
    trial = step(study, session)
    assert told(session)[1:] == [(FLOOR, trial.reward)]


@pytest.mark.parametrize("mode", Told)
def test_a_sampler_that_repeats_itself_still_gives_new_policies(synthetic, mode):
    study, session = session_of(synthetic, mode, [FLOOR], trials=8)
    trials = [step(study, session) for _ in range(8)]
    assert len({trial.policy for trial in trials}) == 8
    neighbour = study.network.kept_array(trials[2].policy)
    assert np.abs(neighbour - study.space.floor).max() <= 1


def test_proposals_under_way_at_once_differ(synthetic):
    _, session = session_of(synthetic, Told.BOTH, [FLOOR, FLOOR, (1, 0, 0, 0)])
    assert len(set(islice(session.propose(), 5))) == 5


def test_failed_evaluation_tells_the_sampler_nothing(synthetic):
    study, session = session_of(synthetic, Told.BOTH, [FLOOR], nan_at=frozenset({1}))
    step(study, session)
    assert told(session) == []


def test_nsga2_breeds_from_repaired_policies(synthetic):
    study = synthetic.make_study(trials=24, budget={"macs": "0.2x"})
    session = _Session(nsga2(population=8), study, 0)
    for _ in range(20):
        step(study, session)
    key = "_GenerationSampler:generation"
    complete = [t for t in session._optuna.trials if t.state is optuna.trial.TrialState.COMPLETE]
    generations = [t.system_attrs[key] for t in complete]  # the start, too, is in the first
    assert generations.count(0) == generations.count(1) == 8
    assert generations == sorted(generations)
    assert max(generations) == 2
    kept = study.space.counts(np.array([session._rounded(t.params) for t in complete]))
    assert study.feasible.contains(kept).all()


@pytest.mark.parametrize("agent", ["nsga2", "tpe", "gp", "cmaes"])
def test_beats_its_own_start(synthetic, agent):
    study = synthetic.make_study(trials=18)
    AGENTS[agent]().run(study, 0)
    assert study.best.reward > study.trials[0].reward


def test_names_and_bad_parameters():
    assert [make().name for make in (nsga2, tpe, gp, cmaes)] == ["nsga2", "tpe", "gp", "cmaes"]
    with pytest.raises(BadInputError, match="population = 1"):
        nsga2(population=1)
