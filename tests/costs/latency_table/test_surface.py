"""Surfaces by hand: through their points, rounded to blocks, smoothed, and beyond what was measured."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs.latency_table.surface import Surface

CONV = LayerSpec("c", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
DEPTHWISE = replace(CONV, conv_groups=64)
Points = list[tuple[LayerSpec, float, float]]


def device_ms(c_in: int, c_out: int) -> float:
    """2 µs, 10 ns an output channel, 0.1 ns a pair of channels."""
    return 2e-3 + 1e-5 * c_out + 1e-7 * c_in * c_out


def points(widths: list[tuple[int, int]], layer: LayerSpec = CONV) -> Points:
    return [(layer.resized(i, o), device_ms(i, o), 1.0) for i, o in widths]


def test_a_single_point_scales_with_the_work() -> None:
    surface = Surface([(CONV, 0.4, 1.0)])
    assert surface.predict(CONV) == (pytest.approx(0.4), 0.0)
    assert surface.predict(CONV.resized(32, 16)) == (pytest.approx(0.05), pytest.approx(np.hypot(1.0, 2.0)))


def test_two_points_are_a_line_through_work() -> None:
    surface = Surface([(CONV.resized(10, 10), 1.1, 1.0), (CONV.resized(10, 30), 1.3, 1.0)])  # 1 + i·o / 1000
    assert surface.predict(CONV.resized(10, 20))[0] == pytest.approx(1.2)
    assert surface.predict(CONV.resized(20, 30))[0] == pytest.approx(1.6)


def test_measurements_of_equal_widths_are_averaged_by_their_number() -> None:
    surface = Surface([(CONV, 0.4, 3.0), (CONV, 0.8, 1.0)])
    assert surface.predict(CONV)[0] == pytest.approx(0.5)


def test_what_the_fit_can_say_is_found_everywhere() -> None:
    surface = Surface(points([(i, o) for i in (16, 32, 64) for o in (16, 32, 64)]))
    for i, o in [(1, 1), (7, 50), (40, 40), (128, 256)]:
        assert surface.predict(CONV.resized(i, o))[0] == pytest.approx(device_ms(i, o), rel=1e-6)


def test_outputs_climb_in_blocks_and_inputs_do_not() -> None:
    surface = Surface(points([(i, o) for i in (16, 64) for o in (16, 32, 48, 64)]), block=16)
    climbing = [surface.predict(CONV.resized(64, o))[0] for o in (17, 20, 32, 33)]
    assert climbing[:3] == pytest.approx([device_ms(64, 32)] * 3)
    assert climbing[3] == pytest.approx(device_ms(64, 48))
    assert surface.predict(CONV.resized(40, 32))[0] == pytest.approx(device_ms(40, 32))


def test_points_within_a_block_are_one() -> None:
    surface = Surface([(CONV.resized(16, 20), 0.2, 1.0), (CONV.resized(16, 32), 0.4, 1.0)], block=16)
    assert surface.predict(CONV.resized(16, 25)) == (pytest.approx(0.3), 0.0)


def test_both_widths_of_a_blocked_depthwise_layer_are_rounded() -> None:
    made = [(DEPTHWISE.resized(c, c), 1e-3 + 1e-4 * c, 1.0) for c in (16, 32, 64)]
    surface = Surface(made, block=16)
    assert surface.predict(DEPTHWISE.resized(40, 40))[0] == pytest.approx(1e-3 + 1e-4 * 48)
    assert surface.predict(DEPTHWISE.resized(17, 17)) == (pytest.approx(1e-3 + 1e-4 * 32), 0.0)


def test_smoothing_takes_neighbours_in_by_hand() -> None:
    """Falling with width, the fit is the constant c of least (c/2 - 1)² + (c/1 - 1)²: it cancels."""
    layer = LayerSpec("n", LayerKind.LAYER_NORM, 8, 8)
    made = [(layer, 2.0, 1.0), (layer.resized(16, 16), 1.0, 1.0)]
    assert Surface(made).predict(layer)[0] == pytest.approx(2.0)
    near, far = 1 / 0.5**2, 1 / 2.5**2  # squared distances 0 and 1 + 1
    assert Surface(made, smoothing=0.5).predict(layer)[0] == pytest.approx((2.0 * near + 1.0 * far) / (near + far))
    near, far = 1 / 98**2, 1 / 72**2  # of 1024: 2 · 7² and 2 · 6² octaves
    beyond = Surface(made).predict(layer.resized(1024, 1024))
    assert beyond == (pytest.approx((2.0 * near + 1.0 * far) / (near + far)), pytest.approx(72**0.5))


def test_layers_that_cost_nothing_stay_free() -> None:
    surface = Surface([(CONV, 0.0, 1.0), (CONV.resized(32, 32), 0.0, 1.0)])
    assert surface.predict(CONV.resized(16, 16))[0] == 0.0


WIDTHS = st.tuples(st.integers(1, 64), st.integers(1, 64))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(WIDTHS, st.floats(0.01, 1.0), min_size=1, max_size=12), WIDTHS)
def test_measured_widths_come_back_and_all_others_are_possible(
    measured: dict[tuple[int, int], float], other: tuple[int, int]
) -> None:
    surface = Surface([(CONV.resized(*at), ms, 1.0) for at, ms in measured.items()])
    for at, ms in measured.items():
        assert surface.predict(CONV.resized(*at)) == (pytest.approx(ms, rel=1e-6), 0.0)
    ms, octaves = surface.predict(CONV.resized(*other))
    assert np.isfinite(ms)
    assert ms >= 0.0
    assert octaves == pytest.approx(min(np.hypot(*np.log2(np.divide(other, at))) for at in measured))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(WIDTHS, st.floats(0.01, 1.0), min_size=1, max_size=12),
    st.lists(WIDTHS, min_size=1, max_size=30),
    st.sampled_from([0, 8]),
    st.sampled_from([0.0, 0.1]),
)
def test_many_widths_at_once_are_each_alone(
    measured: dict[tuple[int, int], float], asked: list[tuple[int, int]], block: int, smoothing: float
) -> None:
    surface = Surface([(CONV.resized(*at), ms, 1.0) for at, ms in measured.items()], block, smoothing)
    together = surface.predict_widths(CONV, np.array(asked))
    alone = np.array([surface.predict(CONV.resized(*at)) for at in asked]).T
    np.testing.assert_allclose(np.array(together), alone, rtol=1e-12)
