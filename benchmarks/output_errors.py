"""Errors of single groups at the network's output in place of those of the layers that read them: better allocations?

    OMP_NUM_THREADS=1 python benchmarks/output_errors.py digits digits-vgg digits-mobilenetv2

``obc`` knows what every kept count of a group does to the layers that read it, each as a share of its own output's
energy. How much of that matters depends on what follows. Here each group is cut alone to an eighth and a half of its
units and refitted, and |y - y_dense|² / |y_dense|² of the network's outputs y is taken on 128 calibration samples, with
batch norms as they are. A power law of the kept count through both ratios corrects the layers' errors in between:

    e_g(k) <- e_g(k) · c_g · (k / K_g)^b_g

Printed are the loss and the metric on the search split of the exact programme's policy by either table, and by their
geometric mean, beside the largest uniform policy; and processor seconds of the output errors. The latency is that of
the shipped table.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ladder import Silent
from numpy.typing import NDArray

from amcsearch.config.loading import load
from amcsearch.core import BadInputError, InfeasibleBudgetError, PruningPolicy
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.search import FeasibleSet, removal_errors, resolve_budget
from amcsearch.search.exact.allocator import Allocator
from amcsearch.training.task import outputs_apart

CONFIGS = Path(__file__).parents[1] / "configs/searches"
BUDGETS = (("macs", (0.5, 0.3, 0.2, 0.15, 0.1)), ("latency_ms", (0.5, 0.35)))
SAMPLES = 128
SHARES = (8, 2)  # of the units of a group, as divisors
Tables = list[NDArray[np.float64]]


def job_of(name: str, multiple: int) -> Job:
    """Train the network and rank its channels by ``obc``."""
    settings = ["device.table=x86_epyc_avx512", "budget={macs: 0.5x}", "selection={selector: obc}"]
    settings += ["search.max_pruning_ratio=0.95", f"device.channel_multiple={multiple}"]
    config = load(CONFIGS / f"{name}.yaml", settings)
    return assemble(config, config.limits, Phases(Silent(), lambda _: None))


def apart(job: Job) -> Iterator[tuple[int, int, float]]:
    """Yield group, kept units and the error at the output, of the dense network cut in that group alone."""
    evaluator, network = job.evaluator.without_recalibration(), job.workload.trace.network
    calibration = job.evaluator.calibration or job.workload.splits.calibration
    rows = np.linspace(0, calibration.samples - 1, min(SAMPLES, calibration.samples)).round().astype(int)
    (batch,) = calibration.chosen(rows.tolist()).batched(len(rows))
    with torch.inference_mode():
        dense = batch.through(evaluator.pruned(network.dense))
        for g, group in enumerate(network.groups):
            units = group.channels // group.unit
            for kept in sorted({max(1, units // share) for share in SHARES} - {units}):
                policy = PruningPolicy({**network.dense, group.name: kept * group.unit})
                yield g, kept, float(outputs_apart(batch.through(evaluator.pruned(policy)), dense))


def corrected(job: Job) -> Tables:
    """Errors of every choice of every group as they reach the output."""
    assert job.errors is not None
    groups, choices = job.workload.trace.network.groups, job.device.space.choices
    points: dict[int, list[tuple[float, float]]] = {}
    for g, kept, error in apart(job):
        ratio = max(error, 1e-12) / max(float(job.errors[groups[g].name][kept]), 1e-12)
        points.setdefault(g, []).append((np.log(kept), np.log(ratio)))
    tables = []
    for g, errors in enumerate(removal_errors(job.device.space, job.errors)):
        x, y = np.array(points.get(g, [(0.0, 0.0)])).T
        slope = (y[-1] - y[0]) / (x[-1] - x[0]) if len(x) > 1 else 0.0
        log_kept = np.log(np.maximum(choices[g] / groups[g].unit, 0.5))
        table = errors * np.exp(y[-1] + slope * (log_kept - x[-1]))
        tables.append(np.maximum.accumulate(table[::-1])[::-1])
    return tables


def compared(name: str, multiple: int) -> None:
    """Print what the policies of a network are worth."""
    job = job_of(name, multiple)
    assert job.errors is not None
    space, grid, network = job.device.space, job.device.grid, job.workload.trace.network
    layers, begun = removal_errors(space, job.errors), time.process_time()
    output = corrected(job)
    print(f"\n{name}: {time.process_time() - begun:.1f} CPU s for the output errors of {len(output)} groups\n")
    tables = {"layers": layers, "output": output}
    tables["mean"] = [np.sqrt(a * b) for a, b in zip(layers, output, strict=True)]
    print(f"| budget | {' | '.join(tables)} | uniform |\n|---|{'---|' * (len(tables) + 1)}")
    losses = []
    for cost, shares in BUDGETS:
        for share in shares:
            try:
                limits = resolve_budget({cost: f"{share}x"}, grid.cost(network.dense))
                feasible = FeasibleSet(space, grid, limits)
            except (BadInputError, InfeasibleBudgetError):
                continue
            best = Allocator(feasible, 2000, 1e8, 4, None).best
            rows = [*map(best, tables.values()), feasible.largest_uniform()]
            found = [job.evaluator.evaluate(network.policy(row)) for row in rows]
            losses.append([each.loss for each in found])
            cells = " | ".join(f"{each.loss:.4f}, {100 * each.metric:.1f} %" for each in found)
            print(f"| {cost} {share}x | {cells} |", flush=True)
    print(f"| geometric mean | {' | '.join(f'{x:.4f}' for x in np.exp(np.log(losses).mean(axis=0)))} |")


def main() -> None:
    """Compare the allocations of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="configurations under configs/searches")
    parser.add_argument("--multiple", type=int, default=2, help="of the channels that are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        compared(name, options.multiple)


if __name__ == "__main__":
    main()
