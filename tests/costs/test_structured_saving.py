"""When zeroing single weights saves as much as removing channels: break-evens worked by hand, and their conditions."""

from dataclasses import replace

import pytest

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.energy.storage import Sparsity, StorageFormat

# 4096 weights, 64 inputs and 64 outputs of 16 bits; half of the filters are 2048 weights and 32 outputs
LAYER = LayerSpec("l", LayerKind.LINEAR, 64, 64)
NARROW = LAYER.resized(64, 32)
TOY = DeviceProfile(
    "toy",
    16,
    {16: 1.0},
    (MemoryLevel("chip", 1 << 20, 1.0, "toy"), MemoryLevel("DRAM", None, 10.0, "toy")),
    sources={"mac_pj": "toy"},
)


def sparse(density: float, form: StorageFormat = StorageFormat.BITMAP) -> Sparsity:
    return Sparsity(weights=density, weight_format=form)


@pytest.mark.parametrize(
    ("form", "density"),
    [
        # a bit a weight, and 16 for each that is not zero: 1 + 16 d = 8, less the 32 outputs that only channels save
        (StorageFormat.BITMAP, 7 / 16 - 32 / 4096),
        # 64 bits for three weights, long runs aside: 64/3 d = 8 less the outputs
        (StorageFormat.RUN_LENGTH, 3 / 64 * (8 - 512 / 4096)),
    ],
)
def test_dram_traffic_breaks_even(form: StorageFormat, density: float) -> None:
    model = EnergyModel(TOY)
    assert model.estimate(LAYER, sparse(density, form)).dram.total_bytes == pytest.approx(
        model.estimate(NARROW).dram.total_bytes, rel=1e-5
    )


@pytest.mark.parametrize(
    ("skips", "density"),
    [
        # narrow 61312 pJ: 2048 MACs at 9, 4096 + 192 bytes at 10; sparse 36864 + 2560 + 5120 (1 + 16 d)
        (False, 16768 / 81920),
        # 36864 d in place of 36864
        (True, 53632 / 118784),
    ],
)
def test_energy_breaks_even_sooner_where_zeros_are_skipped(skips: bool, density: float) -> None:
    model = EnergyModel(replace(TOY, skips_zero_weights=skips))
    narrow = model.estimate(NARROW).total_mj
    assert narrow == pytest.approx(61312e-9)
    assert model.estimate(LAYER, sparse(density)).total_mj == pytest.approx(narrow)
    assert model.estimate(LAYER, sparse(density + 0.01)).total_mj > narrow
    assert model.estimate(LAYER, sparse(density - 0.01)).total_mj < narrow


def test_zeros_stored_and_multiplied_save_nothing() -> None:
    model = EnergyModel(TOY)
    zeroed = model.estimate(LAYER, sparse(0.01, StorageFormat.DENSE))
    assert zeroed.total_mj == model.estimate(LAYER).total_mj


def test_a_depthwise_layer_keeps_its_maps_whatever_its_zeros() -> None:
    """At a tenth of the weights, single zeros leave all 2 · 64 maps to move; removed channels take theirs along."""
    depthwise = LayerSpec("d", LayerKind.CONV, 64, 64, (3, 3), padding=(1, 1), conv_groups=64, in_size=(8, 8),
                          out_size=(8, 8))  # fmt: skip
    model = EnergyModel(replace(TOY, skips_zero_weights=True))
    zeroed, narrow = model.estimate(depthwise, sparse(0.125)), model.estimate(depthwise.resized(8, 8))
    assert zeroed.dram.inputs_bytes == 8 * narrow.dram.inputs_bytes
    assert zeroed.compute_mj == pytest.approx(narrow.compute_mj)
