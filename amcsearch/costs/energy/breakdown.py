"""Where the energy of one layer goes: arithmetic, registers, each memory by tensor, and what the device draws."""

from dataclasses import dataclass

__all__ = ["LayerEnergy", "MemoryTraffic"]

_MJ_PER_PJ = 1e-9


@dataclass(frozen=True, slots=True)
class MemoryTraffic:
    """Bytes that reach or leave one memory, on its inner side, by tensor; ``least_bytes`` is their lower bound."""

    memory: str
    pj_per_byte: float
    weights_bytes: float
    inputs_bytes: float
    outputs_bytes: float
    least_bytes: float

    @property
    def total_bytes(self) -> float:
        """All bytes that move."""
        return self.weights_bytes + self.inputs_bytes + self.outputs_bytes

    def energy_mj(self, bytes_moved: float) -> float:
        """Energy of moving so many bytes here, in mJ."""
        return bytes_moved * self.pj_per_byte * _MJ_PER_PJ


@dataclass(frozen=True, slots=True)
class LayerEnergy:
    """Energy of one layer in mJ; ``traffic`` lists the memories outwards from the second, DRAM last.

    ``scale`` is the calibration that every energy here but ``static_mj`` holds already; ``MemoryTraffic`` holds none.
    """

    name: str
    macs: float
    compute_mj: float
    registers_mj: float
    traffic: tuple[MemoryTraffic, ...]
    static_mj: float
    scale: float

    @property
    def buffers_mj(self) -> float:
        """Energy of every memory on the chip, registers included."""
        inner = sum(memory.energy_mj(memory.total_bytes) for memory in self.traffic[:-1])
        return self.registers_mj + self.scale * inner

    @property
    def dram(self) -> MemoryTraffic:
        """Traffic with DRAM."""
        return self.traffic[-1]

    @property
    def parts_mj(self) -> dict[str, float]:
        """Energy by what it is spent on, in mJ; the parts add up to ``total_mj``."""
        dram, scale = self.dram, self.scale
        return {
            "compute": self.compute_mj,
            "buffers": self.buffers_mj,
            "DRAM weights": scale * dram.energy_mj(dram.weights_bytes),
            "DRAM inputs": scale * dram.energy_mj(dram.inputs_bytes),
            "DRAM outputs": scale * dram.energy_mj(dram.outputs_bytes),
            "static": self.static_mj,
        }

    @property
    def total_mj(self) -> float:
        """Energy of the layer in mJ."""
        return sum(self.parts_mj.values())
