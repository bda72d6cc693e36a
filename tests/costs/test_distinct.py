"""Distinct numbers by marking are those by sorting."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.costs.distinct import distinct, distinct_places


@given(st.lists(st.integers(0, 300), max_size=30), st.integers(0, 10_000))
def test_numbers_are_those_that_sorting_finds(numbers: list[int], more: int) -> None:
    given_numbers = np.array(numbers, dtype=np.int64)
    found = distinct(given_numbers, max(numbers, default=-1) + 1 + more)
    assert found.tolist() == sorted(set(numbers))


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 10**6)), max_size=30))
def test_places_lead_back_to_the_numbers(numbers: list[int]) -> None:
    found, places = distinct_places(np.array(numbers, dtype=np.int64))
    assert found.tolist() == sorted(set(numbers))
    assert found[places].tolist() == numbers
