"""What every agent promises, whatever it is: the contract of ``Agent``, over the registry."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.trial import TrialState
from amcsearch.runs.rows import trial_rows
from amcsearch.search import AGENTS

SINGLE_OBJECTIVE = {"ddpg", "cmaes"}
TIGHT = {"macs": "0.3x", "params": "0.4x"}


@pytest.fixture(scope="module")
def synthetic() -> ModuleType:
    path = Path(__file__).parent.parent / "search" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic_search_problem", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def comparable(study):
    return trial_rows(study.trials).drop(columns="seconds").fillna("unknown").to_dict("list")


def holds(study):
    """Every trial is distinct, and within the budget unless it is a probe."""
    policies = [trial.policy for trial in study.trials]
    assert len(set(policies)) == len(policies)
    kept = np.array([study.network.kept_array(policy) for policy in policies])
    within = study.feasible.contains(kept)
    assert all(trial.state is TrialState.PROBE or inside for trial, inside in zip(study.trials, within, strict=True))


@pytest.mark.parametrize("agent", AGENTS)
class TestAgent:
    def test_spends_every_evaluation_on_new_feasible_policies(self, synthetic, agent):
        study = synthetic.make_study(agent, trials=12, budget=TIGHT)
        AGENTS[agent]().run(study, 0)
        assert study.remaining == 0
        assert len(study._executor.calls) == 12
        holds(study)
        assert study.best.reward == max(t.reward for t in study.trials if t.state is TrialState.COMPLETE)

    def test_is_a_function_of_the_seed(self, synthetic, agent):
        studies = [synthetic.make_study(agent, trials=12) for _ in range(2)]
        for study in studies:
            AGENTS[agent]().run(study, 3)
        assert comparable(studies[0]) == comparable(studies[1])

    def test_replay_from_storage_evaluates_nothing_again(self, synthetic, agent, tmp_path):
        storage = f"sqlite:///{tmp_path}/study.db"
        first = synthetic.make_study(agent, trials=12, storage=storage)
        AGENTS[agent]().run(first, 0)
        again = synthetic.make_study(agent, trials=12, storage=storage)
        AGENTS[agent]().run(again, 0)
        assert again._executor.calls == []
        assert again.trials == first.trials
        assert again.best == first.best
        assert again.notes == first.notes

    def test_goes_on_from_a_policy_evaluated_before(self, synthetic, agent, tmp_path):
        storage = f"sqlite:///{tmp_path}/study.db"
        ends = []
        for _ in range(2):  # the second is served what the first stored
            study = synthetic.make_study(agent, trials=12, budget=TIGHT, storage=storage)
            start = study.network.policy(study.feasible.repair(study.space.dense // 2))
            study.evaluate([start])
            AGENTS[agent]().run(study, 0)
            assert study.remaining == 0
            assert study.trials[0].policy == start
            holds(study)
            ends.append(comparable(study))
        assert ends[0] == ends[1]

    def test_returns_when_a_space_of_one_group_is_exhausted(self, synthetic, agent):
        study = synthetic.make_study(agent, widths=(6,), budget={}, trials=9)
        AGENTS[agent]().run(study, 0)
        assert sorted(trial.policy["g0"] for trial in study.trials) == [1, 2, 3, 4, 5, 6]

    def test_a_group_that_cannot_be_pruned_stays_whole(self, synthetic, agent):
        study = synthetic.make_study(agent, widths=(8, 4, 16), multiple=4, trials=5)
        AGENTS[agent]().run(study, 0)
        assert len(study.space.choices[1]) == 1
        holds(study)
        assert study.trials
        assert all(trial.policy["g1"] == 4 for trial in study.trials)

    def test_nothing_to_choose_gives_the_one_policy(self, synthetic, agent):
        study = synthetic.make_study(agent, widths=(4, 4), multiple=4, budget={}, trials=5)
        AGENTS[agent]().run(study, 0)
        assert [dict(trial.policy) for trial in study.trials] == [{"g0": 4, "g1": 4}]

    def test_no_limits_at_all(self, synthetic, agent):
        study = synthetic.make_study(agent, budget={}, trials=10)
        AGENTS[agent]().run(study, 0)
        assert study.remaining == 0
        holds(study)

    def test_a_single_evaluation(self, synthetic, agent):
        study = synthetic.make_study(agent, trials=1)
        AGENTS[agent]().run(study, 0)
        assert len(study.trials) == 1
        holds(study)

    def test_goes_on_after_evaluations_without_a_finite_loss(self, synthetic, agent):
        study = synthetic.make_study(agent, trials=12, nan_at=frozenset({1, 2, 6, 11}))
        AGENTS[agent]().run(study, 0)
        assert study.remaining == 0
        assert sum(trial.state is TrialState.FAILED for trial in study.trials) == 4
        assert study.best.state is TrialState.COMPLETE

    def test_batches_for_several_workers(self, synthetic, agent):
        study = synthetic.make_study(agent, trials=13, batch=4)
        AGENTS[agent]().run(study, 0)
        assert study.remaining == 0
        holds(study)

    def test_several_objectives_or_one_clear_line(self, synthetic, agent):
        study = synthetic.make_study(agent, trials=12, objectives=("accuracy", "macs"))
        if agent in SINGLE_OBJECTIVE:
            with pytest.raises(BadInputError, match=f"{agent} optimises one .*accuracy, macs.*choose nsga2"):
                AGENTS[agent]().run(study, 0)
            assert not study.trials
        else:
            AGENTS[agent]().run(study, 0)
            assert study.remaining == 0
            assert set(map(id, study.front)) <= set(map(id, study.trials))
            holds(study)


def test_the_registry_holds_the_thirteen_agents():
    assert set(AGENTS) == {
        *("ddpg", "nsga2", "tpe", "gp", "cmaes", "dynamic_programming", "netadapt", "energy_aware"),
        *("grid", "random", "uniform", "erk", "sensitivity"),
    }
