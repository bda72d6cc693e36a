"""Exactly so many weights, ties or not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.methods.weight_choice import apportion, keep_by_count, keep_most, keep_overall, keep_top, n_kept


def test_ties_keep_the_lower_index() -> None:
    assert keep_top(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]


def test_the_count_is_rounded_and_never_0() -> None:
    assert [n_kept(10, s) for s in (0.0, 0.25, 0.9, 0.999)] == [10, 8, 1, 1]


def test_overall_ranks_tensors_together_but_empties_none() -> None:
    scores = {"a": torch.tensor([[5.0, 4.0], [3.0, 2.0]]), "b": torch.tensor([0.1, 0.2])}
    masks = keep_overall(scores, 3)
    assert masks["a"].tolist() == [[True, True], [False, False]]
    assert masks["b"].tolist() == [False, True]
    with pytest.raises(BadInputError, match="lower the target"):
        keep_overall(scores, 1)


def test_the_most_that_fits_by_hand() -> None:
    """A weight of ``a`` costs 3, one of ``b`` 1; 5 and 0.2 are kept anyhow, then 4, then 3 would be 10 of 7."""
    scores = {"a": torch.tensor([[5.0, 4.0], [3.0, 2.0]]), "b": torch.tensor([0.1, 0.2])}
    masks = keep_most(scores, lambda kept: 3 * kept["a"] + kept["b"] <= 7)
    assert masks["a"].tolist() == [[True, True], [False, False]]
    assert masks["b"].tolist() == [False, True]
    assert all(mask.all() for mask in keep_most(scores, lambda kept: kept["a"] < 9).values())


def test_apportion_by_hand() -> None:
    # 1.5 and 2.5 of 4 in all: the remainders tie, the first goes up
    assert apportion({"a": 0.5, "b": 0.5}, {"a": 3, "b": 5}, 4) == {"a": 2, "b": 2}
    assert apportion({"a": 0.0, "b": 1.0}, {"a": 3, "b": 5}, 6) == {"a": 1, "b": 5}
    with pytest.raises(BadInputError, match="at least 1"):
        apportion({"a": 0.5, "b": 0.5}, {"a": 3, "b": 5}, 9)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.0, 1.0)), min_size=1, max_size=5), st.floats(0.0, 1.0))
def test_apportion_adds_up_within_bounds(layers: list[tuple[int, float]], share: float) -> None:
    sizes = {str(i): size for i, (size, _) in enumerate(layers)}
    densities = {str(i): density for i, (_, density) in enumerate(layers)}
    n_keep = max(len(sizes), round(share * sum(sizes.values())))
    counts = apportion(densities, sizes, n_keep)
    assert sum(counts.values()) == n_keep
    assert all(1 <= counts[name] <= sizes[name] for name in sizes)
    masks = keep_by_count({name: torch.ones(size) for name, size in sizes.items()}, counts)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
