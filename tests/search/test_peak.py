"""Limits on a maximum over moments: every door prices them exactly, and the exact programme finds the true optimum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError, InfeasibleBudgetError
from amcsearch.core.execution import ALWAYS, Execution, LiveTensor, WidthSum
from amcsearch.core.group import ChannelGroup
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.costs.memory import PeakMemory
from amcsearch.search.budget import Budget, FeasibleSet
from amcsearch.search.exact.allocator import Allocator

from .test_dynamic_programming import brute_force, error_of, quadratic, residual

READS = ((0,), (1,), (2,), (1, 3), (4,), (5,), (4, 6))
WRITES = tuple((i,) for i in range(1, 8))


def with_maps(network, skip=False, vanish=False):
    """Maps of 16 positions a channel: a stream that stays live beside each block's inner map; ``skip``: all of them.

    With ``vanish`` both blocks may.
    """
    stream, a, b = (group.name for group in network.groups)
    positions = 16.0

    def live(name, first, last, *widths):
        return LiveTensor(name, first, last, positions, tuple(WidthSum(0.0, ((g, 1.0),)) for g in widths))

    tensors = [
        LiveTensor("input", 0, 0, positions, is_map=False),
        live("stem", 0, 3, stream),
        live("a1", 1, 4 if skip else 2, a),
        live("a2", 2, 3, stream),
        live("sum", 3, 6, stream),
        live("b1", 4, 5, b),
        live("b2", 5, 6, stream),
        LiveTensor("output", 6, 6, 10.0, is_map=False),
    ]
    moments = ("stem", "a1", "a2", "add", "b1", "b2", "head")
    execution = Execution(moments, tuple(tensors), READS, WRITES)
    if not vanish:
        return NetworkSpec(network.layers, network.groups, execution)
    groups = tuple(replace(group, can_vanish=group.name in (a, b)) for group in network.groups)
    return NetworkSpec(network.layers, groups, execution.where_vanishing({a: [2], b: [5]}))


def feasible_set(limits, skip=False, vanish=False):
    network = with_maps(residual(), skip, vanish)
    grid = CostGrid(network, [Macs(), Params(), PeakMemory(network)])
    space = PolicySpace.on_grid(network.groups, vanish=vanish)
    dense = grid.cost(network.dense)
    return FeasibleSet(space, grid, Budget({name: share * dense[name] for name, share in limits.items()}))


def allocator(feasible, buckets=20_000, **changes):
    return Allocator(feasible, **{"buckets": buckets, "sums": 1e9, "rounds": 12, **changes})


def test_the_price_is_the_largest_moment_worked_by_hand():
    feasible = feasible_set({})
    # stream 4, a 3, b 5 channels of 64 bytes: sum, b1 and b2 are 4 + 5 + 4
    assert feasible.grid.price(np.array([[4, 3, 5]]))["peak_memory_bytes"].tolist() == [13 * 64.0]
    # with b at 1: stem, a2 and a's 3 are 4 + 3 + 4; with both at 1 the addition's three maps of the stream are 12
    assert feasible.grid.price(np.array([[4, 3, 1], [4, 1, 1]]))["peak_memory_bytes"].tolist() == [12 * 64.0] * 2
    assert feasible.grid.price(np.array([[1, 3, 5], [2, 3, 1]]))["peak_memory_bytes"].tolist() == [7 * 64.0, 7 * 64.0]


def test_blocks_that_are_gone_write_nothing():
    grid = feasible_set({}, vanish=True).grid
    # in maps of a channel, stream 4: without a, b1 and b2 are 4 + 5 + 4; without b, a2 is 4 + 3 + 4 and the addition
    # 12; without both, the addition of the constant reads and writes the stream
    peaks = grid.price(np.array([[4, 3, 5], [4, 0, 5], [4, 3, 0], [4, 0, 0]]))["peak_memory_bytes"]
    assert (peaks / 64).tolist() == [13, 13, 12, 8]
    execution = grid.network.execution
    live = {}
    for tensor in execution.tensors:
        needs = {tuple(sorted(groups)) for groups in tensor.needs}
        live.setdefault(tensor.name, []).append((tensor.first, tensor.last, needs))
    assert live["stem"] == [(0, 3, {()})]
    assert live["a1"] == [(1, 2, {("inner_a",)})]
    assert live["a2"] == [(2, 3, {("inner_a",)})]
    assert live["b2"] == [(5, 6, {("inner_b",)})]
    assert live["output"] == [(6, 6, {()})]


def test_what_only_a_branch_reads_is_live_no_longer_than_others_read_it():
    def live(name, first, last):
        return LiveTensor(name, first, last, 1.0)

    # x is read by f and by a branch of two operations, g, whose result is added to f's
    tensors = live("x", 0, 1), live("f", 0, 3), live("g1", 1, 2), live("g2", 2, 3), live("sum", 3, 4), live("y", 4, 4)
    reads, writes = ((0,), (0,), (2,), (1, 3), (4,)), ((1,), (2,), (3,), (4,), (5,))
    execution = Execution(tuple("fghij"), tensors, reads, writes)
    needs_g = frozenset({frozenset({"g"})})
    assert [(t.name, t.first, t.last, t.needs) for t in execution.where_vanishing({"g": [2]}).tensors] == [
        ("x", 0, 0, ALWAYS),
        ("x", 1, 1, needs_g),
        ("f", 0, 3, ALWAYS),
        ("g1", 1, 2, needs_g),
        ("g2", 2, 3, needs_g),
        ("sum", 3, 4, ALWAYS),
        ("y", 4, 4, ALWAYS),
    ]
    assert execution.where_vanishing({}).tensors == tensors
    both = execution.where_vanishing({"f": [0], "g": [2]})
    assert {t.needs for t in both.tensors if t.name == "sum"} == {frozenset({frozenset({"f"}), frozenset({"g"})})}


@pytest.mark.parametrize("vanish", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.65, 0.8, 0.95])
@pytest.mark.parametrize("weights", [(3.0, 1.0, 2.0), (1.0, 5.0, 5.0)])
def test_a_limit_on_the_peak_alone_is_solved_as_brute_force_solves_it(skip, share, weights, vanish):
    feasible = feasible_set({"peak_memory_bytes": share}, skip, vanish)
    errors = quadratic(feasible.space, weights)
    finder = allocator(feasible, buckets=7)  # no bucket is lost to rounding: nothing adds up
    kept = finder.policy(finder.solve(errors), -1)
    assert feasible.contains(kept[None, :])[0]
    assert error_of(feasible, errors, kept) == pytest.approx(brute_force(feasible, errors)[1])
    assert error_of(feasible, errors, finder.best(errors)) == pytest.approx(brute_force(feasible, errors)[1])


@pytest.mark.parametrize("vanish", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("macs", "peak"), itertools.product((0.3, 0.52, 0.8), (0.4, 0.6, 0.9)))
def test_a_peak_beside_a_sum_is_exact_too(skip, macs, peak, vanish):
    feasible = feasible_set({"macs": macs, "peak_memory_bytes": peak}, skip, vanish)
    errors = quadratic(feasible.space, (1.0, 5.0, 5.0))
    finder = allocator(feasible)
    assert finder.axis == "macs"
    kept = finder.policy(finder.solve(errors), -1)  # before anything is repaired or improved
    assert feasible.contains(kept[None, :])[0]
    assert error_of(feasible, errors, kept) == pytest.approx(brute_force(feasible, errors)[1])


def test_the_front_of_errors_against_the_peak_is_the_true_one():
    feasible = feasible_set({})
    errors = quadratic(feasible.space, (2.0, 3.0, 4.0))
    finder = allocator(feasible, axis="peak_memory_bytes", buckets=64 * 13)
    solution = finder.solve(errors)
    fronts = {}
    for bucket in solution.front.tolist():
        kept = finder.policy(solution, bucket)
        peak = float(feasible.grid.price(kept[None, :])["peak_memory_bytes"][0])
        fronts[peak] = error_of(feasible, errors, kept)
    rows = np.array(list(itertools.product(*feasible.space.choices)))
    peaks = feasible.grid.price(rows)["peak_memory_bytes"]
    all_errors = np.array([error_of(feasible, errors, row) for row in rows])
    assert len(fronts) > 5
    for peak, error in fronts.items():
        assert error == pytest.approx(all_errors[peaks <= peak].min())
    assert min(fronts) == peaks.min()


def test_moments_of_too_many_groups_are_refused_with_the_cost_and_the_cure():
    feasible = feasible_set({"peak_memory_bytes": 0.6}, skip=True)
    # two choices each: 8 combinations of the moment that all three groups share, and those of the layers
    with pytest.raises(BadInputError, match=r"peak_memory_bytes, which depends on up to 3 groups at one moment; raise"):
        allocator(feasible, sums=5.0).best(quadratic(feasible.space))


def test_a_limit_that_no_policy_meets_names_the_smallest_peak():
    with pytest.raises(InfeasibleBudgetError, match="peak_memory_bytes"):
        feasible_set({"peak_memory_bytes": 0.1})


@pytest.mark.parametrize("vanish", [False, True])
def test_moments_that_another_exceeds_are_left_out_and_change_nothing(vanish):
    network = with_maps(residual(), vanish=vanish)
    names = [group.name for group in network.groups]
    moments = network.execution.moment_bytes(names, 4)
    largest = moments.largest()
    rows = np.array(list(itertools.product(*PolicySpace.on_grid(network.groups, vanish=vanish).choices)))
    assert len(largest.bytes) < len(moments.bytes)
    assert largest.of(rows).max(axis=1).tolist() == moments.of(rows).max(axis=1).tolist()


def test_groups_left_alone_count_in_full():
    network = with_maps(residual())
    fewer = network.without_groups({"inner_b"})
    assert [group.name for group in fewer.groups] == ["stream", "inner_a"]
    rows = np.array([[4, 3], [1, 2]])
    price = CostGrid(fewer, [PeakMemory(fewer)]).price(rows)["peak_memory_bytes"]
    whole = CostGrid(network, [PeakMemory(network)]).price(np.array([[4, 3, 5], [1, 2, 5]]))["peak_memory_bytes"]
    assert price.tolist() == whole.tolist()


def test_a_tensor_of_two_dimensions_of_channels_is_their_product():
    group = ChannelGroup("g", 4, ()), ChannelGroup("h", 3, ())
    widths = WidthSum(1.0, (("g", 1.0),)), WidthSum(0.0, (("g", 0.5), ("h", 2.0)))
    network = NetworkSpec((), group, Execution(("product",), (LiveTensor("x", 0, 0, 2.0, widths),)))
    # 2 · 4 bytes · (1 + 4) · (2 + 6) and 2 · 4 · (1 + 2) · (1 + 2)
    price = CostGrid(network, [PeakMemory(network)]).price(np.array([[4, 3], [2, 1]]))
    assert price["peak_memory_bytes"].tolist() == [320.0, 72.0]


def test_groups_that_become_one_keep_the_same_peak():
    network = with_maps(residual())
    joined = network.execution.joined({"inner_a"}, "stream")
    assert joined.groups == {"stream", "inner_b"}
    one = joined.moment_bytes(["stream", "inner_b"], 4).of(np.array([[3, 2]]))
    several = network.execution.moment_bytes(["stream", "inner_a", "inner_b"], 4).of(np.array([[3, 3, 2]]))
    assert one.tolist() == several.tolist()
