"""Whole fronts of the exact programme: by hand on two groups of two widths, and against all policies there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core import PolicySpace
from amcsearch.costs import CostGrid, Macs, Params
from amcsearch.search import Allocator, Budget, FeasibleSet
from amcsearch.search.exact.harm import probed_errors
from amcsearch.testing import chain, make_study


def everything(widths, multiple=1):
    network = chain(widths)
    grid = CostGrid(network, [Macs(), Params()])
    return FeasibleSet(PolicySpace.on_grid(network.groups, multiple), grid, Budget({}))


def test_by_hand():
    # weights of 3x3 convolutions 1→a→b→10: 9·(a + a·b + 10·b) is 108 and 126 for b = 1, 207 and 234 for b = 2
    feasible = everything([2, 2])
    kept, error = Allocator(feasible, axis="params").front([np.array([1.0, 0.0]), np.array([4.0, 0.0])], 50)
    assert kept.tolist() == [[1, 1], [2, 1], [1, 2], [2, 2]]  # a wider first group costs 18 and saves 1, …
    assert error.tolist() == [5.0, 4.0, 1.0, 0.0]  # … a wider second one costs 99 and saves 4
    kept, error = Allocator(feasible, axis="params").front([np.array([4.0, 0.0]), np.array([1.0, 0.0])], 50)
    assert kept.tolist() == [[1, 1], [2, 1], [2, 2]]  # [1, 2] costs more than [2, 1] and is no better
    assert error.tolist() == [5.0, 1.0, 0.0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2**31), st.sampled_from(["macs", "params"]))
def test_no_policy_dominates_the_front_by_more_than_a_bucket_a_group(widths, seed, axis):
    feasible, rng = everything(widths), np.random.default_rng(seed)
    errors = [np.sort(rng.random(len(choices)))[::-1] * (choices < choices[-1]) for choices in feasible.space.choices]
    kept, error = Allocator(feasible, axis=axis).front(errors, 10_000)
    price = feasible.grid.price(kept)[axis]
    assert (np.diff(price) > 0).all()
    assert (np.diff(error) < 0).all()
    index = np.array(list(itertools.product(*(range(len(choices)) for choices in feasible.space.choices))))
    all_prices = feasible.grid.price(feasible.space.counts(index))[axis]
    all_errors = sum(e[index[:, g]] for g, e in enumerate(errors))
    assert price[0] == all_prices.min()
    spent = len(widths) * (all_prices.max() - all_prices.min()) / 4000
    for p, e in zip(price, error, strict=True):
        assert all_errors[all_prices <= p - spent].min(initial=np.inf) >= e - 1e-6


def test_few_points_are_spread_over_the_whole_axis():
    feasible = everything([32, 32, 32])
    errors = [(1 - choices / choices[-1]) ** 2 for choices in feasible.space.choices]
    kept, error = Allocator(feasible, axis="macs").front(errors, 9)
    price = feasible.grid.price(kept)["macs"]
    assert 8 <= len(kept) <= 10  # the whole network joins them
    assert (error[-1], kept[-1].tolist()) == (0.0, [32, 32, 32])
    assert kept[0].tolist() == [1, 1, 1]
    assert np.diff(price).max() <= 1.5 * (price[-1] - price[0]) / 8


def test_probed_errors_fall_with_the_width_and_end_at_none():
    study = make_study(trials=30, budget={"macs": "0.9x"})
    for errors, choices in zip(probed_errors(study, 4), study.space.choices, strict=True):
        assert len(errors) == len(choices)
        assert (np.diff(errors) <= 0).all()
        assert errors[-1] == pytest.approx(0.0, abs=1e-12)
    assert len(study.trials) == 1 + 4 * 3
