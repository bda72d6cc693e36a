"""What every agent promises, over the registry."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from amcsearch.core import BadInputError, Evaluation, Incumbent, NetworkSpec, PruningPolicy
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


class _Sizes(MadeUpEvaluator):
    """Remembers how many policies were asked for at once."""

    sizes: list[int]

    def map(self, policies: Sequence[PruningPolicy], incumbents: Sequence[Incumbent] = ()) -> Iterator[Evaluation]:
        self.sizes.append(len(policies))
        return super().map(policies, incumbents)


ONE_AFTER_ANOTHER = ("energy_aware",)  # each step of its bisection depends on the one before
PATIENT = {"ladder": {"patience": 48}}  # else it ends where it expects nothing better


@pytest.mark.parametrize("agent", [name for name in AGENTS if name not in ONE_AFTER_ANOTHER])
def test_four_workers_are_kept_busy(agent):
    evaluators = []

    def evaluator(network: NetworkSpec) -> _Sizes:
        evaluators.append(_Sizes(network))
        evaluators[-1].sizes = []
        return evaluators[-1]

    study = make_study(agent, trials=48, batch=4, budget={"macs": "0.3x"}, evaluator=evaluator)
    AGENTS[agent](**PATIENT.get(agent, {})).run(study, 0)
    sizes = evaluators[0].sizes
    rounds = sum(-(-size // 4) for size in sizes)  # each as long as one evaluation
    assert sum(sizes) == 48
    assert rounds <= 48 / 3  # three of four workers busy, on average


LOOKING_AT_NO_RESULT = ("random", "uniform", "erk", "grid")


def _recorded(agent: str, workers: int, **settings: object) -> tuple[list[tuple[object, ...]], list[int]]:
    """The trials of an agent before an executor of so many workers, and how many policies it was given at a time."""
    sizes: list[int] = []

    def evaluator(network: NetworkSpec) -> _Sizes:
        recording = _Sizes(network)
        recording.capacity, recording.sizes = workers, sizes
        return recording

    study = make_study(agent, evaluator=evaluator, **settings)
    AGENTS[agent]().run(study, 0)
    return [(t.number, t.policy, t.state, t.reward, t.evaluation.metric) for t in study.trials], sizes


def test_agents_that_look_at_no_result_say_so():
    assert [name for name in AGENTS if getattr(AGENTS[name], "fills_workers", False)] == [
        name for name in AGENTS if name in LOOKING_AT_NO_RESULT
    ]


@pytest.mark.parametrize("agent", LOOKING_AT_NO_RESULT)
@pytest.mark.parametrize("workers", [2, 4])
def test_agents_that_look_at_no_result_fill_all_workers_whatever_the_batch(agent, workers):
    settings = {"trials": 41, "budget": {"macs": "0.3x"}}
    trials, sizes = _recorded(agent, workers, batch=1, **settings)
    assert trials == _recorded(agent, 1, batch=1, **settings)[0]
    assert sum(sizes) == 41
    assert sum(-(-size // workers) for size in sizes) <= 41 / workers + 3  # rounds, each as long as one evaluation


@pytest.mark.parametrize("agent", LOOKING_AT_NO_RESULT)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("stops", [False, True])
def test_trials_do_not_depend_on_the_workers_in_a_space_that_is_spent(agent, batch, stops):
    settings = {"widths": (3, 3, 3), "trials": 27, "batch": batch, "stops": stops}
    before, sizes = _recorded(agent, 1, **settings)
    trials, others = _recorded(agent, 4, **settings)
    assert trials == before
    assert not stops or others == sizes  # a policy has to beat the best before it was asked for


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
