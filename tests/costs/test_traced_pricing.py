"""Pricing networks as they are really traced: against published counts, torch's own, and the shrunken shapes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.grid import CostGrid
from amcsearch.graph.tracing.trace import trace
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20

MEMORIES = (MemoryLevel("buffer", 32768, 1.0, "toy", map_share=0.2), MemoryLevel("DRAM", None, 10.0, "toy"))
PROFILE = DeviceProfile("toy", 32, {32: 1.0}, MEMORIES, sources={"mac_pj": "toy"})


def test_resnet20_has_its_published_size() -> None:
    """He et al., 2016 (arXiv 1512.03385), CIFAR-10, with projection shortcuts: 0.27 M parameters, 41 M MACs."""
    model = resnet20(in_channels=3)
    network = trace(model, torch.zeros(1, 3, 32, 32), verify=False).network
    cost = CostGrid(network, [Macs(), Params()]).cost(network.dense)
    assert cost.params == sum(p.numel() for p in model.parameters()) == 272_474
    # stem 442,368; stages 14,155,776 + 12,976,128 + 12,976,128; shortcuts 2 x 131,072; head 640
    assert cost.macs == 442_368 + 14_155_776 + 2 * 12_976_128 + 2 * 131_072 + 640


@pytest.mark.parametrize("factory", [resnet20, mobilenetv2])
def test_pricing_a_traced_network_equals_pricing_its_shrunken_shapes(factory: Callable[..., nn.Module]) -> None:
    network = trace(factory(in_channels=3), torch.zeros(1, 3, 32, 32), verify=False).network
    models = [Macs(), Params(), EnergyModel(PROFILE)]
    rng = np.random.default_rng(0)
    kept = np.stack([g.unit * rng.integers(1, g.channels // g.unit + 1, 8) for g in network.groups], axis=1)
    prices = CostGrid(network, models).price(kept)
    for p, row in enumerate(kept):
        layers = network.with_channels(network.policy(row)).layers
        for model in models:
            np.testing.assert_allclose(prices[model.name][p], sum(map(model.layer_cost, layers)), rtol=1e-12)
