"""A metric that is better when lower, through rewards, bounds, rows and summaries."""

import json
import math

import numpy as np
import pytest

from amcsearch.core import METRICS, Cost, Evaluation, Metric, PruningPolicy, Trial, TrialState
from amcsearch.evaluation.bounds import change_low, jackknife_low
from amcsearch.runs.rows import metric_column, trial_rows
from amcsearch.runs.summary import Summary
from amcsearch.search.budget import Budget
from amcsearch.search.reward import REWARDS, RewardContext
from amcsearch.search.study_store import direction
from tests.test_summary import SEARCH

MSE = METRICS["mse"]


def test_the_end_of_an_interval_of_a_share_is_at_most_all_of_it() -> None:
    assert [METRICS["f1"].within(value) for value in (-0.1, 0.5, 1.04)] == [-0.1, 0.5, 1.0]
    assert MSE.within(1.04) == 1.04


def test_the_worth_of_an_error_is_a_half_at_dense_and_falls() -> None:
    """Dense 4: 4 is worth 1/2, 8 (g = -1) 1/4, 0 (g = 1) 3/4; infinite and NaN 0."""
    context = RewardContext(Cost(macs=10.0), 4.0, Budget({}), MSE)
    worths = [context.worth(Evaluation(value, 1.0, 0.0)) for value in (4.0, 8.0, 0.0, math.inf, math.nan)]
    assert worths == [0.5, 0.25, 0.75, 0.0, 0.0]
    rate = RewardContext(Cost(macs=10.0), 0.1, Budget({}), Metric("error_rate", "%", higher_is_better=False))
    assert rate.worth(Evaluation(0.25, 1.0, 0.0)) == 0.75


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_prefers_the_smaller_error(name: str) -> None:
    costs = Cost(macs=10.0, latency_ms=1.0, energy_mj=1.0, params=5.0)
    context = RewardContext(costs, 4.0, Budget({"macs": 20.0}), MSE)
    rewards = [REWARDS[name](Evaluation(value, 1.0, 0.0), costs, context) for value in (1.0, 4.0, 50.0)]
    assert rewards[0] > rewards[1] > rewards[2]


def test_objectives_minimise_an_error() -> None:
    assert [direction(name, MSE) for name in ("mse", "macs", "reward")] == ["minimize", "minimize", "maximize"]


def test_a_difference_is_in_points_of_a_share_and_else_in_the_unit() -> None:
    assert Metric("accuracy", "%").difference_text(0.0125) == "1.25 points"
    assert Metric("mae", "K", higher_is_better=False).difference_text(0.25) == "0.25 K"


def test_the_jackknife_by_hand() -> None:
    """Two groups: gains 1 and 3 without each, mean 2, deviation sqrt(1/2·2) = 1; t of 95 % with one degree is 6.314."""
    assert jackknife_low(np.array([2.0, 1.0, 3.0]), 0.95) == pytest.approx(2.0 - 6.313752, abs=1e-5)
    assert jackknife_low(np.array([0.0, 0.0, 0.0]), 0.95) == 0.0


def test_whole_numbers_that_are_no_outcomes_are_resampled() -> None:
    differences = np.array([1.0, 0.0, -1.0, 0.0] * 25)
    assert change_low(differences, 0.95, outcomes=False) == pytest.approx(-1.645 * differences.std() / 10, abs=0.02)


def test_rows_and_summaries_bear_the_name_of_the_metric() -> None:
    evaluation, policy = Evaluation(4.0, 4.0, 0.1), PruningPolicy({"g": 1})
    trial = Trial(0, "a", 0, TrialState.COMPLETE, policy, evaluation, Cost(macs=1.0), -0.5, MSE)
    assert metric_column(trial_rows([trial]).columns) == "mse"
    old = json.loads(SEARCH)
    text = json.dumps({**old, "metric": {"name": "mse", "unit": "K²", "higher_is_better": False}})
    for key in ("accuracy_torch", "accuracy_pruned", "accuracy"):
        text = text.replace(f'"{key}": 0', f'"{key.replace("accuracy", "mse")}": 0')
    text = text.replace("dense_search_accuracy", "dense_search_mse")
    summary = Summary.from_json(json.loads(text))
    assert summary.metric == Metric("mse", "K²", higher_is_better=False)
    assert summary.dense.metric == old["dense"]["accuracy"]
    assert summary.to_json()["finalists"][0]["mse"] == old["finalists"][0]["accuracy"]
    assert "accuracy" not in summary.to_json()["dense"]
    assert Summary.from_json(summary.to_json()) == summary
