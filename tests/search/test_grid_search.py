"""Grids worked by hand, and what is done when they do not fit."""

import itertools

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.search.grid import GridSearch, grid_points, stages


def test_stages_are_groups_of_one_map_size(synthetic):
    # layers 0, 1 work on 8x8 maps, 2, 3 on 4x4, 4 on 2x2
    assert stages(synthetic.chain((8, 8, 16, 16, 16))) == [0, 0, 1, 1, 2]


def test_two_levels_are_the_corners(synthetic):
    study = synthetic.make_study(widths=(4, 8), budget={})
    expected = sorted(itertools.product((1, 4), (1, 8)))
    assert [tuple(row) for row in grid_points(study, [0, 1], 2)] == expected


def test_tied_groups_share_a_ratio_and_round_alone(synthetic):
    study = synthetic.make_study(widths=(4, 8), budget={})
    # ratios 0, 7/16, 7/8 of 4 and 8 channels: kept 4, 2.25, 0.5 and 8, 4.5 (a tie keeps more), 1
    assert grid_points(study, [0, 0], 3).tolist() == [[1, 1], [2, 5], [4, 8]]


def test_points_over_budget_are_left_out(synthetic):
    study = synthetic.make_study(widths=(4, 8), budget={"macs": "0.5x"})
    points = grid_points(study, [0, 1], 4)
    assert len(points) < 16
    assert study.feasible.contains(points).all()


@pytest.mark.parametrize(("trials", "label"), [(16, "3 groups"), (4, "2 stages"), (2, "one ratio for all groups")])
def test_tying_follows_the_evaluations(synthetic, trials, label):
    study = synthetic.make_study(widths=(16, 16, 16), budget={}, trials=trials)
    GridSearch().run(study, 0)
    assert study.remaining == 0
    assert all(label in note for note in study.notes)


def test_a_grid_that_fits_is_evaluated_whole(synthetic):
    study = synthetic.make_study(widths=(4, 4), budget={}, trials=16)
    GridSearch().run(study, 0)
    kept = sorted(tuple(trial.policy.values()) for trial in study.trials)
    assert kept == sorted(itertools.product(range(1, 5), repeat=2))


def test_the_leftover_of_a_grid_goes_to_the_finer_one_closest_to_the_budget(synthetic):
    study = synthetic.make_study(widths=(16, 16), trials=6)
    GridSearch().run(study, 0)
    assert "2 ratios" not in study.notes[-1]
    finer = study.trials[-2:]
    shares = study.feasible.overshoot(np.array([study.network.kept_array(t.policy) for t in finer]))
    assert shares[0] >= shares[1]


def test_refuses_a_cap_below_two_points():
    with pytest.raises(BadInputError, match="max_points = 1"):
        GridSearch(max_points=1)
