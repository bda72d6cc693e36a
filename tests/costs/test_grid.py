"""Pricing by indexing must equal pricing the shrunken network layer by layer, whatever the network."""

import pickle
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.base import CostModel
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.grid import CostGrid


class WildLatency:
    """A latency with no structure at all: a hash of every field but the name."""

    name = "latency_ms"
    constant = 0.25

    def __init__(self) -> None:
        self.asked: list[LayerSpec] = []

    def layer_cost(self, layer: LayerSpec) -> float:
        self.asked.append(layer)
        return zlib.crc32(repr(replace(layer, name="")).encode()) / 2**32


PROFILE = DeviceProfile(
    "toy",
    16,
    {16: 1.0},
    (MemoryLevel("buffer", 256, 1.0, "toy", map_share=0.2), MemoryLevel("DRAM", None, 100.0, "toy")),
    static_power_mw=30.0,
    sources=dict.fromkeys(("mac_pj", "static_power_mw"), "toy"),
)


def all_models() -> list[CostModel]:
    latency = WildLatency()
    return [Macs(), Params(), latency, EnergyModel(PROFILE, batch=2, latency=latency)]


class Builder:
    """Grows a network layer by layer; ``width`` lists the groups whose channels lie behind one another."""

    def __init__(self) -> None:
        self.layers: list[LayerSpec] = []
        self.couplings: dict[str, list[Coupling]] = {}
        self.channels: dict[str, tuple[int, int]] = {}
        self.width: list[str] = []

    def total(self) -> int:
        return sum(self.channels[g][0] for g in self.width)

    def add(self, kind: LayerKind, out: int, conv_groups: int = 1, factor: int = 1) -> str:
        name = f"l{len(self.layers)}"
        size = (3, 2)
        in_channels = self.total() * factor if self.width else 3
        self.layers.append(
            LayerSpec(name, kind, in_channels, out, (3, 3), conv_groups=conv_groups, in_size=size, out_size=size)
        )
        for group in self.width:
            self.couplings[group].append(Coupling(name, Side.IN, factor))
        return name

    def new_group(self, kind: LayerKind, channels: int, unit: int, conv_groups: int = 1) -> None:
        name = self.add(kind, channels, conv_groups)
        self.couplings[name] = [Coupling(name, Side.OUT)]
        self.channels[name] = (channels, unit)
        self.width = [name]

    def pass_through(self, kind: LayerKind, conv_groups: int = 1) -> None:
        name = self.add(kind, self.total(), conv_groups)
        for group in self.width:
            self.couplings[group].append(Coupling(name, Side.OUT))


@st.composite
def networks(draw: st.DrawFn) -> NetworkSpec:
    """Chains of convolutions, depthwise and grouped ones, norms, attention, concatenation, a flatten at the end."""
    net = Builder()
    net.new_group(LayerKind.CONV, 2 * draw(st.integers(1, 4)), draw(st.sampled_from([1, 2])))
    aside = net.width
    for op in draw(
        st.lists(
            st.sampled_from(["conv", "same", "depthwise", "grouped", "norm", "heads", "aside", "concat"]), max_size=8
        )
    ):
        if op == "conv":
            net.new_group(LayerKind.CONV, 2 * draw(st.integers(1, 4)), draw(st.sampled_from([1, 2])))
        elif op == "same":
            net.pass_through(LayerKind.LINEAR)
        elif op == "depthwise":
            net.pass_through(LayerKind.CONV, conv_groups=net.total())
        elif op == "grouped" and all(net.channels[g][1] == 2 for g in net.width):
            net.new_group(LayerKind.CONV, 2 * draw(st.integers(1, 3)), 2, conv_groups=2)
        elif op == "norm":
            net.pass_through(LayerKind.BATCH_NORM)
        elif op == "heads":
            unit, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
            net.new_group(LayerKind.LINEAR, unit * heads, unit)
            net.pass_through(LayerKind.ATTENTION, conv_groups=heads)
        elif op == "aside":
            aside = net.width
        elif op == "concat" and len(net.width) < 4:
            net.width = [*net.width, *aside]
    net.add(LayerKind.LINEAR, 10, factor=6)
    groups = tuple(ChannelGroup(g, c, tuple(net.couplings[g]), unit) for g, (c, unit) in net.channels.items())
    return NetworkSpec(tuple(net.layers), groups)


@st.composite
def priced(draw: st.DrawFn) -> tuple[NetworkSpec, NDArray[np.int64]]:
    network = draw(networks())
    counts = st.tuples(*(st.integers(1, g.channels // g.unit).map(lambda n, u=g.unit: n * u) for g in network.groups))
    return network, np.array(draw(st.lists(counts, min_size=1, max_size=5)), dtype=np.int64)


@settings(max_examples=150, deadline=None)
@given(priced())
def test_a_price_is_the_constant_and_the_sum_over_the_shrunken_layers(
    case: tuple[NetworkSpec, NDArray[np.int64]],
) -> None:
    network, kept = case
    models = all_models()
    grid = CostGrid(network, models)
    prices, layers = grid.price(kept), grid.price_layers(kept)
    some = list(range(len(network.layers)))[::-2]
    for name, priced_alone in CostGrid(network, models).price_layers(kept, some).items():
        np.testing.assert_array_equal(priced_alone, layers[name][:, some])
    for p, row in enumerate(kept):
        smaller = network.with_channels(network.policy(row))
        cost = grid.cost(network.policy(row))
        for model in models:
            each = [model.layer_cost(layer) for layer in smaller.layers]
            np.testing.assert_allclose(layers[model.name][p], each, rtol=1e-12)
            np.testing.assert_allclose(prices[model.name][p], model.constant + sum(each), rtol=1e-12)
            assert cost[model.name] == prices[model.name][p]


def two_convolutions() -> NetworkSpec:
    """1x1 convolutions 3→4→5 on one position; the 4 in between are the group."""
    layers = (LayerSpec("a", LayerKind.CONV, 3, 4), LayerSpec("b", LayerKind.CONV, 4, 5))
    return NetworkSpec(layers, (ChannelGroup("g", 4, (Coupling("a", Side.OUT), Coupling("b", Side.IN))),))


def test_prices_by_hand() -> None:
    grid = CostGrid(two_convolutions(), [Macs()])
    assert grid.price(np.array([[4], [1]]))["macs"].tolist() == [12 + 20, 3 + 5]
    assert grid.price_layers(np.array([[2]]))["macs"].tolist() == [[6, 10]]
    cost = grid.cost(PruningPolicy({"g": 3}))
    assert dict(cost) == {"macs": 24.0}


def test_a_layer_shape_is_asked_for_once() -> None:
    latency = WildLatency()
    grid = CostGrid(two_convolutions(), [latency])
    grid.price(np.array([[2], [2], [3]]))
    grid.price(np.array([[3], [2]]))
    assert len(latency.asked) == len(set(latency.asked)) == 4


def test_identical_layers_share_what_was_asked() -> None:
    layers = tuple(LayerSpec(name, LayerKind.LINEAR, 4, 4) for name in "abc")
    coupled = tuple(Coupling(name, side) for name in "abc" for side in Side)
    latency = WildLatency()
    grid = CostGrid(NetworkSpec(layers, (ChannelGroup("g", 4, coupled),)), [latency])
    grid.price(np.array([[2]]))
    assert len(latency.asked) == 1


def test_large_batches_and_empty_ones_are_whole() -> None:
    grid = CostGrid(two_convolutions(), [Macs()])
    kept = np.arange(2**17 + 20_000)[:, None] % 4 + 1  # more than a pass
    assert grid.price(kept)["macs"].tolist() == (8 * kept[:, 0]).tolist()
    assert grid.price(kept[:0])["macs"].shape == (0,)


def test_tables_grow_past_their_first_size() -> None:
    wide = NetworkSpec(
        (LayerSpec("a", LayerKind.LINEAR, 3, 5000),), (ChannelGroup("g", 5000, (Coupling("a", Side.OUT),)),)
    )
    kept = np.arange(1, 5001)[:, None]
    grid = CostGrid(wide, [Macs()])
    assert grid.price(kept[:3])["macs"].tolist() == [3, 6, 9]
    assert grid.price(kept)["macs"].tolist() == (3 * kept[:, 0]).tolist()


def test_a_network_without_groups_has_one_price() -> None:
    grid = CostGrid(NetworkSpec(two_convolutions().layers, ()), [Macs()])
    assert grid.price(np.zeros((2, 0), dtype=np.int64))["macs"].tolist() == [32, 32]


def test_pickling_keeps_the_prices_and_drops_the_tables() -> None:
    grid = CostGrid(two_convolutions(), [Macs(), Params()])
    before = grid.price(np.array([[2]]))
    copy = pickle.loads(pickle.dumps(grid))
    assert copy.price(np.array([[2]])) == before


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ([[4], [0]], "^group 'g': n_keep = 0, must be a multiple of 1 from 1 to 4$"),
        ([[5]], "^group 'g': n_keep = 5, must be a multiple of 1 from 1 to 4$"),
        ([[1, 1]], r"^kept counts have shape \(1, 2\), must be \(policies, 1\)$"),
        ([1], r"^kept counts have shape \(1,\), must be \(policies, 1\)$"),
    ],
)
def test_counts_that_do_not_fit_are_refused(kept: list[list[int]], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        CostGrid(two_convolutions(), [Macs()]).price(np.array(kept))


def test_each_cost_may_have_one_model() -> None:
    with pytest.raises(
        BadInputError, match=r"^cost models \['macs', 'macs'\]: each name may appear once; drop a model$"
    ):
        CostGrid(two_convolutions(), [Macs(), Macs()])


def test_a_layer_the_model_cannot_price_leaves_the_grid_usable() -> None:
    class Picky:
        name = "macs"
        constant = 0.0

        def layer_cost(self, layer: LayerSpec) -> float:
            if layer.out_channels == 2:
                raise BadInputError("no row")
            return Macs().layer_cost(layer)

    grid = CostGrid(two_convolutions(), [Picky()])
    with pytest.raises(BadInputError, match="no row"):
        grid.price(np.array([[2], [3]]))
    assert grid.price(np.array([[3]]))["macs"].tolist() == [24]


def branch_that_vanishes() -> NetworkSpec:
    """stem → norm → up → down, with a shortcut around the last three; the group ``up`` may keep no channels."""
    norm = LayerSpec("norm", LayerKind.LAYER_NORM, 6, 6, in_size=(5, 1), out_size=(5, 1), has_bias=True)
    linear = LayerSpec("stem", LayerKind.LINEAR, 3, 6, in_size=(5, 1), out_size=(5, 1), has_bias=True)
    layers = (linear, norm, replace(linear, name="up", in_channels=6, out_channels=8),
              replace(linear, name="down", in_channels=8, out_channels=6),
              replace(linear, name="head", in_channels=6, out_channels=2))  # fmt: skip
    stream = [("stem", Side.OUT), ("norm", Side.IN), ("norm", Side.OUT), ("up", Side.IN), ("down", Side.OUT)]
    inner = (Coupling("up", Side.OUT), Coupling("down", Side.IN))
    return NetworkSpec(
        layers,
        (
            ChannelGroup("stem", 6, tuple(Coupling(*place) for place in (*stream, ("head", Side.IN)))),
            ChannelGroup("up", 8, inner, can_vanish=True, idle_layers=("norm",)),
        ),
    )


def test_a_branch_that_is_gone_costs_its_constant() -> None:
    network = branch_that_vanishes()
    price = CostGrid(network, [Macs(), Params()]).price(np.array([[6, 8], [6, 0], [4, 0]]))
    assert price["macs"].tolist() == [5 * (3 * 6 + 6 * 8 + 8 * 6 + 6 * 2), 5 * (3 * 6 + 6 * 2), 5 * (3 * 4 + 4 * 2)]
    ends = [3 * n + n + 2 * n + 2 for n in (6, 4)]
    assert price["params"].tolist() == [ends[0] + 2 * 6 + 6 * 8 + 8 + 8 * 6 + 6, ends[0] + 6, ends[1] + 4]


def test_prices_at_no_channels_are_those_of_the_layers_left() -> None:
    network = branch_that_vanishes()
    grid = CostGrid(network, all_models())
    for kept in ([6, 0], [1, 0], [3, 5], [6, 8]):
        left = network.with_channels(network.policy(np.array(kept))).layers
        for model in grid.models:
            expected = model.constant + sum(model.layer_cost(layer) for layer in left)
            assert grid.price(np.array([kept]))[model.name][0] == pytest.approx(expected)


def test_only_groups_that_can_vanish_keep_no_channels() -> None:
    network = branch_that_vanishes()
    with pytest.raises(BadInputError, match=r"^group 'stem': n_keep = 0, must be a multiple of 1 from 1 to 6$"):
        CostGrid(network, [Macs()]).price(np.array([[0, 8]]))
    assert network.with_channels(network.policy(np.array([6, 0]))).groups[0].couplings == (
        Coupling("stem", Side.OUT), Coupling("down.bias", Side.OUT), Coupling("head", Side.IN),
    )  # fmt: skip
    choices = [group.choices(2, 0.5, vanish=True) for group in network.groups]
    assert choices == [(4, 6), (0, 4, 6, 8)]
    assert network.groups[1].choices(2, 0.5) == (4, 6, 8)
