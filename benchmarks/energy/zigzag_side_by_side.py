"""Energy of a network's layers by our model beside ZigZag's on the same Eyeriss-like device: rank correlation and time.

    pip install '.[benchmarks]'
    OMP_NUM_THREADS=1 python benchmarks/energy/zigzag_side_by_side.py alexnet resnet18

ZigZag (Mei et al., IEEE Transactions on Computers 2021) searches spatial and temporal mappings of each layer and
counts accesses; networks, device and mapping are those its package ships (`eyeriss_like.yaml`, `default.yaml`),
searched for least energy. Our profile holds the same memories: ZigZag's separate register files and first-level
memories of one processing element and of the array are added up, and what passes between elements is free, as there.
Where the two differ is said by level: ranks without the register files, and the ratio at DRAM.
"""

import argparse
import contextlib
import io
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import zigzag
from onnx import shape_inference
from zigzag.api import get_hardware_performance_zigzag

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.device import DeviceProfile, MemoryLevel
from amcsearch.costs.energy.model import EnergyModel

INPUTS = Path(zigzag.__file__).parent / "inputs"
ELEMENTS = 14 * 12
SOURCE = "zigzag-dse: inputs/hardware/eyeriss_like.yaml"
DEVICE = DeviceProfile(
    "eyeriss_like",
    8,
    {8: 0.5},
    (
        # a MAC reads two operands for 1.0 each and a partial sum for 1.5, and writes it for 2.0: four accesses
        MemoryLevel("register files", 64 + 64 + 16, 5.5 / 4, SOURCE),
        MemoryLevel("array", ELEMENTS * (64 + 64 + 16), 0.0, SOURCE),
        # 128 bits for 20 or 25 (weights, 64 KB) and 10 or 15 (outputs, 8 KB)
        MemoryLevel("8 + 64 KB", (8 + 64) * 1024, 17.5 / 16, SOURCE),
        MemoryLevel("1 MB", 1024 * 1024, 115 / 48, SOURCE),  # 384 bits for 100 or 130
        MemoryLevel("DRAM", None, 1000 / 8, SOURCE),  # 64 bits for 1000
    ),
    sources={"mac_pj": SOURCE},
)


def layers_of(path: Path) -> list[LayerSpec]:
    """Convolutions and linear layers of an ONNX file, in its order."""
    model = shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            image, weight, output = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
            groups = settings.get("group", 1)
            found.append(
                LayerSpec(
                    node.name,
                    LayerKind.CONV,
                    weight[1] * groups,
                    weight[0],
                    tuple(weight[2:]),
                    tuple(settings.get("strides", (1, 1))),
                    tuple(settings.get("pads", (0, 0, 0, 0))[:2]),
                    tuple(settings.get("dilations", (1, 1))),
                    groups,
                    tuple(image[2:]),
                    tuple(output[2:]),
                )
            )
        elif node.op_type in ("Gemm", "MatMul"):
            rows, columns = shapes[node.input[1]]
            if settings.get("transB", 0):
                rows, columns = columns, rows
            found.append(LayerSpec(node.name, LayerKind.LINEAR, rows, columns))
    return found


def by_zigzag(path: Path) -> tuple[dict[str, tuple[float, float, float]], float]:
    """ZigZag's energy of each layer in pJ: all, register files, DRAM; and the CPU seconds it took."""
    logging.disable(logging.CRITICAL)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        answer = get_hardware_performance_zigzag(
            str(path),
            str(INPUTS / "hardware" / "eyeriss_like.yaml"),
            str(INPUTS / "mapping" / "default.yaml"),
            opt="energy",
            dump_folder=folder,
            loma_show_progress_bar=False,
        )
    seconds = time.process_time() - start
    found = {}
    for evaluation, *_ in answer[2][0][1]:
        levels = evaluation.mem_energy_breakdown.values()  # of each operand, innermost first
        inner, outer = (float(sum(energies[level] for energies in levels)) for level in (0, -1))
        found[evaluation.layer.name] = (float(evaluation.energy_total), inner, outer)
    return found, seconds


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share their mean rank."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; values within a millionth are equal."""
    rounded = [np.array([float(f"{x:.6g}") for x in values]) for values in (a, b)]
    return float(np.corrcoef(*map(ranks, rounded))[0, 1])


def main() -> None:
    """Print both energies of every layer, their ratio, the correlation and the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", help="names of ONNX files that zigzag-dse ships: alexnet, resnet18")
    for name in parser.parse_args().networks:
        path = INPUTS / "workload" / f"{name}.onnx"
        layers = layers_of(path)
        theirs, their_seconds = by_zigzag(path)
        start = time.process_time()
        estimates = [EnergyModel(DEVICE).estimate(layer) for layer in layers]
        our_seconds = time.process_time() - start
        if len(theirs) != len(layers):
            raise SystemExit(f"{name}: {len(layers)} layers here, {len(theirs)} in ZigZag")
        parts = [(e.total_mj, e.registers_mj, e.dram.energy_mj(e.dram.total_bytes)) for e in estimates]
        ours, our_registers, our_dram = 1e9 * np.array(parts).T
        reference, their_registers, their_dram = np.array([theirs[layer.name] for layer in layers]).T
        print(f"\n{name}, µJ a layer")
        for layer, ours_pj, theirs_pj in zip(layers, ours, reference, strict=True):
            print(f"{layer.name:45} {ours_pj / 1e6:10.1f} {theirs_pj / 1e6:10.1f} {ours_pj / theirs_pj:6.2f}")
        whole = ours.sum(), reference.sum()
        print(f"{'all':45} {whole[0] / 1e6:10.1f} {whole[1] / 1e6:10.1f} {whole[0] / whole[1]:6.2f}")
        times = f"seconds: ours {our_seconds:.3f}, ZigZag {their_seconds:.1f}"
        print(f"rank correlation {spearman(ours, reference):.3f}; {times}")
        inside = spearman(ours - our_registers, reference - their_registers)
        dram, macs = our_dram / their_dram, np.array([e.macs for e in estimates])
        a_mac = [registers / macs for registers in (our_registers, their_registers)]
        print(f"without the register files {inside:.3f}; DRAM, ours / ZigZag {dram.min():.3f} to {dram.max():.3f}")
        print("register files, pJ a MAC: ours {:.2f} to {:.2f}, ZigZag {:.2f} to {:.2f}".format(
            *(value for each in a_mac for value in (each.min(), each.max()))
        ))  # fmt: skip


if __name__ == "__main__":
    main()
