"""Surfaces by hand: fits, blocks, corrections near and far from what was measured."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.kernels.fit import Fit
from amcsearch.costs.latency.kernels.points import Points
from amcsearch.costs.latency.kernels.surface import AnySurface, CorrectedSurface, Surface
from amcsearch.costs.latency.kernels.tiling import Tiling

CONV = LayerSpec("c", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
LARGE = replace(CONV, in_size=(16, 16), out_size=(16, 16))
DEPTHWISE = replace(CONV, conv_groups=64)
NORM = LayerSpec("n", LayerKind.LAYER_NORM, 8, 8)
Measured = list[tuple[LayerSpec, float, float]]


def device_ms(c_in: int, c_out: int) -> float:
    """2 µs, 10 ns an output channel, 0.1 ns a pair of channels."""
    return 2e-3 + 1e-5 * c_out + 1e-7 * c_in * c_out


def points(widths: list[tuple[int, int]], layer: LayerSpec = CONV) -> Measured:
    return [(layer.resized(i, o), device_ms(i, o), 1.0) for i, o in widths]


def surface_through(measured: Measured, tiling: Tiling | None = None, noise: float = 0.0) -> Surface:
    return Surface(Fit(Points.of(measured), tiling or Tiling()), noise)


def ms_of(surface: AnySurface, layer: LayerSpec) -> float:
    return float(surface.predict_widths(layer, np.array([[layer.in_channels, layer.out_channels]]))[0])


def octaves_of(surface: AnySurface, layer: LayerSpec) -> float:
    return float(surface.octaves(layer, np.array([[layer.in_channels, layer.out_channels]]))[0])


def test_a_single_point_scales_with_the_work() -> None:
    surface = surface_through([(CONV, 0.4, 1.0)])
    assert (ms_of(surface, CONV), octaves_of(surface, CONV)) == (pytest.approx(0.4), 0.0)
    narrow = CONV.resized(32, 16)
    assert (ms_of(surface, narrow), octaves_of(surface, narrow)) == (pytest.approx(0.05), np.hypot(1.0, 2.0))
    assert (ms_of(surface, LARGE), octaves_of(surface, LARGE)) == (pytest.approx(1.6), 2.0)


def test_two_points_are_a_line_through_work() -> None:
    surface = surface_through([(CONV.resized(10, 10), 1.1, 1.0), (CONV.resized(10, 30), 1.3, 1.0)])  # 1 + i·o / 1000
    assert ms_of(surface, CONV.resized(10, 20)) == pytest.approx(1.2)
    assert ms_of(surface, CONV.resized(20, 30)) == pytest.approx(1.6)


def test_measurements_of_equal_widths_are_averaged_by_their_number() -> None:
    surface = surface_through([(CONV, 0.4, 3.0), (CONV, 0.8, 1.0)])
    assert ms_of(surface, CONV) == pytest.approx(0.5)


def test_what_the_fit_can_say_is_found_everywhere() -> None:
    surface = surface_through(points([(i, o) for i in (16, 32, 64) for o in (16, 32, 64)]))
    for i, o in [(1, 1), (7, 50), (40, 40), (128, 256)]:
        assert ms_of(surface, CONV.resized(i, o)) == pytest.approx(device_ms(i, o), rel=1e-6)


def test_several_map_sizes_are_one_fit() -> None:
    """Four times the positions take four times the work and outputs, and one call."""
    widths = [(i, o) for i in (16, 32, 64) for o in (16, 32, 64)]
    large = [(layer, 4 * ms - 6e-3, n) for layer, ms, n in points(widths, LARGE)]
    surface = Surface(Fit(Points.joined([Points.of(points(widths)), Points.of(large)]), Tiling()))
    other = replace(CONV, in_size=(4, 4), out_size=(4, 4))
    assert ms_of(surface, other.resized(48, 40)) == pytest.approx(2e-3 + (device_ms(48, 40) - 2e-3) / 4, rel=1e-6)


def test_channels_left_over_are_learnt_where_a_kernel_takes_several_at_a_time() -> None:
    """Sixteen channels take 16 ns, each one left over 5 ns: 1 µs + 16 · ⌊c / 16⌋ + 5 · (c mod 16)."""

    def measured(c: int) -> float:
        return 1e-3 + 16e-6 * (c // 16) + 5e-6 * (c % 16)

    widths = [*range(16, 129, 16), *range(5, 128, 7)]
    surface = surface_through([(DEPTHWISE.resized(c, c), measured(c), 1.0) for c in widths])
    for c in (47, 48, 49, 63, 64, 160, 175):
        assert ms_of(surface, DEPTHWISE.resized(c, c)) == pytest.approx(measured(c), rel=1e-3)


def test_filters_left_over_cost_their_inputs_too() -> None:
    """Eight filters at a time and a last step for what is left, over inputs four at a time: steps of 1 ns a pair."""

    def measured(c_in: int, c_out: int) -> float:
        return 1e-3 + 1e-6 * (-(-c_in // 4) * 4) * (-(-c_out // 8) * 8)

    widths = [(i, o) for i in (3, 8, 13, 32, 49, 64) for o in (5, 8, 12, 31, 40, 64)]
    surface = surface_through([(CONV.resized(i, o), measured(i, o), 1.0) for i, o in widths])
    for i, o in [(8, 57), (32, 64), (64, 25), (16, 33)]:
        assert ms_of(surface, CONV.resized(i, o)) == pytest.approx(measured(i, o), rel=0.03)


def test_widths_climb_in_blocks_and_narrow_inputs_do_not() -> None:
    surface = surface_through(points([(i, o) for i in (4, 16, 64) for o in (16, 32, 48, 64)]), Tiling(16))
    climbing = [ms_of(surface, CONV.resized(64, o)) for o in (17, 20, 32, 33)]
    assert climbing[:3] == pytest.approx([device_ms(64, 32)] * 3)
    assert climbing[3] == pytest.approx(device_ms(64, 48))
    assert ms_of(surface, CONV.resized(40, 32)) == pytest.approx(device_ms(48, 32))
    assert ms_of(surface, CONV.resized(7, 32)) == pytest.approx(device_ms(7, 32))


def test_points_within_a_block_are_one() -> None:
    surface = surface_through([(CONV.resized(16, 20), 0.2, 1.0), (CONV.resized(16, 32), 0.4, 1.0)], Tiling(16))
    between = CONV.resized(16, 25)
    assert (ms_of(surface, between), octaves_of(surface, between)) == (pytest.approx(0.3), 0.0)


def test_both_widths_of_a_blocked_depthwise_layer_are_rounded() -> None:
    made = [(DEPTHWISE.resized(c, c), 1e-3 + 1e-4 * c, 1.0) for c in (16, 32, 64)]
    surface = surface_through(made, Tiling(16))
    assert ms_of(surface, DEPTHWISE.resized(40, 40)) == pytest.approx(1e-3 + 1e-4 * 48)
    assert ms_of(surface, DEPTHWISE.resized(17, 17)) == pytest.approx(1e-3 + 1e-4 * 32)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_points_are_followed_as_closely_as_their_noise_allows(noise: float) -> None:
    """Falling with width, the fit is the constant c of least (c/2 - 1)² + (c/1 - 1)²: 1.2. Both widths are an octave
    apart, of 0.7 over which they resemble each other; the first point stands for two measurements."""
    surface = surface_through([(NORM, 2.0, 2.0), (NORM.resized(16, 16), 1.0, 1.0)], noise=noise)
    k = np.exp(-0.5 * (1 / 0.7) ** 2) ** 2
    weights = np.linalg.inv([[1 + noise / 2, k], [k, 1 + noise]]) @ [2.0 / 1.2 - 1, 1.0 / 1.2 - 1]
    assert ms_of(surface, NORM) == pytest.approx(1.2 * (1 + weights @ [1.0, k]))


def test_far_from_all_points_the_surface_is_the_fit() -> None:
    surface = surface_through([(NORM, 2.0, 1.0), (NORM.resized(16, 16), 1.0, 1.0)])
    assert ms_of(surface, NORM) == pytest.approx(2.0, rel=1e-4)
    assert ms_of(surface, NORM.resized(1024, 1024)) == pytest.approx(1.2)


def test_layers_that_cost_nothing_stay_free() -> None:
    surface = surface_through([(CONV, 0.0, 1.0), (CONV.resized(32, 32), 0.0, 1.0)])
    assert ms_of(surface, CONV.resized(16, 16)) == 0.0


WIDTHS = st.tuples(st.integers(1, 64), st.integers(1, 64))
OCTAVES = st.tuples(st.sampled_from([1, 4, 16, 64]), st.sampled_from([1, 4, 16, 64]))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(OCTAVES, st.floats(0.01, 1.0), min_size=1, max_size=12), WIDTHS)
def test_measured_widths_come_back_and_all_others_are_possible(
    measured: dict[tuple[int, int], float], other: tuple[int, int]
) -> None:
    surface = surface_through([(CONV.resized(*at), ms, 1.0) for at, ms in measured.items()])
    for at, ms in measured.items():
        assert ms_of(surface, CONV.resized(*at)) == pytest.approx(ms, rel=1e-3, abs=1e-4)
        assert octaves_of(surface, CONV.resized(*at)) == 0.0
    ms = ms_of(surface, CONV.resized(*other))
    assert np.isfinite(ms)
    assert ms >= 0.0
    nearest = min(np.hypot(*np.log2(np.divide(other, at))) for at in measured)
    assert octaves_of(surface, CONV.resized(*other)) == pytest.approx(nearest)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(WIDTHS, st.floats(0.01, 1.0), min_size=1, max_size=12),
    st.lists(WIDTHS, min_size=1, max_size=30),
    st.sampled_from([1, 8]),
)
def test_many_widths_at_once_are_each_alone(
    measured: dict[tuple[int, int], float], asked: list[tuple[int, int]], block: int
) -> None:
    surface = surface_through([(CONV.resized(*at), ms, 1.0) for at, ms in measured.items()], Tiling(block), noise=0.1)
    together = surface.predict_widths(CONV, np.array(asked))
    alone = [ms_of(surface, CONV.resized(*at)) for at in asked]
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12)


def test_one_point_says_most_of_how_far_a_layer_is_from_its_relatives() -> None:
    """Three times as slow at one width: so there, and by the root of three four octaves away."""
    related = surface_through(points([(i, o) for i in (16, 32, 64) for o in (16, 32, 64)]))
    own = CorrectedSurface(CONV, Points.of([(CONV, 3 * device_ms(64, 64), 1.0)]), related, Tiling())
    assert ms_of(own, CONV) == pytest.approx(3 * device_ms(64, 64), rel=1e-4)
    assert octaves_of(own, CONV.resized(32, 64)) == 1.0
    # covariance with the point is 1 of 1 + 1, so half of log 3 is left far away
    far = ms_of(own, CONV.resized(4, 4)) / device_ms(4, 4)
    assert far == pytest.approx(np.sqrt(3.0), rel=0.01)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.floats(0.1, 10.0)), min_size=1, max_size=8))
@settings(deadline=None)
def test_a_correction_stays_within_what_was_measured(found: list[tuple[int, int, float]]) -> None:
    related = surface_through(points([(i, o) for i in (16, 32, 64) for o in (16, 32, 64)]))
    measured = Points.of([(CONV.resized(i, o), k * device_ms(i, o), 1.0) for i, o, k in found])
    own = CorrectedSurface(CONV, measured, related, Tiling())
    factors = [k for *_, k in found]
    for i, o in [(1, 1), (5, 60), (33, 2), (64, 64), (200, 200)]:
        ratio = ms_of(own, CONV.resized(i, o)) / ms_of(related, CONV.resized(i, o))
        assert min(1.0, *factors) * 0.999 <= ratio <= max(1.0, *factors) * 1.001


@given(st.lists(st.floats(1e-4, 1e-2), min_size=7, max_size=7))
@settings(max_examples=30, deadline=None)
def test_a_surface_stays_within_the_residuals_of_what_was_measured(ms: list[float]) -> None:
    widths = [(8, 8), (11, 53), (40, 45), (48, 24), (48, 42), (56, 40), (56, 53)]
    measured = [(CONV.resized(i, o), each, 1.0) for (i, o), each in zip(widths, ms, strict=True)]
    fit = Fit(Points.of(measured), Tiling())
    surface, alone = Surface(fit), Surface(fit, noise=1e12)  # with so much noise nothing is left but the fit
    everywhere = np.array([(i, o) for i in range(4, 65, 4) for o in range(4, 65, 4)])
    share = surface.predict_widths(CONV, everywhere) / alone.predict_widths(CONV, everywhere) - 1.0
    low, high = min(0.0, fit.residual.min()), max(0.0, fit.residual.max())
    assert low - 1e-6 <= share.min() <= share.max() <= high + 1e-6
    blocks = surface.predict_blocks(CONV, np.arange(4, 65, 4), np.arange(4, 65, 4), [(slice(0, 16), slice(0, 16))])
    assert next(blocks).ravel() == pytest.approx(surface.predict_widths(CONV, everywhere))
