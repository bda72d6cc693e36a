"""What every agent promises, over the registry."""

from collections import deque
from collections.abc import Callable, Iterator

import pytest

from amcsearch.core import BadInputError, Evaluation, NetworkSpec
from amcsearch.evaluation import NO_INCUMBENTS, Incumbents, PolicySource
from amcsearch.search import AGENTS, Agent
from amcsearch.testing import AgentContract, MadeUpEvaluator, make_study

SINGLE_OBJECTIVE = ("ddpg", "cmaes")


class TestAgents(AgentContract):
    @pytest.fixture(params=[name for name in AGENTS if name not in SINGLE_OBJECTIVE])
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], Agent]:
        return AGENTS[request.param]


class TestAgentsOfOneObjective(AgentContract):
    several_objectives = False

    @pytest.fixture(params=SINGLE_OBJECTIVE)
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], Agent]:
        return AGENTS[request.param]


class _Workers(MadeUpEvaluator):
    """``capacity`` workers, each evaluation of which takes one unit of a clock; ``now`` is its time."""

    capacity = 4
    now = 0

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        source, under_way = iter(policies), deque()
        while True:
            while sum(end > self.now for _, end in under_way) < self.capacity:
                if (policy := next(source, None)) is None:
                    break
                (evaluation,) = super().map([policy], incumbents)
                under_way.append((evaluation, self.now + 1))
            if not under_way:
                return
            if under_way[0][1] > self.now:
                self.now += 1
                continue
            yield under_way.popleft()[0]


ONE_AFTER_ANOTHER = ("energy_aware",)  # each step of its bisection depends on the one before
PATIENT = {"ladder": {"patience": 48}}  # else it ends where it expects nothing better


@pytest.mark.parametrize("agent", [name for name in AGENTS if name not in ONE_AFTER_ANOTHER])
def test_four_workers_are_kept_busy(agent):
    evaluators: list[_Workers] = []

    def evaluator(network: NetworkSpec) -> _Workers:
        evaluators.append(_Workers(network))
        return evaluators[-1]

    study = make_study(agent, trials=48, batch=4, budget={"macs": "0.3x"}, evaluator=evaluator)
    AGENTS[agent](**PATIENT.get(agent, {})).run(study, 0)
    assert len(evaluators[0].calls) == 48
    assert evaluators[0].now <= 48 / 3  # three of four workers busy, on average


LOOKING_AT_NO_RESULT = ("random", "uniform", "erk", "grid")


def _recorded(agent: str, workers: int, **settings: object) -> tuple[list[tuple[object, ...]], int]:
    """The trials of an agent before an executor of so many workers, and the time that it took."""
    evaluators: list[_Workers] = []

    def evaluator(network: NetworkSpec) -> _Workers:
        evaluators.append(_Workers(network))
        evaluators[-1].capacity = workers
        return evaluators[-1]

    study = make_study(agent, evaluator=evaluator, **settings)
    AGENTS[agent]().run(study, 0)
    trials = [(t.number, t.policy, t.state, t.reward, t.evaluation.metric) for t in study.trials]
    return trials, evaluators[0].now


def test_agents_that_look_at_no_result_say_so():
    assert [name for name in AGENTS if getattr(AGENTS[name], "fills_workers", False)] == [
        name for name in AGENTS if name in LOOKING_AT_NO_RESULT
    ]


@pytest.mark.parametrize("agent", LOOKING_AT_NO_RESULT)
@pytest.mark.parametrize("workers", [2, 4])
def test_agents_that_look_at_no_result_fill_all_workers_whatever_the_batch(agent, workers):
    settings = {"trials": 41, "budget": {"macs": "0.3x"}}
    trials, now = _recorded(agent, workers, batch=1, **settings)
    assert trials == _recorded(agent, 1, batch=1, **settings)[0]
    assert len(trials) == 41
    assert now <= 41 / workers + 3


@pytest.mark.parametrize("agent", LOOKING_AT_NO_RESULT)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("stops", [False, True])
def test_trials_do_not_depend_on_the_workers_in_a_space_that_is_spent(agent, batch, stops):
    settings = {"widths": (3, 3, 3), "trials": 27, "batch": batch, "stops": stops}
    assert _recorded(agent, 4, **settings)[0] == _recorded(agent, 1, **settings)[0]


@pytest.mark.parametrize("agent", SINGLE_OBJECTIVE)
def test_the_refusal_of_several_objectives_names_the_agent_and_the_cure(agent):
    study = make_study(agent, objectives=("accuracy", "macs"))
    with pytest.raises(BadInputError, match=f"{agent} optimises one .*accuracy, macs.*choose nsga2"):
        AGENTS[agent]().run(study, 0)
    assert not study.trials


def test_the_registry_holds_the_fourteen_agents():
    assert set(AGENTS) == {
        *("ddpg", "nsga2", "tpe", "gp", "cmaes", "dynamic_programming", "ladder", "netadapt", "energy_aware"),
        *("grid", "random", "uniform", "erk", "sensitivity"),
    }
