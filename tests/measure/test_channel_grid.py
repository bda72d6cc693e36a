from types import SimpleNamespace

import numpy as np
import pytest

from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.costs.latency.entry import GridStep
from amcsearch.measure.build.table_builder import accepted_multiple, channel_grid, grid_steps

NETWORK = NetworkSpec(
    (LayerSpec("a", LayerKind.LINEAR, 8, 64), LayerSpec("b", LayerKind.LINEAR, 64, 8)),
    (ChannelGroup("hidden", 64, (Coupling("a", Side.OUT), Coupling("b", Side.IN))),),
)


def test_the_descent_ends_at_the_first_refusal():
    good, bad = (0.4, 0.2), (0.4, -0.1)
    assert accepted_multiple(16, []) == 16
    assert accepted_multiple(16, [GridStep(8, *good), GridStep(4, *good)]) == 4
    assert accepted_multiple(16, [GridStep(8, *good), GridStep(4, *bad)]) == 8
    assert accepted_multiple(16, [GridStep(8, *bad), GridStep(4, *good)]) == 16


def device_that_pads_to(width):
    """Latency in proportion to the hidden width rounded up."""

    def predict_all(networks):
        return np.array([float(-(-layers[0].out_channels // width) * width) for layers in networks])

    return SimpleNamespace(predict_all=predict_all)


@pytest.mark.parametrize(("block", "width"), [(16, 4), (8, 4), (0, 4), (16, 16), (16, 1)])
def test_what_a_device_pads_to_is_recognised(block, width):
    multiple, grid = channel_grid(device_that_pads_to(width), NETWORK, block)
    assert multiple == width
    assert [step.multiple for step in grid.tried] == [m for m in (8, 4, 2, 1) if m < (block or 8)]
    for step in grid.tried:
        saves = step.multiple >= width
        assert (step.time_saved > 0) == saves
        assert not saves or step.time_saved == pytest.approx(step.macs_saved)


def test_a_network_too_narrow_to_tell_grids_apart_keeps_the_coarsest():
    narrow = NETWORK.with_channels(NETWORK.policy(np.array([1])))
    assert grid_steps(device_that_pads_to(4), narrow, 16) == []
    assert channel_grid(device_that_pads_to(4), narrow, 16)[0] == 16
