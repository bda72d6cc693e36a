"""How many policies can be priced a minute: MACs, parameters, latency and energy of ResNet-20, in one batch.

    OMP_NUM_THREADS=1 python benchmarks/pricing.py [--policies 1000000]

Policies are drawn at arbitrary widths, off the channel grid, so that as many different layer shapes as possible occur.
The latency table is made up (speed does not depend on its numbers): 40 rows a layer shape, the rest is interpolated.
"first batch" includes asking the cost models for every shape; "next batch" is other policies of the same network.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from amcsearch.core import LayerKind, NetworkSpec
from amcsearch.costs import CostGrid, DeviceProfile, EnergyModel, LatencyTable, Macs, Params, macs
from amcsearch.costs.latency_table import COLUMNS, row_key
from amcsearch.graph import trace
from amcsearch.training.models import resnet20

PROFILE = Path(__file__).parents[1] / "configs" / "devices" / "x86_server.yaml"
ROWS_PER_LAYER = 40


def random_policies(network: NetworkSpec, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Kept counts (count, G), each uniform over what its group allows."""
    columns = [g.unit * rng.integers(1, g.channels // g.unit + 1, count) for g in network.groups]
    return np.stack(columns, axis=1)


def made_up_table(network: NetworkSpec, rng: np.random.Generator) -> LatencyTable:
    """Rows as if random variants had been measured: a microsecond, and 10 GMAC/s."""
    rows = {}
    for kept in random_policies(network, ROWS_PER_LAYER, rng):
        for layer in network.with_channels(network.policy(kept)).layers:
            if layer.kind is not LayerKind.BATCH_NORM:
                rows[row_key(layer)] = 1e-3 + macs(layer) / 1e7
    frame = pd.DataFrame([(*key, ms, 0.0, 1, "made up") for key, ms in rows.items()], columns=list(COLUMNS))
    return LatencyTable(frame, {"provenance": {"cpu": "made up"}, "calibration": {"constant_ms": 0.005}})


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Price two batches and print the rates and the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    network = trace(resnet20(in_channels=3), torch.zeros(1, 3, 32, 32), verify=False).network
    table = made_up_table(network, rng)
    profile = DeviceProfile.from_mapping(yaml.safe_load(PROFILE.read_text()))
    grid = CostGrid(network, [Macs(), Params(), table, EnergyModel(profile, latency=table)])
    print(f"{processor()}, one core; Python {platform.python_version()}, numpy {np.__version__}")
    print(f"ResNet-20: {len(network.layers)} layers, {len(network.groups)} groups; costs: {', '.join(grid.names)}")
    for name in ("first batch", "next batch"):
        kept = random_policies(network, options.policies, rng)
        start = time.perf_counter()
        grid.price(kept)
        seconds = time.perf_counter() - start
        rate = options.policies / seconds * 60
        amount = f"{options.policies:,} policies x {len(grid.names)} costs"
        print(f"{name}: {amount} in {seconds:.2f} s = {rate:,.0f} policies a minute")


if __name__ == "__main__":
    main()
