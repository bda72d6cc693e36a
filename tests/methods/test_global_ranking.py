"""Scores of different groups on one scale."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.global_ranking import NORMALISERS, comparable, normalised
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


def test_a_shared_gate_is_divided_by_its_readers() -> None:
    torch.manual_seed(0)
    model: nn.Module = resnet20(width=4, depth=8)
    found = trace(model, torch.zeros(1, 1, 16, 16))
    stream = found.network.groups[0].name  # read by layer1.0.conv1, layer2.0.conv1 and layer2.0.shortcut.0
    ones = {group.name: np.ones(group.channels) for group in found.network.groups}
    assert comparable(ones, found, "none")[stream][0] == pytest.approx(1 / 3)
