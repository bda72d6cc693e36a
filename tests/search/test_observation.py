"""Features of two small networks worked by hand."""

import numpy as np
import pytest

from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.search.budget import Budget, FeasibleSet
from amcsearch.search.reinforcement.observation import FEATURES, Observer

NOTHING = np.zeros(0, dtype=np.int64)


class WidthLatency:
    """1 ms for each output channel."""

    name = "latency_ms"
    constant = 5.0

    def layer_cost(self, layer: LayerSpec) -> float:
        return float(layer.out_channels)


def conv(name, into, out, kernel, stride, size, conv_groups=1):
    shape = {"kernel": (kernel, kernel), "stride": (stride, stride), "conv_groups": conv_groups}
    return LayerSpec(name, LayerKind.CONV, into, out, in_size=(size * stride,) * 2, out_size=(size, size), **shape)


def network() -> NetworkSpec:
    """conv 3→8 at 4x4 (384 MACs of 1x1), depthwise 8 (1152), conv 8→4 with stride 2 at 2x2 (128), linear 4→2 (8)."""
    layers = (
        conv("first", 3, 8, 1, 1, 4),
        conv("depthwise", 8, 8, 3, 1, 4, conv_groups=8),
        conv("second", 8, 4, 1, 2, 2),
        LayerSpec("head", LayerKind.LINEAR, 4, 2),
    )
    touched = [("first", "out"), ("depthwise", "in"), ("depthwise", "out"), ("second", "in")]
    groups = (
        ChannelGroup("a", 8, tuple(Coupling(layer, Side(side)) for layer, side in touched)),
        ChannelGroup("b", 4, (Coupling("second", Side.OUT), Coupling("head", Side.IN))),
    )
    return NetworkSpec(layers, groups)


def observer(limits, models=(Macs, Params, WidthLatency)) -> Observer:
    spec = network()
    grid = CostGrid(spec, [model() for model in models])
    return Observer(spec, FeasibleSet(PolicySpace.on_grid(spec.groups), grid, Budget(limits)))


def named(features) -> dict[str, float]:
    return dict(zip(FEATURES, features.tolist(), strict=True))


def test_the_first_observation_by_hand():
    seen = named(observer({"macs": 836.0, "latency_ms": 13.5}).observe(NOTHING, 0.0))
    assert seen["index"] == 0.0
    assert seen["in_channels"] == 0.0  # 3 against 8
    assert seen["out_channels"] == 1.0  # 8 against 4
    assert seen["height"] == seen["width"] == 1.0  # 4 against 2
    assert seen["stride"] == 0.0
    assert seen["type"] == seen["kernel"] == 0.0  # equal in both groups
    assert seen["macs"] == 1.0  # 384 + 1152 + 128 against 128 + 8
    assert seen["latency_share"] == 1.0  # 20 ms against 6 ms
    assert seen["energy_share"] == 0.0  # no model
    assert seen["reduced"] == seen["previous_action"] == 0.0
    assert seen["rest"] == pytest.approx((128 + 8) / 1672)
    # smallest: 48 + 144 + 4 + 2 = 198 MACs; 5 + 1 + 1 + 1 + 2 = 10 ms
    assert seen["remaining_macs"] == pytest.approx(1 - 198 / 836)
    assert seen["remaining_latency_ms"] == pytest.approx(1 - 10 / 13.5)
    assert seen["remaining_params"] == seen["remaining_energy_mj"] == 1.0


def test_after_the_first_decision_and_after_the_last():
    watch = observer({"macs": 836.0})
    seen = named(watch.observe(np.array([4]), 0.5))
    assert seen["index"] == seen["stride"] == 1.0
    assert seen["reduced"] == pytest.approx((384 + 1152 + 128) / 2 / 1672)
    assert seen["rest"] == 0.0
    assert seen["previous_action"] == 0.5
    assert seen["remaining_macs"] == pytest.approx(1 - (192 + 576 + 16 + 2) / 836)
    last = named(watch.observe(np.array([4, 2]), 0.5))
    assert last["reduced"] == pytest.approx(1 - (192 + 576 + 32 + 4) / 1672)
    assert last["remaining_macs"] == pytest.approx(1 - 804 / 836)


def test_a_cost_without_a_model_is_zero_and_features_stay_in_range():
    watch = observer({"params": 60.0}, models=(Params,))
    for prefix in ([], [1], [8], [3, 4]):
        features = watch.observe(np.array(prefix, dtype=np.int64), 0.3)
        assert features.shape == (len(FEATURES),)
        assert features.dtype == np.float32
        assert features.min() >= 0.0
        assert features.max() <= 1.0
        seen = named(features)
        assert seen["macs"] == seen["reduced"] == seen["rest"] == seen["latency_share"] == 0.0


def test_features_are_named_once_and_hold_amcs():
    assert len(set(FEATURES)) == len(FEATURES)
    amc = {"index", "type", "in_channels", "out_channels", "height", "width", "stride", "kernel", "macs"}
    assert amc | {"reduced", "rest", "previous_action"} <= set(FEATURES)
