"""Targets by hand: shares, slopes and exact cuts."""

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.core import BadInputError, PolicySpace
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.graph.slices import Trace
from amcsearch.graph.trace import trace
from amcsearch.pipeline.device import Device
from amcsearch.pipeline.sparse_target import UnitTarget, WeightTarget
from amcsearch.search.budget import FeasibleSet, resolve_budget


def chain() -> tuple[nn.Sequential, Trace]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    return model, trace(model, torch.zeros(1, 2))


def device(found: Trace, multiple: int = 1, ratio: float = 0.9, macs: str = "1x") -> Device:
    spec = found.network
    grid = CostGrid(spec, [Macs(), Params()])
    space = PolicySpace.on_grid(spec.groups, multiple, ratio)
    dense = grid.cost(spec.dense)
    feasible = FeasibleSet(space, grid, resolve_budget({"macs": macs}, dense))
    return Device(None, None, multiple, space, grid, feasible, dense, ())


def densities(found: Trace, *shares: float) -> dict[str, torch.Tensor]:
    return {
        group.name: torch.full((group.channels,), share, dtype=torch.float64, requires_grad=True)
        for group, share in zip(found.network.groups, shares, strict=True)
    }


def test_units_and_macs_by_hand() -> None:
    _, found = chain()  # MACs: 2 * 4 + 4 * 6 + 6 * 3 = 50
    place = device(found)
    assert float(UnitTarget(found, place, None, 0.5).share(densities(found, 0.5, 1.0)).detach()) == pytest.approx(0.8)
    half = UnitTarget(found, place, "macs", 0.5).share(densities(found, 0.5, 0.5))
    assert float(half.detach()) == pytest.approx((2 * 2 + 2 * 3 + 3 * 3) / 50)


def test_the_slope_is_what_a_channel_costs() -> None:
    _, found = chain()
    opened = densities(found, 0.75, 0.5)  # 3 and 3 channels
    share = UnitTarget(found, device(found), "macs", 0.5).share(opened)
    torch.autograd.backward(share)
    first, second = opened.values()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.tolist() == pytest.approx([(2 + 3) / 50] * 4)
    assert second.grad.tolist() == pytest.approx([(3 + 3) / 50] * 6)


def test_between_grid_points_the_slope_carries_the_difference() -> None:
    _, found = chain()
    exact = UnitTarget(found, device(found), "params", 0.5)
    assert float(exact.share(densities(found, 0.8, 1.0)).detach()) == pytest.approx(
        (3.2 * 3 + (3.2 + 1) * 6 + 7 * 3) / (4 * 3 + 5 * 6 + 7 * 3)
    )


def test_the_cut_removes_the_lowest_until_the_goal() -> None:
    _, found = chain()
    first, second = (group.name for group in found.network.groups)
    scores = {first: torch.tensor([4.0, 1.0, 3.0, 9.0]), second: torch.tensor([2.0, 8.0, 7.0, 6.0, 5.0, 10.0])}
    policy, kept = UnitTarget(found, device(found), None, 0.7).cut(scores)  # 7 of 10 units: 1, 2 and 3 go
    assert policy == {first: 2, second: 5}
    assert kept[first].tolist() == [0, 3]
    assert kept[second].tolist() == [1, 2, 3, 4, 5]
    target = UnitTarget(found, device(found), "macs", 0.6)
    policy, _ = target.cut(scores)
    assert target.measured(policy) <= 0.6
    # without 1, 2, 3 there are 2 * 2 + 2 * 5 + 5 * 3 = 29 MACs, with the 3 there were 36
    assert policy == {first: 2, second: 5}


def test_the_cut_keeps_to_the_grid_and_to_the_ratio() -> None:
    _, found = chain()
    first, second = (group.name for group in found.network.groups)
    scores = {first: torch.arange(4.0), second: torch.arange(6.0) + 0.1}
    policy, _ = UnitTarget(found, device(found, multiple=2), None, 0.75).cut(scores)
    assert all(n % 2 == 0 for n in policy.values())
    with pytest.raises(BadInputError, match="max_pruning_ratio"):
        UnitTarget(found, device(found, ratio=0.5), None, 0.2).cut(scores)


def test_weights_and_their_macs_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2))
    found = trace(model, torch.zeros(1, 1, 2, 2))  # 4 positions: a convolution's weight costs 4 MACs
    shapes = {"0.weight": (2, 1, 1, 1), "2.weight": (2, 8)}
    scores = {"0.weight": torch.tensor([9.0, 1.0]).view(2, 1, 1, 1), "2.weight": torch.arange(2.0, 18.0).view(2, 8)}
    target = WeightTarget(found, device(found).space, shapes, "macs", 0.5)
    masks = target.cut(scores)  # of 24 MACs 12 stay: 17 … 10 are 8, then 9 and the convolution's 9
    assert int(masks["2.weight"].sum()) == 8
    assert masks["0.weight"].flatten().tolist() == [True, False]
    assert target.measured(masks) == pytest.approx(0.5)
    plain = WeightTarget(found, device(found).space, shapes, None, 0.5)
    assert sum(int(mask.sum()) for mask in plain.cut(scores).values()) == 9
    assert plain.count == 18
    with pytest.raises(BadInputError, match="sparsity or macs"):
        WeightTarget(found, device(found).space, shapes, "latency_ms", 0.5)
    assert np.isclose(float(plain.share({n: torch.tensor(0.25) for n in shapes})), 0.25)
