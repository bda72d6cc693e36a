"""Does a criterion order channels as the loss does? Spearman's rank correlation, layer by layer.

    python benchmarks/methods/rank_agreement.py [--config configs/searches/digits.yaml] [--seeds 0 1 2]
                                                [--out benchmarks/methods]

Closes every single channel of the trained network, all others open, without recalibration, and measures the loss on the
calibration split, the samples the criteria look at: once with the channel's contribution gone (closed), once with its
mean in the readers' biases (folded). Within every group each criterion's scores are compared with the two increases. A
seed changes the data split and the training. Writes rank_agreement.csv (criterion, group, seed, the two correlations)
and rank_agreement.png (means over seeds). It shows correctness: what a formula approximates, it must order.
"""

import argparse
import copy
import csv
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from scenes import seeded
from scipy.stats import spearmanr

from amcsearch.evaluation.evaluator import default_batch_size
from amcsearch.graph import HeldBatches
from amcsearch.graph.masks import masked
from amcsearch.graph.removal import remove
from amcsearch.jobs.workload import Workload, load_workload
from amcsearch.methods.criteria import ALIASES, CRITERIA
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.ranking import score_units
from amcsearch.recovery.bias import fold_means, input_means
from amcsearch.training.loop import CLASS_IDS, evaluate
from amcsearch.training.splits import stacked

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Increases = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # group → (closed, folded), (n_units,) each
WAYS = ("closed", "folded")


def criteria() -> dict[str, Criterion]:
    """Every row of the registry, its aliases, and the variants whose formula differs."""
    variants: dict[str, Criterion] = {
        **{alias: CRITERIA[name](**params) for alias, (name, params) in ALIASES.items()},
        "obd": CRITERIA["obd"](method="gauss_newton"),  # as the rows were measured
        "obd, gates": CRITERIA["obd"](method="gates"),
        "obd, gates, first order too": CRITERIA["obd"](method="gates", first_order=True),
        "obd, weights": CRITERIA["obd"](method="weights"),
        "obd, weights_gauss_newton": CRITERIA["obd"](method="weights_gauss_newton"),
        "fisher, per weight": CRITERIA["fisher"](per_weight=True),
        "activation_variance, bare": CRITERIA["activation_variance"](weighted=False),
        "movement, half masked": CRITERIA["movement"](keep=0.5),
    }
    return {**{name: make() for name, make in CRITERIA.items()}, **variants}


def increases(workload: Workload, batch_size: int) -> Increases:
    """Measure the loss without each unit, minus the dense loss, in nats."""
    model, trace = workload.model, workload.trace
    inputs, targets = stacked(workload.splits.calibration)
    means = input_means(model, trace, HeldBatches.of(inputs, targets, batch_size), CLASS_IDS)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # a CPU's forward passes like it better
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    dense, _ = evaluate(model, HeldBatches.of(inputs, targets, batch_size))
    found: Increases = {}
    for group in trace.network.groups:
        both: list[tuple[float, float]] = []
        for unit in trace.units[group.name]:
            kept = {group.name: np.setdiff1d(np.arange(group.channels), unit)}
            with masked(model, trace, kept):
                closed, _ = evaluate(model, HeldBatches.of(inputs, targets, batch_size))
            smaller = remove(model, trace, kept).eval()
            fold_means(smaller, trace, kept, means)
            both.append((closed - dense, evaluate(smaller, HeldBatches.of(inputs, targets, batch_size))[0] - dense))
        columns = np.array(both)
        found[group.name] = columns[:, 0], columns[:, 1]
    return found


def agreement(workload: Workload, names: dict[str, Criterion]) -> list[tuple[str, str, float, float]]:
    """Return (criterion, group, correlation with closed, with folded)."""
    inputs, targets = stacked(workload.splits.calibration)
    batch_size = default_batch_size(HeldBatches.of(inputs, targets, 1))
    true = increases(workload, batch_size)
    scores = score_units(workload.model, workload.trace, names, HeldBatches.of(inputs, targets, batch_size), CLASS_IDS)
    return [
        (name, group, *(float(spearmanr(scores[name][group], measured).statistic) for measured in both))
        for name in names
        for group, both in true.items()
    ]


def draw(rows: list[tuple[str, str, float, float]], path: Path, title: str) -> None:
    """Two panels, one a way: criteria in order of their mean, groups in order of execution."""
    names, groups = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 1))
    figure, axes = plt.subplots(1, 2, figsize=(15, 0.36 * len(names) + 2.2), layout="constrained")
    for axis, way, column in zip(axes, WAYS, (2, 3), strict=True):
        mean = {
            (name, group): np.mean([row[column] for row in rows if row[:2] == (name, group)])
            for name in names
            for group in groups
        }
        order = sorted(names, key=lambda name: -sum(mean[name, group] for group in groups))
        table = np.array(
            [[*(mean[name, g] for g in groups), np.mean([mean[name, g] for g in groups])] for name in order]
        )
        picture = axis.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        axis.set_xticks(range(len(groups) + 1), [*groups, "mean"], rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(order)), order, fontsize=8)
        axis.axvline(len(groups) - 0.5, color="black", linewidth=1.5)
        for i, j in np.ndindex(*table.shape):
            colour = "white" if abs(table[i, j]) > 0.65 else "black"
            axis.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", fontsize=6, color=colour)
        axis.set_title(f"channel {way}", fontsize=10)
    figure.colorbar(picture, ax=axes, label="Spearman's rank correlation", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write the table, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/searches/digits.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/methods"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with (args.out / "rank_agreement.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["criterion", "group", "seed", *WAYS])
        for seed in args.seeds:
            config = seeded(args.config, seed)
            for row in agreement(load_workload(config), criteria()):
                writer.writerow([row[0], row[1], seed, f"{row[2]:.4f}", f"{row[3]:.4f}"])
                rows.append(row)
            file.flush()
    title = f"{config.name}: criteria against the measured loss increase of each channel, mean of seeds {args.seeds}"
    draw(rows, args.out / "rank_agreement.png", title)
    for name in dict.fromkeys(row[0] for row in rows):
        closed, folded = (np.mean([row[i] for row in rows if row[0] == name]) for i in (2, 3))
        print(f"{name:28s} closed {closed:6.3f}   folded {folded:6.3f}")


if __name__ == "__main__":
    main()
