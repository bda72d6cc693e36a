"""At equal MACs, the policy of least energy and the one of least latency: how they differ, and which layers say why.

    OMP_NUM_THREADS=1 python benchmarks/energy/policies_differ.py configs/searches/digits.yaml
    OMP_NUM_THREADS=1 python benchmarks/energy/policies_differ.py configs/searches/digits-mobilenetv2.yaml

Both policies are searched by the same evolution over the configuration's channel grid, with no accuracy in sight: half
the dense network's MACs, within 1 %. Latency is the measured table's, energy the device profile's.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amcsearch.config.loading import load
from amcsearch.core.policy import PolicySpace
from amcsearch.costs.grid import CostGrid
from amcsearch.jobs.device import load_device
from amcsearch.jobs.workload import load_workload

POPULATION, GENERATIONS, RESTARTS = 256, 150, 4
TOLERANCE = 0.01
SHOWN = 8


def mutated(space: PolicySpace, kept: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Children (P, G) of policies: two parents mixed, and one group in five moved along its choices."""
    mates = kept[rng.permutation(len(kept))]
    child = np.where(rng.random(kept.shape) < 0.5, kept, mates)
    for g, choices in enumerate(space.choices):
        moved = rng.random(len(child)) < 0.2
        place = np.searchsorted(choices, child[:, g]) + rng.integers(-2, 3, len(child)) * moved
        child[:, g] = np.array(choices)[np.clip(place, 0, len(choices) - 1)]
    return child


def best(grid: CostGrid, space: PolicySpace, name: str, macs: float, seed: int) -> NDArray[np.int64]:
    """Policy (G,) of least ``name`` with ``macs`` within the tolerance."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(RESTARTS):
        kept = np.stack([rng.choice(choices, POPULATION) for choices in space.choices], axis=1)
        for _ in range(GENERATIONS):
            kept = np.unique(np.concatenate([kept, mutated(space, kept, rng)]), axis=0)
            prices = grid.price(kept)
            excess = np.maximum(np.abs(prices["macs"] / macs - 1.0) - TOLERANCE, 0.0)
            scores = prices[name] / prices[name].min() + 100.0 * excess
            kept = kept[np.argsort(scores, kind="stable")[:POPULATION]]
        found.append(kept[0])
    whole = grid.price(np.stack(found))
    within = np.abs(whole["macs"] / macs - 1.0) <= TOLERANCE * (1 + 1e-9)
    return found[int(np.argmin(np.where(within, whole[name], np.inf)))]


def main() -> None:
    """Print both policies, their costs, and the layers between them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    options = parser.parse_args()
    config = load(options.config, ["device.table=x86_epyc_avx512"])
    workload = load_workload(config, train=False)
    device = load_device(config, workload, config.limits)
    spec, grid = workload.trace.network, device.grid
    start = time.perf_counter()
    target = 0.5 * grid.cost(spec.dense)["macs"]
    policies = {name: best(grid, device.space, name, target, config.seed) for name in ("energy_mj", "latency_ms")}
    seconds = time.perf_counter() - start
    kept = np.stack(list(policies.values()))
    prices, layers = grid.price(kept), grid.price_layers(kept)
    dense = grid.cost(spec.dense)
    print(f"{config.name}: {Path(str(config.device.profile)).stem}, both searches {seconds:.1f} s")
    print(f"{'least':>12} {'MACs':>12} {'energy mJ':>10} {'latency ms':>10}")
    print(f"{'dense':>12} {dense['macs']:12,.0f} {dense['energy_mj']:10.4f} {dense['latency_ms']:10.4f}")
    for row, name in enumerate(policies):
        macs, energy, latency = (prices[key][row] for key in ("macs", "energy_mj", "latency_ms"))
        print(f"{name:>12} {macs:12,.0f} {energy:10.4f} {latency:10.4f}")
    print("\nkept channels (least energy | least latency), where they differ")
    for group, a, b in zip(spec.groups, *kept, strict=True):
        if a != b:
            print(f"{group.name:32} {a:5} | {b:5}  of {group.channels}")
    print(f"\nlayers that differ most: {'MACs':>23} {'energy µJ':>17} {'latency µs':>17}")
    gap = np.abs(np.diff(layers["energy_mj"] / prices["energy_mj"][1], axis=0))[0]
    gap += np.abs(np.diff(layers["latency_ms"] / prices["latency_ms"][0], axis=0))[0]
    for index in np.argsort(-gap)[:SHOWN]:
        pairs = [f"{1e3 * layers[name][0, index]:8.2f}|{1e3 * layers[name][1, index]:8.2f}" for name in policies]
        macs = f"{layers['macs'][0, index]:11,.0f}|{layers['macs'][1, index]:11,.0f}"
        print(f"{spec.layers[index].name:24} {macs} {' '.join(pairs)}")


if __name__ == "__main__":
    main()
