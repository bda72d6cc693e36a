"""Which kernels a layer becomes: as seen, or as the seen layer whose widths divide most alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.kernels.lowering import Lowering

CONV = LayerSpec("c", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
BLOCKED, PLAIN = {"nchwc.Conv": 1.0}, {"Conv": 1.0}


def seen(*layers: tuple[int, int, dict[str, float], int]) -> Lowering:
    return Lowering([(CONV.resized(i, o), kernels, places) for i, o, kernels, places in layers], 16)


def test_kernels_follow_divisibility_not_size() -> None:
    lowering = seen((64, 64, BLOCKED, 1), (63, 63, PLAIN, 1))
    assert lowering.kernels(CONV.resized(32, 16)) == BLOCKED
    assert lowering.kernels(CONV.resized(33, 17)) == PLAIN
    assert lowering.kernels(CONV.resized(48, 64)) == BLOCKED


def test_of_a_grouped_convolution_the_widths_of_one_group_count() -> None:
    grouped = LayerSpec("c", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), conv_groups=4, out_size=(8, 8))
    lowering = Lowering([(grouped, BLOCKED, 1), (grouped.resized(32, 32), PLAIN, 1)], 16)  # 16 and 8 channels each
    assert lowering.kernels(grouped.resized(128, 128)) == BLOCKED
    assert lowering.kernels(grouped.resized(32, 32)) == PLAIN
    assert lowering.counts(np.array([[64, 64], [32, 32]]))["Conv"].tolist() == [0.0, 1.0]


def test_the_nearest_divisibility_answers_for_one_never_seen() -> None:
    lowering = seen((64, 64, BLOCKED, 1), (63, 63, PLAIN, 1))
    assert lowering.kernels(CONV.resized(24, 64)) == BLOCKED  # one property off the first, seven off the second
    assert lowering.kernels(CONV.resized(21, 18)) == PLAIN


def test_a_width_below_a_block_is_a_property() -> None:
    lowering = seen((64, 32, BLOCKED, 1), (64, 8, PLAIN, 1))
    assert lowering.kernels(CONV.resized(64, 8)) == PLAIN
    assert lowering.kernels(CONV.resized(64, 48)) == BLOCKED
    # as near to 32 (both fill a block) as to 8 (neither divides by 16): nobody knows
    assert lowering.kernels(CONV.resized(64, 24)) == {"nchwc.Conv": 0.5, "Conv": 0.5}


def test_a_width_of_one_is_a_property() -> None:
    lowering = seen((64, 1, PLAIN, 1), (64, 3, BLOCKED, 1))
    assert lowering.kernels(CONV.resized(64, 1)) == PLAIN
    assert lowering.kernels(CONV.resized(64, 5)) == BLOCKED


def test_layers_of_equal_properties_are_averaged_by_their_places() -> None:
    lowering = seen((64, 64, {"nchwc.Conv": 1.0, "ReorderOutput": 1.0}, 1), (32, 32, BLOCKED, 3))
    assert lowering.kernels(CONV.resized(16, 16)) == {"nchwc.Conv": 1.0, "ReorderOutput": 0.25}


def test_a_layer_folded_away_has_no_kernels() -> None:
    assert seen((64, 64, {}, 2)).kernels(CONV) == {}


def test_without_blocks_layers_are_still_told_apart() -> None:
    lowering = Lowering([(CONV, {"a": 1.0}, 1), (CONV.resized(63, 63), {"b": 1.0}, 1)], 0)
    assert lowering.kernels(CONV.resized(32, 32)) == {"a": 1.0}
    assert lowering.kernels(CONV.resized(31, 31)) == {"b": 1.0}


WIDTHS = st.tuples(st.integers(1, 80), st.integers(1, 80))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(WIDTHS, st.sampled_from([BLOCKED, PLAIN, {}]), st.integers(1, 3)), min_size=1, max_size=8),
    st.lists(WIDTHS, min_size=1, max_size=20),
    st.sampled_from([0, 8, 16]),
)
def test_counts_at_many_widths_are_those_of_each(
    layers: list[tuple[tuple[int, int], dict[str, float], int]], asked: list[tuple[int, int]], block: int
) -> None:
    lowering = Lowering([(CONV.resized(*at), kernels, n) for at, kernels, n in layers], block)
    counts = lowering.counts(np.array(asked))
    for place, at in enumerate(asked):
        assert {k: n[place] for k, n in counts.items() if n[place]} == pytest.approx(
            {k: n for k, n in lowering.kernels(CONV.resized(*at)).items() if n}
        )
