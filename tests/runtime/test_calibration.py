import numpy as np
import pytest

from amcsearch.core import LayerKind, LayerSpec, PruningPolicy
from amcsearch.runtime.attribution import LayerTime
from amcsearch.runtime.calibration import NodeCalibration, accuracy, fit_line, fit_nodes, shares
from amcsearch.runtime.measuring import MeasuredVariant

OVERHEAD = 0.004


def variant(latency_ms, profile, layers=("a", "b", "norm")):
    specs = tuple(LayerSpec(name, LayerKind.LINEAR, 8, 8) for name in layers)
    return MeasuredVariant(PruningPolicy({}), specs, latency_ms, latency_ms * 1.01, profile)


def profiled(scale=0.5, node_ms=-0.002):
    """Variants whose truth is exactly overhead + scale · profiled + node_ms · nodes."""
    found = []
    for a, b, nodes in [(0.2, 0.3, 2), (0.4, 0.1, 3), (0.9, 0.8, 2), (0.1, 0.1, 4)]:
        profile = {"a": LayerTime(a, 1), "b": LayerTime(b, nodes)}
        found.append(variant(OVERHEAD + scale * (a + b) + node_ms * (1 + nodes), profile))
    return found


def test_scale_and_the_profilers_own_time_are_found_exactly():
    nodes = fit_nodes(profiled(), OVERHEAD)
    assert nodes.scale == pytest.approx(0.5)
    assert nodes.node_ms == pytest.approx(-0.002)


def test_two_variants_fit_a_factor_alone():
    nodes = fit_nodes(profiled(node_ms=0.0)[:2], OVERHEAD)
    assert nodes == NodeCalibration(pytest.approx(0.5), 0.0)


def test_no_kernel_is_free():
    assert NodeCalibration(1.0, -0.002).ms(0.0005, 3) == pytest.approx(3 * 2e-4)


def test_shares_sum_to_the_whole_run_and_fused_layers_cost_nothing():
    one = variant(1.004, {"a": LayerTime(0.3, 1), "b": LayerTime(0.9, 1)})
    times = shares(one, NodeCalibration(2.0, 0.0), OVERHEAD)
    assert times == {"a": pytest.approx(0.25), "b": pytest.approx(0.75), "norm": 0.0}


def test_a_line_is_found_and_its_constant_is_never_negative():
    sums = np.array([1.0, 2.0, 5.0])
    assert fit_line(sums, 3 * sums + 0.5) == (pytest.approx(3.0), pytest.approx(0.5))
    scale, constant = fit_line(sums, 3 * sums - 0.5)
    assert constant == 0.0
    assert 2.4 < scale < 3.0
    assert fit_line(np.array([2.0]), np.array([4.0])) == (pytest.approx(2.0), 0.0)


def test_accuracy_by_hand():
    first, second = np.array([1.0, 2.0, 4.0, 8.2]), np.array([1.02, 2.0, 4.0, 8.0])
    found = accuracy(np.array([1.0, 2.06, 3.68, 9.6]), first, second)  # errors 0, 3 %, -8 %, 20 %
    assert found["mape"] == pytest.approx(0.31 / 4)
    assert found["median"] == pytest.approx(0.055)
    assert found["worst"] == pytest.approx(0.2)
    assert found["bias"] == pytest.approx(0.15 / 4)
    assert (found["within_5"], found["within_10"], found["spearman"]) == (0.5, 0.75, pytest.approx(1.0))
    assert found["noise_mape"] == pytest.approx((0.02 / 1.02 + 0.2 / 8) / 4)
    assert found["variants"] == 4
