"""Blocks and sets of blocks by hand, and a device's last sets learnt from its rows."""

import numpy as np
import pytest

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.kernels.kernel_model import KernelModel
from amcsearch.costs.latency.kernels.points import Observation
from amcsearch.costs.latency.kernels.tiling import SetWork, Tiling, refined_tiling

CONV = LayerSpec("c", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
WIDTHS = np.array([(3, 9), (8, 8), (9, 17)])


def test_widths_are_whole_blocks_but_for_inputs_narrower_than_one() -> None:
    plain, depthwise = np.array([False] * 3), np.array([True] * 3)
    assert Tiling(8).computed(WIDTHS, plain).tolist() == [[3, 16], [8, 8], [16, 24]]
    assert Tiling(8).computed(WIDTHS[:, ::-1].copy(), depthwise).tolist() == [[8, 8], [8, 8], [16, 16]]
    assert Tiling().computed(WIDTHS, plain).tolist() == WIDTHS.tolist()
    assert Tiling().computed(WIDTHS, depthwise).tolist() == WIDTHS.tolist()


def test_a_last_set_costs_what_it_costs() -> None:
    tiling = Tiling(8, (1.8, 2.3, 3.0))
    c_out = np.array([8.0, 16.0, 24.0, 32.0, 40.0, 80.0])
    assert tiling.effective(c_out) == pytest.approx([14.4, 18.4, 24.0, 32.0, 46.4, 82.4])
    assert Tiling(8).effective(c_out).tolist() == c_out.tolist()


def test_last_sets_are_averaged_by_how_much_of_the_time_is_work() -> None:
    """Beside half a measurement that says 1: (1.8 · 1² + 3 · 0.5² + 0.5) / (1 + 0.25 + 0.5)."""
    works = [SetWork(np.array([1.8, 4.0]), np.ones(2), np.array([8.0, 32.0]))]
    works += [SetWork(np.array([7.0]), np.array([0.5]), np.array([40.0]))]
    found = refined_tiling(Tiling(8), works)
    assert found.last_set == (pytest.approx(3.05 / 1.75), 2.0, 3.0)
    assert refined_tiling(Tiling(8), []) == Tiling(8)


@pytest.mark.parametrize("last_set", [(1.0, 2.0, 3.0), (1.8, 2.3, 3.0)])
def test_a_table_learns_its_devices_last_sets(last_set: tuple[float, ...]) -> None:
    device, rng = Tiling(8, last_set), np.random.default_rng(0)

    def device_ms(layer: LayerSpec) -> float:
        c_in, c_out = -(-layer.in_channels // 8) * 8, -(-layer.out_channels // 8) * 8
        return 1e-3 + 1e-6 * c_in * float(device.effective(np.array([c_out * 1.0]))[0])

    layers = [CONV.resized(*map(int, pair)) for pair in rng.integers(16, 160, (60, 2))]
    seen = [Observation(layer, {"nchwc.Conv": (1.0, device_ms(layer))}) for layer in layers]
    model = KernelModel(seen, 8, noise=1.0)
    for pair in rng.integers(16, 160, (20, 2)):
        layer = CONV.resized(*map(int, pair))
        (found,) = model.latencies(layer) or ()
        assert found.ms == pytest.approx(device_ms(layer), rel=0.02)
