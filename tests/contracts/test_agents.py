"""What every agent promises, over the registry."""

from collections.abc import Callable

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.search import AGENTS, Agent
from amcsearch.testing import AgentContract, make_study

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


@pytest.mark.parametrize("agent", SINGLE_OBJECTIVE)
def test_the_refusal_of_several_objectives_names_the_agent_and_the_cure(agent):
    study = make_study(agent, objectives=("accuracy", "macs"))
    with pytest.raises(BadInputError, match=f"{agent} optimises one .*accuracy, macs.*choose nsga2"):
        AGENTS[agent]().run(study, 0)
    assert not study.trials


def test_the_registry_holds_the_thirteen_agents():
    assert set(AGENTS) == {
        *("ddpg", "nsga2", "tpe", "gp", "cmaes", "dynamic_programming", "netadapt", "energy_aware"),
        *("grid", "random", "uniform", "erk", "sensitivity"),
    }
