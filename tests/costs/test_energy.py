"""Energy and traffic by hand on small layers, then what must hold for any layer on any device."""

import itertools
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.compute import macs
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.energy.nest import LoopNest
from amcsearch.costs.energy.storage import Sparsity, StorageFormat
from amcsearch.costs.energy.traffic import Edge, least_traffic
from amcsearch.costs.energy.work import Widths, products

CONV = LayerSpec("c", LayerKind.CONV, 3, 8, (3, 3), in_size=(6, 6), out_size=(4, 4), has_bias=True)
BIG = 1 << 20


def device(*capacities: int, bits: int = 16, share: float = 0.0, static_mw: float = 0.0, **changes) -> DeviceProfile:
    """1 pJ a MAC, and 1, 10, 100, … pJ a byte outwards."""
    levels = [*capacities, None]
    memories = tuple(
        MemoryLevel(f"m{n}", size, 10.0**n, "toy", share if size and n == len(capacities) - 1 else 0.0)
        for n, size in enumerate(levels)
    )
    sources = {"mac_pj": "toy", "static_power_mw": "toy"}
    return DeviceProfile("toy", bits, {bits: 1.0}, memories, static_power_mw=static_mw, sources=sources, **changes)


def dram_words(layer: LayerSpec, batch: int = 1, capacity: int = BIG) -> tuple[float, ...]:
    traffic = EnergyModel(device(capacity), batch).estimate(layer).dram
    return traffic.weights_bytes / 2, traffic.inputs_bytes / 2, traffic.outputs_bytes / 2


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (CONV, (8 * 3 * 9 + 8, 3 * 36, 8 * 16)),
        (
            LayerSpec("d", LayerKind.CONV, 8, 8, (3, 3), conv_groups=8, in_size=(6, 6), out_size=(4, 4)),
            (72, 288, 128),
        ),
        # stride 2 of a 1x1 kernel looks at every second row and column
        (LayerSpec("s", LayerKind.CONV, 4, 2, stride=(2, 2), in_size=(6, 6), out_size=(3, 3)), (8, 36, 18)),
        # taps 2 apart: outputs 0 and 1 read rows 0, 2 and 1, 3
        (LayerSpec("t", LayerKind.CONV, 1, 1, (2, 1), dilation=(2, 1), in_size=(4, 1), out_size=(2, 1)), (2, 4, 2)),
        # a module called twice fetches its weights twice
        (LayerSpec("l", LayerKind.LINEAR, 4, 2, in_size=(7, 1), out_size=(7, 1), has_weight=False), (8, 28, 14)),
        # 5 queries, 6 keys, width 8: Q 40, K 48, V 48 in, 40 out
        (LayerSpec("a", LayerKind.ATTENTION, 8, 8, conv_groups=2, in_size=(6, 1), out_size=(5, 1)), (0, 136, 40)),
        (LayerSpec("b", LayerKind.BATCH_NORM, 8, 8, in_size=(4, 4), out_size=(4, 4), has_bias=True), (0, 0, 0)),
        (LayerSpec("n", LayerKind.LAYER_NORM, 8, 8, in_size=(5, 1), out_size=(5, 1), has_bias=True), (16, 40, 40)),
        (LayerSpec("e", LayerKind.EMBEDDING, 1000, 8, in_size=(5, 1), out_size=(5, 1)), (40, 0, 40)),
        (LayerSpec("p", LayerKind.PARAMETER, 5, 8), (40, 0, 0)),
        # a transposed convolution, 2x2 to 4x4 with stride 2
        (LayerSpec("u", LayerKind.CONV, 3, 5, (2, 2), (2, 2), in_size=(2, 2), out_size=(4, 4)), (60, 12, 80)),
    ],
    ids=lambda value: value.kind.value + value.name if isinstance(value, LayerSpec) else "",
)
def test_with_a_large_buffer_every_word_moves_once(layer: LayerSpec, words: tuple[int, ...]) -> None:
    assert dram_words(layer) == words
    found = EnergyModel(device(BIG)).estimate(layer).dram
    assert found.least_bytes == found.total_bytes == 2 * sum(words)
    weights, inputs, outputs = words
    batch = 3
    per_sample = layer.kind is not LayerKind.PARAMETER
    if layer.kind is LayerKind.EMBEDDING:
        weights *= batch
    assert dram_words(layer, batch) == (weights, batch * inputs * per_sample, batch * outputs * per_sample)


def test_energy_by_hand() -> None:
    """3456 MACs at 1 pJ, 4 words of 2 bytes each at 1 pJ a byte; 460 words of 2 bytes at 10 pJ a byte."""
    model = EnergyModel(device(BIG))
    assert model.layer_cost(CONV) == pytest.approx((3456 + 3456 * 4 * 2 + 460 * 2 * 10) * 1e-9)
    found = model.estimate(CONV)
    assert found.macs == 3456
    assert found.parts_mj == pytest.approx(
        {
            "compute": 3456e-9,
            "buffers": 3456 * 8e-9,
            "DRAM weights": 224 * 20e-9,
            "DRAM inputs": 108 * 20e-9,
            "DRAM outputs": 128 * 20e-9,
            "static": 0.0,
        }
    )


def test_orders_by_hand() -> None:
    """4 inputs, 6 outputs, 10 positions, 1x1: |W| = 24, |I| = 40, |O| = 60 words of 2 bytes."""
    layer = LayerSpec("l", LayerKind.LINEAR, 4, 6, in_size=(10, 1), out_size=(10, 1))
    # all weights (24), one position's inputs (4) and outputs (6): everything once
    assert dram_words(layer, capacity=34 * 2) == (24, 40, 60)
    # one word less: the inputs of five positions stay (20) while filters pass, 4 weights and 5 outputs at a time
    assert dram_words(layer, capacity=33 * 2) == (48, 40, 60)
    # 4 inputs stay beside one filter's weight and output: 9 words; in half a word less three filters at a time pass
    wide = LayerSpec("l", LayerKind.LINEAR, 4, 100)
    assert dram_words(wide, capacity=9 * 2) == (400, 4, 100)
    assert dram_words(wide, capacity=9 * 2 - 1) == (400, 34 * 4, 100)
    # three words hold no more than one product: 240 MACs read both operands, partial sums stay
    assert dram_words(layer, capacity=3 * 2) == (240, 240, 60)


def test_a_tile_keeps_the_halo_when_it_slides_and_weights_stay() -> None:
    """One channel, 3x3 over 8x8 (padding 1): three rows of ten fit beside the nine weights and the outputs."""
    layer = LayerSpec("h", LayerKind.CONV, 1, 1, (3, 3), padding=(1, 1), in_size=(8, 8), out_size=(8, 8))
    assert dram_words(layer, capacity=2 * (9 + 24 + 8)) == (9, 64, 64)
    # a published mapping fetches strips whole: two strips of four outputs need 5 rows each, 6 with the zeros
    nest = LoopNest.of(layer, 1)
    assert nest.strips(1, 4, padded=False).fetched.tolist() == [2 * 5 * 8]
    assert nest.strips(1, 4, padded=True).fetched.tolist() == [2 * 6 * 10]


def test_layer_norms_read_twice_what_does_not_fit() -> None:
    layer = LayerSpec("n", LayerKind.LAYER_NORM, 64, 64, in_size=(5, 1), out_size=(5, 1))
    assert dram_words(layer, capacity=128) == (64, 320, 320)
    assert dram_words(layer, capacity=127) == (64, 640, 320)


def test_attention_fetches_keys_for_every_block_of_queries() -> None:
    """One head of width 4, 8 queries, 8 keys; a block of Bq queries holds 2·Bq·4 + 2·4 + Bq words."""
    layer = LayerSpec("a", LayerKind.ATTENTION, 4, 4, in_size=(8, 1), out_size=(8, 1))
    assert dram_words(layer, capacity=2 * (8 * 9 + 8)) == (0, 96, 32)
    # four queries at a time: keys and values twice
    assert dram_words(layer, capacity=2 * (4 * 9 + 8)) == (0, 32 + 2 * 64, 32)
    heads = replace(layer, in_channels=8, out_channels=8, conv_groups=2)
    assert dram_words(heads, capacity=2 * (4 * 9 + 8)) == (0, 2 * (32 + 2 * 64), 2 * 32)
    # two keys and their values stay while all queries pass
    short = replace(layer, in_size=(2, 1))
    assert dram_words(short, capacity=2 * (4 * 9 + 8)) == (0, 32 + 2 * 8, 32)
    # not even one query: both operands of 2·8·8·4 products and the scores, out and back
    assert dram_words(layer, capacity=2 * (9 + 8) - 1) == (0, 4 * 256, 4 * 256)


def test_inner_memories_serve_more_words() -> None:
    found = EnergyModel(device(64, 256, 4096)).estimate(CONV)
    inner, buffer, dram = found.traffic
    assert inner.total_bytes > buffer.total_bytes > dram.total_bytes
    pj = 10 * inner.total_bytes + 100 * buffer.total_bytes + 1000 * dram.total_bytes + 3456 * 9
    assert found.total_mj == pytest.approx(pj * 1e-9)


def test_small_maps_stay_on_the_chip_between_layers() -> None:
    """Both maps of 216 and 256 bytes are within a quarter of 1024; of 1000 only the input is."""
    assert EnergyModel(device(1024, share=0.25)).estimate(CONV).dram.total_bytes == 224 * 2
    found = EnergyModel(device(1000, share=0.25)).estimate(CONV).dram
    assert (found.inputs_bytes, found.outputs_bytes) == (0, 256)
    assert found.least_bytes <= found.total_bytes


class Latency:
    """One microsecond an output channel, ten a call."""

    name = "latency_ms"
    constant = 0.010

    def layer_cost(self, layer: LayerSpec) -> float:
        return layer.out_channels / 1000


def test_static_power_counts_time_once_a_layer_and_once_a_call() -> None:
    busy, idle = EnergyModel(device(BIG)), EnergyModel(device(BIG, static_mw=500.0), latency=Latency(), scale=2.0)
    # 500 mW for 8 µs are 4 µJ; for 10 µs, 5 µJ; the scale is not the static power's
    assert idle.layer_cost(CONV) - 2 * busy.layer_cost(CONV) == pytest.approx(0.004)
    assert idle.estimate(CONV).static_mj == pytest.approx(0.004)
    assert idle.constant == pytest.approx(0.005)
    assert EnergyModel(device(BIG, static_mw=500.0)).constant == 0.0


def test_narrower_words_move_less_and_multiply_for_less() -> None:
    model = EnergyModel(device(BIG, bits=32))
    half = EnergyModel(device(BIG, bits=32), weight_bits=8, activation_bits=16)
    wide, narrow = model.estimate(CONV), half.estimate(CONV)
    assert narrow.dram.weights_bytes * 4 == wide.dram.weights_bytes
    assert narrow.dram.inputs_bytes * 2 == wide.dram.inputs_bytes
    assert narrow.compute_mj == pytest.approx(wide.compute_mj * 8 * 16 / 32**2)
    assert narrow.registers_mj == pytest.approx(wide.registers_mj * (8 + 3 * 16) / (4 * 32))


def test_energy_is_linear_in_what_an_access_costs() -> None:
    """Each memory's part grows with its own energy alone, as many times as words pass it."""
    prices = (1.0, 10.0, 100.0)

    def priced(pj_per_byte: tuple[float, ...]) -> float:
        levels = zip((256, BIG, None), pj_per_byte, strict=True)
        memories = tuple(MemoryLevel(f"m{n}", size, pj, "toy") for n, (size, pj) in enumerate(levels))
        return EnergyModel(DeviceProfile("toy", 16, {16: 1.0}, memories, sources={"mac_pj": "toy"})).layer_cost(CONV)

    base = priced(prices)
    for level in range(3):
        raised, raised_twice = (
            priced(tuple(pj + more * (i == level) for i, pj in enumerate(prices))) for more in (5.0, 10.0)
        )
        assert raised > base
        assert raised_twice - base == pytest.approx(2.0 * (raised - base))


def test_without_memories_to_pay_for_energy_ranks_layers_as_macs_do() -> None:
    free = tuple(MemoryLevel(f"m{n}", size, 0.0, "toy") for n, size in enumerate((256, BIG, None)))
    model = EnergyModel(DeviceProfile("toy", 16, {16: 1.0}, free, sources={"mac_pj": "toy"}))
    layers = [
        CONV,
        LayerSpec("d", LayerKind.CONV, 8, 8, (3, 3), conv_groups=8, in_size=(6, 6), out_size=(4, 4)),
        LayerSpec("l", LayerKind.LINEAR, 64, 40),
        LayerSpec("a", LayerKind.ATTENTION, 8, 8, conv_groups=2, in_size=(6, 1), out_size=(5, 1)),
    ]
    assert sorted(layers, key=model.layer_cost) == sorted(layers, key=macs)


def test_half_the_bits_halve_the_energy_of_data() -> None:
    whole, half = (EnergyModel(device(BIG, bits=32), weight_bits=b, activation_bits=b).estimate(CONV) for b in (32, 16))
    assert half.dram.weights_bytes + half.dram.inputs_bytes + half.dram.outputs_bytes == pytest.approx(
        (whole.dram.weights_bytes + whole.dram.inputs_bytes + whole.dram.outputs_bytes) / 2
    )
    assert half.registers_mj == pytest.approx(whole.registers_mj / 2)


def test_sparse_weights_are_small_in_dram_alone() -> None:
    half = Sparsity(weights=0.5, weight_format=StorageFormat.BITMAP)
    profile = device(256, BIG)
    whole, sparse = (EnergyModel(profile).estimate(CONV, s) for s in (None, half))
    # a bit a weight, and half of the 16: 9 of 16 bits
    assert sparse.dram.weights_bytes == pytest.approx(whole.dram.weights_bytes * 9 / 16)
    assert sparse.traffic[0] == whole.traffic[0]
    assert sparse.compute_mj == whole.compute_mj
    skipping = EnergyModel(device(256, BIG, skips_zero_weights=True), sparsity=half).estimate(CONV)
    assert skipping.compute_mj == whole.compute_mj / 2
    assert EnergyModel(profile, sparsity=half).layer_cost(CONV) == pytest.approx(sparse.total_mj)


def test_sparse_tensors_lie_in_rows_of_filters_and_of_maps() -> None:
    eighth = Sparsity(1 / 8, 1 / 8, 1 / 8, StorageFormat.CSR, StorageFormat.CSR)
    layer = replace(CONV, in_size=(6, 5), out_size=(4, 3))
    found = EnergyModel(device(BIG), sparsity=eighth).estimate(layer).dram
    # 8 rows of 28 with the bias: 28 numbers of 16 + 5 bits, 9 pointers of 5
    assert found.weights_bytes == pytest.approx((28 * 21 + 9 * 5) / 8)
    # 18 rows of 5: 11.25 numbers of 16 + 3 bits, 19 pointers of 4
    assert found.inputs_bytes == pytest.approx((11.25 * 19 + 19 * 4) / 8)
    # 32 rows of 3: 12 numbers of 16 + 2 bits, 33 pointers of 4
    assert found.outputs_bytes == pytest.approx((12 * 18 + 33 * 4) / 8)


def test_traffic_names_the_memories_outwards_from_the_second() -> None:
    found = EnergyModel(device(256, BIG)).estimate(CONV)
    assert [memory.memory for memory in found.traffic] == ["m1", "m2"]
    assert [memory.pj_per_byte for memory in found.traffic] == [10.0, 100.0]


@pytest.mark.parametrize("form", list(StorageFormat))
@pytest.mark.parametrize("skips", [False, True])
def test_removing_channels_saves_more_than_zeroing_as_many_weights(form: StorageFormat, skips: bool) -> None:
    """Half of the weights either way: narrower layers also move smaller maps, and need no index."""
    layer = replace(CONV, in_channels=64, out_channels=64, has_bias=False)
    model = EnergyModel(device(4096, skips_zero_weights=skips))
    zeroed = model.estimate(layer, Sparsity(weights=0.5, weight_format=form))
    narrower = model.estimate(layer.resized(64, 32))
    assert narrower.total_mj < zeroed.total_mj
    assert narrower.dram.weights_bytes <= zeroed.dram.weights_bytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "batch = 0, must be at least 1"),
        ({"weight_bits": 4}, "weight_bits = 4, must be one of"),
        ({"activation_bits": 64}, "activation_bits = 64"),
        ({"scale": 0.0}, "scale = 0.0, must be a finite number above 0"),
    ],
)
def test_bad_options_name_the_value_and_the_bound(options: dict[str, float], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        EnergyModel(device(BIG), **options)


@st.composite
def nests(draw: st.DrawFn) -> LayerSpec:
    """Convolutions of any stride, padding, dilation and groups, transposed ones too, and linear layers."""
    groups = draw(st.integers(1, 3))
    c, m = (groups * draw(st.integers(1, 40)) for _ in range(2))
    if draw(st.booleans()):
        tokens = draw(st.integers(1, 50))
        return LayerSpec("l", LayerKind.LINEAR, c, m, in_size=(tokens, 1), out_size=(tokens, 1))
    k, s, d = ((draw(st.integers(1, high)), draw(st.integers(1, high))) for high in (4, 3, 2))
    p = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    size = (draw(st.integers(8, 20)), draw(st.integers(8, 20)))
    if draw(st.booleans()):
        out = tuple((size[a] + 2 * p[a] - d[a] * (k[a] - 1) - 1) // s[a] + 1 for a in (0, 1))
    else:
        out = tuple((size[a] - 1) * s[a] - 2 * p[a] + d[a] * (k[a] - 1) + 1 for a in (0, 1))
    return LayerSpec("c", LayerKind.CONV, c, m, k, s, p, d, groups, size, (max(1, out[0]), max(1, out[1])))


@settings(max_examples=150, deadline=None)
@given(
    nests(),
    st.integers(1, 4),
    st.lists(st.integers(6, 20_000), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([8, 16, 32]),
    st.sampled_from([None, Sparsity(0.3, 0.5, 0.6, StorageFormat.RUN_LENGTH, StorageFormat.RUN_LENGTH)]),
)
def test_no_estimate_falls_below_its_lower_bound(
    layer: LayerSpec, batch: int, capacities: list[int], share: float, bits: int, sparsity: Sparsity | None
) -> None:
    found = EnergyModel(device(*sorted(capacities), share=share), batch, weight_bits=bits).estimate(layer, sparsity)
    assert found.macs == batch * macs(layer)
    for memory in found.traffic:
        assert memory.total_bytes >= memory.least_bytes * (1 - 1e-12)
        assert min(memory.weights_bytes, memory.inputs_bytes, memory.outputs_bytes) >= 0


@settings(max_examples=50, deadline=None)
@given(nests(), st.integers(1, 3), st.integers(6, 3000))
def test_more_memory_never_costs_more(layer: LayerSpec, batch: int, capacity: int) -> None:
    less, more = (
        EnergyModel(device(size), batch).estimate(layer).dram.total_bytes for size in (capacity, 2 * capacity)
    )
    assert more <= less


@settings(max_examples=50, deadline=None)
@given(nests(), st.integers(1, 3), st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=6))
def test_many_widths_at_once_cost_as_one_after_another(
    layer: LayerSpec, batch: int, parts: list[tuple[int, int]]
) -> None:
    layer = replace(layer, in_channels=layer.conv_groups * 3, out_channels=layer.conv_groups * 3)
    model = EnergyModel(device(64, 1000, share=0.2), batch)
    widths = layer.conv_groups * np.array(parts)
    if layer.is_depthwise:
        widths = np.stack([widths[:, 0]] * 2, axis=1)
    each = [model.layer_cost(layer.resized(int(i), int(o))) for i, o in widths]
    np.testing.assert_allclose(model.layer_costs(layer, *widths.T), each, rtol=1e-12)
    whole = Widths(layer, batch, *(column.astype(float) for column in widths.T))
    expected = [batch * macs(layer.resized(int(i), int(o))) for i, o in widths]
    assert products(whole).tolist() == expected


def exhaustive(
    c: int, m: int, positions: int, capacity: int, held: tuple[int, ...] = (1, 1, 1), moved: tuple[int, ...] = (1, 1, 1)
) -> int:
    """Fewest bytes of a matrix product over every order and every tile, one at a time, by the bytes of its words."""
    (weight_held, input_held, output_held), (weight, read, written) = held, moved
    best = (weight + read) * c * m * positions + written * m * positions
    for tc, tm, tp in itertools.product(range(1, c + 1), range(1, m + 1), range(1, positions + 1)):
        if tc * tp * input_held + tc * tm * weight_held + tm * tp * output_held <= capacity:
            nc, nm, ns = ceil(c / tc), ceil(m / tm), ceil(positions / tp)
            inputs, weights, outputs = read * c * positions, weight * c * m, written * m * positions
            best = min(
                best,
                nm * inputs + ns * weights + outputs,
                nm * inputs + weights + (2 * nc - 1) * outputs,
                inputs + ns * weights + (2 * nc - 1) * outputs,
            )
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(3, 200))
def test_the_search_finds_what_trying_every_tile_finds(c: int, m: int, positions: int, capacity: int) -> None:
    words = np.ones((3, 1))
    nest = LoopNest(1, (positions, 1), (positions, 1))
    edge = Edge(np.array([float(capacity)]), words, words)
    found = least_traffic(nest, np.array([float(c)]), np.array([float(m)]), edge)
    assert found.sum() == exhaustive(c, m, positions, capacity)


three_words = st.tuples(*[st.sampled_from([1, 2, 4])] * 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(3, 300), three_words, three_words)
def test_words_of_several_bytes_fill_the_memory_and_weigh_by_them(
    c: int, m: int, positions: int, capacity: int, held: tuple[int, ...], moved: tuple[int, ...]
) -> None:
    nest = LoopNest(1, (positions, 1), (positions, 1))
    inside, crossing = (np.array(words, dtype=np.float64)[:, None] for words in (held, moved))
    edge = Edge(np.array([float(capacity)]), inside, crossing)
    found = least_traffic(nest, np.array([float(c)]), np.array([float(m)]), edge)
    assert float(found[:, 0] @ crossing[:, 0]) == exhaustive(c, m, positions, capacity, held, moved)
