"""Curves of single groups through a door that is only a function."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.core.trial import Evaluation, Trial, TrialState
from amcsearch.evaluation.sensitivity import curves, policies

SPACE = PolicySpace.on_grid([ChannelGroup("a", 4, ()), ChannelGroup("b", 8, (), unit=2)])


def door(batch: Sequence[PruningPolicy]) -> list[Trial]:
    """Loss 100 a + b, accuracy b / 8."""
    found = [Evaluation(metric=p["b"] / 8, loss=100.0 * p["a"] + p["b"], seconds=0.0) for p in batch]
    state = TrialState.PROBE
    return [Trial(i, "x", 0, state, p, e, Cost(), 0.0) for i, (p, e) in enumerate(zip(batch, found, strict=True))]


def test_curves_by_hand() -> None:
    found = curves(door, SPACE, points=3)
    assert list(found) == ["a", "b"]
    assert found["a"].kept.tolist() == [1, 3, 4]
    assert found["a"].loss.tolist() == [108, 308, 408]
    assert found["b"].kept.tolist() == [2, 6, 8]
    assert found["b"].loss.tolist() == [402, 406, 408]
    assert found["b"].metric.tolist() == [0.25, 0.75, 1.0]
    assert list(found.rows())[:2] == [("a", 1, 108.0, 1.0), ("a", 3, 308.0, 1.0)]


def test_all_policies_go_through_the_door_in_one_batch_without_repeats() -> None:
    batches: list[list[PruningPolicy]] = []

    def watched(batch: Sequence[PruningPolicy]) -> list[Trial]:
        batches.append(list(batch))
        return door(batch)

    curves(watched, SPACE, points=9)
    (batch,) = batches
    assert len(batch) == len(set(batch)) == 1 + 3 + 3
    assert batch[0] == {"a": 4, "b": 8}


@given(st.integers(2, 12), st.integers(1, 40), st.integers(1, 4))
def test_policies_differ_from_dense_in_one_group_only(points: int, channels: int, multiple: int) -> None:
    space = PolicySpace.on_grid([ChannelGroup("a", channels, ()), ChannelGroup("b", 6, ())], multiple)
    dense, *others = policies(space, points)
    assert dict(dense) == {"a": channels, "b": 6}
    assert len(set(others)) == len(others) <= 2 * (points - 1)
    for policy in others:
        (changed,) = [name for name in policy if policy[name] != dense[name]]
        g = [group.name for group in space.groups].index(changed)
        assert policy[changed] in space.choices[g]
    if len(space.choices[0]) > 1:
        assert min(p["a"] for p in others) == space.choices[0][0]


def test_fewer_than_two_points_are_refused() -> None:
    with pytest.raises(BadInputError, match="sensitivity points = 1"):
        policies(SPACE, 1)
