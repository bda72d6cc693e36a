"""Labels and their relations, on tensors small enough to check by hand."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from amcsearch.graph.tracing.flow import Flow
from amcsearch.graph.tracing.labels import NONE, Slots, components, small, tidy, varying
from amcsearch.graph.tracing.operators import RULES, unlisted


def followed(function, *weights: Tensor) -> tuple[Slots, list[list[int]]]:
    """Run a function of parameters under labels; return the relations and the labels of its result, small and flat."""
    parameters = [nn.Parameter(w) for w in weights]
    slots = Slots({f"w{i}": p for i, p in enumerate(parameters)})
    flow = Flow(slots, RULES, unlisted)
    with torch.no_grad(), flow:
        result = function(*parameters)
    return slots, [small(label).flatten().tolist() for label in flow.labels(result)]


def test_every_axis_longer_than_one_has_slots_and_shared_tensors_have_them_once() -> None:
    w = nn.Parameter(torch.zeros(2, 1, 3))
    slots = Slots({"a": w, "b": w})
    assert [(axis.names, axis.dim, axis.base, axis.size) for axis in slots.axes] == [
        (("a", "b"), 0, 1, 2),
        (("a", "b"), 2, 3, 3),
    ]
    assert [varying(label) for label in slots.of[id(w)]] == [(0,), (2,)]


def test_labels_move_as_their_tensor_does() -> None:
    assert followed(lambda w: w.view(2, 2).t().reshape(4), torch.zeros(4))[1] == [[1, 3, 2, 4]]
    assert followed(lambda w: torch.cat([w[2:], w[:1]]), torch.zeros(4))[1] == [[3, 4, 1]]
    assert followed(lambda w: w.flip(0), torch.zeros(3))[1] == [[3, 2, 1]]


def test_sums_of_products_tie_what_they_sum_over() -> None:
    slots, labels = followed(lambda x, w: x @ w, torch.zeros(1, 2), torch.zeros(2, 3))
    assert labels == [[5, 6, 7]]  # the columns of w
    assert slots.channels()[[1, 2]].tolist() == slots.channels()[[3, 4]].tolist()  # x's with w's rows


def test_additions_tie_and_constants_block() -> None:
    slots, _ = followed(lambda a, b: a + b, torch.zeros(2), torch.zeros(2))
    assert slots.channels()[1:].tolist() == [1, 2, 1, 2]
    slots, _ = followed(lambda a: a + torch.ones(2), torch.zeros(2))
    assert not slots.blocked  # plain code fills it in: experiment decides
    slots, _ = followed(lambda a: a.softmax(0) + 1, torch.zeros(2))
    assert slots.blocked[0][0].tolist() == [1, 2]
    assert slots.blocked[0][1] == "its channels are combined with one another (softmax)"


def test_a_head_leaves_as_a_whole() -> None:
    """Scores of two heads of width 2: what is summed over in a head leaves together, another head does not."""
    slots, labels = followed(
        lambda q, k: q.view(3, 2, 2).transpose(0, 1) @ k.view(3, 2, 2).permute(1, 2, 0),
        torch.zeros(1, 3, 4)[0],
        torch.zeros(1, 3, 4)[0],
    )
    axes = {axis.names[0]: axis.base for axis in slots.axes if axis.dim == 1}
    units = slots.units()
    q, k = (units[axes[name] : axes[name] + 4] for name in ("w0", "w1"))
    assert q[0] == q[1] == k[0] == k[1]
    assert q[2] == q[3] == k[2] == k[3]
    assert q[0] != q[2]
    assert labels


def test_results_that_mix_channels_block_only_once_they_are_read() -> None:
    assert not followed(lambda a: (a.mean(0), a)[1], torch.zeros(3))[0].blocked
    assert (
        followed(lambda a: a.mean(0) + 1, torch.zeros(3))[0].blocked[0][1]
        == "its channels are combined with one another (mean)"
    )


def test_an_operation_without_a_rule_costs_what_reaches_it() -> None:
    slots, labels = followed(lambda a, b: (torch.linalg.inv(a), b)[1], torch.eye(2), torch.zeros(3))
    assert {slot for blocked, _ in slots.blocked for slot in blocked.tolist()} == {1, 2, 3, 4}
    assert "cannot be followed" in slots.blocked[0][1]
    assert labels == [[5, 6, 7]]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_those_of_a_search(pairs: list[tuple[int, int]]) -> None:
    expected = list(range(20))
    for _ in range(20):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert components(20, [np.array(pairs, dtype=np.int64).reshape(-1, 2)]).tolist() == expected


def test_tidy_finds_what_does_not_vary() -> None:
    label = torch.tensor([[1, 1, 1], [2, 2, 2]])
    assert varying(tidy(label)) == (0,)
    assert tidy(label).tolist() == label.tolist()
    assert NONE == 0
