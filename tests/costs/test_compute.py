"""MACs and parameters of every layer kind, worked by hand."""

import pytest

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.compute import Macs, Params, macs, params

CONV = LayerSpec("c", LayerKind.CONV, 3, 8, (3, 3), padding=(1, 1), in_size=(4, 4), out_size=(4, 4), has_bias=True)


@pytest.mark.parametrize(
    ("layer", "n_macs", "n_params"),
    [
        (CONV, 8 * 3 * 9 * 16, 8 * 3 * 9 + 8),
        (LayerSpec("s", LayerKind.CONV, 4, 6, (1, 1), (2, 2), in_size=(4, 4), out_size=(2, 2)), 24 * 4, 24),
        (LayerSpec("d", LayerKind.CONV, 8, 8, (3, 3), conv_groups=8, out_size=(5, 5)), 8 * 9 * 25, 72),
        (LayerSpec("g", LayerKind.CONV, 8, 4, (1, 3), conv_groups=2, out_size=(2, 3)), 4 * 4 * 3 * 6, 48),
        (LayerSpec("l", LayerKind.LINEAR, 16, 10, in_size=(7, 1), out_size=(7, 1), has_bias=True), 1120, 170),
        (LayerSpec("l", LayerKind.LINEAR, 16, 10, has_weight=False), 160, 0),
        # 2 heads of 4: queries 5, keys 6: scores 5·6·8, values 5·6·8
        (LayerSpec("a", LayerKind.ATTENTION, 8, 8, conv_groups=2, in_size=(6, 1), out_size=(5, 1)), 480, 0),
        (LayerSpec("b", LayerKind.BATCH_NORM, 8, 8, in_size=(4, 4), out_size=(4, 4), has_bias=True), 0, 16),
        (LayerSpec("n", LayerKind.LAYER_NORM, 8, 8), 0, 8),
        (LayerSpec("n", LayerKind.LAYER_NORM, 8, 8, (4, 5), in_size=(4, 5), out_size=(4, 5), has_bias=True), 0, 320),
        (LayerSpec("n", LayerKind.GROUP_NORM, 8, 8, conv_groups=4, has_weight=False), 0, 0),
        (LayerSpec("e", LayerKind.EMBEDDING, 100, 8, in_size=(7, 1), out_size=(7, 1)), 0, 800),
        (LayerSpec("e", LayerKind.EMBEDDING, 100, 8, has_weight=False), 0, 0),
        (LayerSpec("p", LayerKind.PARAMETER, 5, 8), 0, 40),
    ],
)
def test_counts_by_hand(layer: LayerSpec, n_macs: int, n_params: int) -> None:
    assert (macs(layer), params(layer)) == (n_macs, n_params)
    assert (Macs().layer_cost(layer), Params().layer_cost(layer)) == (n_macs, n_params)


def test_a_transposed_convolution_multiplies_at_its_inputs() -> None:
    # 2x2 → 5x5 at stride 2 with a 3x3 kernel: each of 4 inputs meets 9 weights a channel pair
    up = LayerSpec("u", LayerKind.CONV, 3, 2, (3, 3), (2, 2), in_size=(2, 2), out_size=(5, 5))
    assert macs(up) == 3 * 2 * 9 * 4


def test_a_wide_padding_is_not_taken_for_a_transposed_convolution() -> None:
    wide = LayerSpec("w", LayerKind.CONV, 1, 1, (1, 1), padding=(1, 1), in_size=(2, 2), out_size=(4, 4))
    assert macs(wide) == 16


@pytest.mark.parametrize("kind", list(LayerKind))
def test_every_kind_is_priced(kind: LayerKind) -> None:
    assert macs(LayerSpec("x", kind, 4, 4)) >= 0
    assert params(LayerSpec("x", kind, 4, 4)) >= 0
