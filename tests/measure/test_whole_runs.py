"""Layers' times from whole runs alone, on devices whose every kernel is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.costs.latency.kernels.kernel_model import WHOLE
from amcsearch.measure.build.maintenance import anchored, merged, prediction_errors
from amcsearch.measure.build.table_builder import grid_steps, table_of
from amcsearch.measure.build.whole_runs import Steps, fit_whole_runs, monotone
from amcsearch.measure.plan.variants import random_policies


def mixed(network, n, seed):
    rng = np.random.default_rng(seed)
    return [p for multiple in (16, 8, 1) for p in random_policies(network, n // 3, multiple, rng)]


def padding(simulated, block, noise=0.0):
    """A device of 10 GMAC/s and 2 µs a layer that rounds all widths up to blocks, but inputs narrower than one."""

    class Device(simulated.SimulatedDevice):
        def kernels(self, layer):
            if layer.kind == "batch_norm":
                return {}
            c_in, c_out = (simulated.up(width, block) for width in (layer.in_channels, layer.out_channels))
            c_in = layer.in_channels if layer.in_channels < block else c_in
            outputs = layer.out_size[0] * layer.out_size[1]
            return {"all": 2e-3 + 1e-7 * c_in * c_out * layer.kernel[0] * layer.kernel[1] * outputs}

        def runs(self, network, policies, seed=0):
            return self.measured(network, policies, np.random.default_rng(seed), profiled=False)

    return Device(noise=noise)


@pytest.fixture(scope="module")
def black_box(simulated):
    return replace(simulated.PROVENANCE, provider="OpenVINOExecutionProvider", nchwc_block=0)


@pytest.fixture(scope="module")
def padded(simulated, resnet20_network, black_box):
    device = padding(simulated, 16, noise=0.01)
    building, held_out = (device.runs(resnet20_network, mixed(resnet20_network, n, n), n) for n in (48, 18))
    return device, table_of("net", resnet20_network, building, held_out, 0.01, black_box)


def test_whole_runs_alone_predict_variants_never_measured(padded, resnet20_network):
    device, table = padded
    entry, model = table.networks["net"], table.bind("net")
    assert entry.accuracy.mape < 0.02
    assert entry.accuracy.within_5 > 0.95
    assert entry.accuracy.spearman > 0.98
    layers = [resnet20_network.with_channels(p).layers for p in mixed(resnet20_network, 30, 99)]
    truth = np.array([device.truth_ms(variant) for variant in layers])
    error = model.predict_all(layers) / truth - 1.0
    sigma = np.array([model.uncertainty(variant) / model.predict(variant) for variant in layers])
    assert (np.abs(error) < 2.0 * sigma).mean() > 0.8
    assert entry.calibration.left_out_mape == pytest.approx(np.abs(error).mean(), abs=0.01)


def test_steps_and_the_channel_grid_are_learnt_from_the_runs(padded, resnet20_network):
    device, table = padded
    entry = table.networks["net"]
    assert entry.block == 16

    class Truth:
        def predict_all(self, networks):
            return np.array([device.truth_ms(layers) for layers in networks])

    learnt = {step.multiple: step.time_saved for step in entry.channel_grid.tried}
    truth = {step.multiple: step.time_saved for step in grid_steps(Truth(), resnet20_network, 16)}
    assert learnt == pytest.approx(truth, abs=0.03)
    assert set(learnt) == {8, 4, 2, 1}


def test_a_device_without_steps_gets_none(simulated, resnet20_network):
    device = padding(simulated, 1, noise=0.01)
    fit = fit_whole_runs(device.runs(resnet20_network, mixed(resnet20_network, 48, 3)), 0.01)
    assert fit.steps == Steps()


def test_other_kernels_where_widths_do_not_divide_are_found(simulated, resnet20_network, black_box):
    device, rng = simulated.SimulatedDevice(noise=0.005), np.random.default_rng(1)
    runs = [device.measured(resnet20_network, mixed(resnet20_network, n, n), rng, profiled=False) for n in (48, 18)]
    table = table_of("net", resnet20_network, *runs, 0.01, black_box)
    assert f"{WHOLE}conv+off4" in set(table.rows["kernel"])
    assert table.networks["net"].accuracy.mape < 0.04
    assert table.networks["net"].accuracy.spearman > 0.97


def test_times_of_layers_are_close_to_the_truth_and_never_fall(padded, resnet20_network):
    device, table = padded
    model = table.bind("net")
    layer = next(x for x in resnet20_network.layers if x.in_size == x.out_size == (8, 8) and x.kernel == (3, 3))
    widths = np.array([16, 32, 48, 64])
    ms = model.layer_costs(layer, widths, widths)
    truth = [sum(device.kernels(layer.resized(int(width), int(width))).values()) for width in widths]
    assert ms == pytest.approx(truth, rel=0.25)
    assert (np.diff(ms) > 0.0).all()


def test_a_pass_that_was_disturbed_does_not_count(simulated, resnet20_network):
    device = padding(simulated, 1)
    runs = device.runs(resnet20_network, mixed(resnet20_network, 12, 5))
    disturbed = [replace(run, passes_ms=(3.0 * run.passes_ms[0], *run.passes_ms[1:])) for run in runs]
    one, other = (fit_whole_runs(variants, 0.01) for variants in (runs, disturbed))
    assert one.calibration.residuals == pytest.approx(other.calibration.residuals)


def test_a_network_of_few_runs_leans_on_the_devices_table(padded, resnet20_network, black_box):
    device, table = padded
    half = resnet20_network.policy(np.array([max(g.unit, g.channels // 2) for g in resnet20_network.groups]))
    narrow = resnet20_network.with_channels(half)
    few, fresh = (device.runs(narrow, mixed(narrow, n, n), n) for n in (6, 24))
    own = table_of("narrow", narrow, few, [], 0.01, black_box, table)
    errors = prediction_errors(merged([table, own]).bind(narrow), fresh)
    assert errors.mape < 0.05
    alone = prediction_errors(table_of("narrow", narrow, few, [], 0.01, black_box).bind(narrow), fresh)
    assert errors.mape < alone.mape


def test_anchors_bring_it_up_to_date(padded, resnet20_network):
    device, table = padded
    slower = [
        replace(run, passes_ms=tuple(1.3 * ms for ms in run.passes_ms))
        for run in device.runs(resnet20_network, mixed(resnet20_network, 12, 11))
    ]
    updated = anchored(table, "net", resnet20_network, slower)
    assert prediction_errors(updated.bind("net"), slower).mape < 0.03


def test_too_few_timed_variants_are_refused(simulated, resnet20_network, black_box):
    few = padding(simulated, 1).runs(resnet20_network, mixed(resnet20_network, 3, 1))
    with pytest.raises(BadInputError, match="'net': 3 timed variants, a table needs at least 4"):
        table_of("net", resnet20_network, few, [], 0.01, black_box)


def test_halfway_between_the_envelopes_is_monotone():
    widths = np.array([[1.0, 1.0], [2.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    assert monotone(widths, np.array([1.0, 4.0, 2.0, 5.0])).tolist() == [1.0, 3.0, 3.0, 5.0]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 9.0)), min_size=1, max_size=12))
def test_no_time_falls_where_both_widths_grow(points):
    widths, ms = np.array([point[:2] for point in points], dtype=np.float64), np.array([point[2] for point in points])
    result = monotone(widths, ms)
    within = (widths[:, None] <= widths).all(axis=2)
    assert (np.where(within, result[:, None] - result, 0.0) <= 1e-12).all()
    assert ms.min() <= result.min()
    assert result.max() <= ms.max()
