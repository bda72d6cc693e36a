"""All criteria from one calibration pass: does the total stay within three times the slowest criterion alone?

    python benchmarks/methods/one_pass.py [--config configs/searches/digits.yaml] [--repeats 5] [--out FOLDER]

Times every criterion alone and all of them together on the configuration's trained network and calibration split, in
rounds of shuffled order on one thread, and writes one_pass.csv: median seconds and the ratio to the slowest alone.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from amcsearch.config.loading import load
from amcsearch.evaluation.evaluator import default_batch_size
from amcsearch.graph import HeldBatches
from amcsearch.jobs.workload import load_workload
from amcsearch.methods.criteria import ALIASES, CRITERIA
from amcsearch.methods.ranking import score_units
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.splits import stacked

TOGETHER, SUM = "all together", "sum of all alone"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/searches/digits.yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/methods"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    workload = load_workload(load(args.config))
    inputs, targets = stacked(workload.splits.calibration)
    batch_size = default_batch_size(HeldBatches.of(inputs, targets, 1))
    every = {name: make() for name, make in CRITERIA.items()}
    every |= {alias: CRITERIA[name](**params) for alias, (name, params) in ALIASES.items()}
    ways = {**{name: {name: criterion} for name, criterion in every.items()}, TOGETHER: every}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rng = np.random.default_rng(0)
    for round_number in range(args.repeats + 1):  # the first is warm-up
        for name in rng.permutation(list(ways)):
            start = time.perf_counter()
            score_units(
                workload.model, workload.trace, ways[str(name)], HeldBatches.of(inputs, targets, batch_size), CLASS_IDS
            )
            if round_number:
                seconds[str(name)].append(time.perf_counter() - start)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    alone = {name: median[name] for name in every}
    slowest = max(alone.values())
    rows = [*sorted(alone.items(), key=lambda row: row[1]), (SUM, sum(alone.values())), (TOGETHER, median[TOGETHER])]
    with (args.out / "one_pass.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["criterion", "seconds", "times the slowest alone"])
        for name, taken in rows:
            writer.writerow([name, f"{taken:.3f}", f"{taken / slowest:.2f}"])
            print(f"{name:22s} {taken:8.3f} s  {taken / slowest:5.2f}")
    print(f"{len(inputs)} samples in batches of {batch_size}; torch {torch.__version__}; {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
