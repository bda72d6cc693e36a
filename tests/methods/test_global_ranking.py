"""Scores of different groups on one scale, and exactly so many channels over all of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup
from amcsearch.core.policy import PolicySpace
from amcsearch.costs.compute import macs
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.global_ranking import NORMALISERS, comparable, global_policy, normalised, unit_savings
from amcsearch.training.models.residual import resnet20

ONE = torch.tensor([1.0, 3.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [1.0, 3.0, 2.0, 2.0]),
        ("mean", [0.5, 1.5, 1.0, 1.0]),
        ("l2", [1 / 18**0.5, 3 / 18**0.5, 2 / 18**0.5, 2 / 18**0.5]),
        ("max", [1 / 3, 1.0, 2 / 3, 2 / 3]),
        ("sum", [1 / 8, 3 / 8, 2 / 8, 2 / 8]),
        ("standardise", [-(2**0.5), 2**0.5, 0.0, 0.0]),
        ("lamp", [1 / 8, 1.0, 2 / 7, 2 / 7]),  # ties share the whole of theirs
    ],
)
def test_every_normaliser_by_hand(name: str, expected: list[float]) -> None:
    torch.testing.assert_close(normalised(ONE, name), torch.tensor(expected, dtype=torch.float64))


def test_the_table_above_is_complete() -> None:
    assert len(NORMALISERS) == 7


@pytest.mark.parametrize("name", NORMALISERS)
def test_a_layer_of_zeros_stays_at_zero_and_shapes_stay(name: str) -> None:
    assert normalised(torch.zeros(2, 3), name).tolist() == [[0.0] * 3] * 2


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.sampled_from(sorted(NORMALISERS)))
def test_no_normaliser_turns_an_order_round(values: list[float], name: str) -> None:
    found = normalised(torch.tensor(values, dtype=torch.float64), name)
    order = np.argsort(values, kind="stable")
    assert (np.diff(found.numpy()[order]) >= -1e-12).all()


def test_bad_normalisers_are_named() -> None:
    with pytest.raises(BadInputError, match="normaliser = 'l3' is unknown; known: none, mean"):
        normalised(ONE, "l3")
    with pytest.raises(BadInputError, match="lamp: scores below 0"):
        normalised(-ONE, "lamp")


def space(*channels: int, multiple: int = 1) -> PolicySpace:
    return PolicySpace.on_grid([ChannelGroup(f"g{i}", n, ()) for i, n in enumerate(channels)], multiple)


def test_the_lowest_of_all_groups_go_and_a_floor_stays() -> None:
    scores = {"g0": np.array([5.0, 1.0, 4.0]), "g1": np.array([0.1, 0.2])}
    assert dict(global_policy(scores, space(3, 2), 2)) == {"g0": 2, "g1": 1}  # 0.2 is the last of g1: guarded
    assert dict(global_policy(scores, space(3, 2), 3)) == {"g0": 1, "g1": 1}


@given(st.data())
def test_exactly_so_many_channels_go_also_with_ties(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    values = st.sampled_from([0.0, 0.1, 0.3, 1.0])
    scores = {f"g{i}": np.array(data.draw(st.lists(values, min_size=n, max_size=n))) for i, n in enumerate(sizes)}
    free = sum(sizes) - len(sizes)
    n_remove = data.draw(st.integers(0, free))
    policy = global_policy(scores, space(*sizes), n_remove)
    assert sum(sizes) - sum(policy.values()) == n_remove
    lost = [v for g, n in policy.items() for v in np.sort(scores[g])[: len(scores[g]) - n]]
    could = [np.sort(scores[g])[len(scores[g]) - n] for g, n in policy.items() if n > 1]
    assert not lost or not could or max(lost) <= min(could)


def test_on_a_grid_whole_steps_go_and_never_more_than_asked() -> None:
    scores = {"g0": np.arange(16.0), "g1": np.full(8, 2.0)}
    policy = global_policy(scores, space(16, 8, multiple=4), 10)
    assert dict(policy) == {"g0": 12, "g1": 4}


def test_more_than_the_floors_leave_is_refused() -> None:
    with pytest.raises(BadInputError, match="n_remove = 4 channels, must be from 0 to 3"):
        global_policy({"g0": np.ones(3), "g1": np.ones(2)}, space(3, 2), 4)


def test_a_shared_gate_is_divided_by_its_readers_and_by_what_it_saves() -> None:
    torch.manual_seed(0)
    model: nn.Module = resnet20(width=4, depth=8)
    found = trace(model, torch.zeros(1, 1, 16, 16))
    stream = found.network.groups[0].name  # read by layer1.0.conv1, layer2.0.conv1 and layer2.0.shortcut.0
    ones = {group.name: np.ones(group.channels) for group in found.network.groups}
    assert comparable(ones, found, "none")[stream][0] == pytest.approx(1 / 3)
    assert comparable(ones, found, "none", group_mean=False)[stream][0] == 1.0
    savings = unit_savings(found.network, macs)
    inner = next(g.name for g in found.network.groups if "layer1.0.conv1" in g.name)
    assert savings[inner] == 2 * 4 * 9 * 256  # a filter of conv1 and a column of conv2, over 16x16 positions
    assert comparable(ones, found, "none", savings=savings)[inner][0] == 1 / savings[inner]
