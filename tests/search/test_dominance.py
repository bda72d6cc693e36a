"""Dominated widths: by hand on one staircase, then what holds for any latency at all."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amcsearch.core.group import ChannelGroup
from amcsearch.core.policy import PolicySpace
from amcsearch.search.budget import without_dominated

Latency = Callable[[NDArray[np.int64]], NDArray[np.float64]]


class LatencyGrid:
    """Prices policies by one function of the kept counts (P, G)."""

    def __init__(self, latency: Latency, name: str = "latency_ms") -> None:
        self.names, self._latency = (name,), latency

    def price(self, kept: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {self.names[0]: np.asarray(self._latency(kept), dtype=np.float64)}


def space_of(*channels: int) -> PolicySpace:
    return PolicySpace.on_grid([ChannelGroup(f"g{i}", n, ()) for i, n in enumerate(channels)])


def choices(space: PolicySpace) -> list[list[int]]:
    return [found.tolist() for found in space.choices]


def test_slower_and_equal_narrower_widths_go() -> None:
    by_width = np.array([0.0, 1.0, 3.0, 2.5, 2.0, 2.0, 4.0])  # ms at widths 0 to 6
    thinned = without_dominated(space_of(6), LatencyGrid(lambda kept: by_width[kept[:, 0]]))
    # 2 and 3 are slower than 4 and 5; 4 is as fast as 5, which is wider
    assert choices(thinned) == [[1, 5, 6]]
    assert thinned.groups == space_of(6).groups


def test_a_width_goes_only_if_one_wider_choice_wins_in_all_contexts() -> None:
    def latency(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        odd = kept[:, 0] % 2 == 1
        return kept[:, 0] + np.where(odd & (kept[:, 1] > 1), 2.0, 0.0)  # with the other group at 1, odd is no slower

    assert choices(without_dominated(space_of(4, 4), LatencyGrid(latency)))[0] == [1, 2, 3, 4]
    always = LatencyGrid(lambda kept: latency(np.stack([kept[:, 0], np.full(len(kept), 4)], axis=1)))
    assert choices(without_dominated(space_of(4, 4), always))[0] == [2, 4]


def test_all_channels_stay_even_where_they_are_slowest_and_alone_where_they_are_fastest() -> None:
    assert choices(without_dominated(space_of(3), LatencyGrid(lambda kept: kept[:, 0]))) == [[1, 2, 3]]
    assert choices(without_dominated(space_of(3), LatencyGrid(lambda kept: -kept[:, 0]))) == [[3]]


def test_without_a_latency_nothing_changes() -> None:
    space = space_of(3, 2)
    assert without_dominated(space, LatencyGrid(lambda kept: -kept.sum(axis=1), "macs")) is space
    empty = PolicySpace((), ())
    assert without_dominated(empty, LatencyGrid(lambda kept: np.zeros(len(kept)))) is empty


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_dropped_choices_are_dominated_by_kept_ones_and_kept_ones_by_none(
    channels: list[int], seed: int, levels: int
) -> None:
    table = np.random.default_rng(seed).integers(0, levels, size=[n + 1 for n in channels]).astype(np.float64)
    space = space_of(*channels)
    thinned = without_dominated(space, LatencyGrid(lambda kept: table[tuple(kept.T)]))
    contexts = [space.dense, space.nearest(np.full(len(channels), 0.5)), space.floor]

    def at(g: int, width: int) -> NDArray[np.float64]:
        rows = np.stack(contexts)
        rows[:, g] = width
        return np.asarray(table[tuple(rows.T)])

    assert (thinned.dense == space.dense).all()
    for g, (before, after) in enumerate(zip(choices(space), choices(thinned), strict=True)):
        assert after == sorted(set(after) & set(before))
        for width in before:
            dominators = [wider for wider in after if wider > width and (at(g, wider) <= at(g, width)).all()]
            assert bool(dominators) == (width not in after)
