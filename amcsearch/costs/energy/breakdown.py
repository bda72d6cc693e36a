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

    def why(self) -> str:
        """Say in one clause what most of the energy goes into."""
        parts = self.parts_mj
        part = max(parts, key=lambda name: parts[name])
        share = f"{100 * parts[part] / self.total_mj:.0f} % of it {part}" if self.total_mj else "nothing moves"
        if part == "compute":
            return f"{share}: {self.macs:,.0f} MACs"
        if part == "buffers":
            return f"{share}: {self._busiest()}"
        if part.startswith("DRAM"):
            dram = self.dram
            tensor = part.partition(" ")[2]
            moved = {"weights": dram.weights_bytes, "inputs": dram.inputs_bytes, "outputs": dram.outputs_bytes}[tensor]
            intensity = self.macs / dram.total_bytes
            return f"{share}: {moved:,.0f} bytes; {intensity:.3g} MACs for each byte from or to DRAM"
        return share

    def _busiest(self) -> str:
        """Say which memory on the chip costs most."""
        inner = self.traffic[:-1]
        busiest = max(inner, key=lambda memory: memory.energy_mj(memory.total_bytes), default=None)
        if busiest is None or self.scale * busiest.energy_mj(busiest.total_bytes) < self.registers_mj:
            return f"the innermost memory, reached four times by each of {self.macs:,.0f} MACs"
        surplus = busiest.total_bytes / busiest.least_bytes
        return f"{busiest.memory} moves {busiest.total_bytes:,.0f} bytes, {surplus:.2f} times the lower bound"
