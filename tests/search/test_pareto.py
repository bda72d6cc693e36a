"""The non-dominated set against cases worked by hand and its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from amcsearch.search.pareto import non_dominated


def test_staircase_and_a_point_behind_it():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 2.5]])
    assert non_dominated(points).tolist() == [True, True, True, False]


def test_equal_points_all_stay_and_ties_in_one_objective_are_dominated():
    points = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])
    assert non_dominated(points).tolist() == [True, True, False]


def test_no_points():
    assert non_dominated(np.zeros((0, 2))).shape == (0,)


def test_refuses_nan_and_vectors():
    with pytest.raises(ValueError, match="NaN"):
        non_dominated(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match="shape"):
        non_dominated(np.zeros(3))


@given(arrays(np.int64, (12, 3), elements={"min_value": 0, "max_value": 4}))
def test_front_is_what_nothing_dominates(points):
    points = points.astype(np.float64)

    def dominates(a, b):
        return all(a <= b) and any(a < b)

    expected = [not any(dominates(a, b) for a in points) for b in points]
    assert non_dominated(points).tolist() == expected
