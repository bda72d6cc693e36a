"""Targets by hand: shares, slopes and exact cuts."""

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PolicySpace
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.energy.storage import StorageFormat
from amcsearch.costs.grid import CostGrid
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.jobs.device import Device
from amcsearch.jobs.sparsify.sparse_target import UnitTarget, WeightTarget
from amcsearch.methods.weight_choice import keep_overall
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
    masks = UnitTarget(found, device(found), None, 0.7).cut(scores)  # 7 of 10 units: 1, 2 and 3 go
    assert masks[first].nonzero().flatten().tolist() == [0, 3]
    assert masks[second].nonzero().flatten().tolist() == [1, 2, 3, 4, 5]
    target = UnitTarget(found, device(found), "macs", 0.6)
    masks = target.cut(scores)
    assert target.measured(masks) <= 0.6
    # without 1, 2, 3 there are 2 * 2 + 2 * 5 + 5 * 3 = 29 MACs, with the 3 there were 36
    assert target.policy(masks) == {first: 2, second: 5}


@pytest.mark.parametrize(
    ("closed", "kept"),
    [
        # the masks keep 36 MACs, 30 are asked for: of what is open the 3 goes, not the first by index
        (((1,), (0,)), ((0, 3), (1, 2, 3, 4, 5))),
        # they keep 2 * 2 + 2 * 2 + 2 * 3 = 14: of what is closed 8, 7 and 6 return, which makes 29; the 3 would be 36
        (((1, 2), (0, 1, 2, 3)), ((0, 3), (1, 2, 3, 4, 5))),
        # 36: the highest scores of all do not save what is closed, and of what is open the 1 goes
        (((3,), (5,)), ((0, 2), (0, 1, 2, 3, 4))),
    ],
)
def test_masks_are_finished_by_the_scores_among_open_and_among_closed(
    closed: tuple[tuple[int, ...], ...], kept: tuple[tuple[int, ...], ...]
) -> None:
    _, found = chain()
    names = [group.name for group in found.network.groups]
    values = torch.tensor([4.0, 1.0, 3.0, 9.0]), torch.tensor([2.0, 8.0, 7.0, 6.0, 5.0, 10.0])
    scores = dict(zip(names, values, strict=True))
    masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in scores.items()}
    for name, places in zip(names, closed, strict=True):
        masks[name][list(places)] = False
    target = UnitTarget(found, device(found), "macs", 0.6)
    ended = target.finish(masks, scores)
    assert tuple(tuple(ended[name].nonzero().flatten().tolist()) for name in names) == kept
    assert target.measured(ended) <= 0.6
    again = target.finish(ended, scores)
    assert all(torch.equal(again[name], ended[name]) for name in names)


def test_the_cut_keeps_to_the_grid_and_to_the_ratio() -> None:
    _, found = chain()
    first, second = (group.name for group in found.network.groups)
    scores = {first: torch.arange(4.0), second: torch.arange(6.0) + 0.1}
    target = UnitTarget(found, device(found, multiple=2), None, 0.75)
    assert all(n % 2 == 0 for n in target.policy(target.cut(scores)).values())
    with pytest.raises(BadInputError, match="max_pruning_ratio"):
        UnitTarget(found, device(found, ratio=0.5), None, 0.2)


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
    with pytest.raises(BadInputError, match="sparsity, macs or bytes"):
        WeightTarget(found, device(found).space, shapes, "latency_ms", 0.5)
    assert np.isclose(float(plain.share({n: torch.tensor(0.25) for n in shapes})), 0.25)


SHAPES = {"0.weight": (8, 2), "2.weight": (2, 8)}  # and 10 biases: 42 words


def stored(storage: StorageFormat, goal: float) -> WeightTarget:
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    found = trace(model, torch.zeros(1, 2))
    return WeightTarget(found, device(found).space, SHAPES, "bytes", goal, storage, 32)


@pytest.mark.parametrize(
    ("storage", "kept"),
    [
        # 10 words are biases, 11 are left, half a word of bits a tensor: 10 weights
        (StorageFormat.BITMAP, (4, 6)),
        # 4 * (32 + 1) + 9 * 3 bits = 159, 5 * (32 + 3) + 3 * 3 = 184: 343 of 352; the sixth would be 35 more
        (StorageFormat.CSR, (4, 5)),
        # two words a weight, and a few for runs above 31
        (StorageFormat.RUN_LENGTH, (4, 1)),
    ],
)
def test_bytes_with_their_overhead_by_hand(storage: StorageFormat, kept: tuple[int, int]) -> None:
    scores = {"0.weight": torch.zeros(16), "2.weight": torch.arange(2.0, 18.0).view(2, 8)}
    scores["0.weight"][:4] = 100.0
    scores["0.weight"] = scores["0.weight"].view(8, 2)
    target = stored(storage, 0.5)
    masks = target.cut(scores)
    assert tuple(int(mask.sum()) for mask in masks.values()) == kept
    assert target.measured(masks) <= 0.5
    if storage is StorageFormat.CSR:
        assert target.measured(masks) == pytest.approx((320 + 343) / (42 * 32))


def test_what_is_left_whole_is_stored_dense() -> None:
    dense = {name: torch.tensor(1.0) for name in SHAPES}
    for storage in (StorageFormat.BITMAP, StorageFormat.CSR, StorageFormat.RUN_LENGTH):
        assert float(stored(storage, 0.9).share(dense)) == 1.0
    half = {"0.weight": torch.tensor(1.0), "2.weight": torch.tensor(0.5)}
    assert float(stored(StorageFormat.BITMAP, 0.9).share(half)) == pytest.approx((10 + 16 + 8.5) / 42)
    # 8 weights of two words each are as large as 16 of one
    assert float(stored(StorageFormat.RUN_LENGTH, 0.9).share(half)) == 1.0


@pytest.mark.parametrize(("density", "slope"), [(0.5, 16 / 42), (1.0, 16 / 42 * 14.5 / 15)])
def test_gates_feel_the_bytes_of_a_weight_also_where_dense_is_smaller(density: float, slope: float) -> None:
    opened = {name: torch.tensor(density, requires_grad=True) for name in SHAPES}
    torch.autograd.backward(stored(StorageFormat.BITMAP, 0.5).share(opened))
    for value in opened.values():
        assert value.grad is not None
        assert float(value.grad) == pytest.approx(slope)


@pytest.mark.parametrize("storage", [StorageFormat.BITMAP, StorageFormat.CSR, StorageFormat.RUN_LENGTH])
@pytest.mark.parametrize("goal", [0.45, 0.6, 0.83, 1.0])
def test_one_more_weight_would_exceed_the_bytes(storage: StorageFormat, goal: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = stored(storage, goal)
    for _ in range(8):
        scores = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
        masks = target.cut(scores)
        kept = sum(int(mask.sum()) for mask in masks.values())
        assert target.measured(masks) <= goal * (1.0 + 1e-9)
        assert kept == target.count or target.measured(keep_overall(scores, kept + 1)) > goal


def test_a_goal_below_the_overhead_names_it() -> None:
    with pytest.raises(BadInputError, match=r"bytes = 0\.3x of dense: .* take 0\.309524x in bitmap storage; raise"):
        stored(StorageFormat.BITMAP, 0.3)
