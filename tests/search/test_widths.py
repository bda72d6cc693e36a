"""Widths a device makes no use of are left out, and no others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core import ChannelGroup, Coupling, LayerKind, LayerSpec, NetworkSpec, PolicySpace, Side
from amcsearch.costs import CostGrid, Macs
from amcsearch.search.widths import without_dominated

GROUP = ChannelGroup("g", 8, (Coupling("a", Side.OUT),))
NETWORK = NetworkSpec((LayerSpec("a", LayerKind.LINEAR, 4, 8),), (GROUP,))


class Steps:
    """A latency by output width."""

    name = "latency_ms"
    constant = 0.0

    def __init__(self, ms: list[float]) -> None:
        self.ms = ms

    def layer_cost(self, layer: LayerSpec) -> float:
        return self.ms[layer.out_channels - 1]


def thinned(ms: list[float]) -> list[int]:
    space = PolicySpace.on_grid(NETWORK.groups)
    return without_dominated(space, CostGrid(NETWORK, [Steps(ms)])).choices[0].tolist()


@pytest.mark.parametrize(
    ("ms", "left"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]),
        ([4, 4, 4, 4, 8, 8, 8, 8], [4, 8]),  # blocks of four: only full ones are worth while
        ([3, 9, 2, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8]),  # 9 ms for two channels, and 3 for one where three take 2
        ([9, 9, 9, 9, 9, 9, 9, 1], [8]),
    ],
)
def test_a_width_stays_if_no_wider_one_is_as_fast(ms: list[float], left: list[int]) -> None:
    assert thinned(ms) == left


@given(st.lists(st.floats(0.1, 10.0), min_size=8, max_size=8))
def test_what_is_left_gets_slower_with_width_and_ends_with_all_channels(ms: list[float]) -> None:
    left = thinned(ms)
    assert left[-1] == 8
    assert np.all(np.diff([ms[n - 1] for n in left]) > 0)
    for gone in set(range(1, 9)) - set(left):
        assert min(ms[gone:]) <= ms[gone - 1]


def test_without_a_latency_nothing_is_left_out() -> None:
    space = PolicySpace.on_grid(NETWORK.groups)
    assert without_dominated(space, CostGrid(NETWORK, [Macs()])) is space
