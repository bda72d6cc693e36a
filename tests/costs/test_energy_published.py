"""Energy and traffic against published numbers: AlexNet on Eyeriss, simulated and in silicon; Horowitz; ECC."""

from math import ceil
from pathlib import Path

import numpy as np
import pytest

from amcsearch.config.devices import read_device
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel, communication_bytes
from amcsearch.costs.energy.nest import LoopNest
from amcsearch.costs.energy.storage import StorageFormat, stored_bits
from amcsearch.costs.energy.traffic import OUTPUTS, Edge, output_stationary
from amcsearch.costs.energy.work import Widths, least_words

DEVICES = Path(__file__).parents[2] / "configs" / "devices"
WORD_BYTES = 2  # Eyeriss computes in 16 bits


def conv(name: str, c: int, m: int, k: int, size: tuple[int, int], stride: int = 1, pad: int = 0, groups: int = 1):
    height, out = size
    return LayerSpec(
        name, LayerKind.CONV, c, m, (k, k), (stride, stride), (pad, pad), (1, 1), groups, (height, height), (out, out)
    )


CONVS = [
    conv("conv1", 3, 96, 11, (227, 55), stride=4),
    conv("conv2", 96, 256, 5, (27, 27), pad=2, groups=2),
    conv("conv3", 256, 384, 3, (13, 13), pad=1),
    conv("conv4", 384, 384, 3, (13, 13), pad=1, groups=2),
    conv("conv5", 384, 256, 3, (13, 13), pad=1, groups=2),
]
LINEARS = [
    LayerSpec("fc1", LayerKind.LINEAR, 9216, 4096),
    LayerSpec("fc2", LayerKind.LINEAR, 4096, 4096),
    LayerSpec("fc3", LayerKind.LINEAR, 4096, 1000),
]
# filters and images of a tile, rows of a strip (Eyeriss, JSSC 2017, table III)
MAPPING = {"conv1": (96, 1, 7), "conv2": (64, 1, 27), **dict.fromkeys(("conv3", "conv4", "conv5"), (64, 4, 13))}
# ISCA 2016, figure 10, batch 16, in 10⁹ MACs' energy: arithmetic, DRAM, register files
ISCA = {
    "conv1": (1.69, 2.46, 6.75),
    "conv2": (3.58, 2.27, 14.33),
    "conv3": (2.39, 2.02, 9.57),
    "conv4": (1.79, 1.57, 7.18),
    "conv5": (1.20, 1.05, 4.78),
    "fc1": (0.60, 7.78, 2.42),
    "fc2": (0.27, 3.39, 1.07),
    "fc3": (0.07, 0.84, 0.26),
}


def mapped_words(layer: LayerSpec, batch: int, *, padded: bool = True) -> np.ndarray:
    """Words of weights, inputs and outputs under the published mapping: (3,)."""
    filters, images, rows = MAPPING[layer.name]
    c, m = layer.in_channels // layer.conv_groups, layer.out_channels // layer.conv_groups
    nest = LoopNest.of(layer, batch)
    strips = nest.strips(images, rows, padded=padded)
    nm = np.array([ceil(m / filters)])
    fixed = (c * strips.fetched, np.array([c * m * nest.window]), np.array([m * nest.positions]))
    return layer.conv_groups * np.concatenate(output_stationary(nm, strips.count, *fixed))


@pytest.mark.parametrize("layer", [*CONVS, *LINEARS], ids=lambda layer: layer.name)
def test_arithmetic_and_register_files_match_isca_2016(layer: LayerSpec) -> None:
    found = EnergyModel(read_device(DEVICES / "eyeriss_relative.yaml"), batch=16).estimate(layer)
    arithmetic, _, registers = ISCA[layer.name]
    printed = 0.005  # half of the last digit
    assert found.compute_mj == pytest.approx(arithmetic, rel=0.01, abs=printed)
    assert found.registers_mj == pytest.approx(registers, rel=0.01, abs=printed)
    assert found.registers_mj == pytest.approx(4 * found.compute_mj)


@pytest.mark.parametrize("layer", CONVS, ids=lambda layer: layer.name)
def test_dram_of_convolutions_matches_isca_2016_with_the_published_mapping(layer: LayerSpec) -> None:
    energy = 200 * mapped_words(layer, batch=16).sum() / 1e9
    assert energy == pytest.approx(ISCA[layer.name][1], rel=0.05)


@pytest.mark.parametrize("layer", LINEARS, ids=lambda layer: layer.name)
def test_dram_of_linear_layers_matches_isca_2016(layer: LayerSpec) -> None:
    found = EnergyModel(read_device(DEVICES / "eyeriss_relative.yaml"), batch=16).estimate(layer).dram
    assert found.energy_mj(found.total_bytes) == pytest.approx(ISCA[layer.name][1], rel=0.03)


@pytest.mark.parametrize("layer", CONVS, ids=lambda layer: layer.name)
def test_published_dram_lies_above_the_bounds_and_above_our_best_order(layer: LayerSpec) -> None:
    """The chip's mapping is one of ours, so that our best may not need more; 128 Ki words are on the chip."""
    model = EnergyModel(read_device(DEVICES / "eyeriss_relative.yaml"), batch=16)
    published_bytes = ISCA[layer.name][1] * 1e9 / 200 * WORD_BYTES
    widths = Widths(layer, 16, np.array([float(layer.in_channels)]), np.array([float(layer.out_channels)]))
    words = np.full((3, 1), float(WORD_BYTES))
    total = np.array([131072.0 * WORD_BYTES])
    edge = Edge(total, words, words)
    forced = communication_bytes(widths, edge, total)[0]  # all words are equal: no tensor is better kept inside
    stationary = forced + least_words(widths)[OUTPUTS][0] * WORD_BYTES  # partial sums stay inside, outputs leave once
    assert forced < stationary < published_bytes
    # LATENCY_ENERGY's ratios, with 3 % for the halo of the strided first layer
    ratio = {"conv1": 1.53, "conv2": 1.63, "conv3": 1.86, "conv4": 1.81, "conv5": 1.81}[layer.name]
    assert published_bytes / stationary == pytest.approx(ratio, rel=0.03)
    found = model.estimate(layer).dram
    assert found.least_bytes <= found.total_bytes < published_bytes


# JSSC 2017, table V, batch 4: measured DRAM megabytes, zeros among the inputs
SILICON = {"conv1": (5.0, 0.0001), "conv2": (4.0, 0.387), "conv3": (3.0, 0.725), "conv4": (2.1, 0.793)} | {
    "conv5": (1.3, 0.776)
}


def silicon_megabytes(*, padded: bool) -> dict[str, float]:
    """Traffic under the published mapping with run-length coded maps; the last output is as sparse as its input."""
    zeros = [SILICON[layer.name][1] for layer in CONVS]
    found = {}
    for layer, ours, following in zip(CONVS, zeros, [*zeros[1:], zeros[-1]], strict=True):
        share = [1.0, *(coded_share(1 - z) for z in (ours, following))]
        found[layer.name] = float(mapped_words(layer, 4, padded=padded) @ np.array(share)) * WORD_BYTES / 1e6
    return found


def coded_share(density: float) -> float:
    one = np.array([1e6])
    return float(stored_bits(StorageFormat.RUN_LENGTH, density, one, one, 16)[0] / 16e12)


def test_dram_bytes_match_the_chip_of_jssc_2017() -> None:
    found = silicon_megabytes(padded=True)
    for name, (measured, _) in SILICON.items():
        assert found[name] == pytest.approx(measured, rel=0.13), name
    assert sum(found.values()) == pytest.approx(15.4, rel=0.06)
    # the zeros of the padding need not be fetched
    assert sum(silicon_megabytes(padded=False).values()) == pytest.approx(15.4, rel=0.01)


def test_horowitz_constants() -> None:
    """ISSCC 2014, 45 nm: pJ of a MAC by its operations, and of a 64-bit access."""
    device = read_device(DEVICES / "horowitz_45nm.yaml")
    assert device.mac_energy_pj(32, 32) == pytest.approx(3.7 + 0.9)
    assert device.mac_energy_pj(16, 16) == pytest.approx(1.1 + 0.4)
    assert device.mac_energy_pj(8, 8) == pytest.approx(0.2 + 0.1)
    access = {memory.name: 8 * memory.pj_per_byte for memory in device.memories}
    assert access == {"register file": 2.0, "SRAM 8 KB": 10.0, "SRAM 32 KB": 20.0, "SRAM 1 MB": 100.0, "DRAM": 1300.0}


@pytest.mark.parametrize("name", ["x86_server", "edge_cpu", "edge_gpu", "npu_int8"])
def test_derived_memories_follow_the_root_of_their_capacity(name: str) -> None:
    derived = [
        memory
        for memory in read_device(DEVICES / f"{name}.yaml").memories
        if "DERIVED from Horowitz" in memory.source and memory.capacity_bytes != 512
    ]
    assert derived
    for memory in derived:
        assert memory.capacity_bytes is not None
        assert 8 * memory.pj_per_byte == pytest.approx(10 * (memory.capacity_bytes / 8192) ** 0.5, rel=0.005)


def test_eyeriss_energies_are_the_published_ratios() -> None:
    relative, absolute = (read_device(DEVICES / f"eyeriss_{name}.yaml") for name in ("relative", "65nm"))
    assert [WORD_BYTES * memory.pj_per_byte for memory in relative.memories] == [1, 2, 6, 200]
    assert relative.mac_energy_pj(16, 16) == 1
    assert [WORD_BYTES * memory.pj_per_byte for memory in absolute.memories] == [1, 4, 15, 460]
    assert (absolute.mac_energy_pj(16, 16), absolute.static_power_mw) == (2, 30)


def closed_form(channels: int, filters: int, positions: int, array: int, kernel_cache: int) -> dict[str, float]:
    """Energy-Constrained Compression's formula (Yang, Zhu and Liu, 2019) for a 1x1 convolution, written from its text.

    Costs of a word: MAC with its partial sum 3, register file 1, cache 6, memory 200. An input is fetched once; weights
    once where they fit ``kernel_cache`` bytes, else once for every ``array`` positions; outputs are written once.
    """
    macs = channels * filters * positions
    rounds = 1 if channels * filters * WORD_BYTES <= kernel_cache else ceil(positions / array)
    return {
        "arithmetic and registers": 3 * macs + macs + macs,
        "memory": 200 * (channels * positions + rounds * channels * filters + filters * positions),
    }


@pytest.mark.parametrize(("channels", "filters", "size"), [(16, 32, 7), (64, 64, 14), (24, 144, 28)])
def test_agrees_with_the_closed_form_where_weights_are_cached(channels: int, filters: int, size: int) -> None:
    """A 1x1 convolution has no halo; with all weights on the chip both move every word once."""
    layer = conv("1x1", channels, filters, 1, (size, size))
    expected = closed_form(channels, filters, size * size, array=168, kernel_cache=1 << 20)
    found = EnergyModel(read_device(DEVICES / "eyeriss_relative.yaml")).estimate(layer)
    assert (found.compute_mj + found.registers_mj) * 1e9 == pytest.approx(expected["arithmetic and registers"])
    assert found.dram.energy_mj(found.dram.total_bytes) * 1e9 == pytest.approx(expected["memory"])


@pytest.mark.parametrize("positions", [196, 784, 1000])
def test_agrees_with_the_closed_form_where_weights_are_fetched_again(positions: int) -> None:
    """Outputs of ``array`` positions stay with every filter: output-stationary, all filters in one tile."""
    channels, filters, array = 512, 96, 168
    words = output_stationary(
        np.array([1]),
        np.array([ceil(positions / array)]),
        np.array([channels * positions]),
        np.array([channels * filters]),
        np.array([filters * positions]),
    )
    expected = closed_form(channels, filters, positions, array, kernel_cache=8192)
    assert 200 * np.concatenate(words).sum() == expected["memory"]
    # a chip that holds just that tile finds an order at least as good
    tile_bytes = WORD_BYTES * (filters * array + filters + array)
    found = EnergyModel(chip(tile_bytes)).estimate(
        LayerSpec("l", LayerKind.LINEAR, channels, filters, out_size=(positions, 1), in_size=(positions, 1))
    )
    assert found.dram.least_bytes <= found.dram.total_bytes <= expected["memory"] / 200 * WORD_BYTES


def chip(capacity_bytes: int) -> DeviceProfile:
    memories = (MemoryLevel("on chip", capacity_bytes, 0.5, "toy"), MemoryLevel("DRAM", None, 100.0, "toy"))
    return DeviceProfile("toy", 16, {16: 1.0}, memories, sources={"mac_pj": "toy"})


def test_least_words_of_alexnet_are_its_tensors() -> None:
    first = Widths(CONVS[0], 16, np.array([3.0]), np.array([96.0]))
    assert least_words(first)[:, 0].tolist() == [96 * 3 * 121, 16 * 3 * 227 * 227, 16 * 96 * 55 * 55]
