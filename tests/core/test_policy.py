"""Rounding to whole channels, and the policy as a value."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup
from amcsearch.core.policy import PolicySpace, PruningPolicy


def group(channels: int, unit: int = 1) -> ChannelGroup:
    return ChannelGroup(f"g{channels}", channels, (), unit)


def test_choices_by_hand() -> None:
    assert group(20).choices(8) == (8, 16, 20)
    assert group(6).choices(8) == (6,)
    assert group(48, unit=12).choices(8) == (24, 48)
    assert group(32).choices(8, max_pruning_ratio=0.5) == (16, 24, 32)


def test_nearest_by_hand_and_ties_keep_more() -> None:
    space = PolicySpace.on_grid([group(32)], multiple=8)
    assert space.nearest([0.0]).tolist() == [32]
    assert space.nearest([0.4]).tolist() == [16]
    assert space.nearest([0.375]).tolist() == [24]
    allowed = np.array([True, False, False, True])
    assert space.nearest_choice(0, 0.3, allowed) == 32
    assert space.nearest_choice(0, 0.6, allowed) == 8


def test_kept_counts_and_choice_indices_by_hand() -> None:
    space = PolicySpace.on_grid([group(32), group(20)], multiple=8)
    assert space.indices(np.array([8, 20])).tolist() == [0, 2]
    assert space.counts(np.array([[0, 2], [3, 1]])).tolist() == [[8, 20], [32, 16]]
    assert space.nearest_counts(np.array([12, 19])).tolist() == [16, 20]  # 12 lies between 8 and 16
    assert space.nearest_counts(np.array([1, 17])).tolist() == [8, 16]


@pytest.mark.parametrize("kept", [[12, 20], [8, 18], [4, 20], [8, 24]])
def test_counts_off_the_grid_are_refused(kept: list[int]) -> None:
    space = PolicySpace.on_grid([group(32), group(20)], multiple=8)
    with pytest.raises(BadInputError, match=r"n_keep = \d+ is off the channel grid, its nearest choice is .*nearest_c"):
        space.indices(np.array(kept))


@given(st.data(), st.lists(st.integers(1, 40), max_size=5), st.integers(1, 8), st.floats(0.05, 1.0))
def test_indices_are_the_inverse_of_counts(
    data: st.DataObject, channels: list[int], multiple: int, max_ratio: float
) -> None:
    space = PolicySpace.on_grid([ChannelGroup(f"g{i}", n, ()) for i, n in enumerate(channels)], multiple, max_ratio)
    picked = [data.draw(st.integers(0, len(choices) - 1)) for choices in space.choices]
    kept = space.counts(np.array([picked], dtype=np.int64))[0]
    assert space.indices(kept).tolist() == picked
    assert space.nearest_counts(kept).tolist() == kept.tolist()
    assert space.nearest(1.0 - kept / space.dense).tolist() == kept.tolist()


@given(
    st.integers(1, 12).flatmap(lambda unit: st.tuples(st.just(unit), st.integers(1, 40))),
    st.integers(1, 32),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_rounding_stays_on_the_grid(unit_count: tuple[int, int], multiple: int, max_ratio: float, ratio: float) -> None:
    unit, count = unit_count
    target = group(unit * count, unit)
    space = PolicySpace.on_grid([target], multiple, max_ratio)
    kept = int(space.nearest([ratio])[0])
    assert kept == target.channels or (kept % multiple == 0 and kept % unit == 0)
    assert kept >= target.channels * (1 - max_ratio) - 1e-6
    distances = np.abs(space.choices[0] - target.channels * (1 - ratio))
    assert abs(kept - target.channels * (1 - ratio)) == distances.min()


def test_size_counts_policies() -> None:
    assert PolicySpace.on_grid([group(32), group(20)], multiple=8).size == 4 * 3


def test_policies_are_values() -> None:
    one, other = PruningPolicy({"a": 1, "b": 2}), PruningPolicy({"b": 2, "a": 1})
    assert one == other
    assert hash(one) == hash(other)
    assert one.to_json() == other.to_json()
    assert one.to_json() == '{"a": 1, "b": 2}'
    assert PruningPolicy.from_json(one.to_json()) == one
    assert repr(one) == "PruningPolicy({'a': 1, 'b': 2})"
    assert len({hash(PruningPolicy({"a": n})) for n in range(1, 9)}) == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"^policy is not JSON \(Expecting property name .*\); expected {group: n_keep, …}$"),
        ("[1]", "^policy is a list; expected an object {group: n_keep, …}$"),
        ('{"a": -1}', "^policy: n_keep of 'a' is -1, must be a whole number of at least 0$"),
        ('{"a": 1.5}', "^policy: n_keep of 'a' is 1.5, must be"),
        ('{"a": true}', "^policy: n_keep of 'a' is True, must be"),
    ],
)
def test_bad_policies_are_refused(text: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        PruningPolicy.from_json(text)


def test_a_policy_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    with pytest.raises(BadInputError, match=f"^cannot read policy {path}: No such file or directory$"):
        PruningPolicy.read(path)
    path.write_text('{"a": 3}')
    assert PruningPolicy.read(path) == PruningPolicy({"a": 3})


@pytest.mark.parametrize(
    ("multiple", "ratio", "words"),
    [
        (0, 0.5, "^channel_multiple = 0, must be at least 1$"),
        (8, 0.0, r"^max_pruning_ratio = 0.0, must be in \(0, 1\]$"),
        (8, 1.5, r"^max_pruning_ratio = 1.5, must be in \(0, 1\]$"),
    ],
)
def test_bad_grids_are_refused(multiple: int, ratio: float, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        PolicySpace.on_grid([group(8)], multiple, ratio)


def test_a_policy_of_another_network_is_not_rounded() -> None:
    space = PolicySpace.on_grid([group(32), group(20)], multiple=8)
    for read in (space.indices, space.nearest_counts):
        with pytest.raises(ValueError, match="shorter"):
            read(np.array([8]))


def test_a_space_without_groups_holds_whole_numbers() -> None:
    empty = PolicySpace((), ())
    none = np.zeros(0, dtype=np.int64)
    arrays = (empty.floor, empty.dense, empty.indices(none), empty.nearest([]), empty.nearest_counts(none))
    assert [(array.shape, array.dtype) for array in arrays] == [((0,), np.int64)] * 5
    assert empty.size == 1


def test_without_settings_every_count_of_a_group_is_a_choice() -> None:
    assert group(3).choices() == (1, 2, 3)
    space = PolicySpace.on_grid([group(3)])
    assert [choices.tolist() for choices in space.choices] == [[1, 2, 3]]
    assert space.groups == (group(3),)


class Drawn:
    """A generator whose numbers are given."""

    def __init__(self, *arrays: list[list[float]]) -> None:
        self.arrays = [np.array(array) for array in arrays]

    def random(self, size: tuple[int, int]) -> NDArray[np.float64]:
        array = self.arrays.pop(0)
        assert array.shape == size
        return array


def test_random_policies_by_hand() -> None:
    space = PolicySpace.on_grid([group(32), group(20)], multiple=8)  # 8, 16, 24, 32 and 8, 16, 20
    drawn = Drawn([[1.0], [0.5]], [[0.4, 1.0], [0.8, 0.25]])
    # shares given up: 0.4 and 1 under a ceiling of 1, 0.4 and 0.125 under one of 0.5; (1 - 0.4)·3 steps are nearly 2
    assert space.random(2, drawn).tolist() == [[24, 8], [24, 20]]  # type: ignore[arg-type]


def test_random_policies_reach_from_the_smallest_to_the_dense_one() -> None:
    space = PolicySpace.on_grid([group(32), group(20)], multiple=8)
    drawn = space.random(400, np.random.default_rng(0))
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[8, 16, 24, 32], [8, 16, 20]]
