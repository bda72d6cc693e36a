"""Prune a real trained sentence encoder without labels: how much of its embeddings does each way of choosing keep?

    pip install -c constraints.txt '.[benchmarks]'
    python benchmarks/methods/sentence_encoder.py channels [--seeds 0 1 2] [--ratios 0.1 0.3 0.5] [--out FOLDER]
    python benchmarks/methods/sentence_encoder.py weights [--seeds 0 1 2]

channels: every layer loses the same share of its heads and of its feed-forward width (``ratios``, share REMOVED, to the
nearest whole head), chosen by each criterion or selector, then refitted or not; no training. weights: half of all
single weights of the 36 matrices are zeroed, compared within a row, a layer or runs of four (2:4). A seed draws other
calibration sentences (and random choices); the held-out sentences stay. Measured on those: the mean cosine between the
pruned and the dense embedding, and Spearman's rank correlation between the cosine similarities of all pairs of
sentences before and after. Writes sentence_encoder_channels.csv and .png, and sentence_encoder_weights.csv.
"""

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.config.loading import load
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.costs.compute import macs
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import HeldBatches
from amcsearch.jobs.workload import Workload, load_workload
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.criteria.random_order import RandomOrder
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.ranking import Ranking, rank_units
from amcsearch.methods.schedules.one_shot import one_shot_masks
from amcsearch.methods.selector import Calibration, problem_of, select
from amcsearch.methods.selectors import SELECTORS
from amcsearch.methods.weight_choice import keep_n_of_m
from amcsearch.methods.weights import sparse_weights, weight_scores
from amcsearch.recovery.bias import means_for
from amcsearch.recovery.refit import Reconstruction
from amcsearch.training.data import dense_outputs
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.reading import batches_of
from amcsearch.training.splits import stacked

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CONFIG = "configs/searches/sentence-encoder.yaml"
BATCH = 32
SAMPLES = 128  # calibration sentences
REFITTED = ("random", "magnitude", "activation_variance", "wanda_channels", "true_fisher")  # also with least squares
Agreement = tuple[float, float]  # mean cosine, Spearman's correlation of pairwise similarities


def agreement(model: nn.Module, inputs: Tensor, dense: Tensor) -> Agreement:
    """Compare a model's embeddings of ``inputs`` with the dense ones, (N, D)."""
    found = dense_outputs(model, inputs, BATCH)
    cosine = F.cosine_similarity(found, dense, dim=-1).mean()
    return float(cosine), float(spearmanr(_similarities(found), _similarities(dense)).statistic)


def _similarities(embeddings: Tensor) -> NDArray[np.float32]:
    unit = F.normalize(embeddings, dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit @ unit.T)[first, second].numpy()


def criteria(seed: int) -> dict[str, Criterion]:
    """Those that say something where the gradient of the loss is 0."""
    return {
        "random": RandomOrder(seed),
        "magnitude": CRITERIA["magnitude"](),
        "activation_magnitude": CRITERIA["activation_magnitude"](),
        "activation_variance": CRITERIA["activation_variance"](),
        "wanda_channels": CRITERIA["wanda_channels"](),
        "true_fisher": CRITERIA["fisher"](labels="model", seed=seed),
        "obd": CRITERIA["obd"](method="gates", probes=1, seed=seed),
    }


def drawn(workload: Workload, seed: int) -> tuple[Tensor, Tensor]:
    """Calibration sentences of the train split, with their dense embeddings."""
    inputs, targets = stacked(workload.splits.train)
    rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    return inputs[rows], targets[rows]


def ways(workload: Workload, seed: int) -> Iterator[tuple[str, str, float, Evaluator]]:
    """Yield (chosen by, refit, seconds to choose, evaluator)."""
    model, trace, test = workload.model, workload.trace, batches_of(workload.splits.test, 128)
    inputs, targets = drawn(workload, seed)
    batches = HeldBatches.of(inputs, targets, BATCH)
    orders: dict[str, tuple[Ranking, float]] = {}
    for name, criterion in criteria(seed).items():
        start = time.perf_counter()
        ranking = rank_units(model, trace, criterion, batches, CLASS_IDS)
        orders[name] = ranking, time.perf_counter() - start
        means = means_for(criterion, model, trace, batches, CLASS_IDS)
        evaluator = Evaluator(model, trace, ranking, batches, test, means=means)
        yield name, "none" if means is None else "means folded", orders[name][1], evaluator
    start = time.perf_counter()
    problem = problem_of(Calibration(model, trace, batches, CLASS_IDS))
    selection = select(problem, SELECTORS["thinet"]())
    ranking, seen = selection.orders, selection.inputs
    orders["thinet"] = ranking, time.perf_counter() - start
    refit = Reconstruction(model, trace, seen.values(), "least_squares")
    for name in (*REFITTED, "thinet"):
        ranking, seconds = orders[name]
        evaluator = Evaluator(model, trace, ranking, batches, test, reconstruction=refit)
        yield name, "least squares", seconds, evaluator


def uniform(workload: Workload, ratio: float) -> tuple[PruningPolicy, float]:
    """The policy that removes ``ratio`` of every group, to whole heads, and the share of MACs that it saves."""
    spec = workload.trace.network
    space = PolicySpace.on_grid(spec.groups)
    policy = spec.policy(space.nearest([ratio] * len(space.groups)))
    before, after = (sum(map(macs, network_.layers)) for network_ in (spec, spec.with_channels(policy)))
    return policy, 1.0 - after / before


def channels(seeds: list[int], ratios: list[float], out: Path) -> None:
    """Measure, write the table, draw it."""
    found: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (out / "sentence_encoder_channels.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["chosen_by", "refit", "ratio", "macs_saved", "seed", "cosine", "spearman", "seconds_to_choose"]
        )
        workload = load_workload(load(CONFIG))
        inputs, dense = stacked(workload.splits.test)
        for seed in seeds:
            for name, refit, seconds, evaluator in ways(workload, seed):
                for ratio in ratios:
                    policy, saved = uniform(workload, ratio)
                    cosine, spearman = agreement(evaluator.pruned(policy), inputs, dense)
                    numbers = f"{saved:.4f}", seed, f"{cosine:.5f}", f"{spearman:.5f}", f"{seconds:.2f}"
                    writer.writerow([name, refit, ratio, *numbers])
                    found[name, refit][saved].append(cosine)
                file.flush()
                print(f"seed {seed} {name}, {refit}: {cosine:.4f} at {ratio:g}, chosen in {seconds:.1f} s", flush=True)
    draw(found, out / "sentence_encoder_channels.png")


def draw(found: Mapping[tuple[str, str], Mapping[float, list[float]]], path: Path) -> None:
    """Cosine over MACs saved, one line a way: means over seeds with their range."""
    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = dict(zip(dict.fromkeys(name for name, _ in found), plt.get_cmap("tab10").colors, strict=False))
    for (name, refit), rows in found.items():
        colour = colours[name]
        x = [100 * saved for saved in rows]
        mean = [float(np.mean(values)) for values in rows.values()]
        style = {"none": "-", "means folded": "-."}.get(refit, "--")
        axis.plot(x, mean, style, marker="o", markersize=3, color=colour, label=f"{name}, {refit}")
        axis.fill_between(x, *zip(*((min(v), max(v)) for v in rows.values()), strict=True), color=colour, alpha=0.15)
    axis.set(xlabel="MACs saved (%)", ylabel="Mean cosine to the dense embedding, held-out sentences")
    axis.set_title("all-MiniLM-L6-v2: heads and feed-forward widths removed, no training")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)


def weights(seeds: list[int], out: Path, sparsity: float = 0.5) -> None:
    """Zero half of the single weights by magnitude, Wanda and chance, within rows, layers and runs of four."""
    with (out / "sentence_encoder_weights.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["criterion", "within", "sparsity", "seed", "cosine", "spearman"])
        workload = load_workload(load(CONFIG))
        model, (inputs, dense) = workload.model, stacked(workload.splits.test)
        own = sparse_weights(model, workload.trace)
        before = {name: parameter.detach().clone() for name, parameter in own.items()}
        for seed in seeds:
            calibration = HeldBatches.of(*drawn(workload, seed), BATCH)
            chosen = {"random": RandomOrder(seed), "magnitude": CRITERIA["magnitude"](), "wanda": CRITERIA["wanda"]()}
            for name, criterion in chosen.items():
                scores = weight_scores(model, workload.trace, criterion, before, calibration, CLASS_IDS)
                kept = {
                    "row": one_shot_masks(scores, sparsity, "row"),
                    "layer": one_shot_masks(scores, sparsity, "layer"),
                    "2:4": {key: keep_n_of_m(value, 2, 4) for key, value in scores.items()},
                }
                for within, mask in kept.items():
                    with torch.no_grad():
                        for key, parameter in own.items():
                            parameter.copy_(before[key] * mask[key])
                        cosine, spearman = agreement(model, inputs, dense)
                        for key, parameter in own.items():
                            parameter.copy_(before[key])
                    writer.writerow([name, within, sparsity, seed, f"{cosine:.5f}", f"{spearman:.5f}"])
                    print(f"seed {seed} {name} within {within}: {cosine:.4f}, {spearman:.4f}", flush=True)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("channels", "weights"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.3, 0.5])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/methods"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "channels":
        channels(args.seeds, args.ratios, args.out)
    else:
        weights(args.seeds, args.out)


if __name__ == "__main__":
    main()
