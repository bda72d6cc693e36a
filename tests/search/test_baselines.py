"""Uniform, random and sensitivity-guided searches against what they promise."""

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.trial import TrialState
from amcsearch.evaluation.sensitivity import Curve, Curves
from amcsearch.search.baselines import (
    ErkSearch,
    RandomSearch,
    SensitivitySearch,
    UniformSearch,
    allocations,
)
from amcsearch.search.local_search import random_policies


def kept_of(study, trials):
    return np.array([study.network.kept_array(trial.policy) for trial in trials])


def test_random_policies_reach_both_the_middle_and_the_edge_of_the_budget(synthetic):
    study = synthetic.make_study(widths=(16,) * 10)
    rows = random_policies(study, np.random.default_rng(0))
    used = study.feasible.overshoot(rows)
    assert used.max() <= 1.0 + 1e-9
    assert (used > 0.8).mean() > 0.05
    assert (used < 0.4).mean() > 0.05


def test_random_covers_every_choice_of_every_group(synthetic):
    study = synthetic.make_study(widths=(4, 4, 4), budget={})
    rows = random_policies(study, np.random.default_rng(0))
    assert all(set(rows[:, g]) == {1, 2, 3, 4} for g in range(3))


def test_random_falls_back_to_the_sequential_bound_where_rejection_starves(synthetic):
    free = synthetic.make_study(widths=(16,) * 12)
    smallest = free.grid.cost(free.network.policy(free.space.floor)).macs
    study = synthetic.make_study(widths=(16,) * 12, budget={"macs": smallest * 1.4}, trials=5)
    assert random_policies(study, np.random.default_rng(0)) is None
    RandomSearch().run(study, 0)
    assert study.remaining == 0
    assert study.feasible.contains(kept_of(study, study.trials)).all()


def test_uniform_starts_with_the_largest_then_heavier_then_neighbours(synthetic):
    study = synthetic.make_study(widths=(8, 8, 8), trials=7)
    UniformSearch(heavier=2).run(study, 0)
    kept = kept_of(study, study.trials)
    largest = study.feasible.largest_uniform()
    assert [row.tolist() for row in kept[:3]] == [[n] * 3 for n in range(largest[0], largest[0] - 3, -1)]
    assert np.abs(kept[3:] - largest).max() <= 1


def curve(kept, loss):
    return Curve(np.array(kept), np.array(loss, dtype=float), np.zeros(len(kept)))


def test_allocations_keep_the_fewest_channels_within_each_tolerance(synthetic):
    space = synthetic.make_study(widths=(4, 4), multiple=2).space  # choices 2, 4
    measured = Curves({"g0": curve([2, 4], [0.3, 0.1]), "g1": curve([2, 4], [0.6, 0.1])})
    # tolerances 0, 0.2, 0.5
    assert allocations(space, measured).tolist() == [[4, 4], [2, 4], [2, 2]]


def test_allocations_interpolate_and_are_monotone_though_the_measurement_is_not(synthetic):
    space = synthetic.make_study(widths=(4,)).space  # choices 1, 2, 3, 4
    # rises 0.1, 0.4, 0 at 1, 2, 4 become 0.4, 0.4, 0.2 (interpolated at 3), 0
    measured = Curves({"g0": curve([1, 2, 4], [0.1, 0.4, 0.0])})
    assert allocations(space, measured).tolist() == [[4], [3], [1]]


def test_allocations_take_a_failed_probe_as_the_last_resort(synthetic):
    space = synthetic.make_study(widths=(4, 4), multiple=2).space
    measured = Curves({"g0": curve([2, 4], [np.nan, 0.1]), "g1": curve([2, 4], [9.0, 0.1])})
    assert allocations(space, measured).tolist() == [[4, 4], [4, 2], [2, 2]]


def test_sensitivity_spends_at_most_half_on_probes_and_prunes_the_harmless_groups_more(synthetic):
    study = synthetic.make_study(widths=(16, 16, 16, 16), trials=30)
    SensitivitySearch().run(study, 0)
    probes = [trial for trial in study.trials if (kept_of(study, [trial])[0] < 16).sum() <= 1]
    assert len(probes) <= 15
    assert study.trials[0].state is TrialState.PROBE  # the dense network is over budget
    first = kept_of(study, study.trials)[len(probes)]
    assert first[1] < first[3]  # g3 is the more harmful, at a similar cost


def test_sensitivity_with_too_few_evaluations_says_so_and_climbs(synthetic):
    study = synthetic.make_study(trials=4)
    SensitivitySearch().run(study, 0)
    assert "too few to probe" in study.notes[0]
    assert study.trials[0].policy == study.network.policy(study.feasible.largest_uniform())
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


def test_erk_starts_with_its_least_sparsity_within_the_budget_and_keeps_small_layers_denser(synthetic):
    study = synthetic.make_study("erk", widths=(8, 8, 32, 32), trials=4)
    ErkSearch().run(study, 0)
    kept = kept_of(study, study.trials)
    shares = kept[0] / study.space.dense
    assert shares[:2].min() > shares[2:].max()
    assert 0.9 < study.feasible.overshoot(kept[:1])[0] <= 1.0
    assert np.abs(kept[1:] - kept[0]).max() <= 2


def test_erk_without_a_budget_starts_dense(synthetic):
    study = synthetic.make_study("erk", budget={}, trials=1)
    ErkSearch().run(study, 0)
    assert study.trials[0].policy == study.network.dense


def test_bad_parameters_are_named():
    with pytest.raises(BadInputError, match="halvings = 0"):
        ErkSearch(halvings=0)
    with pytest.raises(BadInputError, match="points = 1"):
        SensitivitySearch(points=1)
    with pytest.raises(BadInputError, match="heavier = -1"):
        UniformSearch(heavier=-1)
