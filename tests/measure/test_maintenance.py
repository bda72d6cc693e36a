from dataclasses import replace

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.measure.build.maintenance import anchored, merged
from amcsearch.measure.build.table_builder import table_of
from amcsearch.measure.plan.variants import random_policies


@pytest.fixture(scope="module")
def table(simulated, resnet20_network):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    policies = [p for multiple in (16, 1) for p in random_policies(resnet20_network, 12, multiple, rng)]
    building = device.measured(resnet20_network, policies, rng)
    return table_of("resnet", resnet20_network, building, [], device.overhead_ms, simulated.PROVENANCE)


def fresh(network, n, seed):
    return random_policies(network, n, 1, np.random.default_rng(seed))


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_a_uniformly_slower_device_is_the_table_times_one_factor(simulated, resnet20_network, table, k):
    device, rng = simulated.SimulatedDevice(speed=1.0 / k), np.random.default_rng(1)
    whole = device.measured(resnet20_network, fresh(resnet20_network, 6, 1), rng, profiled=False)
    found = anchored(table, "resnet", resnet20_network, whole)
    anchors = found.networks["resnet"].anchors
    assert anchors.count == 6
    assert list(anchors.factors.values()) == pytest.approx([k] * len(anchors.factors), rel=0.05)
    before, after = table.bind("resnet"), found.bind("resnet")
    for policy in fresh(resnet20_network, 6, 2):
        layers = resnet20_network.with_channels(policy).layers
        assert after.predict(layers) == pytest.approx(k * before.predict(layers), rel=0.04)


def test_exact_multiples_of_the_table_itself_give_exact_factors(simulated, resnet20_network, table):
    """The anchors are the table's own predictions, 1.7 times over: nothing is left to pull a factor elsewhere."""
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(1)
    runs = device.measured(resnet20_network, fresh(resnet20_network, 5, 1), rng, profiled=False)
    model = table.bind("resnet")
    whole = [type(v)(v.policy, v.layers, (1.7 * model.predict(v.layers),), ()) for v in runs]
    found = anchored(table, "resnet", resnet20_network, whole)
    assert list(found.networks["resnet"].anchors.factors.values()) == pytest.approx([1.7] * 4, rel=1e-6)
    assert found.networks["resnet"].constant_ms == pytest.approx(1.7 * model.constant)


def test_a_table_carried_to_another_device_says_so(simulated, resnet20_network, table):
    device, rng = simulated.SimulatedDevice(speed=0.5), np.random.default_rng(1)
    whole = device.measured(resnet20_network, fresh(resnet20_network, 5, 1), rng, profiled=False)
    elsewhere = replace(simulated.PROVENANCE, cpu="another")
    found = anchored(table, "resnet", resnet20_network, whole, elsewhere)
    assert found.provenance.cpu == "another"
    assert found.networks["resnet"].anchors.from_cpu == "made up"
    assert found.networks["resnet"].accuracy is None  # what held for the other device need not hold here


def test_kernels_are_not_carried_to_other_blocks_of_channels(simulated, resnet20_network, table):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(1)
    whole = device.measured(resnet20_network, fresh(resnet20_network, 5, 1), rng, profiled=False)
    with pytest.raises(BadInputError, match="blocks of 16 channels, the anchors' device in blocks of 8"):
        anchored(table, "resnet", resnet20_network, whole, replace(simulated.PROVENANCE, nchwc_block=8))


def test_a_network_never_measured_gets_a_table_from_anchors(simulated, table, mobilenetv2_network, resnet20_network):
    """Depthwise kernels are in no row of it, so a network of other layers is refused; one of known layers is not."""
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(1)
    policy = resnet20_network.policy(np.array([max(g.unit, g.channels // 2) for g in resnet20_network.groups]))
    narrow = resnet20_network.with_channels(policy)
    whole = device.measured(narrow, fresh(narrow, 5, 1), rng, profiled=False)
    found = anchored(table, "narrow", narrow, whole)
    assert list(found.networks) == ["narrow"]
    model = found.bind("narrow")
    for own in fresh(narrow, 4, 2):
        layers = narrow.with_channels(own).layers
        assert model.predict(layers) == pytest.approx(device.truth_ms(layers), rel=0.1)
    both = merged([table, found])
    assert both.bind(narrow).network == "narrow"
    others = device.measured(mobilenetv2_network, fresh(mobilenetv2_network, 5, 1), rng, profiled=False)
    with pytest.raises(BadInputError, match="latency table has no row for conv"):
        anchored(table, "mobilenet", mobilenetv2_network, others)


def test_two_anchors_are_too_few(simulated, resnet20_network, table):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(1)
    whole = device.measured(resnet20_network, fresh(resnet20_network, 2, 1), rng, profiled=False)
    with pytest.raises(BadInputError, match="'resnet': 2 anchors were timed, at least 3 are needed"):
        anchored(table, "resnet", resnet20_network, whole)
