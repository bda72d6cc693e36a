"""Our criteria beside Torch-Pruning's importance classes: same network, groups and data.

    python benchmarks/methods/torch_pruning_agreement.py [--config configs/searches/digits.yaml] [--out FOLDER]

For every class that has a counterpart here it prints and writes (torch_pruning_agreement.csv) Spearman's correlation
of the two within groups (mean and lowest), that of each with the measured loss increase of closing a single channel
(mean over groups), and seconds to score all groups from the data, without tracing. Then it shows by experiment what is
wrong with the classes: what they would have to give, and what they give.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from rank_agreement import increases
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from amcsearch.config.loading import load
from amcsearch.core.group import Side
from amcsearch.evaluation.evaluator import default_batch_size
from amcsearch.graph import HeldBatches
from amcsearch.jobs.workload import Workload, load_workload
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.global_ranking import normalised
from amcsearch.methods.ranking import UnitScores, score_units
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.splits import stacked

Data = tuple[Tensor, Tensor]


class Theirs:
    """Torch-Pruning's groups of the network, one for each of ours, in our order of channels."""

    def __init__(self, workload: Workload) -> None:
        self.model = workload.model.eval()
        graph = tp.DependencyGraph().build_dependency(self.model, workload.example.chosen([0]).args[0])
        modules = dict(self.model.named_modules())
        self.groups: dict[str, tuple[Any, NDArray[np.int64]]] = {}
        for group in workload.trace.network.groups:
            parts = workload.trace.slices[group.name]
            root = next(p for p in parts if p.side is Side.OUT and p.tensor.endswith("weight"))
            module = modules[root.layer]
            prune = graph.get_pruner_of_module(module).prune_out_channels
            self.groups[group.name] = (
                graph.get_pruning_group(module, prune, list(range(group.channels))),
                root.positions[:, 0],
            )

    def score(self, importance: Callable[[Any], Tensor]) -> UnitScores:
        """Score every group by one of their classes."""
        return {name: importance(group).double().numpy()[order] for name, (group, order) in self.groups.items()}

    def magnitude(self, _: Data, __: int) -> UnitScores:
        """Weights alone."""
        return self.score(tp.importance.GroupMagnitudeImportance(p=2, normalizer=None))

    def scale(self, _: Data, __: int) -> UnitScores:
        """Batch norms alone."""
        return self.score(tp.importance.BNScaleImportance(normalizer=None))

    def lamp(self, _: Data, __: int) -> UnitScores:
        """Weights, normalised."""
        return self.score(tp.importance.LAMPImportance())

    def taylor(self, data: Data, batch_size: int, *, joint: bool = False) -> UnitScores:
        """Gradient of the mean loss over all samples."""
        self.model.zero_grad()
        for x, y in zip(data[0].split(batch_size), data[1].split(batch_size), strict=True):
            (CLASS_IDS(self.model(x), y) * (len(x) / len(data[0]))).backward()  # type: ignore[no-untyped-call]
        return self.score(tp.importance.GroupTaylorImportance(normalizer=None, multivariable=joint))

    def joint(self, data: Data, batch_size: int) -> UnitScores:
        """As ``taylor``, sums before absolute values within a layer."""
        return self.taylor(data, batch_size, joint=True)

    def hessian(self, data: Data, batch_size: int) -> UnitScores:
        """As their example: accumulate the gradient of every sample."""
        importance = tp.importance.GroupHessianImportance(normalizer=None)
        for x, y in zip(data[0].split(batch_size), data[1].split(batch_size), strict=True):
            for loss in F.cross_entropy(self.model(x), y, reduction="none"):
                self.model.zero_grad()
                loss.backward(retain_graph=True)
                importance.accumulate_grad(self.model)
        return self.score(importance)

    def activation(self, data: Data, batch_size: int) -> UnitScores:
        """As their example: run all batches inside the context."""
        importance = tp.importance.ActivationImportance(normalizer=None)
        with importance.compute_importance(self.model), torch.no_grad():
            for x in data[0].split(batch_size):
                self.model(x)
        return self.score(importance)


def spearman(one: UnitScores, other: UnitScores) -> NDArray[np.float64]:
    """One correlation a group."""
    return np.array([float(spearmanr(one[name], other[name]).statistic) for name in one])


def gap(one: UnitScores, other: UnitScores) -> float:
    """Largest relative difference of two scorings."""
    return max(float((np.abs(one[n] - other[n]) / np.maximum(np.abs(other[n]), 1e-30)).max()) for n in one)


def timed(call: Callable[[], UnitScores]) -> tuple[UnitScores, float]:
    """Result and the seconds of the faster of two calls."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        result = call()
        taken.append(time.perf_counter() - start)
    return result, min(taken)


def defects(theirs: Theirs, data: Data, batch_size: int) -> list[str]:
    """Say by experiment what is wrong with a class."""
    last = data[0][-1:], data[1][-1:]
    hessian = gap(theirs.hessian(data, batch_size), theirs.hessian(last, 1))
    start = (len(data[0]) - 1) // batch_size * batch_size
    activation = gap(
        theirs.activation(data, batch_size), theirs.activation((data[0][start:], data[1][start:]), batch_size)
    )
    before = theirs.taylor(data, batch_size)
    norms = [m for m in theirs.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    theirs.model.zero_grad()
    for norm in norms:
        norm.weight.requires_grad_(False)
    after = theirs.taylor(data, batch_size)
    for norm in norms:
        norm.weight.requires_grad_(True)
    return [
        f"GroupHessianImportance of all {len(data[0])} samples differs from that of the LAST sample alone by "
        f"{hessian:.1e} (relative): earlier samples are overwritten",
        f"ActivationImportance of all batches differs from that of the LAST batch alone by {activation:.1e}: "
        "its hook overwrites",
        f"GroupTaylorImportance with and without gradients of batch norms differs by {gap(after, before):.1e}: "
        "batch norms are skipped (the branch is keyed to group norms)",
    ]


def main() -> None:
    """Compare, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/searches/digits.yaml")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/methods"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    workload = load_workload(load(args.config))
    data = stacked(workload.splits.calibration)
    batch_size = default_batch_size(HeldBatches.of(*data, 1))
    theirs = Theirs(workload)
    true = {name: both[0] for name, both in increases(workload, batch_size).items()}

    def ours(name: str, **params: Any) -> UnitScores:
        criterion = CRITERIA[name](**params)
        return score_units(
            workload.model, workload.trace, {name: criterion}, HeldBatches.of(*data, batch_size), CLASS_IDS
        )[name]

    def our_lamp() -> UnitScores:
        return {name: normalised(torch.from_numpy(s), "lamp").numpy() for name, s in ours("magnitude").items()}

    pairs: list[tuple[str, Callable[[Data, int], UnitScores], str, Callable[[], UnitScores]]] = [
        ("GroupMagnitudeImportance", theirs.magnitude, "magnitude", lambda: ours("magnitude")),
        ("BNScaleImportance", theirs.scale, "bn_scale", lambda: ours("bn_scale")),
        ("LAMPImportance", theirs.lamp, "magnitude, lamp", our_lamp),
        (
            "GroupTaylorImportance",
            theirs.taylor,
            "taylor_parameterwise",
            lambda: ours("taylor", variant="parameterwise"),
        ),
        ("GroupTaylorImportance multivariable", theirs.joint, "taylor_joint", lambda: ours("taylor", variant="joint")),
        ("GroupHessianImportance", theirs.hessian, "fisher per_weight", lambda: ours("fisher", per_weight=True)),
        ("ActivationImportance", theirs.activation, "activation_magnitude", lambda: ours("activation_magnitude")),
    ]
    columns = ["theirs", "ours", "agreement_mean", "agreement_min", "theirs_loss", "ours_loss", "theirs_s", "ours_s"]
    with (args.out / "torch_pruning_agreement.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        print(" | ".join(columns))
        for their_name, their_call, our_name, our_call in pairs:
            them, their_seconds = timed(lambda call=their_call: call(data, batch_size))  # type: ignore[misc]
            us, our_seconds = timed(our_call)
            both = spearman(them, us)
            numbers = [both.mean(), both.min(), spearman(them, true).mean(), spearman(us, true).mean()]
            row = [their_name, our_name, *(f"{n:.3f}" for n in [*numbers, their_seconds, our_seconds])]
            writer.writerow(row)
            print(" | ".join(row), flush=True)
    for line in defects(theirs, data, batch_size):
        print(line)
    theirs.model.zero_grad()


if __name__ == "__main__":
    main()
