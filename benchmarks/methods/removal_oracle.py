"""Why may a criterion that ranks single channels well choose badly among many? Rankings by measurement beside them.

    python benchmarks/methods/removal_oracle.py [--network resnet20] [--seeds 0 1 2] [--samples 128]

Every group of the trained network loses the same share of its channels, batch norms are recalibrated, nothing is
fine-tuned, and the test split is read. The orders come from criteria as they are, from Taylor's on smaller minibatches
or on samples that the network was not trained on, and from the loss itself on some calibration samples: measured with
each channel closed alone, without recalibration and with it. Then each group alone loses half of its channels. Prints
means and deviations over seeds; and how many samples hold half of all squared derivatives, under the data's labels and
under the model's.
"""

import argparse
import copy
import statistics
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from scenes import SCENES, loaded

from amcsearch.core.policy import PolicySpace
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import HeldBatches
from amcsearch.graph.removal import remove
from amcsearch.jobs.workload import Workload
from amcsearch.methods.criteria import CRITERIA, unaliased
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.needs import Draw, Labels, SampleGates
from amcsearch.methods.ranking import Ranking, UnitScores, rank, score_units
from amcsearch.methods.statistics import gather
from amcsearch.recovery.batch_norm import recalibrate_batch_norm
from amcsearch.training.loop import CLASS_IDS, evaluate
from amcsearch.training.reading import batches_of
from amcsearch.training.splits import stacked

BATCH = 128
ALONE = ("magnitude", "taylor", "measured, closed")


def increases(workload: Workload, samples: int, *, recalibrated: bool) -> UnitScores:
    """Loss on calibration samples with each channel gone, nats; batch norms recalibrated on them or as they are."""
    inputs, targets = (tensor[:samples] for tensor in stacked(workload.splits.calibration))
    found = {}
    for group in workload.trace.network.groups:
        values = []
        for unit in workload.trace.units[group.name]:
            kept = {group.name: np.setdiff1d(np.arange(group.channels), unit)}
            smaller = remove(workload.model, workload.trace, kept).eval()
            if recalibrated:
                recalibrate_batch_norm(smaller, HeldBatches.of(inputs, None, BATCH))
            values.append(evaluate(smaller, HeldBatches.of(inputs, targets, BATCH))[0])
        found[group.name] = np.array(values)
    return found


def rankings(workload: Workload, samples: int) -> dict[str, Ranking]:
    """Orders by name."""
    calibration, held_out = batches_of(workload.splits.calibration, BATCH), batches_of(workload.splits.search, BATCH)

    def scored(criterion: Criterion, batches: HeldBatches) -> Ranking:
        return rank(score_units(workload.model, workload.trace, {"": criterion}, batches, CLASS_IDS)[""])

    names = ("random", "magnitude", "taylor", "taylor_joint", "taylor_per_sample", "taylor_act2017", "true_fisher")
    ways = {name: unaliased(name, {}) for name in (*names, "wanda_channels")}
    found = {name: scored(CRITERIA[registered](**params), calibration) for name, (registered, params) in ways.items()}
    found["taylor, minibatches of 8"] = scored(CRITERIA["taylor"](), calibration.batched(8))
    found["taylor, held-out samples"] = scored(CRITERIA["taylor"](), held_out)
    found["taylor_per_sample, held-out samples"] = scored(CRITERIA["taylor"](variant="per_sample"), held_out)
    found["measured, closed"] = rank(increases(workload, samples, recalibrated=False))
    found["measured, recalibrated"] = rank(increases(workload, samples, recalibrated=True))
    return found


def carriers(workload: Workload, labels: Labels) -> int:
    """How many calibration samples hold half of all squared derivatives by gates."""
    need, data, found = SampleGates(labels), batches_of(workload.splits.calibration, BATCH), []
    for draw in gather(workload.model, workload.trace, data, CLASS_IDS, {need}):
        if draw.draw is Draw.SAMPLE:
            found.append(torch.stack([s.square().flatten(1).sum(1) for s in draw.by_need[need].values()]).sum(0))
    ordered = torch.cat(found).sort(descending=True).values
    return int((ordered.cumsum(0) < 0.5 * ordered.sum()).sum()) + 1


def table(title: str, columns: Sequence[object], rows: dict[tuple[str, object], list[float]]) -> None:
    """Print means and deviations."""
    print(f"\n| {title} | {' | '.join(map(str, columns))} |\n|---|{'---|' * len(columns)}")
    for name in dict.fromkeys(key[0] for key in rows):
        cells = [rows[name, column] for column in columns]
        print(f"| {name} | {' | '.join(f'{statistics.mean(c):.1f} ± {statistics.pstdev(c):.1f}' for c in cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20", choices=list(SCENES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--samples", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    together: dict[tuple[str, object], list[float]] = defaultdict(list)
    alone: dict[tuple[str, object], list[float]] = defaultdict(list)
    for seed in args.seeds:
        network = loaded(SCENES[args.network], seed)
        spec, space = network.trace.network, PolicySpace.on_grid(network.trace.network.groups)
        calibration = batches_of(network.splits.calibration, BATCH)
        test = batches_of(network.splits.test, BATCH)
        half = {labels: carriers(network, labels) for labels in ("data", "model")}
        count = calibration.samples
        print(f"seed {seed}: half of all squared derivatives come from so many of {count} samples: {half}")
        for name, ranking in rankings(network, args.samples).items():
            evaluator = Evaluator(copy.deepcopy(network.model), network.trace, ranking, calibration, test)
            for ratio in args.ratios:
                policy = spec.policy(space.nearest([ratio] * len(space.groups)))
                together[name, ratio].append(100 * evaluator.evaluate(policy).metric)
            for i, group in enumerate(spec.groups if name in ALONE else ()):
                policy = spec.policy(space.nearest([0.5 if i == j else 0.0 for j in range(len(space.groups))]))
                alone[name, group.name].append(100 * evaluator.evaluate(policy).metric)
    table("order by", args.ratios, together)
    table("one group halved, order by", [group.name for group in spec.groups], alone)


if __name__ == "__main__":
    main()
