"""Trials that stopped: what a policy has to beat, also after a kill, and where they do not count."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.config import Config
from amcsearch.core import Cost, Evaluation, PruningPolicy, Trial, TrialState
from amcsearch.core.metric import METRICS
from amcsearch.evaluation import Evaluator
from amcsearch.jobs.delivery import measure_finalists
from amcsearch.jobs.search import search_evaluator
from amcsearch.runs.rows import read_trials, trial_rows
from amcsearch.search import AGENTS, AgentRun
from amcsearch.search.budget import Budget
from amcsearch.search.reward import RewardContext, bind, metric_to_beat
from amcsearch.testing import MadeUpEvaluator, make_study

MINIMAL = {"model": {"factory": "mine:network"}, "data": {"factory": "mine:data"}}


def policy(*kept: int) -> PruningPolicy:
    return PruningPolicy({f"g{i}": n for i, n in enumerate(kept)})


GOOD, BETTER, WORSE, WORST = policy(5, 5, 8, 8), policy(6, 6, 8, 8), policy(4, 4, 8, 8), policy(2, 2, 2, 2)


def states(trials: list[Trial]) -> list[str]:
    return [trial.state.value for trial in trials]


def test_all_of_a_batch_have_to_beat_what_was_best_before_it() -> None:
    study = make_study(stops=True)
    assert states(study.evaluate([GOOD])) == ["complete"]
    batch = [BETTER, policy(5, 6, 8, 8), WORST, WORSE]
    assert states(study.evaluate(batch)) == ["complete", "complete", "stopped", "stopped"]
    assert study.best is not None
    assert study.best.policy == BETTER
    assert {trial.policy for trial in study.front} <= {BETTER, GOOD, batch[1]}
    alone = make_study(stops=True)
    alone.evaluate([GOOD])
    alone.evaluate([BETTER])
    # better than GOOD: it goes to the end beside BETTER, and stops after it
    assert states(alone.evaluate([policy(5, 6, 8, 8)])) == ["stopped"]


def test_a_batch_that_was_broken_off_goes_on_against_the_same_incumbent(tmp_path: Path) -> None:
    batch, storage = [BETTER, policy(5, 6, 8, 8), WORST], f"sqlite:///{tmp_path}/study.db"
    whole = make_study(stops=True)
    whole.evaluate([GOOD])
    unbroken = whole.evaluate(batch)
    first = make_study(stops=True, storage=storage)
    first.evaluate([GOOD])
    first.evaluate(batch[:1])  # killed before the second
    again = make_study(stops=True, storage=storage)
    again.evaluate([GOOD])
    resumed = again.evaluate(batch)
    assert states(resumed) == states(unbroken) == ["complete", "complete", "stopped"]
    assert [trial.evaluation.metric for trial in resumed] == [trial.evaluation.metric for trial in unbroken]


def test_they_are_stored_with_samples_and_bound_and_never_reported_as_best(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = make_study(stops=True, storage=storage)
    trials = [*study.evaluate([GOOD]), *study.evaluate([WORST])]
    (_, stored) = make_study(stops=True, storage=storage)._store.load()
    assert (stored.state, stored.evaluation.stopped_after) == (TrialState.STOPPED, 1)
    assert stored.evaluation.metric_bound == trials[0].evaluation.metric
    assert stored.reward == trials[1].reward < trials[0].reward
    assert [trial.policy for trial in study.front] == [GOOD]
    assert AgentRun.of(study).best_trial is trials[0]
    assert [each.trial.policy for each in measure_finalists(trials, 3, None, None, None)] == [GOOD]
    table = trial_rows(trials)
    assert list(table.columns[-2:]) == ["stopped_after", "metric_bound"]
    assert "stopped_after" not in trial_rows(trials[:1]).columns
    table.to_csv(tmp_path / "trials.csv", index=False)
    assert read_trials(tmp_path / "trials.csv")["stopped_after"].tolist()[1] == 1


def test_another_study_evaluates_them_again_and_whole(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = make_study("first", stops=True, storage=storage)
    study.evaluate([GOOD])
    study.evaluate([WORST])
    second = make_study("second", storage=storage)
    assert states(second.evaluate([GOOD, WORST])) == ["complete", "complete"]
    executor = second._executor
    assert isinstance(executor, MadeUpEvaluator)
    assert executor.calls == [WORST]


def test_probes_and_several_objectives_go_to_the_end() -> None:
    study = make_study(stops=True)
    study.evaluate([GOOD])
    assert states(study.evaluate([WORST], probe=True)) == ["complete"]
    several = make_study(stops=True, objectives=("accuracy", "macs"))
    several.evaluate([GOOD])
    assert states(several.evaluate([WORST])) == ["complete"]


def test_a_resumed_search_stops_the_same_ones(tmp_path: Path) -> None:
    agent, storage = "tpe", f"sqlite:///{tmp_path}/study.db"
    whole = make_study(agent, stops=True, batch=3, trials=10)
    AGENTS[agent]().run(whole, 0)
    broken = make_study(agent, stops=True, batch=3, trials=10, storage=storage)
    served: list[Trial] = []

    def interrupt(trial: Trial, *_: object) -> None:
        served.append(trial)
        if len(served) == 8:
            raise KeyboardInterrupt

    broken._progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        AGENTS[agent]().run(broken, 0)
    resumed = make_study(agent, stops=True, batch=3, trials=10, storage=storage)
    AGENTS[agent]().run(resumed, 0)
    first, second = (trial_rows(study.trials).drop(columns="seconds") for study in (whole, resumed))
    assert first.equals(second)
    assert "stopped" in set(first["state"])


@given(
    st.sampled_from(["accuracy", "accuracy_guaranteed", "mnasnet", "mnasnet_hard", "hard_constraint", "weighted_sum"]),
    st.sampled_from(["accuracy", "mse"]),
    st.floats(0.05, 0.95),
    st.floats(10.0, 1000.0),
    st.floats(0.01, 1.0),
)
def test_no_metric_up_to_that_to_beat_is_worth_more(
    reward: str, metric: str, level: float, macs: float, further: float
) -> None:
    judged, costs = METRICS[metric], (Cost(macs=300.0), Cost(macs=macs))
    context = RewardContext(Cost(macs=1000.0), 0.9, Budget({"macs": 1000.0}), judged)
    weights = dict.fromkeys(("latency_ms", "energy_mj"), 0.0) if reward == "weighted_sum" else {}
    function = bind(reward, weights, context)
    incumbent = Evaluation(level, 0.1, 0.0)
    best = Trial(0, "a", 0, TrialState.COMPLETE, GOOD, incumbent, costs[0], function(incumbent, costs[0]), judged)
    to_beat, sign = metric_to_beat(function, best, costs[1]), judged.gain(1.0, 0.0)
    if to_beat != -sign * math.inf:
        assert function(Evaluation(to_beat - sign * further, 0.1, 0.0), costs[1]) <= best.reward + 1e-12
    if to_beat != sign * math.inf:
        assert function(Evaluation(to_beat + sign * further, 0.1, 0.0), costs[1]) >= best.reward - 1e-12


def test_a_cost_that_decides_alone_asks_for_no_metric() -> None:
    function = bind("hard_constraint", {}, RewardContext(Cost(macs=1.0), 1.0, Budget({"macs": 1.0})))
    evaluation = Evaluation(0.875, 0.1, 0.0)
    within, over = Cost(macs=1.0), Cost(macs=2.0)
    best = Trial(0, "a", 0, TrialState.COMPLETE, GOOD, evaluation, within, function(evaluation, within))
    assert metric_to_beat(function, best, over) == math.inf
    best = Trial(0, "a", 0, TrialState.COMPLETE, GOOD, evaluation, over, function(evaluation, over))
    assert metric_to_beat(function, best, within) == -math.inf


def test_equal_costs_leave_the_incumbents_own_metric() -> None:
    function = bind("accuracy", {}, RewardContext(Cost(macs=1.0), 1.0, Budget({})))
    evaluation = Evaluation(0.875, 0.1, 0.0)
    best = Trial(0, "a", 0, TrialState.COMPLETE, GOOD, evaluation, Cost(macs=1.0), -0.125)
    assert metric_to_beat(function, best, Cost(macs=0.5)) == 0.875


class Told:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"objectives": ("metric", "macs")}, "search.objectives name several"),
        ({"reward": {"name": "mine.py:Own"}}, "a reward of your own need not rise with the metric alone"),
    ],
)
def test_where_nothing_can_stop_it_says_so(settings: dict[str, object], why: str) -> None:
    config = Config.model_validate({**MINIMAL, "search": {"stop_confidence": 0.95, **settings}})
    observer, evaluator = Told(), object()
    judged = search_evaluator(SimpleNamespace(config=config, evaluator=evaluator), observer)  # type: ignore[arg-type]
    assert judged == (evaluator, False)
    (text,) = observer.texts
    assert text.startswith("search.stop_confidence = 0.95 is ignored, every evaluation goes to its end")
    assert why in text


def test_it_is_off_unless_asked_for() -> None:
    job = SimpleNamespace(config=Config.model_validate(MINIMAL), evaluator=Evaluator)
    assert search_evaluator(job, Told()) == (Evaluator, False)  # type: ignore[arg-type]
