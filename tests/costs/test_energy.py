"""Energy by hand, and against the published DRAM energy of AlexNet's linear layers on Eyeriss."""

import pytest

from amcsearch.core import LayerKind, LayerSpec
from amcsearch.costs import DeviceProfile, EnergyModel
from amcsearch.costs.energy import Words, words_moved

SOURCES = dict.fromkeys(("mac_pj", "dram_pj_per_byte", "static_power_mw"), "toy")
EYERISS = DeviceProfile("eyeriss_relative", 16, 1.0, 100.0, sources=SOURCES)
CONV = LayerSpec("c", LayerKind.CONV, 3, 8, (3, 3), in_size=(6, 6), out_size=(4, 4), has_bias=True)


class Latency:
    """One microsecond an output channel, ten a call."""

    name = "latency_ms"
    constant = 0.010

    def layer_cost(self, layer: LayerSpec) -> float:
        return layer.out_channels / 1000


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (CONV, Words(8 * 3 * 9 + 8, 3 * 36, 8 * 16)),
        (
            LayerSpec("d", LayerKind.CONV, 8, 8, (3, 3), conv_groups=8, in_size=(6, 6), out_size=(4, 4)),
            Words(72, 288, 128),
        ),
        # a module called twice fetches its weights twice
        (LayerSpec("l", LayerKind.LINEAR, 4, 2, in_size=(7, 1), out_size=(7, 1), has_weight=False), Words(8, 28, 14)),
        # 5 queries, 6 keys, width 8: Q 40, K 48, V 48 in, 40 out
        (LayerSpec("a", LayerKind.ATTENTION, 8, 8, conv_groups=2, in_size=(6, 1), out_size=(5, 1)), Words(0, 136, 40)),
        (LayerSpec("b", LayerKind.BATCH_NORM, 8, 8, in_size=(4, 4), out_size=(4, 4), has_bias=True), Words(0, 0, 0)),
        (LayerSpec("n", LayerKind.LAYER_NORM, 8, 8, in_size=(5, 1), out_size=(5, 1), has_bias=True), Words(16, 40, 40)),
        (LayerSpec("e", LayerKind.EMBEDDING, 1000, 8, in_size=(5, 1), out_size=(5, 1)), Words(0, 40, 40)),
        (LayerSpec("p", LayerKind.PARAMETER, 5, 8), Words(40, 0, 0)),
    ],
)
def test_words_by_hand(layer: LayerSpec, words: Words) -> None:
    assert words_moved(layer) == words


def test_energy_by_hand() -> None:
    # 3456 MACs at 1 pJ; (224 + 108 + 128) words of 2 bytes at 100 pJ
    assert EnergyModel(EYERISS).layer_cost(CONV) == pytest.approx((3456 + 460 * 2 * 100) * 1e-9)


def test_a_batch_fetches_weights_once() -> None:
    picojoules = 4 * 3456 + (224 + 4 * 236) * 2 * 100
    assert EnergyModel(EYERISS, batch=4).layer_cost(CONV) == pytest.approx(picojoules * 1e-9)


def test_static_power_counts_time_once_a_layer_and_once_a_call() -> None:
    idle = DeviceProfile("idle", 16, 0.0, 0.0, static_power_mw=500.0, sources=SOURCES)
    model = EnergyModel(idle, latency=Latency())
    # 500 mW for 8 µs are 4 µJ; for 10 µs, 5 µJ
    assert model.layer_cost(CONV) == pytest.approx(0.004)
    assert model.constant == pytest.approx(0.005)
    assert EnergyModel(idle).layer_cost(CONV) == EnergyModel(idle).constant == 0.0


def test_narrower_words_move_less() -> None:
    eight = DeviceProfile("int8", 8, 0.0, 100.0, sources=SOURCES)
    wide = DeviceProfile("fp32", 32, 0.0, 100.0, sources=SOURCES)
    assert EnergyModel(wide).layer_cost(CONV) == pytest.approx(4 * EnergyModel(eight).layer_cost(CONV))


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "alu", "dram"),
    [(9216, 4096, 0.60e9, 7.78e9), (4096, 4096, 0.27e9, 3.39e9), (4096, 1000, 0.07e9, 0.84e9)],
)
def test_alexnet_linear_layers_match_eyeriss(in_channels: int, out_channels: int, alu: float, dram: float) -> None:
    """Batch 16, ISCA 2016 figure 10 in units of one MAC: DRAM within 3 %, arithmetic to the printed digits."""
    layer = LayerSpec("fc", LayerKind.LINEAR, in_channels, out_channels)
    arithmetic = EnergyModel(DeviceProfile("alu", 16, 1.0, 0.0, sources=SOURCES), batch=16).layer_cost(layer) * 1e9
    traffic = EnergyModel(DeviceProfile("dram", 16, 0.0, 100.0, sources=SOURCES), batch=16).layer_cost(layer) * 1e9
    assert arithmetic == pytest.approx(alu, abs=0.005e9)
    assert traffic == pytest.approx(dram, rel=0.03)
    assert traffic < dram + 0.005e9  # a lower bound, up to the printed digits
