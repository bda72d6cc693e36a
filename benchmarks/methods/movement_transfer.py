"""Movement against magnitude when fine-tuning, on the task that the network knows and on another.

    python benchmarks/methods/movement_transfer.py [--seeds 0 1 2] [--sparsity 0.9] [--epochs 4]

Movement pruning was made for transfer: weights that are large because another task needed them. The vision transformer
is pruned while it is fine-tuned on the digits that it was trained on, and on the same digits turned by a quarter (the
labels stay), where the trained network is near chance. Prints test accuracy in %, before and after the last epoch, mean
± standard deviation over seeds. Magnitude is what the first two schedules rank by.
"""

import argparse
import statistics
from dataclasses import replace

import torch
from cells import CELLS, measure
from scenes import SCENES, configured, loaded
from torch.utils.data import TensorDataset

from amcsearch.jobs.workload import Workload
from amcsearch.training.splits import DataSplits, stacked

NAMES = ("one_shot", "gradual", "movement")


def turned(workload: Workload) -> Workload:
    """Return the network with every split turned by a quarter."""
    found = {}
    for name in ("train", "calibration", "search", "test"):
        inputs, targets = stacked(getattr(workload.splits, name))
        found[name] = TensorDataset(torch.rot90(inputs, 1, (2, 3)).contiguous(), targets)
    return replace(workload, splits=DataSplits(**found))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scene = SCENES["vit"]
    print("| task | method | dense, untuned | before | after |\n|---|---|---|---|---|")
    for task, change in (("the same", lambda network: network), ("turned", turned)):
        for cell in [c for c in CELLS if (c.granularity, c.family) == ("weights", "schedule") and c.name in NAMES]:
            rows = []
            for seed in args.seeds:
                config = configured(scene, seed, [*cell.overrides, f"recovery.finetune.epochs={args.epochs}"])
                found = measure(cell, config, change(loaded(scene, seed)), args.sparsity)
                rows.append([100 * stage[1] for stage in (found.dense, found.before, found.after)])
            cells = (f"{statistics.mean(c):.1f} ± {statistics.stdev(c):.1f}" for c in zip(*rows, strict=True))
            print(f"| {task} | {cell.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
