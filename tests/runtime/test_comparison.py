"""Comparing two networks' outputs: numbers by hand, NaN and infinity, and bounds that hold for rounding alone."""

import math

import pytest
import torch
from torch import nn

from amcsearch.runtime import comparison
from amcsearch.runtime.comparison import OUTPUTS, compare


class Gives(nn.Module):
    """Gives the rows of a tensor, whatever the inputs are: the next ones at every call."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.at = torch.tensor(rows), 0

    def forward(self, x):
        start, self.at = self.at, self.at + len(x)
        return self.rows[start : self.at]


def agreement(ours, theirs, batch_size=2):
    return compare(Gives(ours), Gives(theirs), torch.zeros(len(ours), 1), batch_size)


def test_by_hand():
    # peaks 4, 8 and 2, whose median is 4: the last sample is held to 4
    ours = [[4.0, 1.0], [1.0, 8.0], [2.0, 1.0]]
    theirs = [[4.5, 1.0], [1.0, 8.0], [0.0, 1.0]]
    result = agreement(ours, theirs)
    assert (result.samples, result.max_abs, result.relative) == (3, 2.0, 0.5)
    assert (result.beyond, result.not_finite, result.changed, result.predictions) == (2, 0, 1, 3)
    assert "differs by 0.5 of the outputs' scale, at most 0.001 is allowed, for 2 of 3 samples" in result.problem


def test_equal_outputs_agree_zeros_and_equal_infinities_among_them():
    rows = [[0.0, 0.0], [-math.inf, 1.0]]
    result = agreement(rows, rows)
    assert (result.max_abs, result.relative, result.changed) == (0.0, 0.0, 0)
    assert result.problem == "gives NaN or infinity for 1 of 2 samples"
    assert agreement([[0.0, 0.0]], [[0.0, 0.0]]).problem is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_what_is_not_a_number_is_never_equal(bad, place):
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    broken = [list(row) for row in rows]
    broken[place][0] = bad
    for result in (agreement(rows, broken), agreement(broken, rows)):
        assert result.max_abs == result.relative == math.inf
        assert result.problem is not None
    both = agreement(broken, broken)
    assert both.problem == "gives NaN or infinity for 1 of 3 samples"


def test_outputs_near_zero_are_held_to_the_scale_of_the_others():
    ours = [[1.0, -1.0], [1e-7, 0.0], [1.0, 0.5]]
    theirs = [[1.0, -1.0], [2e-7, 0.0], [1.0, 0.5]]
    assert agreement(ours, theirs).relative == pytest.approx(1e-7)


def test_one_huge_output_hides_no_other():
    ours = [[1e6, 0.0], [1.0, 0.5], [1.0, 0.25]]
    theirs = [[1e6, 0.0], [1.0, 0.6], [1.0, 0.25]]
    result = agreement(ours, theirs)
    assert result.relative == pytest.approx(0.1)
    assert result.beyond == 1


def test_many_predictions_that_change_within_the_bound_are_refused():
    count, step = 200, 0.4 * OUTPUTS
    ours = [[1.0, 1.0 - step]] * count
    one = [[1.0, 1.0 - step]] * (count - 1) + [[1.0 - step, 1.0]]
    assert agreement(ours, one).problem is None
    result = agreement(ours, [[1.0 - step, 1.0]] * count)
    assert result.relative <= OUTPUTS
    assert result.problem == "changes 200 of 200 predictions, at most 1% is allowed"


def test_other_shapes_differ():
    result = agreement([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    assert result.relative == math.inf
    assert result.problem is not None


def test_positions_of_a_sequence_are_predictions():
    ours = [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]
    theirs = [[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]
    result = agreement(ours, theirs)
    assert (result.changed, result.predictions, result.beyond) == (1, 4, 1)


@pytest.mark.parametrize("at_once", [1, 4, 5])
def test_large_outputs_are_compared_a_few_rows_at_a_time_with_the_same_result(at_once, monkeypatch):
    ours, theirs = torch.randn(7, 2).tolist(), torch.randn(7, 2).tolist()
    whole = agreement(ours, theirs, 7)
    monkeypatch.setattr(comparison, "_AT_ONCE", at_once)
    assert agreement(ours, theirs, 7) == whole
