"""What operations without weights cost by hand, and static power over the whole latency."""

from dataclasses import replace

import numpy as np
import pytest

from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec, MapOp, MapStep
from amcsearch.core.network import NetworkSpec
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.energy.storage import Sparsity, StorageFormat
from amcsearch.costs.grid import CostGrid

CONV = LayerSpec("c", LayerKind.CONV, 3, 8, (3, 3), in_size=(6, 6), out_size=(4, 4))
LINEAR = LayerSpec("l", LayerKind.LINEAR, 8, 8, in_size=(16, 1), out_size=(16, 1))
ADD, ACTIVATION = MapStep(MapOp.ADD, (16, 16), 16), MapStep(MapOp.ACTIVATION, (16,), 16)
POOL, GELU = MapStep(MapOp.POOL, (16,), 4), MapStep(MapOp.OTHER, (16,), 16)
CHANNELS, BYTES = 8, 2


def device(share: float = 0.0, capacity: int = 1 << 20, static_mw: float = 0.0) -> DeviceProfile:
    """1 pJ a MAC and a byte beside it, 10 pJ a byte from and to DRAM."""
    memories = (MemoryLevel("chip", capacity, 1.0, "toy", share), MemoryLevel("DRAM", None, 10.0, "toy"))
    sources = {"mac_pj": "toy", "static_power_mw": "toy"}
    return DeviceProfile("toy", 16, {16: 1.0}, memories, static_power_mw=static_mw, sources=sources)


@pytest.mark.parametrize(
    ("layer", "steps", "read", "written"),
    [
        (CONV, (ACTIVATION,), 0, 0),
        (CONV, (ADD, ACTIVATION), 16, 0),  # the shortcut's map
        (CONV, (ACTIVATION, POOL), 16, 4),
        (CONV, (POOL, replace(ACTIVATION, reads=(4,), writes=4)), 16 + 4, 4 + 4),  # nothing fuses behind a pooling
        (CONV, (GELU, ADD), 16 + 32, 16 + 16),
        (LINEAR, (ACTIVATION,), 0, 0),
        (LINEAR, (ADD,), 32, 16),
        (LINEAR, (GELU,), 16, 16),
        (replace(LINEAR, kind=LayerKind.LAYER_NORM), (ACTIVATION,), 16, 16),
    ],
)
def test_what_is_not_fused_moves_its_maps(
    layer: LayerSpec, steps: tuple[MapStep, ...], read: int, written: int
) -> None:
    model, followed = EnergyModel(device()), replace(layer, steps=steps)
    alone, found = model.estimate(layer), model.estimate(followed)
    assert found.dram.inputs_bytes - alone.dram.inputs_bytes == read * CHANNELS * BYTES
    assert found.dram.outputs_bytes - alone.dram.outputs_bytes == written * CHANNELS * BYTES
    assert found.dram.least_bytes - alone.dram.least_bytes == (read + written) * CHANNELS * BYTES
    assert (found.macs, found.compute_mj) == (alone.macs, alone.compute_mj)
    # each byte passes DRAM for 10 pJ and the memory inside for 1
    extra = (read + written) * CHANNELS * BYTES * 11e-9
    assert model.layer_cost(followed) - model.layer_cost(layer) == pytest.approx(extra)
    assert found.total_mj == pytest.approx(model.layer_cost(followed))


def test_a_step_goes_with_the_channels_and_the_batch() -> None:
    """A step moves nothing but what half the channels, or a batch of three, have."""
    followed = replace(CONV, steps=(ACTIVATION, POOL))
    half = [EnergyModel(device()).estimate(layer.resized(3, 4)).dram.total_bytes for layer in (CONV, followed)]
    three = [EnergyModel(device(), 3).estimate(layer).dram.total_bytes for layer in (CONV, followed)]
    assert half[1] - half[0] == (16 + 4) * 4 * BYTES
    assert three[1] - three[0] == 3 * (16 + 4) * 8 * BYTES


def test_maps_that_stay_on_the_chip_are_not_moved_by_a_step() -> None:
    """16 positions of 8 channels are 256 bytes, the pooled map 64; a quarter of 1024 keeps both, of 1000 the latter."""
    followed = replace(CONV, steps=(ACTIVATION, POOL))
    for capacity, kept_read in ((1024, True), (1000, False)):
        model = EnergyModel(device(0.25, capacity))
        alone, found = model.estimate(CONV).dram, model.estimate(followed).dram
        assert found.inputs_bytes - alone.inputs_bytes == (0 if kept_read else 256)
        assert found.outputs_bytes == alone.outputs_bytes


def test_in_dram_a_step_moves_coded_maps() -> None:
    coded = Sparsity(outputs=0.25, map_format=StorageFormat.BITMAP)
    model, followed = EnergyModel(device()), replace(CONV, steps=(ACTIVATION, POOL))
    alone, found = (model.estimate(layer, coded).dram.total_bytes for layer in (CONV, followed))
    # a bit a word and a quarter of the 16: 5 of 16 bits
    assert found - alone == pytest.approx((16 + 4) * CHANNELS * BYTES * 5 / 16)


class Latency:
    """A microsecond a channel and ten a call; and, for all layers together, half the product of the two sums."""

    name = "latency_ms"
    constant = 0.010
    has_joint = True

    def layer_cost(self, layer: LayerSpec) -> float:
        return layer.out_channels / 1000

    def layer_amounts(self, layer: LayerSpec, in_channels: np.ndarray, out_channels: np.ndarray) -> np.ndarray:
        return np.stack([in_channels, out_channels], axis=1) / 1000

    def joint(self, amounts: np.ndarray) -> np.ndarray:
        return amounts.prod(axis=1) / 2


def network() -> NetworkSpec:
    second = LayerSpec("d", LayerKind.CONV, 8, 4, in_size=(4, 4), out_size=(4, 4))
    group = ChannelGroup("c", 8, (Coupling("c", Side.OUT, 1), Coupling("d", Side.IN, 1)), 1)
    return NetworkSpec((CONV, second), (group,))


def test_static_power_lasts_as_long_as_the_whole_call() -> None:
    """500 mW over every part of the latency: layers, the call's overhead and what all layers cost together."""
    latency, kept = Latency(), np.array([[8], [3]])
    busy = CostGrid(network(), [EnergyModel(device())]).price(kept)["energy_mj"]
    model = EnergyModel(device(static_mw=500.0), latency=latency)
    grid = CostGrid(network(), [model, latency])
    found = grid.price(kept)
    # eight channels: 12 µs of layers, 10 of the call, half of 0.011 · 0.012 ms
    assert found["latency_ms"][0] == pytest.approx(0.012 + 0.010 + 0.011 * 0.012 / 2)
    np.testing.assert_allclose(found["energy_mj"] - busy, 0.5 * found["latency_ms"])
    assert model.static.shared_mj(network().layers) == pytest.approx(0.5 * (0.010 + 0.011 * 0.012 / 2))


@pytest.mark.parametrize("static_mw", [0.0, 500.0])
def test_nobody_gathers_sums_for_a_joint_part_that_is_nothing(static_mw: float) -> None:
    class Additive(Latency):
        has_joint = False

    assert EnergyModel(device(static_mw=static_mw), latency=Latency()).has_joint == (static_mw > 0.0)
    alone = EnergyModel(device(static_mw=static_mw), latency=Additive())
    assert not alone.has_joint
    assert alone.static.shared_mj(network().layers) == static_mw * 0.010e-3
    assert EnergyModel(device(static_mw=static_mw)).static.shared_mj(network().layers) == 0.0
