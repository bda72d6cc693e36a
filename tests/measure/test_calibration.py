import numpy as np
import pytest

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.latency.cache import CacheOverflow
from amcsearch.measure.build.attribution import KernelRun
from amcsearch.measure.build.calibration import FOLDS, Calibration, NodeCalibration, calibrate, fit_nodes, observe
from amcsearch.measure.build.measured import MeasuredVariant
from amcsearch.measure.plan.variants import random_policies

OVERHEAD = 0.004
NARROW = LayerSpec("a", LayerKind.LINEAR, 8, 8)
WIDE = LayerSpec("b", LayerKind.LINEAR, 1024, 1024)  # 4 MiB


def variant(latency_ms, runs, layers=(NARROW, WIDE)):
    return MeasuredVariant(PruningPolicy({}), layers, (1.5 * latency_ms, latency_ms, 0.99 * latency_ms), tuple(runs))


def profiled(scale=0.5, node_ms=-0.002):
    """Variants whose truth is exactly overhead + scale · profiled + node_ms · nodes."""
    found = []
    for a, b, nodes in [(0.2, 0.3, 2), (0.4, 0.1, 3), (0.9, 0.8, 2), (0.1, 0.1, 4)]:
        runs = [KernelRun("a", "Gemm", a), *[KernelRun("b", "Gemm", b / nodes)] * nodes]
        found.append(variant(OVERHEAD + scale * (a + b) + node_ms * (1 + nodes), runs))
    return found


def test_a_pass_disturbed_throughout_does_not_count():
    assert variant(0.5, ()).latency_ms == 0.5


def test_scale_and_the_profilers_own_time_are_found_exactly():
    assert fit_nodes(profiled(), OVERHEAD) == NodeCalibration(pytest.approx(0.5), pytest.approx(-0.002))


def test_two_variants_fit_a_factor_alone():
    assert fit_nodes(profiled(node_ms=0.0)[:2], OVERHEAD) == NodeCalibration(pytest.approx(0.5), 0.0)


def test_nodes_add_up_to_the_whole_run_at_the_scale_they_were_profiled_at():
    """0.198 + 0.098 ms, profiled at half speed with 2 µs a node: 0.4 and 0.2."""
    times = NodeCalibration(1.0, -0.002).durations_ms(np.array([0.4, 0.2]), 0.296)
    assert times.tolist() == pytest.approx([0.198, 0.098])


def test_no_kernel_is_free():
    times = NodeCalibration(1.0, -0.002).durations_ms(np.array([0.0005, 0.2015]), 0.198)  # below 0 by the fit
    assert times.tolist() == pytest.approx([2e-4, 0.198 - 2e-4], rel=0.02)


def test_kernel_times_are_stretched_to_the_whole_run():
    runs = [KernelRun("a", "Gemm", 0.3), KernelRun("b", "Gemm", 0.6), KernelRun("b", "Relu", 0.1)]
    one = variant(1.004, [*runs, KernelRun("b", "Relu", 0.2)])
    first, second = observe(one, NodeCalibration(2.0, 0.0), OVERHEAD, CacheOverflow({}), 4)
    assert (first.layer.name, first.kernels) == ("a", {"Gemm": (1.0, pytest.approx(0.25))})
    assert second.kernels == {"Gemm": (1.0, pytest.approx(0.5)), "Relu": (2.0, pytest.approx(0.125))}


def test_a_fused_layer_has_no_kernels():
    one = variant(1.0, [KernelRun("a", "Gemm", 0.3)])
    assert observe(one, NodeCalibration(1.0, 0.0), OVERHEAD, CacheOverflow({}), 4)[1].kernels == {}


def test_what_the_caches_take_is_no_kernels():
    """4 MiB beyond a knot of 2, 0.1 ms each: 0.2 ms of the main kernel of the only layer with weights to speak of."""
    one = variant(1.0, [KernelRun("b", "Gemm", 0.7), KernelRun("b", "Relu", 0.3)], (WIDE,))
    (seen,) = observe(one, NodeCalibration(1.0, 0.0), 0.0, CacheOverflow({2.0: 0.1}), 4)
    assert seen.kernels == {"Gemm": (1.0, pytest.approx(0.5)), "Relu": (1.0, pytest.approx(0.3))}
    (most,) = observe(one, NodeCalibration(1.0, 0.0), 0.0, CacheOverflow({2.0: 9.0}), 4)
    assert most.kernels["Gemm"] == (1.0, pytest.approx(0.3 * 0.7))


def test_few_variants_are_not_calibrated_on_themselves(simulated, resnet20_network):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    few = device.measured(resnet20_network, random_policies(resnet20_network, 2 * FOLDS - 1, 4, rng), rng)
    found = calibrate(few, device.overhead_ms, 16)
    assert isinstance(found, Calibration)
    assert (found.factors, found.residuals, found.constant_ms) == ({}, (), device.overhead_ms)
    assert found.sigma_floor > 0.0


@pytest.mark.parametrize(("borrowed", "borne"), [(0.1, {2.0: 0.1}), (0.4, {2.0: 0.2}), (100.0, {})])
def test_what_is_borrowed_leaves_room_for_the_kernels(borrowed, borne):
    """A whole run of 1 ms, of which a kernel keeps 0.3; 4 MiB of weights are 2 beyond the knot."""
    few = 4 * [variant(1.0, [KernelRun("b", "Gemm", 1.0)], (WIDE,))]
    assert calibrate(few, 0.0, 16, like=CacheOverflow({2.0: borrowed})).overflow == CacheOverflow(borne)


@pytest.fixture(scope="module")
def calibrated(simulated, resnet20_network):
    """36 variants of a device that streams weights beyond half a MiB, 1 % noise."""
    device, rng = simulated.SimulatedDevice(slopes={0.5: 1.5}, noise=0.01), np.random.default_rng(0)
    policies = [p for multiple in (16, 1) for p in random_policies(resnet20_network, 18, multiple, rng)]
    return device, calibrate(device.measured(resnet20_network, policies, rng), device.overhead_ms, 16)


def test_the_profilers_inflation_of_a_simulated_device_is_found(simulated, resnet20_network):
    device, rng = simulated.SimulatedDevice(), np.random.default_rng(0)
    found = device.measured(resnet20_network, random_policies(resnet20_network, 12, 1, rng), rng)
    nodes = fit_nodes(found, device.overhead_ms)
    assert nodes == NodeCalibration(pytest.approx(0.8), pytest.approx(-0.002 * 0.8))


def test_the_cost_beyond_the_caches_of_a_simulated_device_is_found(calibrated):
    device, found = calibrated
    total = np.array([0.6, 0.8, 1.0])
    ratio = found.overflow.extra_ms(total, total) / device.overflow.extra_ms(total, total)
    assert (ratio > 0.5).all()
    assert (ratio < 2.0).all()  # weights and work grow together: the two can be told apart only so well


def test_a_device_that_streams_nothing_is_not_said_to(simulated, resnet20_network):
    device, rng = simulated.SimulatedDevice(noise=0.01), np.random.default_rng(0)
    policies = [p for multiple in (16, 1) for p in random_policies(resnet20_network, 18, multiple, rng)]
    found = calibrate(device.measured(resnet20_network, policies, rng), device.overhead_ms, 16)
    one = np.array([1.0])
    assert found.overflow.extra_ms(one, one)[0] < 0.04 * device.truth_ms(resnet20_network.layers)


def test_left_out_variants_are_predicted_and_sigma_says_how_well(calibrated):
    _, found = calibrated
    residuals = np.abs(found.residuals)
    assert len(residuals) == 36
    assert residuals.mean() < 0.035
    assert 0.0 < found.sigma_floor <= np.sqrt((residuals**2).mean()) * (1 + 1e-6)
    assert all(0.5 <= factor <= 2.0 for factor in found.factors.values())
