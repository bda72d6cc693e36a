from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.grid import CostGrid
from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.build.table_builder import table_of
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.measure.plan.network_record import described_networks
from amcsearch.measure.plan.roles import ANCHOR, BUILDING, HELD_OUT, LOWERED, held_out_policies, training_policies
from amcsearch.measure.plan.variants import random_policies, smallest
from amcsearch.runtime.on_device.plan import InputSpec
from amcsearch.training.models.transformer import language_model


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 96, 3, padding=1)
        self.fc = nn.Linear(96, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x))))).mean((2, 3)))


def subject(name="small", model=None):
    model, x = (Small() if model is None else model).eval(), torch.zeros(1, 1, 8, 8)
    return MeasuredSubject(name, model, trace(model, x, verify=False), x)


@pytest.fixture(scope="module")
def plan():
    told = []
    made = measurement_plan(
        [subject(), subject("other")],
        variants=16,
        held_out=8,
        anchors=4,
        lowered=6,
        batch=2,
        progress=lambda share, text: told.append(share),
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    return made


def of(plan, network):
    return [model for model in plan.models if model.network == network]


def test_each_network_has_its_dense_reference_and_every_role(plan):
    for network in ("small", "other"):
        roles = Counter(model.role for model in of(plan, network))
        assert roles == {"reference": 1, BUILDING: 16, HELD_OUT: 8, ANCHOR: 4, LOWERED: 6}
    assert [model.role for model in plan.models[:2]] == ["reference"] * 2


def test_policies_are_distinct_so_that_what_is_held_out_builds_nothing(plan):
    for network in ("small", "other"):
        policies = [tuple(sorted(model.policy.items())) for model in of(plan, network)]
        assert len(set(policies)) == len(policies)


def test_every_beginning_of_the_order_has_seen_some_of_all(plan):
    first = plan.models[2 : 2 + 16]
    assert Counter(model.network for model in first) == {"small": 8, "other": 8}
    for network in ("small", "other"):
        roles = Counter(model.role for model in first if model.network == network)
        assert roles[BUILDING] > roles[HELD_OUT] > 0
        assert roles[ANCHOR] > 0


def test_what_is_held_out_is_not_profiled_and_what_is_lowered_is_not_run(plan):
    assert {model.role for model in plan.models if model.profiled} == {"reference", BUILDING, ANCHOR}
    assert {model.role for model in plan.models if not model.timed} == {LOWERED}
    assert all(model.timed for model in plan.models if model.role != LOWERED)


def test_the_plan_describes_its_networks_and_inputs(plan):
    networks = described_networks(plan.info)
    assert list(networks) == ["small", "other"]
    assert networks["small"].network == subject().trace.network
    assert set(networks["small"].owners.values()) == {"conv1", "conv2", "fc"}
    assert plan.inputs["small"] == InputSpec((2, 1, 8, 8), "float32", None)
    assert plan.batch == 2


def test_half_of_what_builds_lies_on_the_channel_grids(resnet20_network):
    policies = training_policies(resnet20_network, 72, np.random.default_rng(0))
    assert len(set(policies)) == len(policies) == 72

    def on(multiple):
        wide = [g.name for g in resnet20_network.groups if g.channels >= 16]
        return sum(all(policy[name] % multiple == 0 for name in wide) for policy in policies)

    assert on(16) >= 17
    assert 33 <= on(8) <= 40
    assert policies[0] == {g.name: g.choices(16)[0] for g in resnet20_network.groups}
    assert resnet20_network.dense not in policies


def test_held_out_policies_come_from_all_grids_and_were_not_taken(resnet20_network):
    taken = training_policies(resnet20_network, 40, np.random.default_rng(0))
    found = held_out_policies(resnet20_network, 24, np.random.default_rng(0), taken)  # the same draws to begin with
    assert len(set(found)) == 24
    assert not set(found) & set(taken)
    names = [g.name for g in resnet20_network.groups if g.channels >= 16]
    odd = [any(policy[name] % 8 for name in names) for policy in found]
    assert 4 <= sum(odd) < 24


def test_a_table_asks_for_what_it_knows_least(simulated, resnet20_network):
    """It has seen the channel grid alone: odd widths are what it doubts most, but no grid loses its share by that."""
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    building = device.measured(resnet20_network, random_policies(resnet20_network, 16, 16, rng), rng)
    table = table_of("resnet", resnet20_network, building, [], device.overhead_ms, simulated.PROVENANCE)
    model = table.bind("resnet")

    def doubt(policies):
        layers = [resnet20_network.with_channels(policy).layers for policy in policies]
        return np.mean([model.uncertainty(one) / model.predict(one) for one in layers])

    names = [g.name for g in resnet20_network.groups if g.channels >= 16]

    def on(multiple, policies):
        return [policy for policy in policies if all(policy[name] % multiple == 0 for name in names)]

    chosen = training_policies(resnet20_network, 12, np.random.default_rng(1), model)
    assert len(set(chosen)) == len(chosen) == 12
    assert len(on(16, chosen)) >= 3
    assert 6 <= len(on(8, chosen)) <= 8
    plain = training_policies(resnet20_network, 12, np.random.default_rng(1))
    odd, plain_odd = ([policy for policy in of if policy not in on(8, of)] for of in (chosen, plain))
    assert doubt(odd) > 1.1 * doubt(plain_odd)


def convolutions(by, outputs):
    """A convolution, one of 48 inputs in ``by`` groups, and a layer that mixes."""
    first, grouped = nn.Conv2d(1, 48, 1), nn.Conv2d(48, outputs, 3, padding=1, groups=by)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 4)
    return nn.Sequential(
        OrderedDict(first=first, a=nn.ReLU(), grouped=grouped, b=nn.ReLU(), **dict(zip("cde", pooled, strict=True)))
    )


def narrowest_width(network, name):
    return next(layer for layer in network.with_channels(smallest(network, 1)).layers if layer.name == name)


@pytest.mark.parametrize("by", [2, 4, 8])
def test_the_narrowest_widths_of_a_grouped_convolution_are_measured_for_they_make_it_depthwise(by, simulated):
    network = subject(model=convolutions(by, 64)).trace.network
    layer = narrowest_width(network, "grouped")
    assert (layer.in_channels, layer.conv_groups, layer.is_depthwise) == (by, by, True)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        policies = training_policies(network, 12, rng)
        assert len(set(policies)) == len(policies) == 12
        assert policies[:2] == [smallest(network, 16), smallest(network, 1)]
        device = simulated.SimulatedDevice()
        measured = device.measured(network, [network.dense, *policies], rng)
        table = table_of("net", network, measured, [], device.overhead_ms, simulated.PROVENANCE)
        asked = [smallest(network, 1), *random_policies(network, 40, 1, rng)]
        assert (table.bind("net").predict_all([network.with_channels(policy).layers for policy in asked]) > 0).all()


def test_a_filter_of_two_outputs_is_measured_at_one_input_for_it_is_an_ordinary_convolution_there():
    network = subject(model=convolutions(48, 96)).trace.network
    layer = narrowest_width(network, "grouped")
    assert (layer.in_channels, layer.out_channels, layer.conv_groups) == (1, 2, 1)
    assert training_policies(network, 12, np.random.default_rng(0))[1] == smallest(network, 1)


def test_networks_whose_layers_stay_what_they_are_need_no_narrowest_widths(resnet20_network):
    filters = subject(model=convolutions(48, 48)).trace.network  # of one channel they are priced as of two
    for network in (resnet20_network, filters):
        assert smallest(network, 1) not in training_policies(network, 12, np.random.default_rng(0))


def test_the_graph_of_the_narrowest_widths_is_read_where_nothing_else_shows_them():
    network = subject(model=convolutions(8, 64)).trace.network
    own = measurement_plan([subject(model=convolutions(8, 64))], variants=0, held_out=0, anchors=2, lowered=4)
    lowered = [PruningPolicy(model.policy) for model in own.models if model.role == LOWERED]
    assert len(lowered) == 4
    assert lowered[0] == smallest(network, 1)
    both = measurement_plan([subject(model=convolutions(8, 64))], variants=12, lowered=4)
    policies = [PruningPolicy(model.policy) for model in both.models]
    assert policies.count(smallest(network, 1)) == 1


@pytest.mark.parametrize(
    "name",
    ["linear, 16 heads", "relu, 16 heads", "normalised", "einsum", "linear, two sequences", "covariance", "outer"],
)
def test_a_table_of_few_variants_prices_products_of_any_number_of_heads(name, simulated, products_of_maps):
    network = trace(products_of_maps.NETWORKS[name]().eval(), products_of_maps.EXAMPLE, verify=False).network
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    policies = training_policies(network, 8, rng)
    measured = device.measured(network, [network.dense, *policies], rng)
    model = table_of("net", network, measured, [], device.overhead_ms, simulated.PROVENANCE).bind("net")
    asked = [smallest(network, 1), *random_policies(network, 40, 1, rng)]
    variants = [network.with_channels(policy).layers for policy in asked]
    priced = CostGrid(network, [model]).price(np.stack([network.kept_array(policy) for policy in asked]))
    assert (priced["latency_ms"] > 0.0).all()
    np.testing.assert_allclose(priced["latency_ms"], model.predict_all(variants))
    np.testing.assert_allclose(priced["latency_ms"], [model.predict(variant) for variant in variants])


def heads_that_become_thinner():
    """A projection, four heads of eight channels of which each loses as many, and a layer that reads them."""
    layers = (
        LayerSpec("q", LayerKind.LINEAR, 8, 32, in_size=(9, 1), out_size=(9, 1)),
        LayerSpec("a", LayerKind.ATTENTION, 32, 32, conv_groups=4, in_size=(9, 1), out_size=(9, 1), has_weight=False),
        LayerSpec("o", LayerKind.LINEAR, 32, 4, in_size=(9, 1), out_size=(9, 1)),
    )
    sides = (("q", Side.OUT), ("a", Side.IN), ("a", Side.OUT), ("o", Side.IN))
    return NetworkSpec(layers, (ChannelGroup("q", 32, tuple(Coupling(*side) for side in sides), unit=4),))


def test_policies_that_make_layers_of_which_no_other_tells_are_measured_or_the_plan_is_refused():
    """Of 4 to 28 channels, 8, 16 and 24 are one to three heads of eight: 4, 12, 20 and 28 are widths of their own."""
    network = heads_that_become_thinner()
    kept = [policy["q"] for policy in training_policies(network, 6, np.random.default_rng(0))]
    assert {4, 12, 20, 28} < set(kept)
    with pytest.raises(BadInputError, match=r"with 4 variants .*: 'a' of .* at least 5 variants"):
        training_policies(network, 4, np.random.default_rng(0))


def test_a_network_that_is_exhausted_gives_fewer():
    narrow = subject(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2)))
    plan = measurement_plan([narrow], variants=12)
    policies = [tuple(model.policy.items()) for model in plan.models]
    assert len(set(policies)) == len(policies) <= 6


def test_without_variants_all_is_fresh():
    plan = measurement_plan([subject()], variants=0, held_out=3, anchors=2)
    assert Counter(model.role for model in plan.models) == {"reference": 1, HELD_OUT: 3, ANCHOR: 2}
    assert {model.role for model in plan.models[1:] if model.profiled} == {ANCHOR}


def test_anchors_begin_with_the_extremes():
    network = subject().trace.network
    own = measurement_plan([subject()], variants=0, held_out=3, anchors=2, seed=3)
    first, second = (PruningPolicy(model.policy) for model in own.models if model.role == ANCHOR)
    assert first == smallest(network, 16)
    assert sum(second.values()) < sum(network.dense.values())


def test_tokens_stay_tokens():
    torch.manual_seed(0)
    model, x = language_model().eval(), torch.zeros(1, 16, dtype=torch.int64)
    text = MeasuredSubject("text", model, trace(model, x, verify=False), x, high=100)
    plan = measurement_plan([text], variants=0, held_out=1, batch=3)
    assert plan.inputs["text"] == InputSpec((3, 16), "int64", 100)
    assert len(plan.models) == 2


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"variants": 3}, r"variants = 3 \(0, or at least 12\)"),
        ({"variants": -1}, "variants = -1"),
        ({"anchors": -1}, "anchors = -1"),
        ({"lowered": -1}, "lowered = -1"),
        ({"held_out": -1}, "held out = -1"),
        ({"batch": 0}, r"batch = 0 \(at least 1\)"),
    ],
)
def test_impossible_counts_are_refused(counts, words):
    with pytest.raises(BadInputError, match=words):
        measurement_plan([subject()], **counts)


def test_two_networks_of_one_name_are_refused():
    with pytest.raises(BadInputError, match=r"\['small', 'small'\] must have different names"):
        measurement_plan([subject(), subject()], variants=12)


def test_a_plan_made_elsewhere_names_no_networks():
    with pytest.raises(BadInputError, match="names no networks; build the kit with `amcsearch table kit`"):
        described_networks({})
