"""Bisection that wastes no call, and a promise that holds on data the search never saw."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.evaluation.bounds import tango_low
from amcsearch.search.targets.sequences import accepted_levels, calls_at_most, last_verified, safest_first


@given(st.integers(1, 300), st.data())
def test_a_monotone_curve_gives_the_exact_optimum_in_logarithmic_calls(levels: int, data: st.DataObject) -> None:
    optimum, calls = data.draw(st.integers(0, levels - 1)), []

    def accept(level: int) -> bool:
        calls.append(level)
        return level <= optimum

    assert accepted_levels(levels, accept)[-1] == optimum
    assert len(calls) <= math.ceil(math.log2(levels)) + 1
    assert len(calls) <= calls_at_most(levels, 0)
    assert 0 not in calls


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 5))
def test_no_level_is_asked_for_twice_and_all_accepted_are_returned(curve: list[bool], scan: int) -> None:
    calls = []

    def accept(level: int) -> bool:
        calls.append(level)
        return curve[level]

    found = accepted_levels(len(curve), accept, scan)
    assert len(calls) == len(set(calls)) <= calls_at_most(len(curve), scan)
    assert found == sorted({0, *(level for level in calls if curve[level])})


def test_an_infeasible_tolerance_gives_the_dense_network() -> None:
    assert accepted_levels(40, lambda level: False, scan=4) == [0]
    assert accepted_levels(1, lambda level: pytest.fail("nothing to ask")) == [0]


def test_a_bolder_level_beyond_the_first_failure_is_seen() -> None:
    """Accepted up to 7, and 10 again: beyond the rejected 8 the scan asks for 9, 10, 12 and 16."""
    assert accepted_levels(32, lambda level: level <= 7 or level == 10, scan=4)[-1] == 10
    assert accepted_levels(32, lambda level: level <= 7 or level == 10, scan=1)[-1] == 7


def test_verification_goes_from_safe_to_bold_and_ends_at_the_first_failure() -> None:
    calls = []

    def verify(level: int) -> bool:
        calls.append(level)
        return level != 6

    assert safest_first([0, 5, 6, 9]) == [0, 1, 2, 5, 6, 9]
    assert safest_first([0]) == [0]
    assert last_verified([0, 1, 2, 5, 6, 9], verify) == 5
    assert calls == [1, 2, 5, 6]


def test_a_broken_promise_is_as_rare_as_the_level_says() -> None:
    """400 searches on noisy samples, the true loss of every level known: how often is the promise broken?

    The levels of one search share their samples, as levels of one network do, so errors of the search are correlated.
    """
    rng, levels, samples, tolerance, risk = np.random.default_rng(0), 64, 300, 0.02, 0.05
    lost = 0.05 * np.linspace(0.0, 1.0, levels) ** 2 + 0.01 * np.sin(np.arange(levels)) ** 2  # not monotone
    won = 0.01

    def keeps(draws: np.ndarray, level: int) -> bool:
        losses, wins = int((draws < lost[level]).sum()), int((draws > 1.0 - won).sum())
        return tango_low(wins, losses, len(draws), 1.0 - risk) > -tolerance

    broken = 0
    for _ in range(400):
        seen, held_out = rng.random((2, samples))
        accepted = accepted_levels(levels, lambda level, seen=seen: keeps(seen, level), scan=4)
        last = last_verified(safest_first(accepted), lambda level, aside=held_out: keeps(aside, level))
        broken += last > 0 and lost[last] - won > tolerance
    assert broken <= 400 * risk
