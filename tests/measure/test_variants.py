from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.group import ChannelGroup
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.measure.plan.variants import (
    narrow_policy,
    neighbour_pairs,
    random_kept,
    random_policies,
    smallest,
    stratified_policies,
)


def network(*widths, unit=1):
    return NetworkSpec((), tuple(ChannelGroup(f"g{i}", w, (), unit) for i, w in enumerate(widths)))


def test_the_smallest_policy_is_the_first_choice_of_every_group():
    assert smallest(network(16, 20, 4), 8) == {"g0": 8, "g1": 8, "g2": 4}


@given(st.integers(0, 1000), st.sampled_from([1, 4, 8]), st.integers(1, 30))
def test_policies_lie_on_the_grid(seed, multiple, n):
    spec = network(16, 24, 100, unit=2) if multiple > 1 else network(16, 24, 100)
    policies = random_policies(spec, n, multiple, np.random.default_rng(seed))
    assert len(policies) == n
    for policy in policies:
        for group in spec.groups:
            assert policy[group.name] in group.choices(multiple)


def test_a_few_variants_visit_every_width_of_every_group():
    policies = random_policies(network(64, 64), 32, 8, np.random.default_rng(0))
    for name in ("g0", "g1"):
        assert {p[name] for p in policies} == set(range(8, 65, 8))


def test_sizes_spread_from_tiny_to_dense():
    policies = random_policies(network(*[64] * 10), 20, 8, np.random.default_rng(0))
    totals = [sum(p.values()) for p in policies]
    assert min(totals) < 0.3 * 640
    assert max(totals) > 0.8 * 640


def test_narrow_widths_visit_every_octave_alike():
    rng = np.random.default_rng(0)
    widths = np.array([narrow_policy(network(64), rng)["g0"] for _ in range(600)])
    assert widths.min() == 1
    assert widths.max() <= 64
    octaves = np.bincount(np.log2(widths).astype(int), minlength=6)[:6] / 600  # [1, 2), [2, 4), …, [32, 64)
    assert octaves == pytest.approx([1 / 6] * 6, abs=0.05)


def test_narrow_widths_are_whole_units():
    policy = narrow_policy(network(12, 3, unit=3), np.random.default_rng(0))
    assert policy["g0"] in (3, 6, 9, 12)
    assert policy["g1"] == 3


@pytest.mark.parametrize("seed", range(4))
def test_stratified_policies_visit_every_third_of_every_group(seed):
    policies = stratified_policies(network(48, 96), (8, 1, 1), np.random.default_rng(seed))
    assert all(kept % 8 == 0 for kept in policies[0].values())
    for name, width in (("g0", 48), ("g1", 96)):
        assert sorted((policy[name] - 1) * 3 // width for policy in policies) == [0, 1, 2]


def test_pairs_are_off_and_on_the_coarser_grid():
    pairs = neighbour_pairs(network(64, 24), 5, 8, np.random.default_rng(0))
    assert len(pairs) == 5
    for fine, coarse in pairs:
        assert fine["g0"] % 16 == 8
        assert coarse["g0"] == fine["g0"] + 8
        assert (fine["g1"], coarse["g1"]) == (8, 16)


def test_groups_too_narrow_to_tell_two_grids_apart_give_no_pairs():
    assert neighbour_pairs(network(4, 8), 5, 8, np.random.default_rng(0)) == []


def test_kept_channels_are_whole_units():
    units = np.arange(12).reshape(3, 4).T  # four units of three channels: {0, 4, 8}, {1, 5, 9}, …
    fake = SimpleNamespace(network=network(12, unit=3), units={"g0": units})
    kept = random_kept(fake, PruningPolicy({"g0": 6}), np.random.default_rng(0))["g0"]
    assert len(kept) == 6
    assert np.array_equal(kept, np.sort(kept))
    assert {tuple(sorted(u)) for u in units if set(u) & set(kept)} == {tuple(u) for u in units if set(u) <= set(kept)}


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_variants_are_fine(n):
    assert len(random_policies(network(16), n, 8, np.random.default_rng(0))) == n
