"""How many policies can be priced a second: MACs, parameters, latency and energy of ResNets, in one batch.

    OMP_NUM_THREADS=1 python benchmarks/pricing.py [resnet20|resnet50] [--policies 100000] [--multiple 16]

Policies are random on a channel grid; with ``--multiple 1`` at arbitrary widths, so that as many different layer shapes
as possible occur. ResNet-50 is transformers', at 224x224, with random weights. The latency table is made up (speed does
not depend on its numbers): kernels in blocks of 16 and plain ones off the grid, a row for every layer of 72 variants,
a third of them on each of the grids of 16, 8 and 1. "first batch" includes asking the cost models for every shape;
"next batch" is other policies of the same network.

Seconds of processor time for 100,000 policies of ResNet-50, medians of three (107 layers, 38 groups, 4485 rows; AMD
EPYC Zen 4 virtual machine, 2 cores, one thread, pinned to core 1 which other work shared, while another measurement ran
on core 0; Python 3.11, numpy 2.4, 2026-11-26):

    channel grid                    latency alone           MACs, parameters, latency, energy
                                first batch  next batch     first batch  next batch
    multiples of 16                    0.26        0.10            0.57        0.14
    multiples of 8                     0.27        0.12            1.19        0.27
    any widths                         0.82        0.49            9.6         4.7

With the table measured of ResNet-50 a first batch of latencies, in which its surfaces are fitted too, takes 0.23, 0.26
and 0.97 s on these grids (medians of three, any widths 0.86 to 1.10), a next one 0.10, 0.12 and 0.61 s; the core quiet.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.costs.base import CostModel
from amcsearch.costs.compute import Macs, Params, macs
from amcsearch.costs.device import DeviceProfile
from amcsearch.costs.energy.model import EnergyModel
from amcsearch.costs.grid import CostGrid
from amcsearch.costs.latency.rows import COLUMNS, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable
from amcsearch.graph.tracing.trace import trace
from amcsearch.training.models.residual import resnet20

PROFILE = Path(__file__).parents[1] / "configs" / "devices" / "x86_server.yaml"
VARIANTS = 72


def resnet50_network() -> NetworkSpec:
    """Shapes of ResNet-50."""
    from transformers import ResNetConfig, ResNetForImageClassification

    return trace(ResNetForImageClassification(ResNetConfig()), torch.zeros(1, 3, 224, 224), verify=False).network


def resnet20_network() -> NetworkSpec:
    """Shapes of ResNet-20."""
    return trace(resnet20(in_channels=3), torch.zeros(1, 3, 32, 32), verify=False).network


NETWORKS = {"resnet20": resnet20_network, "resnet50": resnet50_network}


def random_policies(network: NetworkSpec, count: int, multiple: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Kept counts (count, G), each uniform over what its group allows on the channel grid."""
    return np.stack([rng.choice(group.choices(multiple), count) for group in network.groups], axis=1)


def kernels(layer: LayerSpec) -> dict[str, float]:
    """Kernel → ms of a made-up device: 10 GMAC/s in blocks, half of it and a reorder off the grid."""
    if layer.kind is LayerKind.BATCH_NORM:
        return {}
    ms = 1e-3 + macs(layer) / 1e7
    if layer.kind is not LayerKind.CONV:
        return {str(layer.kind): ms}
    on_grid = layer.in_channels % 4 == 0 == layer.out_channels % 4
    return {"nchwc.Conv+Relu": ms} if on_grid else {"ms.FusedConv+Relu": 2 * ms, "nchwc.ReorderOutput": 1e-3}


def made_up_table(network: NetworkSpec, rng: np.random.Generator) -> LatencyTable:
    """Rows as if random variants had been measured."""
    rows = {}
    for multiple in (16, 8, 1):
        for kept in random_policies(network, VARIANTS // 3, multiple, rng):
            for layer in network.with_channels(network.policy(kept)).layers:
                for kernel, ms in kernels(layer).items():
                    rows[row_key(layer), kernel] = ms
    values = (("net", *key, kernel, 1.0, ms, 0.0, 1, "made up") for (key, kernel), ms in rows.items())
    frame = make_rows(dict(zip(COLUMNS, row, strict=True)) for row in values)
    entry = {"constant_ms": 0.005, "residency": {16.0: 0.1}, "smoothing": 0.01}
    return LatencyTable.from_mapping(
        frame, {"provenance": {"cpu": "made up", "nchwc_block": 16}, "networks": {"net": entry}}
    )


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def report(network: NetworkSpec, models: list[CostModel], policies: int, multiple: int, seed: int) -> None:
    """Price two batches and print how long they took."""
    grid, rng = CostGrid(network, models), np.random.default_rng(seed)
    for name in ("first batch", "next batch"):
        kept = random_policies(network, policies, multiple, rng)
        start = time.perf_counter()
        grid.price(kept)
        seconds = time.perf_counter() - start
        rate = f"{policies / seconds * 60:,.0f} policies a minute"
        print(f"{', '.join(grid.names)}; {name}: {policies:,} policies in {seconds:.2f} s = {rate}")


def main() -> None:
    """Price latency alone, then all costs, and print the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=list(NETWORKS), nargs="?", default="resnet50")
    parser.add_argument("--policies", type=int, default=100_000)
    parser.add_argument("--multiple", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    network = NETWORKS[options.network]()
    table = made_up_table(network, np.random.default_rng(options.seed))
    profile = DeviceProfile.from_mapping(yaml.safe_load(PROFILE.read_text()))
    print(f"{processor()}, one core; Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{options.network}: {len(network.layers)} layers, {len(network.groups)} groups, {len(table.rows)} rows")
    latency = table.bind("net")
    models: list[CostModel] = [Macs(), Params(), latency, EnergyModel(profile, latency=latency)]
    for chosen in ([latency], models):
        report(network, chosen, options.policies, options.multiple, options.seed)


if __name__ == "__main__":
    main()
