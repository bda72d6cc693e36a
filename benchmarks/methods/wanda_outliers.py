"""Wanda against magnitude on the language model, as trained and with outlier features.

    python benchmarks/methods/wanda_outliers.py [--seeds 0 1 2] [--sparsities 0.5 0.7] [--share 0.04] [--factor 20]

Large language models have input features that are some twenty times as large as the others. First it is looked up
whether the trained network has any: the largest over the median norm of what each linear layer reads. Then the network
is rescaled: a share of the features that every layer norm hands on becomes ``factor`` times as large (the norm's scale
and shift), and what reads them as much smaller, so that the function stays what it was (the largest difference of its
logits is printed). Test perplexity (256 windows) of single weights pruned without any recovery, mean ± deviation over
seeds.
"""

import argparse
import copy
import math
import statistics
from collections import defaultdict

import numpy as np
import torch
from scenes import SCENES, loaded
from torch import Tensor

from amcsearch.jobs.workload import Workload
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.needs import Statistic
from amcsearch.methods.schedules.one_shot import one_shot_masks
from amcsearch.methods.statistics import gather
from amcsearch.methods.weight_choice import keep_n_of_m
from amcsearch.methods.weights import sparse_weights, weight_scores
from amcsearch.training.loop import CLASS_IDS, evaluate
from amcsearch.training.models.transformer import LanguageModel
from amcsearch.training.reading import batches_of
from amcsearch.training.sparsification import bake
from amcsearch.training.splits import stacked

BATCH = 64
WINDOWS = 256  # of the test split
WAYS = (("random", "row"), ("magnitude", "row"), ("magnitude", "layer"), ("magnitude", "network"), ("wanda", "row"))


def outliers(workload: Workload, model: LanguageModel) -> float:
    """Largest over median norm of a feature, of the layer where that is largest."""
    batches = batches_of(workload.splits.calibration, BATCH)
    *_, whole = gather(model, workload.trace, batches, CLASS_IDS, {Statistic.PATCH_PRODUCTS})
    norms = [patches.products.flatten().sqrt() for patches in whole.patches.values()]
    return max(float(norm.max() / norm.median()) for norm in norms)


def rescaled(model: LanguageModel, share: float, factor: float, seed: int) -> LanguageModel:
    """Return a copy of the same function in which a share of each norm's features is ``factor`` times as large."""
    twin, rng = copy.deepcopy(model), np.random.default_rng(seed)
    with torch.no_grad():
        for block in twin.blocks:
            readers = {block.norm1: (block.attention.q, block.attention.k, block.attention.v), block.norm2: (block.up,)}
            for norm, layers in readers.items():
                width = norm.weight.numel()
                chosen = torch.from_numpy(rng.choice(width, max(1, round(share * width)), replace=False))
                for tensor in (norm.weight, norm.bias):
                    tensor[chosen] *= factor
                for layer in layers:
                    layer.weight[:, chosen] /= factor
    return twin


def perplexities(workload: Workload, model: LanguageModel, sparsities: list[float]) -> dict[tuple[str, str], float]:
    """Test perplexity by way and sparsity."""
    data = batches_of(workload.splits.calibration, BATCH)
    test = batches_of(workload.splits.test, name="test").chosen(range(WINDOWS))
    weights = sparse_weights(model, workload.trace)
    scores = {
        name: weight_scores(model, workload.trace, CRITERIA[name](), weights, data, CLASS_IDS)
        for name in dict.fromkeys(name for name, _ in WAYS)
    }

    def pruned(kept: dict[str, Tensor]) -> float:
        smaller = copy.deepcopy(model)
        bake(smaller, kept)
        return math.exp(evaluate(smaller, test)[0])

    found = {("dense", f"{sparsities[0]:g}"): math.exp(evaluate(model, test)[0])}
    for name, within in WAYS:
        for sparsity in sparsities:
            found[f"{name}, per {within}", f"{sparsity:g}"] = pruned(one_shot_masks(scores[name], sparsity, within))
    for name in ("magnitude", "wanda"):
        kept = {tensor: keep_n_of_m(value, 2, 4) for tensor, value in scores[name].items()}
        found[f"{name}, 2 of 4", "0.5"] = pruned(kept)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--share", type=float, default=0.04)
    parser.add_argument("--factor", type=float, default=20.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in args.seeds:
        network = loaded(SCENES["language_model"], seed)
        model = network.model
        assert isinstance(model, LanguageModel)
        twin = rescaled(model, args.share, args.factor, seed)
        tokens = stacked(network.splits.test, limit=32)[0]
        with torch.inference_mode():
            gap = float((model(tokens) - twin(tokens)).abs().max())
        for title, one in (("as trained", model), ("with outlier features", twin)):
            print(f"seed {seed}, {title}: largest over median feature norm {outliers(network, one):.1f}, gap {gap:.1e}")
            for key, value in perplexities(network, one, args.sparsities).items():
                rows[title][key].append(value)
    columns = [f"{sparsity:g}" for sparsity in args.sparsities]
    for title, found in rows.items():
        print(f"\n| {title} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for way in dict.fromkeys(key[0] for key in found):
            cells = [found.get((way, column)) for column in columns]
            print(f"| {way} | {' | '.join(_cell(values) for values in cells)} |")


def _cell(values: list[float] | None) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if values else ""


if __name__ == "__main__":
    main()
