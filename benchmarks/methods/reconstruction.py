"""What refitting by least squares is worth before any fine-tuning, at equal policies.

    python benchmarks/methods/reconstruction.py [--seeds 0 1 2] [--ratios 0.3 0.5 0.7] [--refits …] [--configs CONFIG…]

Every group of a trained network loses the same share of its channels (``ratios``, share REMOVED), chosen by each
criterion and selector in turn, and what reads them is refitted by each rule, with batch-norm recalibration afterwards
and without. A seed changes the data split and the training. Prints test accuracy, %, as mean ± standard deviation over
seeds. Networks are trained once and kept in the cache folder (AMCSEARCH_CACHE).
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from scenes import seeded
from torch import nn

from amcsearch.core.policy import PolicySpace
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.jobs.workload import Workload, load_workload
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.layer_inputs import LayerInputs
from amcsearch.methods.least_squares import REFITS
from amcsearch.methods.ranking import Ranking, rank_units
from amcsearch.methods.selector import Calibration, problem_of, select
from amcsearch.methods.selectors import SELECTORS
from amcsearch.methods.selectors.thinet import ThiNet
from amcsearch.recovery.refit import Reconstruction
from amcsearch.recovery.sequential import SequentialReconstruction
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.reading import batches_of

CONFIGS = tuple(f"configs/searches/{name}.yaml" for name in ("digits", "digits-mobilenetv2", "digits-vit"))
Key = tuple[str, str, bool, float]  # chosen by, refit, batch norms recalibrated, pruning ratio
BASELINES = ("random", "magnitude", "taylor")
SEQUENTIAL = ("magnitude", "obc")  # seconds a policy: shown for two ways only


def orders(calibration: Calibration) -> tuple[dict[str, tuple[Ranking, float]], dict[str, LayerInputs], float]:
    """Every way's order with its seconds, the readers' moments, and the seconds those took."""
    found = {}
    for name in BASELINES:
        start = time.perf_counter()
        ranking = rank_units(
            calibration.model,
            calibration.trace,
            CRITERIA[name](),
            calibration.batches,
            CLASS_IDS,
        )
        found[name] = ranking, time.perf_counter() - start
    start = time.perf_counter()
    problem = problem_of(calibration, labels=True)
    gathering = time.perf_counter() - start
    inputs: dict[str, LayerInputs] = {}
    for name, make in {**SELECTORS, "thinet (keep)": lambda: ThiNet("keep")}.items():
        start = time.perf_counter()
        selection = select(problem, make())
        ranking, inputs = selection.orders, selection.inputs
        found[name] = ranking, time.perf_counter() - start
    return found, inputs, gathering


def accuracies(workload: Workload, refits: list[str], ratios: list[float]) -> Iterator[tuple[Key, float]]:
    """Yield test accuracy by (way, refit, recalibrated, ratio); seconds to choose come under refit ``seconds``."""
    model, spec = workload.model, workload.trace.network
    calibration = batches_of(workload.splits.calibration, 128)
    test = batches_of(workload.splits.test, 128)
    ways, seen, gathering = orders(Calibration(model, workload.trace, calibration, CLASS_IDS))
    yield ("gathering", "seconds", True, 0.0), gathering
    space = PolicySpace.on_grid(spec.groups)
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    makers = {refit: partial(Reconstruction, model, workload.trace, seen.values(), refit) for refit in REFITS}
    made = {name: make() for name, make in makers.items() if name in refits}
    if "sequential" in refits:
        made["sequential"] = SequentialReconstruction(model, workload.trace, seen, calibration, positions=32)
    for way, (ranking, seconds) in ways.items():
        yield (way, "seconds", True, 0.0), seconds
        for refit, reconstruction in made.items():
            if refit == "sequential" and way not in SEQUENTIAL:
                continue
            for recalibrated in (True, False) if has_norms else (True,):
                statistics = calibration if recalibrated else None
                evaluator = Evaluator(model, workload.trace, ranking, statistics, test, reconstruction=reconstruction)
                for ratio in ratios:
                    policy = spec.policy(space.nearest([ratio] * len(space.groups)))
                    yield (way, refit, recalibrated, ratio), evaluator.evaluate(policy).metric


def table(rows: dict[Key, list[float]]) -> None:
    """Print accuracies by way and refit, and the seconds of choosing."""
    columns = list(dict.fromkeys(key[2:] for key in rows if key[1] != "seconds"))
    names = [f"{ratio:g}" if recalibrated else f"{ratio:g}, no recalibration" for recalibrated, ratio in columns]
    print(f"| chosen by | refit | {' | '.join(names)} | seconds to choose |")
    print("|---|---|" + "---|" * (len(columns) + 1))
    for way, refit in dict.fromkeys(key[:2] for key in rows if key[1] != "seconds"):
        cells = []
        for recalibrated, ratio in columns:
            values = [100 * value for value in rows[way, refit, recalibrated, ratio]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        seconds = f"{statistics.mean(rows[way, 'seconds', True, 0.0]):.1f}" if refit == "none" else ""
        print(f"| {way} | {refit} | {' | '.join(cells)} | {seconds} |")
    print(
        f"\nGathering the Gram matrices took {statistics.mean(rows['gathering', 'seconds', True, 0.0]):.1f} s.",
        flush=True,
    )


def main() -> None:
    """Measure and print one table a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--refits", nargs="+", default=["none", "scales", "least_squares", "sequential"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for path in args.configs:
        rows: dict[Key, list[float]] = defaultdict(list)
        for seed in args.seeds:
            config = seeded(path, seed)
            for key, value in accuracies(load_workload(config), args.refits, args.ratios):
                rows[key].append(value)
        print(f"\n## {Path(path).stem}\n")
        table(rows)


if __name__ == "__main__":
    main()
