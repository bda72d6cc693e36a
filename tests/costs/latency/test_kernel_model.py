"""Kernels of layers: measured ones, ones borrowed from relatives, and what each borrowing adds of doubt."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.cache import is_plain
from amcsearch.costs.latency.kernels.kernel_model import KernelLatency, KernelModel
from amcsearch.costs.latency.kernels.points import Observation, families
from amcsearch.costs.latency.kernels.signature import by_signature, keeps_signature, nearest_known, positions, signature

CONV = LayerSpec("c", LayerKind.CONV, 32, 32, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
SMALL = replace(CONV, in_size=(4, 4), out_size=(4, 4))
DEPTHWISE = replace(CONV, conv_groups=32)
SCORES = LayerSpec(
    "s", LayerKind.CONV, 4 * 8, 4 * 9, conv_groups=4, in_size=(9, 1), out_size=(9, 1), has_weight=False
)  # four heads: 9 queries of width 8 times 9 keys
SUMS = replace(SCORES, in_channels=4 * 9, out_channels=4 * 8)  # 9 scores times 9 values of width 8
ATTENTION = LayerSpec("a", LayerKind.ATTENTION, 64, 64, conv_groups=4, in_size=(16, 1), out_size=(16, 1))


def test_signatures_ignore_widths_and_names_alone() -> None:
    assert signature(CONV) == signature(replace(CONV.resized(48, 7), name="other"))
    assert signature(DEPTHWISE) == signature(DEPTHWISE.resized(24, 24))
    assert signature(CONV) != signature(DEPTHWISE)
    for field in ("kernel", "stride", "padding", "dilation", "in_size", "out_size"):
        assert signature(CONV) != signature(replace(CONV, **{field: (2, 2)})), field
    assert signature(CONV) != signature(replace(CONV, has_bias=True))
    assert signature(ATTENTION) == signature(ATTENTION.resized(32, 32))
    assert signature(ATTENTION) != signature(replace(ATTENTION, conv_groups=8))


@pytest.mark.parametrize("layer", [CONV, DEPTHWISE, ATTENTION, replace(CONV, conv_groups=4)])
def test_widths_keep_the_signature_exactly_where_resizing_does(layer: LayerSpec) -> None:
    widths = np.array([(i, o) for i in range(65) for o in (i, 1, 4, 16)])
    for (i, o), kept in zip(widths.tolist(), keeps_signature(layer, widths).tolist(), strict=True):
        try:
            same = signature(layer.resized(i, o)) == signature(layer)
        except ValueError:
            same = False
        assert kept == (same and (i, o) != (1, 1)), (i, o)  # one channel may be a depthwise layer's last


def test_attention_works_on_pairs_of_positions() -> None:
    assert (positions(CONV), positions(ATTENTION)) == (64, 256)


def test_the_sibling_is_nearest_in_positions_and_alike_in_all_else() -> None:
    large = replace(CONV, in_size=(64, 64), out_size=(64, 64))
    known = {signature(x): None for x in (SMALL, large, replace(CONV, stride=(2, 2)), DEPTHWISE)}
    assert nearest_known(CONV, known) == signature(SMALL)
    assert nearest_known(replace(CONV, has_bias=True), known) == signature(SMALL)
    assert nearest_known(replace(CONV, kernel=(5, 5)), known) is None
    assert nearest_known(replace(CONV, conv_groups=4), known) is None  # its groups stay, whatever leaves
    assert nearest_known(large, known) == signature(large)


def test_a_product_of_maps_is_told_by_one_of_as_many_positions_and_then_of_the_nearest_number_of_heads() -> None:
    two, three = SCORES.resized(16, 18), SCORES.resized(24, 27)
    longer = replace(SCORES, in_channels=24, out_channels=27, conv_groups=3, in_size=(18, 1), out_size=(18, 1))
    one = SCORES.resized(8, 9)
    assert [x.conv_groups for x in (one, two, three)] == [1, 2, 3]
    known = {signature(x): None for x in (SCORES, two, longer)}
    assert nearest_known(two, known) == signature(two)
    assert nearest_known(one, known) == signature(two)
    assert nearest_known(three, known) == signature(longer)  # of its own number of heads
    assert nearest_known(SCORES.resized(24, 27), {signature(SCORES): None, signature(two): None}) == signature(SCORES)
    assert nearest_known(replace(three, has_weight=True), {signature(two): None}) is None  # a grouped convolution


def test_products_of_swapped_widths_share_a_signature_and_are_still_priced_apart() -> None:
    """36 inputs to 32 outputs in four groups are 4 · 9 · 9 · 8 products; so are 32 to 36, but not by resizing."""
    assert signature(SCORES) == signature(SUMS)
    groups = by_signature([SCORES, SUMS, SCORES])
    assert [(layer, at.tolist(), widths.tolist()) for layer, at, widths in groups] == [
        (SCORES, [0, 2], [[32, 36], [32, 36]]),
        (SUMS, [1], [[36, 32]]),
    ]


def test_heads_that_were_never_timed_cost_what_their_products_do() -> None:
    """A tenth of a microsecond a product: 4 heads take 4 · 9 · 8 · 9 of them, and 3 heads three quarters of that."""
    model = KernelModel([Observation(SCORES, {"MatMul": (1.0, 0.2592)})], 16)
    (found,) = model.latencies(SCORES.resized(24, 27)) or ()
    assert (found.kernel, found.ms) == ("MatMul", pytest.approx(0.1944))
    assert not model.knows(SCORES.resized(24, 27))
    ms, _ = (model.latencies_at(SCORES.resized(16, 18), np.array([[16, 18]])) or {})["MatMul"]
    assert ms.tolist() == pytest.approx([0.1296])


def test_a_measured_layer_gives_back_its_kernels() -> None:
    model = KernelModel([Observation(CONV, {"nchwc.Conv": (1.0, 0.4), "ReorderOutput": (0.5, 0.02)})], 16)
    assert model.latencies(CONV) == (
        KernelLatency("nchwc.Conv", pytest.approx(0.4), 0.0),
        KernelLatency("ReorderOutput", pytest.approx(0.01, rel=1e-5), 0.0),
    )


def test_another_map_size_is_borrowed_in_proportion_to_work() -> None:
    model = KernelModel([Observation(SMALL, {"nchwc.Conv": (1.0, 0.1)})], 16)
    assert not model.knows(CONV)
    assert model.knows(SMALL)
    assert model.latencies(CONV) == (
        KernelLatency("nchwc.Conv", pytest.approx(0.4), 1.0 + 2.0),
    )  # four times the positions


def test_a_kernel_seen_but_never_timed_is_borrowed_alone() -> None:
    seen = [
        Observation(CONV, {"nchwc.Conv": (1.0, 0.4), "Conv": (0.0, None)}),
        Observation(CONV.resized(31, 31), {"Conv": (1.0, None)}),
        Observation(SMALL, {"Conv": (1.0, 0.2)}),
    ]
    model = KernelModel(seen, 16)
    assert model.latencies(CONV) == (KernelLatency("nchwc.Conv", pytest.approx(0.4), 0.0),)
    (found,) = model.latencies(CONV.resized(31, 31))
    assert (found.kernel, found.ms) == ("Conv", pytest.approx(0.8 * 31**2 / 32**2))
    assert found.octaves == pytest.approx(1.0 + np.sqrt(4.0 + 2 * np.log2(32 / 31) ** 2))


def test_relatives_are_asked_from_near_to_far() -> None:
    linear = LayerSpec("l", LayerKind.LINEAR, 32, 32)
    asked = list(families(CONV, "ms.FusedConv+Relu"))
    assert asked[0] == (signature(CONV), "ms.FusedConv+Relu")
    assert [sum(a == b for a, b in zip(asked, families(*other), strict=True)) for other in (
        (SMALL, "ms.FusedConv+Relu"), (SMALL, "nchwc.Conv"), (DEPTHWISE, "Conv"), (CONV, "Relu"), (linear, "Gemm"),
    )] == [5, 4, 2, 2, 1]  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "steps"), [("nchwc.Conv", 0), ("nchwc.Conv+Relu", 2), ("ms.FusedConv+Relu", 2), ("Reorder", 4)]
)
def test_a_kernel_timed_nowhere_is_priced_by_its_relatives_with_doubt(kernel: str, steps: int) -> None:
    model = KernelModel([Observation(CONV, {"nchwc.Conv": (1.0, 0.4), kernel: (1.0, 0.4 if not steps else None)})], 16)
    found = {time.kernel: time for time in model.latencies(CONV)}[kernel]
    assert (found.ms, found.octaves) == (pytest.approx(0.4), float(steps))
    ms, _ = model.latencies_at(CONV, np.array([[32, 32]]))[kernel]
    assert ms.tolist() == pytest.approx([0.4])
    assert model.octaves_at(CONV, np.array([[32, 32]]))[kernel].tolist() == [float(steps)]


def test_a_depthwise_layer_pruned_to_one_channel_is_still_one() -> None:
    model = KernelModel([Observation(DEPTHWISE, {"nchwc.Conv": (1.0, 0.4)})], 16)
    last = DEPTHWISE.resized(1, 1)
    assert model.knows(last)
    assert model.latencies(last) == (KernelLatency("nchwc.Conv", pytest.approx(0.2), 1.4142135623730951),)


KERNELS = ("nchwc.Conv", "Conv", "ms.FusedConv+Relu", "ReorderInput")
WIDTHS = st.tuples(st.integers(1, 40), st.integers(1, 40))


@st.composite
def seen(draw: st.DrawFn) -> list[Observation]:
    """Layers of two map sizes at any widths, some of them many, as one to three kernels, some never timed."""
    found = []
    for layer in (CONV, SMALL, replace(CONV, conv_groups=4)):
        widths = WIDTHS if layer.conv_groups == 1 else WIDTHS.filter(lambda pair: pair[0] > 1)  # 1 is depthwise
        for i, o in draw(st.lists(widths, min_size=1, max_size=20, unique=True)):
            kernels = draw(st.sets(st.sampled_from(KERNELS), min_size=1, max_size=3))
            times = {k: (draw(st.sampled_from([0.5, 1.0])), draw(st.none() | st.floats(0.01, 1.0))) for k in kernels}
            found.append(Observation(layer.resized(i * layer.conv_groups, o * layer.conv_groups), times))
    return found


@settings(max_examples=40, deadline=None)
@given(seen(), st.sampled_from([CONV, SMALL, replace(CONV, conv_groups=4)]), st.data())
def test_a_grid_of_widths_costs_what_its_pairs_cost(
    observed: list[Observation], layer: LayerSpec, data: st.DataObject
) -> None:
    model = KernelModel(observed, 16, 0.1)
    sides = [data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True)) for _ in range(2)]
    pairs = data.draw(st.permutations(list(product(*sides))))
    widths = layer.conv_groups * np.array(pairs)
    ms, plain = model.summed_at(layer, widths)
    kernels = model.latencies_at(layer, widths)
    np.testing.assert_allclose(ms, sum(own for own, _ in kernels.values()), rtol=1e-9, atol=1e-15)
    assert plain.tolist() == np.any([is_plain(k) & (count > 0) for k, (_, count) in kernels.items()], axis=0).tolist()


@settings(max_examples=20, deadline=None)
@given(seen(), st.floats(0.5, 2.0), st.lists(WIDTHS, min_size=1, max_size=6).map(np.array))
def test_a_model_at_other_times_or_with_other_noise_is_one_made_anew(
    observed: list[Observation], factor: float, widths: NDArray[np.int64]
) -> None:
    later = [
        replace(one, kernels={k: (n, ms and factor * ms) for k, (n, ms) in one.kernels.items()}) for one in observed
    ]
    first = KernelModel(observed, 16)
    first.latencies_at(CONV, widths)
    for made, anew in (
        (first.retimed(later), KernelModel(later, 16)),
        (first.smoothed(1.0), KernelModel(observed, 16, 1.0)),
        (first.retimed(later).smoothed(1.0), KernelModel(later, 16, 1.0)),
        (first, KernelModel(observed, 16)),
    ):
        found, expected = made.latencies_at(CONV, widths), anew.latencies_at(CONV, widths)
        assert list(found) == list(expected)
        for kernel, (ms, count) in found.items():
            assert (ms.tolist(), count.tolist()) == tuple(own.tolist() for own in expected[kernel])
            assert made.octaves_at(CONV, widths)[kernel].tolist() == anew.octaves_at(CONV, widths)[kernel].tolist()


def test_layers_of_one_signature_come_together() -> None:
    layers = [CONV, DEPTHWISE, CONV.resized(5, 7), replace(DEPTHWISE, name="other")]
    (conv, at, widths), (depthwise, others, _) = by_signature(layers)
    assert (conv, at.tolist(), widths.tolist()) == (CONV, [0, 2], [[32, 32], [5, 7]])
    assert (depthwise, others.tolist()) == (DEPTHWISE, [1, 3])


def test_nothing_like_it_is_none() -> None:
    model = KernelModel([Observation(CONV, {"nchwc.Conv": (1.0, 0.4)})], 16)
    assert model.latencies(replace(CONV, stride=(2, 2))) is None
    assert model.latencies_at(replace(CONV, stride=(2, 2)), np.array([[4, 4]])) is None


def test_a_reorder_moves_the_channels_that_there_are_and_not_whole_blocks():
    us = {4: 1.0, 8: 2.0, 12: 6.0, 13: 15.0, 15: 16.0}
    seen = [Observation(CONV.resized(c, c), {"nchwc.ReorderOutput": (1.0, 1e-3 * us[c])}) for c in us]
    model = KernelModel(seen, 16)
    predicted = [model.latencies(CONV.resized(c, c))[0].ms for c in us]
    assert predicted == pytest.approx([1e-3 * each for each in us.values()], rel=1e-3)


def test_a_reorder_depends_on_the_map_alone_that_is_written():
    """Layers of other inputs, kernels and strides teach it, as far as they write maps of the same size."""
    us = {4: 1.0, 8: 2.0, 12: 6.0, 13: 15.0, 15: 16.0}
    seen = [Observation(CONV.resized(3, c), {"nchwc.ReorderOutput": (1.0, 1e-3 * us[c])}) for c in us]
    other = replace(CONV, kernel=(1, 1), padding=(0, 0))
    seen.append(Observation(other.resized(40, 40), {"nchwc.Conv": (1.0, 0.1), "nchwc.ReorderOutput": (1.0, None)}))
    model = KernelModel(seen, 16)
    widths = np.array([[c_in, c_out] for c_in in (2, 64) for c_out in us])
    for layer in (CONV, other):
        ms, _ = model.latencies_at(layer, widths)["nchwc.ReorderOutput"]
        assert ms == pytest.approx(2 * [1e-3 * each for each in us.values()], rel=1e-3)
        summed, _ = model.summed_at(layer, widths)
        assert summed == pytest.approx(sum(ms for ms, _ in model.latencies_at(layer, widths).values()), rel=1e-9)
