"""Comparisons of agents: curves against evaluations and seconds, hypervolumes, and intervals, worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from amcsearch.core import BadInputError, Cost, Evaluation, PruningPolicy, Trial, TrialState
from amcsearch.search.comparison import (
    AgentRun,
    equal_seconds,
    hypervolume,
    hypervolumes,
    mean_over_seeds,
    paired_difference,
)


def trial(reward, *, accuracy=0.5, macs=10.0, seconds=1.0, state=TrialState.COMPLETE):
    evaluation = Evaluation(accuracy, 1.0, seconds)
    return Trial(0, "a", 0, state, PruningPolicy({"g": 4}), evaluation, Cost(macs=macs, params=1.0), reward)


def run(rewards, *, own_s=None, agent="a", seed=0, **values):
    trials = tuple(trial(reward, **values) for reward in rewards)
    return AgentRun(agent, seed, trials, np.zeros(len(trials)) if own_s is None else np.array(own_s))


def test_the_best_so_far_by_evaluations_and_by_seconds():
    searched = run([0.2, 0.1, 0.6], own_s=[0.5, 0.5, 3.0])
    assert searched.best.tolist() == [0.2, 0.2, 0.6]
    assert searched.seconds.tolist() == [1.5, 2.5, 6.0]
    assert [searched.best_after(s) for s in (1.0, 1.5, 5.9, 6.0, 99.0)] == [-math.inf, 0.2, 0.2, 0.6, 0.6]
    assert searched.evaluations_to(0.2) == 1
    assert searched.evaluations_to(0.6) == 3
    assert searched.evaluations_to(0.7) is None
    assert searched.best_trial is searched.trials[2]


def test_probes_and_failed_trials_are_never_the_best_but_cost_their_seconds():
    trials = (trial(9.0, state=TrialState.PROBE), trial(-math.inf, state=TrialState.FAILED), trial(0.3))
    searched = AgentRun("a", 0, trials, np.zeros(3))
    assert searched.best.tolist() == [-math.inf, -math.inf, 0.3]
    assert searched.seconds.tolist() == [1.0, 2.0, 3.0]
    assert AgentRun("a", 0, trials[:2], np.zeros(2)).best_trial is None


def test_equal_seconds_are_the_median_of_the_fastest_agent_that_spent_all_evaluations():
    slow, early = run([0.1] * 4, own_s=[0, 0, 0, 6.0]), run([0.1], agent="c")
    fast = [run([0.1] * 4, agent="b", seed=seed, seconds=seconds) for seed, seconds in enumerate((1.0, 9.0, 1.5))]
    assert equal_seconds([slow, *fast, early]) == 6.0
    assert equal_seconds([slow, early]) == 10.0
    assert equal_seconds([early]) == 1.0


def test_a_run_has_trials_and_as_many_seconds():
    with pytest.raises(BadInputError, match="expected one or more trials"):
        AgentRun("a", 0, (), np.zeros(0))
    with pytest.raises(BadInputError, match="1 trials and"):
        AgentRun("a", 0, (trial(0.1),), np.zeros(2))


def test_hypervolumes_of_boxes_are_sums_of_rectangles():
    assert hypervolume(np.array([[0.5, 0.5]])) == 0.25
    assert hypervolume(np.array([[0.2, 0.6], [0.6, 0.2]])) == pytest.approx(0.8 * 0.4 + 0.4 * 0.4)
    assert hypervolume(np.array([[0.2, 0.6], [0.6, 0.2], [0.7, 0.7]])) == pytest.approx(0.48)  # it is dominated
    assert hypervolume(np.array([[1.0, 0.0], [0.0, 2.0]])) == 0.0  # they dominate nothing of the box
    assert hypervolume(np.empty((0, 2))) == 0.0
    assert hypervolume(np.array([[0.25], [0.5]])) == 0.75
    assert hypervolume(np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.0]])) == pytest.approx(0.25 + 0.5 - 0.125)


@given(st.lists(st.tuples(*[st.integers(0, 7)] * 3), min_size=1, max_size=6))
def test_hypervolume_counts_the_cells_that_a_front_dominates(points):
    cells = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1).reshape(-1, 3)
    dominated = (cells[:, None] >= np.array(points)[None]).all(-1).any(1)
    assert hypervolume(np.array(points) / 8) == pytest.approx(dominated.mean())


def test_the_box_of_hypervolumes_is_that_of_all_agents():
    low, high = trial(1.0, accuracy=0.2, macs=10.0), trial(1.0, accuracy=0.8, macs=30.0)
    middle = trial(1.0, accuracy=0.5, macs=20.0)
    runs = [AgentRun("a", 0, (low, high), np.zeros(2)), AgentRun("b", 0, (low, high, middle), np.zeros(3))]
    assert hypervolumes(runs, ("accuracy", "macs")) == [0.0, 0.25]
    assert hypervolumes(runs, ("accuracy", "params")) == [1.0, 1.0]  # all have the same parameters
    nothing = AgentRun("c", 0, (trial(-math.inf, state=TrialState.FAILED),), np.zeros(1))
    assert hypervolumes([*runs, nothing], ("accuracy", "macs"))[2] == 0.0
    assert hypervolumes([nothing], ("accuracy", "macs")) == [0.0]


def test_a_mean_over_seeds_has_students_interval():
    mean = mean_over_seeds([0.90, 0.92, 0.94])
    assert mean.value == pytest.approx(0.92)
    assert mean.half_width == pytest.approx(stats.t.ppf(0.975, 2) * 0.02 / math.sqrt(3))
    assert mean_over_seeds([0.9]).half_width is None
    assert mean_over_seeds([0.9, -math.inf]).value == -math.inf
    assert math.isnan(mean_over_seeds([0.9, math.nan]).value)
    with pytest.raises(BadInputError, match="no seeds"):
        mean_over_seeds([])


def test_a_difference_is_taken_seed_by_seed():
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 1: 0.6, 0: 0.4, 5: 0.0}
    difference = paired_difference(ours, theirs)
    assert (difference.value, difference.seeds) == (pytest.approx(0.1), 3)
    assert difference.half_width == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(BadInputError, match="no common seed"):
        paired_difference({0: 1.0}, {1: 1.0})
