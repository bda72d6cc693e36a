"""Sequences by hand, and what every sequence promises: nested levels from dense, and costs that fall with them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.group import ChannelGroup
from amcsearch.core.policy import PolicySpace
from amcsearch.search.targets.sequences import SEQUENCES, global_sequence, per_cost_sequence, uniform_sequence


def space(*channels: int, multiple: int = 1) -> PolicySpace:
    return PolicySpace.on_grid([ChannelGroup(f"g{i}", n, ()) for i, n in enumerate(channels)], multiple)


def scores_of(*values: list[float]) -> dict[str, np.ndarray]:
    return {f"g{i}": np.array(scores) for i, scores in enumerate(values)}


def test_the_global_sequence_takes_the_lowest_score_of_all_groups() -> None:
    rows = global_sequence(space(3, 2), scores_of([5.0, 1.0, 4.0], [0.1, 3.0]))
    assert rows.tolist() == [[3, 2], [3, 1], [2, 1], [1, 1]]


def test_the_lowest_of_all_groups_go_and_a_floor_stays() -> None:
    rows = global_sequence(space(3, 2), scores_of([5.0, 1.0, 4.0], [0.1, 0.2])).tolist()
    assert rows[2] == [2, 1]  # 0.2 is the last of g1: guarded
    assert rows[3] == [1, 1]


@given(st.data())
def test_exactly_so_many_channels_go_also_with_ties(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    values = st.sampled_from([0.0, 0.1, 0.3, 1.0])
    scores = [np.array(data.draw(st.lists(values, min_size=n, max_size=n))) for n in sizes]
    free = sum(sizes) - len(sizes)
    n_remove = data.draw(st.integers(0, free))
    kept = global_sequence(space(*sizes), scores_of(*scores))[n_remove].tolist()
    assert sum(sizes) - sum(kept) == n_remove
    lost = [v for score, n in zip(scores, kept, strict=True) for v in np.sort(score)[: len(score) - n]]
    could = [np.sort(score)[len(score) - n] for score, n in zip(scores, kept, strict=True) if n > 1]
    assert not lost or not could or max(lost) <= min(could)


def test_the_uniform_sequence_holds_every_ratio_and_no_other_policy() -> None:
    own = space(8, 6, multiple=2)
    rows = uniform_sequence(own)
    every = {tuple(own.nearest(np.full(2, ratio)).tolist()) for ratio in np.linspace(0.0, 1.0, 4001)}
    assert {tuple(row) for row in rows.tolist()} == every
    assert rows[0].tolist() == [8, 6]
    assert rows[-1].tolist() == [2, 2]


def test_per_cost_takes_what_gives_up_least_for_what_it_saves() -> None:
    """Group 0 has the lower scores, but a channel of group 1 saves ten times as much."""
    rows = per_cost_sequence(space(2, 2), scores_of([1.0, 9.0], [2.0, 9.0]), lambda kept: kept @ np.array([1.0, 10.0]))
    assert rows.tolist() == [[2, 2], [2, 1], [1, 1]]


def test_per_cost_steps_over_widths_that_save_nothing() -> None:
    """A staircase: only multiples of 4 are faster. Its steps are the stairs, and it ends where nothing is saved."""
    rows = per_cost_sequence(space(8), scores_of([1.0] * 8), lambda kept: np.ceil(kept[:, 0] / 4.0))
    assert rows.tolist() == [[8], [4]]


@pytest.mark.parametrize("name", SEQUENCES)
@given(data=st.data())
def test_levels_are_nested_and_their_costs_fall(name: str, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    own = space(*sizes, multiple=data.draw(st.sampled_from([1, 2, 4])))
    values = st.floats(0.0, 1.0)
    scores = scores_of(*(data.draw(st.lists(values, min_size=n, max_size=n)) for n in sizes))

    def cost(kept: np.ndarray) -> np.ndarray:
        return np.prod(kept, axis=1).astype(np.float64)  # multiplicative in coupled widths

    rows = SEQUENCES[name](own, scores, cost)
    assert rows[0].tolist() == own.dense.tolist()
    assert rows[-1].tolist() == own.floor.tolist()
    for wide, narrow in pairwise(rows):
        assert (narrow <= wide).all()
        assert (narrow < wide).any()
        assert all(n in choices for n, choices in zip(narrow, own.choices, strict=True))
    prices = cost(rows)
    assert (np.diff(prices) < 0.0).all()
    limit = data.draw(st.floats(float(prices[-1]), float(prices[0])))
    low, high = -1, len(rows) - 1  # bisection on the number of the level finds the first within the limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if prices[middle] <= limit else (middle, high)
    assert high == int(np.argmax(prices <= limit))
