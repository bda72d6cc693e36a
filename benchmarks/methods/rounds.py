"""Pruning to a cost in one go against rounds of pruning and training, at equal training.

    python benchmarks/methods/rounds.py [--networks resnet20 mobilenetv2] [--allocation global] [--target macs=0.1x]
        [--epochs 8] [--seeds 0 1 2]

Runs what ``amcsearch prune CONFIG --target macs=0.1x --rounds R --round-shape S`` does, on networks of ``scenes.py``
(8x8 and 16x16 digits, no teacher) with the whole training split. ``before`` is test accuracy in % after the last cut,
``after`` that of the network delivered; ``cost`` is its share of the dense network's. Appends to rounds.csv as soon as
a row is done and leaves out the rows that it has; prints means ± standard deviation over seeds.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

import torch
from scenes import SCENES, configured

from amcsearch.api import prune
from amcsearch.runs import TargetGoal

OUT: Final = Path(__file__).with_suffix(".csv")
KEY: Final = ("network", "allocation", "target", "epochs", "rounds", "shape", "seed")
VALUES: Final = ("cost", "dense", "before", "after", "cpu_s")
WAYS: Final = ((1, "geometric"), (2, "geometric"), (4, "geometric"), (4, "linear"), (4, "cubic"))


def rows() -> list[dict[str, str]]:
    """Rows that are there."""
    if not OUT.exists():
        return []
    with OUT.open(newline="") as file:
        return list(csv.DictReader(file))


def measured(key: dict[str, str]) -> dict[str, str]:
    """Prune as a row says."""
    cost, _, limit = key["target"].partition("=")
    overrides = (
        f"prune={{target: {{{cost}: {limit}}}, allocation: {key['allocation']}, rounds: {key['rounds']}}}",
        f"prune.round_shape={key['shape']}",
        f"recovery.finetune.epochs={key['epochs']}",
        "device.rounds=10",  # latency is not asked for here
    )
    config = configured(SCENES[key["network"]], int(key["seed"]), overrides)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        summary = prune(config=config, folder=Path(folder) / "run").summary
    goal = summary.goal
    assert isinstance(goal, TargetGoal)
    accuracies = (f"{100 * block.metric:.2f}" for block in (summary.dense, summary.pruned, summary.finetuned))
    values = (f"{goal.achieved / goal.dense:.4f}", *accuracies, f"{time.process_time() - start:.1f}")
    return dict(zip(VALUES, values, strict=True))


def table() -> str:
    """What is measured as Markdown, one line a way."""
    stages: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows():
        stages[tuple(row[name] for name in KEY[:-1])].append(row)
    lines = [f"| {' | '.join((*KEY[:-1], 'seeds', *VALUES))} |", "|---" * (len(KEY) + len(VALUES)) + "|"]
    for key, found in stages.items():
        columns = [[float(row[name]) for row in found] for name in VALUES]
        means = [f"{statistics.mean(columns[0]):.3f}", *map(spread, columns[1:4]), f"{statistics.mean(columns[4]):.0f}"]
        lines.append(f"| {' | '.join((*key, str(len(found)), *means))} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{more}"


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenetv2"], choices=SCENES)
    parser.add_argument("--allocation", default="global")
    parser.add_argument("--target", default="macs=0.1x")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = {tuple(row[name] for name in KEY) for row in rows()}
    for network in args.networks:
        for seed in args.seeds:
            for number, shape in WAYS:
                asked = (network, args.allocation, args.target, str(args.epochs), str(number), shape, str(seed))
                if asked in done:
                    continue
                key = dict(zip(KEY, asked, strict=True))
                row = {**key, **measured(key)}
                with OUT.open("a", newline="") as file:
                    writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
                    if not file.tell():
                        writer.writeheader()
                    writer.writerow(row)
    print(table())


if __name__ == "__main__":
    main()
