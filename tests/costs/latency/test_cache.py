"""Weights beyond the caches, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.cache import CacheOverflow, bytes_a_weight, weight_mib, weight_mib_at

CONV = LayerSpec("c", LayerKind.CONV, 512, 512, (2, 2), in_size=(8, 8), out_size=(8, 8))


def test_weights_in_mib() -> None:
    assert weight_mib(CONV, 4) == 4.0  # 512 · 512 · 4 weights of 4 bytes
    assert weight_mib(CONV, 1) == 1.0
    assert weight_mib(replace(CONV, kernel=(1, 4)), 4) == weight_mib(replace(CONV, kernel=(4, 1)), 4) == 4.0
    assert weight_mib(replace(CONV, conv_groups=2), 4) == 2.0
    assert weight_mib(replace(CONV, conv_groups=512), 4) == 4.0 / 512
    assert weight_mib(LayerSpec("l", LayerKind.LINEAR, 1024, 256), 4) == 1.0
    assert weight_mib(LayerSpec("e", LayerKind.EMBEDDING, 1024, 256), 4) == 0.0
    assert weight_mib(LayerSpec("n", LayerKind.LAYER_NORM, 256, 256), 4) == 0.0


@pytest.mark.parametrize("groups", [1, 2, 512])
def test_weights_at_many_widths_are_those_of_resized_layers(groups: int) -> None:
    layer = replace(CONV, conv_groups=groups)
    widths = np.array([(i, i) for i in (2, 4, 100, 512)])
    each = [weight_mib(layer.resized(*at), 4) for at in widths.tolist()]
    assert weight_mib_at(layer, 4, widths).tolist() == each


def test_a_data_type_nobody_knows_counts_as_float32() -> None:
    sizes = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int4": 4, None: 4, "": 4}
    assert {dtype: bytes_a_weight(dtype) for dtype in sizes} == sizes


def test_the_hinge_by_hand() -> None:
    residency = CacheOverflow({1.0: 0.5, 8.0: 2.0})
    total, streamed = np.array([0.5, 3.0, 10.0, 10.0, 0.0]), np.array([0.5, 3.0, 10.0, 5.0, 0.0])
    # below the first knot; 0.5 · 2; 0.5 · 9 + 2 · 2; half of it streamed; no weights at all
    assert residency.extra_ms(total, streamed).tolist() == pytest.approx([0.0, 1.0, 8.5, 4.25, 0.0])


def test_a_mapping_from_yaml_and_back() -> None:
    assert CacheOverflow.from_mapping({"1.0": 0.5}) == CacheOverflow({1.0: 0.5})
    assert CacheOverflow.from_mapping(None) == CacheOverflow({})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({1.0: -0.1}, "residency slopes {1.0: -0.1}, must be finite and at least 0 ms a MiB$"),
        ({2.0: 1.0, 1.0: float("nan")}, "residency slopes {1.0: nan}, must be finite"),
        ({1.0: float("inf")}, "residency slopes {1.0: inf}, must be finite"),
        ({"much": 1.0}, "residency = {'much': 1.0}, must map MiB to ms a MiB$"),
        ({1.0: None}, "residency = {1.0: None}, must map"),
        ([1.0], r"residency = \[1.0\], must map"),
    ],
)
def test_impossible_slopes_are_refused(wrong: object, words: str) -> None:
    with pytest.raises(BadInputError, match=f"^latency table: {words}"):
        CacheOverflow.from_mapping(wrong)
