"""Costs reached exactly, to one step of a single group, and counted on the network that is really smaller."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.group import ChannelGroup
from amcsearch.core.policy import PolicySpace
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.graph.removal import remove
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.ranking import keep
from amcsearch.search.targets.sequences import reach, uniform_sequence, wider_by_one
from amcsearch.training.models.residual import resnet20


def space(*channels: int) -> PolicySpace:
    return PolicySpace.on_grid([ChannelGroup(f"g{i}", n, ()) for i, n in enumerate(channels)])


def product(kept: np.ndarray) -> np.ndarray:
    return np.prod(kept, axis=1).astype(np.float64)


def test_the_gap_below_a_level_is_filled_by_single_groups() -> None:
    """Level 4x4 = 16 is the first within 19; nothing fits beside it. Within 22, one group takes a step: 5x4."""
    rows = np.array([[6, 6], [5, 5], [4, 4], [3, 3]])
    found = reach(rows, space(6, 6), product, 19.0, rows[-1])
    assert (found.kept.tolist(), found.level, found.moves) == ([4, 4], 2, 0)
    found = reach(rows, space(6, 6), product, 22.0, rows[-1])
    assert (found.kept.tolist(), found.value, found.level_value, found.moves) == ([5, 4], 20.0, 16.0, 1)
    assert found.smallest_step == 4.0  # 6x4; 5x5 would add 5


def test_the_dense_network_has_no_step_left() -> None:
    found = reach(np.array([[3, 2], [1, 1]]), space(3, 2), product, 6.0, np.array([1, 1]))
    assert (found.kept.tolist(), found.smallest_step) == ([3, 2], None)


def test_a_sequence_that_never_meets_the_limit_leaves_it_to_the_fallback() -> None:
    """On a staircase the narrowest level may cost more than another policy."""
    found = reach(np.array([[4, 4], [2, 2]]), space(4, 4), product, 3.0, np.array([1, 1]))
    assert found.value <= 3.0
    assert sorted(found.kept.tolist()) == [1, 3]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0.01, 1.0))
def test_exact_to_one_step_of_a_group(sizes: list[int], share: float) -> None:
    own, floor = space(*sizes), np.ones(len(sizes), dtype=np.int64)
    limit = max(1.0, share * float(np.prod(sizes)))
    found = reach(uniform_sequence(own), own, product, limit, floor)
    assert found.value == product(found.kept[None, :])[0] <= limit * (1.0 + 1e-9)
    wider = wider_by_one(found.kept, own)
    assert (product(wider) > limit).all()
    if len(wider):
        assert limit - found.value < found.smallest_step == product(wider).min() - found.value


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_cost_is_that_of_the_really_smaller_module(share: float) -> None:
    torch.manual_seed(0)
    model = resnet20(width=8, depth=8)
    found = trace(model, torch.zeros(1, 1, 16, 16))
    grid, own = CostGrid(found.network, [Macs(), Params()]), PolicySpace.on_grid(found.network.groups)

    def params(kept: np.ndarray) -> np.ndarray:
        return grid.price(kept)["params"]

    limit = share * float(params(own.dense[None, :])[0])
    reached = reach(uniform_sequence(own), own, params, limit, own.floor)
    policy = found.network.policy(reached.kept)
    ranking = {group.name: np.arange(group.channels // group.unit) for group in found.network.groups}
    smaller = remove(model, found, keep(found, ranking, policy))
    assert sum(p.numel() for p in smaller.parameters()) == reached.value
    assert trace(smaller, torch.zeros(1, 1, 16, 16)).network.layers == found.network.with_channels(policy).layers
    assert limit - reached.value < reached.smallest_step
