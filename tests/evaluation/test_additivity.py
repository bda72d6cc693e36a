"""Sums over single groups beside joint losses."""

import numpy as np
import pytest

from amcsearch.core.policy import PruningPolicy
from amcsearch.evaluation.sensitivity import Curve, Curves, expected_increase, rank_correlation

KEPT = np.array([1, 3, 4])
CURVES = Curves(
    {
        "a": Curve(KEPT, np.array([2.0, 1.0, 0.5]), np.zeros(3)),
        "b": Curve(KEPT, np.array([0.9, 0.4, 0.5]), np.zeros(3)),  # pruning may help
    }
)


@pytest.mark.parametrize(
    ("kept", "increase"),
    [((4, 4), 0.0), ((1, 4), 1.5), ((2, 4), 1.0), ((4, 3), -0.1), ((1, 3), 1.4), ((2, 2), 1.0 + 0.15)],
)
def test_increases_add_up_by_hand(kept: tuple[int, int], increase: float) -> None:
    assert expected_increase(CURVES, PruningPolicy(dict(zip("ab", kept, strict=True)))) == pytest.approx(increase)


def test_rank_correlation_counts_order_alone() -> None:
    assert rank_correlation([4.0, 3.0, 2.0, 1.0], [np.inf, 9.0, 0.2, 0.1]) == 1.0
    assert rank_correlation([4.0, 3.0, 2.0, 1.0], [9.0, 10.0, 0.2, 0.1]) == pytest.approx(0.8)
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]) is None
