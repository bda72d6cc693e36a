"""Masks zero the coupled slices and always come off bit for bit."""

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.graph.masks import masked
from amcsearch.graph.tracing.trace import trace


def half(traced):
    return {name: np.sort(units[: max(len(units) // 2, 1)].ravel()) for name, units in traced.units.items()}


def test_restored_bit_for_bit(traced):
    before = {name: value.clone() for name, value in traced.model.state_dict().items()}
    with masked(traced.model, traced.trace, half(traced.trace)):
        changed = [name for name, value in traced.model.state_dict().items() if not torch.equal(before[name], value)]
    assert bool(changed) is bool(traced.trace.network.groups)
    assert all(torch.equal(before[name], value) for name, value in traced.model.state_dict().items())
    assert not any("forward" in vars(module) for module in traced.model.modules())


def test_restored_after_an_exception_and_after_writes(traced_network):
    model, found = traced_network("resnet20").model, traced_network("resnet20").trace
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def interrupted():
        with masked(model, found, half(found)):
            model.train()(torch.randn(2, 1, 32, 32))  # batch norm writes its running statistics
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    model.eval()
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value) or "num_batches_tracked" in name


def test_every_slice_of_a_removed_channel_is_zero_and_of_a_kept_one_is_not(traced_network):
    network = traced_network("dense_block")
    with masked(network.model, network.trace, {"b": np.array([0, 1, 3, 4, 5])}):
        state = {name: value.clone() for name, value in network.model.state_dict().items()}
    assert not state["b.weight"][2].any()
    assert not state["b.bias"][2].any()
    assert not state["norm.running_var"][8 + 2].any()  # after the 8 channels of a
    assert not state["c.weight"][:, 8 + 2].any()
    assert not state["head.weight"][:, 8 + 2].any()
    assert state["c.weight"][:, 8 + 3].all()
    assert state["c.weight"][:, 2].all()


def test_layer_norm_ignores_masked_channels_by_hand():
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.LayerNorm(3, eps=0.0), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [3.0], [100.0]]))
        model[2].weight.copy_(torch.tensor([[5.0, 7.0, 11.0]]))
    found = trace(model, torch.ones(1, 1))
    with masked(model, found, {"0": np.array([0, 1])}), torch.no_grad():
        # (1, 3) has mean 2 and deviation 1, so it becomes (-1, 1): 7 - 5
        assert model(torch.ones(1, 1)).item() == pytest.approx(2.0)


def test_gradients_flow_through_a_masked_norm(traced_network):
    network = traced_network("fused_attention")
    with masked(network.model, network.trace, {"embed": np.arange(8)}):
        network.model(network.example).sum().backward()
    gradient = network.model.norm.weight.grad
    network.model.zero_grad(set_to_none=True)
    assert gradient[:8].all()
    assert not gradient[8:].any()
