"""Every method on every reference network at equal sparsity and equal training, before and after recovery.

    python benchmarks/methods/all_methods.py [--networks resnet20 …] [--families criterion …] [--methods taylor …]
                                             [--granularities channels weights] [--seeds 0 1 2] [--out FOLDER]

Appends a row to all_methods.csv as soon as a cell is done and leaves out the cells that it has: stop it and start it
again as you like. ``all_methods_report.py`` makes the tables and the picture of the rows. What a cell is: ``cells.py``;
which networks, how sparse, how long: ``scenes.py``. A seed changes the data split (digits) and every training.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Final

import torch
from cells import CELLS, Cell, measure
from scenes import SCENES, configured, loaded

from amcsearch.core.errors import BadInputError

KEY: Final = ("network", "granularity", "family", "method", "seed")
NUMBERS: Final = (
    *("sparsity", "dense_loss", "dense_accuracy", "before_loss", "before_accuracy", "after_loss", "after_accuracy"),
    *("prune_s", "recover_s"),
)


def done(path: Path) -> set[tuple[str, ...]]:
    """Keys of the rows that are there; the header is written where the file is not."""
    if not path.exists():
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([*KEY, *NUMBERS, "note"])
    with path.open(newline="") as file:
        return {tuple(row[name] for name in KEY) for row in csv.DictReader(file)}


def row(cell: Cell, name: str, seed: int) -> list[str]:
    """Measure a cell: its numbers and no note, or no numbers and the reason."""
    scene = SCENES[name]
    sparsity = scene.channels if cell.granularity == "channels" else scene.weights
    try:
        found = measure(cell, configured(scene, seed, cell.overrides), loaded(scene, seed), sparsity)
    except BadInputError as error:
        return ["" for _ in NUMBERS] + [str(error)]
    numbers = (*found.dense, *found.before, *found.after)
    return [f"{sparsity}", *(f"{n:.4f}" for n in numbers), f"{found.prune_s:.2f}", f"{found.recover_s:.2f}", ""]


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(SCENES), choices=list(SCENES))
    parser.add_argument("--families", nargs="+", default=["criterion", "selector", "gate", "schedule"])
    parser.add_argument("--granularities", nargs="+", default=["channels", "weights"])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/methods"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.out / "all_methods.csv"
    there = done(path)
    asked = [c for c in CELLS if c.family in args.families and c.granularity in args.granularities]
    asked = [c for c in asked if args.methods is None or c.name in args.methods]
    for network in args.networks:
        for seed in args.seeds:
            for cell in asked:
                key = network, cell.granularity, cell.family, cell.name, str(seed)
                if key in there:
                    continue
                start = time.perf_counter()
                values = row(cell, network, seed)
                with path.open("a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow([*key, *values])
                print(*key, *values, f"({time.perf_counter() - start:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
