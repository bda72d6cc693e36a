"""Optimal Brain Damage by random signs, by the exact block, by drawn labels: which says what closing a channel costs?

    python benchmarks/methods/obd_probes.py [--network resnet20] [--seed 0] [--samples 64]

Scores every channel of the trained network by the exact second derivative of its gate (one Hessian-vector product a
channel), by Hutchinson's estimate with more and more probes, and by the Gauss-Newton matrix under labels that the model
draws; prints Spearman's correlation, mean over groups, with the exact block and with the measured increase of the loss
when the channel is closed, the spread of the estimate about the exact value, and seconds.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from rank_agreement import increases
from scenes import SCENES, loaded
from scipy.stats import spearmanr
from torch.utils.data import Subset

from amcsearch.graph import HeldBatches
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.ranking import UnitScores, score_units
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.splits import stacked


def ways() -> dict[str, Criterion]:
    """The exact block first."""
    obd = CRITERIA["obd"]
    return {
        "exact": obd(method="exact"),
        **{f"gates, {k} probes": obd(method="gates", probes=k) for k in (8, 64, 256)},
        "weights, 8 probes": obd(method="weights"),
        "weights, Gauss-Newton": obd(method="weights_gauss_newton"),
        "gates, Gauss-Newton": obd(method="gauss_newton"),
        "gates, empirical Fisher": CRITERIA["fisher"](),
    }


def agreement(one: UnitScores, other: UnitScores) -> float:
    """Mean over groups of Spearman's correlation."""
    return float(np.mean([spearmanr(one[name], other[name]).statistic for name in one]))


def main() -> None:
    """Score, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20", choices=list(SCENES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = loaded(SCENES[args.network], args.seed)
    few = Subset(network.splits.calibration, range(args.samples))
    network = replace(network, splits=replace(network.splits, calibration=few))
    inputs, targets = stacked(few)
    measured = {group: both[0] for group, both in increases(network, args.samples).items()}
    print("| scored by | with the exact block | with the measured increase | error / deviation of exact | seconds |")
    print("|---|---|---|---|---|")
    exact: UnitScores = {}
    for name, criterion in ways().items():
        start = time.perf_counter()
        found = score_units(
            network.model, network.trace, {"": criterion}, HeldBatches.of(inputs, targets, args.samples), CLASS_IDS
        )[""]
        seconds = time.perf_counter() - start
        exact = exact or found
        error = np.mean([np.sqrt(np.mean((found[g] - exact[g]) ** 2)) / exact[g].std() for g in exact])
        print(
            f"| {name} | {agreement(found, exact):.2f} | {agreement(found, measured):.2f} | {error:.2f} "
            f"| {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
