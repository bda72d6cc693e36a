"""Where the energy of a layer goes, in words; every byte costs 1 mJ, so that energies can be read off."""

import pytest

from amcsearch.costs.energy.breakdown import LayerEnergy, MemoryTraffic

PJ = 1e9


def layer(
    compute: float = 0.0,
    registers: float = 0.0,
    static: float = 0.0,
    buffer: float = 0.0,
    dram: tuple[float, float, float] = (0.0, 0.0, 0.0),
    scale: float = 1.0,
) -> LayerEnergy:
    """1,000 MACs; the buffer moves twice its lower bound, beside a smaller memory that moves 1 byte."""
    traffic = (
        MemoryTraffic("spad", PJ, 0.5, 0.25, 0.25, 1.0),
        MemoryTraffic("buffer", PJ, buffer / 2, buffer / 4, buffer / 4, buffer / 2),
        MemoryTraffic("DRAM", PJ, *dram, 1.0),
    )
    return LayerEnergy("l", 1000.0, compute, registers, traffic, static, scale)


def test_parts_add_up_with_the_calibration_on_what_moves() -> None:
    energy = layer(compute=1.0, registers=2.0, static=3.0, buffer=4.0, dram=(5.0, 6.0, 7.0), scale=2.0)
    assert energy.parts_mj == {
        "compute": 1.0,
        "buffers": 2.0 + 2.0 * (1.0 + 4.0),
        "DRAM weights": 10.0,
        "DRAM inputs": 12.0,
        "DRAM outputs": 14.0,
        "static": 3.0,
    }
    assert energy.total_mj == 1 + 12 + 10 + 12 + 14 + 3
    assert energy.dram.total_bytes == 18.0


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        (layer(compute=6.0, static=3.0), "60 % of it compute: 1,000 MACs"),
        (layer(static=9.0), "90 % of it static"),
        (
            layer(compute=2.0, dram=(4.0, 2.0, 1.0)),
            "40 % of it DRAM weights: 4 bytes; 143 MACs for each byte from or to DRAM",
        ),
        (layer(dram=(1.0, 6.0, 2.0)), "60 % of it DRAM inputs: 6 bytes; 111 MACs for each byte from or to DRAM"),
        (layer(dram=(1.0, 3.0, 5.0)), "50 % of it DRAM outputs: 5 bytes; 111 MACs for each byte from or to DRAM"),
        (layer(buffer=7.0, compute=2.0), "80 % of it buffers: buffer moves 7 bytes, 2.00 times the lower bound"),
        (
            layer(registers=6.0, buffer=1.5, compute=1.5),
            "85 % of it buffers: the innermost memory, reached four times by each of 1,000 MACs",
        ),
        # the calibration counts: 2·4 mJ of the buffer are more than the 6 of the registers
        (
            layer(registers=6.0, buffer=4.0, compute=4.0, scale=2.0),
            "80 % of it buffers: buffer moves 4 bytes, 2.00 times the lower bound",
        ),
        (
            LayerEnergy("l", 1000.0, 0.0, 1.0, (MemoryTraffic("DRAM", PJ, 0.0, 0.0, 0.0, 0.0),), 0.0, 1.0),
            "100 % of it buffers: the innermost memory, reached four times by each of 1,000 MACs",
        ),
        (
            LayerEnergy("l", 0.0, 0.0, 0.0, (MemoryTraffic("DRAM", PJ, 0.0, 0.0, 0.0, 0.0),), 0.0, 1.0),
            "nothing moves: 0 MACs",
        ),
    ],
)
def test_the_largest_part_is_said_with_its_reason(energy: LayerEnergy, words: str) -> None:
    assert energy.why() == words
