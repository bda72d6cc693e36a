"""Orderings that need more than a few dozen steps: schedules of single weights in six times the training.

    python benchmarks/methods/longer_training.py [--epochs 24] [--sparsity 0.9] [--seeds 0 1 2]

- fine-tuned: the trained ResNet-20, pruned while it trains on: all at once, gradually, in rounds, by movement.
- from scratch: ResNet-20 as it is initialised, trained and pruned by lottery tickets that go back to the first step of
  a round, or to 5 % of it. The dense network is not stable so early, which is where late rewinding should matter
  (Frankle et al., 2019, arXiv 1903.01611).

All train for as many epochs of 512 samples, 8x8 digits, no teacher; the last epoch trains on what is left. Appends to
longer_training.csv as soon as a row is done and leaves out the rows that it has; prints test accuracy in %, mean ±
standard deviation over seeds.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Final

import torch
from cells import CELLS, measure
from scenes import SCENES, configured, loaded

OUT: Final = Path(__file__).with_suffix(".csv")
HEAD: Final = ("task", "method", "epochs", "sparsity", "seed", "before", "after")
TASKS: Final = {
    "fine-tuned": ((), ("one_shot", "gradual", "iterative", "movement")),
    "from scratch": (("model.pretrain=null",), ("lottery, rewound to 0", "lottery, rewound to 5 %")),
}


def rows() -> list[dict[str, str]]:
    """Rows that are there."""
    if not OUT.exists():
        return []
    with OUT.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = {tuple(row[name] for name in HEAD[:5]) for row in rows()}
    scene = SCENES["resnet20"]
    cells = {c.name: c for c in CELLS if (c.granularity, c.family) == ("weights", "schedule")}
    for seed in args.seeds:
        for task, (overrides, names) in TASKS.items():
            for name in names:
                key = (task, name, str(args.epochs), f"{args.sparsity}", str(seed))
                if key in done:
                    continue
                changes = (*overrides, *cells[name].overrides, f"recovery.finetune.epochs={args.epochs}")
                config = configured(scene, seed, changes)
                network = loaded(scene, seed, overrides)
                found = measure(cells[name], config, network, args.sparsity)
                with OUT.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if not file.tell():
                        writer.writerow(HEAD)
                    writer.writerow([*key, f"{100 * found.before[1]:.2f}", f"{100 * found.after[1]:.2f}"])
    stages: dict[tuple[str, ...], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows():
        for name, values in zip(("before", "after"), stages[tuple(row[name] for name in HEAD[:4])], strict=True):
            values.append(float(row[name]))
    print("| task | method | epochs | sparsity | before the last epoch | after |\n|---|---|---|---|---|---|")
    for key, found in stages.items():
        spread = [f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "" for values in found]
        cells = [f"{statistics.mean(values):.1f}{more}" for values, more in zip(found, spread, strict=True)]
        print(f"| {' | '.join((*key, *cells))} |")


if __name__ == "__main__":
    main()
