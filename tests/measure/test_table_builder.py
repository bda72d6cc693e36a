import pickle
from dataclasses import replace

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.latency.kernels.kernel_model import KernelModel
from amcsearch.costs.latency.model import LatencyModel
from amcsearch.costs.latency.table import fingerprint
from amcsearch.measure.build.calibration import FOLDS
from amcsearch.measure.build.maintenance import accuracy, merged, prediction_errors, with_accuracy
from amcsearch.measure.build.measured import MeasuredVariant
from amcsearch.measure.build.table_builder import table_of
from amcsearch.measure.plan.variants import random_policies


def mixed(network, n, seed):
    rng = np.random.default_rng(seed)
    return [p for multiple in (16, 8, 1) for p in random_policies(network, n // 3, multiple, rng)]


def built(simulated, network, name, *, slopes=None, noise=0.0, n=36):
    device, rng = simulated.SimulatedDevice(slopes=slopes, noise=noise), np.random.default_rng(0)
    building, held_out = (device.measured(network, mixed(network, k, s), rng) for k, s in ((n, 1), (24, 2)))
    return device, table_of(name, network, building, held_out, device.overhead_ms, simulated.PROVENANCE), held_out


@pytest.fixture(scope="module")
def resnet(simulated, resnet20_network):
    return built(simulated, resnet20_network, "resnet", slopes={0.5: 1.5}, noise=0.01, n=60)


@pytest.fixture(scope="module")
def mobilenet(simulated, mobilenetv2_network):
    return built(simulated, mobilenetv2_network, "mobilenet", n=15)


def test_variants_never_measured_are_predicted_with_their_uncertainty(resnet, resnet20_network):
    device, table, _ = resnet
    model = table.bind("resnet")
    layers = [resnet20_network.with_channels(p).layers for p in mixed(resnet20_network, 60, 3)]
    truth = np.array([device.truth_ms(one) for one in layers])
    error = np.array([model.predict(one) for one in layers]) - truth
    assert np.abs(error / truth).mean() < 0.03
    sigma = np.array([model.uncertainty(one) for one in layers])
    assert (np.abs(error) < 2 * sigma).mean() > 0.8
    assert sigma.mean() < 0.15 * truth.mean()


def test_the_table_says_how_it_was_made_and_how_well_it_predicts(resnet, resnet20_network):
    _, table, held_out = resnet
    entry = table.networks["resnet"]
    assert entry.fingerprint == fingerprint(resnet20_network)
    assert entry.weights_mib == pytest.approx(1.04, abs=0.05)
    assert entry.calibration.variants == 60
    model = table.bind("resnet")
    assert entry.accuracy == model.accuracy
    expected = prediction_errors(model, held_out)
    for name, value in expected.as_mapping().items():
        assert getattr(entry.accuracy, name) == pytest.approx(value, rel=1e-9)
    assert entry.accuracy.variants == 24
    assert entry.accuracy.mape < 0.04
    assert entry.accuracy.noise_mape > 0.0
    assert entry.channel_multiple in {1, 2, 4, 8, 16}
    assert entry.residency.slopes


def test_half_of_its_own_variants_are_slower_than_a_table_says(simulated, resnet, resnet20_network):
    _, table, _ = resnet
    device, rng = simulated.SimulatedDevice(slopes={0.5: 1.5}, noise=0.01), np.random.default_rng(0)
    own = device.measured(resnet20_network, mixed(resnet20_network, 60, 1), rng)  # as the fixture's
    model = table.bind("resnet")
    ratio = [variant.latency_ms / model.predict(variant.layers) for variant in own]
    assert np.median(ratio) == pytest.approx(1.0, abs=1e-9)
    assert table.networks["resnet"].calibration.common_factor == pytest.approx(1.0, abs=0.05)


def test_few_variants_of_a_network_go_far_beside_another_that_is_known(simulated, resnet, resnet20_network):
    """Six variants of half the network: its layers' shapes are new, their kernels are not."""
    half = resnet20_network.policy(np.array([max(g.unit, g.channels // 2) for g in resnet20_network.groups]))
    narrow = resnet20_network.with_channels(half)
    device, rng = simulated.SimulatedDevice(slopes={0.5: 1.5}, noise=0.01), np.random.default_rng(7)
    few, fresh = (device.measured(narrow, mixed(narrow, n, s), rng) for n, s in ((6, 8), (24, 9)))
    own = table_of("narrow", narrow, few, [], device.overhead_ms, simulated.PROVENANCE, resnet[1])
    beside = merged([resnet[1], own]).bind(narrow)
    assert beside.network == "narrow"
    known = resnet[1].networks["resnet"]
    assert beside.entry.residency.slopes == pytest.approx(known.residency.slopes, rel=0.05)  # centred since
    found = prediction_errors(beside, fresh)
    assert found.mape < 0.03
    assert found.within_10 == 1.0


def test_pickling_keeps_the_predictions(resnet, resnet20_network):
    _, table, _ = resnet
    model = table.bind("resnet")
    copy: LatencyModel = pickle.loads(pickle.dumps(table)).bind("resnet")
    assert copy.predict(resnet20_network.layers) == model.predict(resnet20_network.layers)


def test_graphs_without_times_still_teach_the_lowering(simulated, resnet20_network):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    on_grid = device.measured(resnet20_network, random_policies(resnet20_network, 4, 16, rng), rng)
    odd = resnet20_network.policy(np.array([max(g.unit, g.channels - g.unit) for g in resnet20_network.groups]))
    (seen,) = device.measured(resnet20_network, [odd], rng)
    graph = MeasuredVariant(seen.policy, seen.layers, (), seen.kernels)
    layer = next(x for x in seen.layers if x.in_size == x.out_size == (8, 8) and x.kernel == (3, 3))
    tables = [
        table_of("net", resnet20_network, variants, [], device.overhead_ms, simulated.PROVENANCE)
        for variants in (on_grid, [*on_grid, graph])
    ]
    before, after = ({kernel.kernel for kernel in table.bind("net").kernel_latencies(layer)} for table in tables)
    assert before == {"nchwc.Conv+Relu"}
    assert after == set(device.kernels(layer)) == {"ReorderOutput", "ms.FusedConv+Relu"}
    assert set(tables[1].rows["source"]) == {"graph", "profile"}


def test_too_few_profiled_variants_are_refused(simulated, resnet20_network):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    policies = random_policies(resnet20_network, 6, 16, rng)
    variants = [
        *device.measured(resnet20_network, policies[:3], rng),
        *device.measured(resnet20_network, policies[3:], rng, profiled=False),
    ]
    with pytest.raises(BadInputError, match="'net': 3 profiled variants, a table needs at least 4"):
        table_of("net", resnet20_network, variants, [], device.overhead_ms, simulated.PROVENANCE)


def test_merging_keeps_each_networks_predictions(resnet, mobilenet, resnet20_network, mobilenetv2_network):
    both = merged([resnet[1], mobilenet[1]])
    assert list(both.networks) == ["resnet", "mobilenet"]
    for network, (_, alone, _) in ((resnet20_network, resnet), (mobilenetv2_network, mobilenet)):
        bound = both.bind(network)
        model = alone.bind(network)
        for policy in mixed(network, 6, 5):
            layers = network.with_channels(policy).layers
            assert bound.predict(layers) == pytest.approx(model.predict(layers), rel=3e-2)  # rare kernels ask the other
        assert bound.channel_multiple == model.channel_multiple


def test_of_a_network_in_two_tables_the_last_counts(resnet, simulated, resnet20_network):
    faster, rng = simulated.SimulatedDevice(speed=2.0), np.random.default_rng(0)
    again = faster.measured(resnet20_network, mixed(resnet20_network, 12, 1), rng)
    other = table_of("resnet", resnet20_network, again, [], faster.overhead_ms, simulated.PROVENANCE)
    both = merged([resnet[1], other])
    assert len(both.rows) == len(other.rows)
    expected = other.bind("resnet").predict(resnet20_network.layers)
    assert both.bind("resnet").predict(resnet20_network.layers) == pytest.approx(expected, rel=1e-12)


def test_tables_of_two_devices_are_not_merged(resnet, mobilenet):
    _, table, _ = mobilenet
    elsewhere = replace(table, provenance=replace(table.provenance, threads=4))
    with pytest.raises(BadInputError, match=r"two devices or settings cannot be merged: threads: .* 1, this run has 4"):
        merged([resnet[1], elsewhere])
    with pytest.raises(BadInputError, match="no latency tables to merge"):
        merged([])


def test_accuracy_by_hand():
    passes = [(1.0, 1.0, 1.02), (2.0, 2.0, 2.0), (4.0, 5.0, 3.0), (8.2, 8.0, 8.0)]  # truth 1, 2, 4, 8
    found = accuracy([1.0, 2.06, 3.68, 9.6], passes)  # errors 0, 3 %, -8 %, 20 %
    assert found.variants == 4
    assert found.mape == pytest.approx(0.31 / 4)
    assert found.median == pytest.approx(0.055)
    assert found.worst == pytest.approx(0.2)
    assert found.bias == pytest.approx(0.15 / 4)
    assert (found.within_5, found.within_10, found.spearman) == (0.5, 0.75, pytest.approx(1.0))
    assert found.noise_mape == pytest.approx((0.02 / 1.02 + 1 / 3 + 0.2 / 8.0) / 4)  # first against last pass
    once = accuracy([1.0, 2.0], [(1.0,), (2.0,)])
    assert (once.spearman, once.noise_mape) == (None, None)
    assert accuracy([1.0, 2.0], [(1.0,), (2.0, 2.5)]).noise_mape == pytest.approx(0.2)  # of what was timed twice


def test_accuracy_can_be_written_later(resnet, simulated, resnet20_network):
    device, table, _ = resnet
    rng = np.random.default_rng(7)
    fresh = device.measured(resnet20_network, mixed(resnet20_network, 6, 7), rng, profiled=False)
    checked = with_accuracy(table, "resnet", fresh)
    errors = checked.networks["resnet"].accuracy
    assert errors.variants == 6
    assert checked.networks["resnet"] == replace(table.networks["resnet"], accuracy=errors)
    assert prediction_errors(table.bind("resnet"), []) is None


def test_a_network_without_groups_still_gets_its_rows(simulated, resnet20_network):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    network = NetworkSpec(resnet20_network.layers, ())
    variants = device.measured(network, [PruningPolicy({})] * 4, rng)
    table = table_of("net", network, variants, [], device.overhead_ms, simulated.PROVENANCE)
    assert table.bind("net").predict(network.layers) == pytest.approx(device.truth_ms(network.layers), rel=0.02)
    assert table.networks["net"].channel_grid.tried == ()
    assert table.networks["net"].accuracy is None


@pytest.fixture
def made_models(monkeypatch):
    """The kernel models that are made in a test."""
    models, make = [], KernelModel.__init__

    def counting(model, *args, **kwargs):
        models.append(model)
        make(model, *args, **kwargs)

    monkeypatch.setattr(KernelModel, "__init__", counting)
    return models


def test_building_a_table_makes_its_predictor_once(simulated, resnet20_network, made_models):
    built(simulated, resnet20_network, "few", n=9)  # too few to leave any out
    assert len(made_models) == 1
    made_models.clear()
    built(simulated, resnet20_network, "many", n=12)
    assert len(made_models) == FOLDS + 1  # one of each fold's others, and the table's own


def test_a_document_is_changed_without_learning_anything(resnet, mobilenet, made_models):
    _, table, _ = resnet
    checked = table.with_entry("resnet", replace(table.networks["resnet"], accuracy=None, channel_multiple=4))
    assert checked.networks["resnet"].channel_multiple == 4
    assert table.networks["resnet"].accuracy is not None
    merged([checked, mobilenet[1]])
    assert made_models == []
    checked.bind("resnet")
    assert len(made_models) == 1
