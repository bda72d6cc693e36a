"""What every agent promises, over the registry."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from amcsearch.core import BadInputError, Evaluation, NetworkSpec, PruningPolicy
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

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        self.sizes.append(len(policies))
        return super().map(policies)


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
