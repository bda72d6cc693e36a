"""The staircase between measured widths, against a made-up device whose latency is known everywhere."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.staircase import Staircase, is_blocked, signature

CONV = LayerSpec("c", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
DEPTHWISE = replace(CONV, conv_groups=64)


def up16(width: int) -> int:
    return -(-width // 16) * 16


def device_ms(layer: LayerSpec) -> float:
    """A blocked device: 2 µs, 10 ns a padded output channel, 0.1 ns a channel pair; off the grid twice that."""
    pairs = layer.in_channels * up16(layer.out_channels)
    blocked = 2e-3 + 1e-5 * up16(layer.out_channels) + 1e-7 * pairs
    return blocked if is_blocked(layer, 16) else 2 * blocked


def measured(widths: list[tuple[int, int]], truth: Callable[[LayerSpec], float] = device_ms) -> Staircase:
    layers = [CONV.resized(i, o) for i, o in widths]
    return Staircase([(layer, truth(layer)) for layer in layers], 16)


def test_signatures_ignore_widths_alone() -> None:
    assert signature(CONV) == signature(CONV.resized(48, 7))
    assert signature(DEPTHWISE) == signature(DEPTHWISE.resized(24, 24))
    assert signature(CONV) != signature(DEPTHWISE)
    assert signature(CONV) != signature(replace(CONV, stride=(2, 2)))
    attention = LayerSpec("a", LayerKind.ATTENTION, 64, 64, conv_groups=4)
    assert signature(attention) == signature(attention.resized(32, 32))
    assert signature(attention) != signature(replace(attention, conv_groups=8))
    norm = LayerSpec("g", LayerKind.GROUP_NORM, 64, 64, conv_groups=4)
    assert signature(norm) == signature(norm.resized(32, 32))


@pytest.mark.parametrize(
    ("layer", "blocked"),
    [
        (CONV.resized(3, 5), True),  # fewer inputs than a block are read as they are
        (CONV.resized(20, 5), True),
        (CONV.resized(21, 16), False),
        (DEPTHWISE.resized(20, 20), True),
        (DEPTHWISE.resized(21, 21), False),
        (replace(CONV, conv_groups=2), True),
        (replace(CONV, conv_groups=2).resized(48, 64), False),
        (LayerSpec("l", LayerKind.LINEAR, 21, 21), True),
    ],
)
def test_blocked_layout_by_the_measured_rules(layer: LayerSpec, blocked: bool) -> None:
    assert is_blocked(layer, 16) is blocked
    assert is_blocked(layer, 0)


def test_outputs_climb_in_steps_of_a_block() -> None:
    stairs = measured([(64, 16), (64, 32), (64, 64), (32, 32)])
    at = [stairs.predict(CONV.resized(64, o)) for o in (17, 20, 31, 32)]
    assert at == pytest.approx([device_ms(CONV.resized(64, 32))] * 4, rel=1e-9)
    assert stairs.predict(CONV.resized(64, 33)) > 1.1 * at[-1]


def test_unmeasured_widths_follow_the_device() -> None:
    rng = np.random.default_rng(0)
    points = [(4 * int(i), int(o)) for i, o in rng.integers(1, 17, (30, 2)) * [1, 4]]
    stairs = measured(points)
    for i in range(16, 65, 4):
        for o in (16, 30, 48, 64):
            layer = CONV.resized(i, o)
            assert stairs.predict(layer) == pytest.approx(device_ms(layer), rel=0.02)


def test_extrapolation_follows_the_fit() -> None:
    stairs = measured([(i, o) for i in (16, 24, 32) for o in (16, 32)])
    assert stairs.predict(CONV) == pytest.approx(device_ms(CONV), rel=0.02)


def test_an_off_grid_width_without_a_measurement_costs_its_full_block() -> None:
    stairs = measured([(i, o) for i in (16, 32, 48, 64) for o in (16, 32, 64)])
    assert stairs.predict(CONV.resized(33, 64)) == pytest.approx(device_ms(CONV.resized(48, 64)), rel=0.01)


def test_off_grid_measurements_are_a_surface_of_their_own() -> None:
    grid = [(i, o) for i in (16, 32, 48, 64) for o in (16, 32, 64)]
    stairs = measured(grid + [(i, o) for i in (17, 33, 50, 63) for o in (16, 32, 64)])
    layer = CONV.resized(42, 32)
    assert stairs.predict(layer) == pytest.approx(device_ms(layer), rel=0.05)
    assert stairs.predict(CONV.resized(44, 32)) == pytest.approx(device_ms(CONV.resized(44, 32)), rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(17, 64), st.integers(1, 64), st.integers(17, 64), st.integers(1, 64))
def test_an_off_grid_width_is_never_below_the_blocked_kernel(i: int, o: int, far_i: int, far_o: int) -> None:
    grid = [(a, b) for a in (16, 32, 48, 64) for b in (16, 32, 64)]
    on_grid, stairs = measured(grid), measured([*grid, (far_i | 1, far_o)])
    layer = CONV.resized(i | 1, o)
    below = CONV.resized((i | 1) // 4 * 4, o)
    assert stairs.predict(layer) >= on_grid.predict(below) * 0.99


def test_only_off_grid_points_price_the_grid_too() -> None:
    stairs = measured([(17, 16), (33, 32), (63, 64)])
    assert stairs.predict(CONV.resized(33, 32)) == pytest.approx(device_ms(CONV.resized(33, 32)), rel=1e-6)
    assert stairs.predict(CONV.resized(32, 32)) == pytest.approx(device_ms(CONV.resized(33, 32)), rel=0.1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.floats(0.001, 10.0)), min_size=1, max_size=12),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_predictions_are_finite_and_not_negative(points: list[tuple[int, int, float]], i: int, o: int) -> None:
    stairs = Staircase([(CONV.resized(a, b), ms) for a, b, ms in points], 16)
    value = stairs.predict(CONV.resized(i, o))
    assert np.isfinite(value)
    assert value >= 0.0


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(4, 16), st.integers(1, 4)), min_size=1, max_size=8), st.data())
def test_measured_blocked_widths_come_back(widths: set[tuple[int, int]], data: st.DataObject) -> None:
    points = {(4 * i, 16 * o): data.draw(st.floats(0.01, 1.0)) for i, o in sorted(widths)}
    stairs = Staircase([(CONV.resized(*at), ms) for at, ms in points.items()], 16)
    for at, ms in points.items():
        assert stairs.predict(CONV.resized(*at)) == pytest.approx(ms, rel=1e-6)


def test_a_single_point_scales_with_the_work() -> None:
    stairs = measured([(64, 64)])
    assert stairs.predict(CONV.resized(32, 64)) == pytest.approx(device_ms(CONV) / 2)


def test_depthwise_has_one_width() -> None:
    points = [(DEPTHWISE.resized(c, c), 1e-3 + 1e-4 * up16(c)) for c in (16, 32, 64)]
    stairs = Staircase(points, 16)
    assert stairs.predict(DEPTHWISE.resized(40, 40)) == pytest.approx(1e-3 + 1e-4 * 48, rel=0.01)
    assert stairs.predict(DEPTHWISE.resized(41, 41)) == pytest.approx(1e-3 + 1e-4 * 48, rel=0.01)


def test_layers_that_cost_nothing_stay_free() -> None:
    assert Staircase([(CONV, 0.0), (CONV.resized(32, 32), 0.0)], 16).predict(CONV.resized(16, 16)) == 0.0
