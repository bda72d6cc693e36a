"""Densities of layers by ERK and uniform, and from densities to channels, by hand and back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PolicySpace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.layer_densities import (
    erk_densities,
    kept_shares,
    policy_from_densities,
    uniform_densities,
)

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def test_a_chain_by_hand() -> None:
    # three layers, two groups between them: a, a * b and b of the weights are left
    table = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    found = kept_shares(table, np.array([0.5, 0.125, 0.25]), np.ones(3))
    assert found == pytest.approx([0.5, 0.25])


def test_layers_that_disagree_meet_by_their_weights() -> None:
    # one group, asked for 1 and for 1/16: in logarithms the mean by 3 : 1 is 16^(-1/4)
    found = kept_shares(np.ones((2, 1)), np.array([1.0, 1 / 16]), np.array([3.0, 1.0]))
    assert found == pytest.approx([0.5])


def test_no_share_exceeds_1_and_unasked_groups_stay() -> None:
    # the middle layer is dense, so the first group cannot make up for the second
    found = kept_shares(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), np.array([1.0, 0.25]), np.array([1.0, 1e9]))
    assert found == pytest.approx([1.0, 0.25, 1.0], abs=1e-3)


@given(st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_consistent_densities_give_their_shares_back(a: float, b: float) -> None:
    table = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    found = kept_shares(table, np.array([a, a * b, b]), np.array([3.0, 7.0, 2.0]))
    assert found == pytest.approx([a, b], abs=1e-6)


def test_a_network_of_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    spec = trace(model, torch.zeros(1, 4)).network
    space = PolicySpace.on_grid(spec.groups, 4)
    policy = policy_from_densities(spec, space, {"0": 0.5, "2": 0.125, "4": 0.25})
    assert list(policy.values()) == [4, 4]
    with pytest.raises(BadInputError, match="nowhere"):
        policy_from_densities(spec, space, {"nowhere": 0.5})
    with pytest.raises(BadInputError, match=r"1\.5"):
        policy_from_densities(spec, space, {"0": 1.5})


def test_erk_of_lenet() -> None:
    for sparsity, expected in ((0.9, (0.07957, 0.23019, 1.0)), (0.98, (0.01539, 0.04453, 0.36740))):
        found = erk_densities(LENET, sparsity)
        assert tuple(found.values()) == pytest.approx(expected, abs=1e-5)
        kept = sum(found[name] * math.prod(shape) for name, shape in LENET.items())
        assert kept / sum(map(math.prod, LENET.values())) == pytest.approx(1.0 - sparsity)


@given(st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=4), min_size=1, max_size=6), st.floats(0.0, 0.99))
def test_erk_adds_up_and_never_exceeds_dense(shapes: list[list[int]], sparsity: float) -> None:
    named = {str(i): shape for i, shape in enumerate(shapes)}
    found = erk_densities(named, sparsity)
    assert all(0.0 <= d <= 1.0 for d in found.values())
    sizes = [math.prod(shape) for shape in shapes]
    assert sum(d * n for d, n in zip(found.values(), sizes, strict=True)) == pytest.approx((1 - sparsity) * sum(sizes))


def test_uniform_keeps_the_first_layer_dense_where_it_fits() -> None:
    shapes = {"a": (1, 10), "b": (10, 9)}
    assert uniform_densities(shapes, 0.7) == pytest.approx({"a": 1.0, "b": 20 / 90})
    assert uniform_densities(shapes, 0.95) == pytest.approx({"a": 0.05, "b": 0.05})
