"""All lanes at once fit as each would alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.kernels.fit import lanes_errors, non_negative, non_negative_each, terms
from amcsearch.costs.latency.kernels.points import Points
from amcsearch.costs.latency.kernels.tiling import LANES, Tiling

CONV = LayerSpec("c", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
DEPTHWISE = replace(CONV, conv_groups=64)


def test_least_squares_by_hand() -> None:
    """1 and 2 of both columns; -1 of the second, which is dropped; a column of nothing; two that say the same."""
    designs = np.array([[[1, 0], [0, 1], [0, 0]], [[1, 0], [0, 1], [0, 0]], [[1, 0]] * 3, [[1, 1]] * 3], dtype=float)
    targets = np.array([[1, 2, 5], [1, -1, 5], [3, 3, 3], [4, 4, 4]], dtype=float)
    gram = np.einsum("tnc,tnd->tcd", designs, designs)
    found = non_negative_each(gram, np.einsum("tnc,tn->tc", designs, targets))
    assert found[:3].ravel().tolist() == pytest.approx([1, 2, 1, 0, 3, 0], abs=1e-9)
    assert found[3].sum() == pytest.approx(4, abs=1e-9)
    assert found[3].tolist() == pytest.approx([2, 2], abs=1e-4)  # shared as the processor's rounding has it


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([CONV, DEPTHWISE]), st.booleans())
def test_errors_of_all_lanes_are_those_of_each(seed: int, layer: LayerSpec, one_input: bool) -> None:
    """Steps of 4 inputs and 16 outputs, 2 % noise."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 130, (40, 2))
    widths[:, 0] = widths[:, 1] if layer is DEPTHWISE else 3 if one_input else widths[:, 0]
    layers = [layer.resized(*at) for at in widths.tolist()]
    steps = np.ceil(widths / [4, 16])
    ms = (1e-3 + 1e-5 * steps[:, 1] * (1 if layer is DEPTHWISE else steps[:, 0])) * rng.normal(1.0, 0.02, 40)
    points = Points.of([(one, t, 1.0) for one, t in zip(layers, ms.tolist(), strict=True)])
    groups = points.groups(Tiling())
    own = points.averaged(groups)
    errors = lanes_errors(own.sizes, groups.coordinates, Tiling(), own.ms, 1.0 / own.ms)
    assert list(errors) == [(i, o) for o in (1, *LANES) for i in (1, *LANES)]
    for lanes, error in errors.items():
        assert error == pytest.approx(_error(own, groups.coordinates, lanes), rel=1e-3)


def _error(own: Points, at: NDArray[np.float64], lanes: tuple[int, int]) -> float:
    design = terms(own.sizes, at, Tiling(lanes=lanes))
    scaled = design / np.maximum(design.max(axis=0), 1e-300) / own.ms[:, None]
    return float(np.abs(scaled @ non_negative(scaled, np.ones(len(own.ms))) - 1.0).mean())
