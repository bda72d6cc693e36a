"""Errors of groups as they reach the network's outputs beside those of the layers that read them: better allocations?

    OMP_NUM_THREADS=1 python benchmarks/output_errors.py digits digits-vgg:8 digits-mobilenetv2:8 little strided
        [--seeds 0 1 2]

``NETWORK:MULTIPLE`` is a configuration under ``configs/searches`` on a grid of that multiple (2 by default), or one of
the little networks of ``ladder.py``. A seed changes the data split and the training. Printed are loss and metric on the
search split of the exact programme's policy by either table, beside the largest uniform policy, and what the loss is
beside that by the layers' errors: mean ± standard error over the seeds, each the geometric mean over its budgets. The
latency is that of the shipped table. CPU seconds are those of the errors at the outputs.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ladder import NETWORKS, Silent, little_job

from amcsearch.config.loading import load
from amcsearch.core import BadInputError, InfeasibleBudgetError
from amcsearch.evaluation import errors_at_outputs
from amcsearch.jobs.observer import Phases
from amcsearch.jobs.setup import Job, assemble, choice_of, error_space
from amcsearch.jobs.workload import judged_batches
from amcsearch.search import FeasibleSet, removal_errors, resolve_budget
from amcsearch.search.exact.allocator import Allocator

CONFIGS = Path(__file__).parents[1] / "configs/searches"
BUDGETS = (("macs", (0.5, 0.3, 0.2, 0.15, 0.1)), ("latency_ms", (0.5, 0.35)))


def job_of(name: str, multiple: int, seed: int) -> Job:
    """Train the network and rank its channels by ``obc``."""
    settings = ["search.max_pruning_ratio=0.95", f"device.channel_multiple={multiple}"]
    if name in NETWORKS:
        return little_job(settings, network=name, seed=seed)
    settings += ["device.table=x86_epyc_avx512", "budget={macs: 0.5x}", "selection={selector: obc}", f"seed={seed}"]
    config = load(CONFIGS / f"{name}.yaml", settings)
    return assemble(config, config.limits, Phases(Silent(), lambda _: None))


def budgets(job: Job) -> Iterator[tuple[str, FeasibleSet]]:
    """Yield what can be asked of the device, and the policies within it."""
    space, grid = job.device.space, job.device.grid
    for cost, shares in BUDGETS:
        for share in shares:
            try:
                limits = resolve_budget({cost: f"{share}x"}, grid.cost(job.workload.trace.network.dense))
                yield f"{cost} {share}x", FeasibleSet(space, grid, limits)
            except (BadInputError, InfeasibleBudgetError):
                continue


def compared(name: str, multiple: int, seed: int) -> tuple[float, float]:
    """Print what the policies of a network are worth; return its losses beside those by the layers' errors."""
    job = job_of(name, multiple, seed)
    space, network = job.device.space, job.workload.trace.network
    layers = choice_of(job.config, job.workload, job.given).errors
    assert layers is not None
    calibration, begun = judged_batches(job.config, job.workload, "calibration"), time.process_time()
    outputs = errors_at_outputs(job.evaluator, calibration, error_space(job.config, job.workload), layers)
    print(f"\n{name}, seed {seed}: {time.process_time() - begun:.1f} CPU s for {len(outputs)} groups\n")
    print("| budget | layers | outputs | uniform |\n|---|---|---|---|")
    tables, losses = [removal_errors(space, errors) for errors in (layers, outputs)], []
    for budget, feasible in budgets(job):
        best = Allocator(feasible, 2000, 1e8, 4, None).best
        rows = [*map(best, tables), feasible.largest_uniform()]
        found = [job.evaluator.evaluate(network.policy(row)) for row in rows]
        losses.append([each.loss for each in found])
        cells = " | ".join(f"{each.loss:.4f}, {100 * each.metric:.1f} %" for each in found)
        print(f"| {budget} | {cells} |", flush=True)
    by_layers, by_outputs, uniform = np.log(losses).mean(axis=0)
    return by_outputs - by_layers, uniform - by_layers


def main() -> None:
    """Compare the allocations of each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NETWORK[:MULTIPLE]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for text in options.networks:
        name, _, multiple = text.partition(":")
        changes = 100 * np.expm1([compared(name, int(multiple or 2), seed) for seed in options.seeds])  # (seeds, 2)
        error = changes.std(axis=0, ddof=1) / len(changes) ** 0.5 if len(changes) > 1 else np.full(2, np.nan)
        cells = [f"{mean:+.1f} ± {each:.1f} %" for mean, each in zip(changes.mean(axis=0), error, strict=True)]
        lines.append(f"| {text} | {len(changes)} | {' | '.join(cells)} |")
    print("\n| network | seeds | loss by errors at the outputs | of the uniform policy |\n|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
