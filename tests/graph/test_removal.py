"""Removal equals masking and is exactly what the shapes predict, for random policies on every network."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.compute import macs, params
from amcsearch.graph.masks import masked
from amcsearch.graph.outputs import first_tensor
from amcsearch.graph.removal import remove
from amcsearch.graph.tracing.trace import trace

EXAMPLES = settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def random_kept(traced, seed):
    """A random number of random units of every group; as (kept, policy)."""
    rng, kept = np.random.default_rng(seed), {}
    for name, units in traced.units.items():
        chosen = rng.permutation(len(units))[: rng.integers(1, len(units) + 1)]
        kept[name] = np.sort(units[chosen].ravel())
    return kept, PruningPolicy({name: len(index) for name, index in kept.items()})


@EXAMPLES
@given(seed=st.integers(0, 2**16))
def test_removed_module_computes_what_the_masked_one_does(traced, seed):
    kept, policy = random_kept(traced.trace, seed)
    with torch.no_grad():
        with masked(traced.model, traced.trace, kept):
            expected = first_tensor(traced.model(traced.example))
        small = remove(traced.model, traced.trace, kept)
        found = first_tensor(small(traced.example))
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))

    predicted = traced.trace.network.with_channels(policy)
    assert trace(small, traced.example, verify=False).network.layers == predicted.layers
    assert sum(params(layer) for layer in predicted.layers) == sum(p.numel() for p in small.parameters())
    counter = FlopCounterMode(display=False)
    # gradients on, and attention as plain products: torch's fused paths are invisible to the counter
    with counter, sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        small(traced.example)
    assert sum(macs(layer) for layer in predicted.layers) == counter.get_total_flops() / 2


def test_dense_module_is_untouched_and_shares_nothing(traced):
    before = {name: value.clone() for name, value in traced.model.state_dict().items()}
    small = remove(traced.model, traced.trace, random_kept(traced.trace, 3)[0])
    with torch.no_grad():
        for tensor in [*small.parameters(), *small.buffers()]:
            tensor.zero_()
    assert all(torch.equal(before[name], value) for name, value in traced.model.state_dict().items())
    mine = {id(m) for m in traced.model.modules()} | {id(m._parameters) for m in traced.model.modules()}
    assert not mine & ({id(m) for m in small.modules()} | {id(m._parameters) for m in small.modules()})


def test_slices_are_the_kept_rows_and_columns_by_hand():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    found = trace(model, torch.ones(1, 2))
    small = remove(model, found, {"0": np.array([0, 2])})
    assert small[0].weight.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert small[2].weight.tolist() == [[1.0, 3.0], [4.0, 6.0]]
    assert (small[0].out_features, small[2].in_features) == (2, 2)


def test_requires_grad_mode_and_tying_are_kept(traced_network):
    tied = traced_network("tied")
    tied.model.up.weight.requires_grad_(False)
    small = remove(tied.model, tied.trace, {"up": np.arange(4)})
    tied.model.up.weight.requires_grad_(True)
    assert not small.up.weight.requires_grad
    assert small.down.weight.requires_grad
    assert small.embed.weight is small.head.weight
    assert not small.training


def test_a_layer_under_two_names_stays_one(traced_network):
    twice = traced_network("called_twice")
    small = remove(twice.model, twice.trace, {"a": np.arange(5)})
    assert small.alias is small.again
    assert tuple(small.again.weight.shape) == (5, 5)


@pytest.mark.parametrize(
    "kept", [{"nothing": np.arange(2)}, {"a": np.arange(0)}, {"a": np.array([1, 0])}, {"a": np.array([24])}]
)
def test_kept_channels_that_do_not_fit_are_refused(traced_network, kept):
    grouped = traced_network("grouped")
    with pytest.raises(BadInputError):
        remove(grouped.model, grouped.trace, kept)


def test_kept_channels_that_split_a_unit_are_refused(traced_network):
    grouped = traced_network("grouped")
    with pytest.raises(BadInputError, match="units of 4"):
        remove(grouped.model, grouped.trace, {"a": np.arange(4)})  # four channels of one conv group
