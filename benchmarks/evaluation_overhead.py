"""What evaluating a policy costs beyond the pruned network's own forward passes.

    python benchmarks/evaluation_overhead.py [--model resnet20] [--threads 1] [--repeats 9]

Each round times, one after the other in a shuffled order, on the same policies and batches:

- own      the pruned network's forward passes alone: batch norms in train mode over the calibration images, then eval
           mode over the search images (channels-last, as the evaluator runs it)
- ours     Evaluator.evaluate: choose, remove, recalibrate, evaluate
- plain    copy.deepcopy, prune through torch_pruning's DependencyGraph, recalibrate, evaluate (torch's default layout)
- default  the pruned network's forward passes alone in torch's default layout

and prints the medians over rounds of the ratios within a round. Target: ours / own at most 1.25.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import Batches, HeldBatches
from amcsearch.graph.slices import Kept, Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.ranking import keep, rank_units
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.models import MODELS

CONVOLUTIONAL = ("resnet20", "vgg", "mobilenetv2")


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    """All batch norms."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@torch.no_grad()
def own_passes(model: nn.Module, calibration: Batches, search: Batches) -> None:
    """Run what no evaluation can do without."""
    for norm in norms_of(model):
        norm.train()
    for batch in calibration:
        batch.through(model)
    model.eval()
    with torch.inference_mode():
        for batch in search:
            batch.through(model)


def plain_way(model: nn.Module, found: Trace, kept: Kept, calibration: Batches, search: Batches) -> float:
    """The textbook evaluation; returns the loss."""
    pruned = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(pruned, next(iter(calibration.batched(1))).args[0])
    modules = dict(pruned.named_modules())
    for group in found.network.groups:
        removed = sorted(set(range(group.channels)) - set(kept[group.name].tolist()))
        root = next(p for p in found.slices[group.name] if p.side == "out" and p.tensor.endswith("weight"))
        module = modules[root.layer]
        if removed:
            prune = graph.get_pruner_of_module(module).prune_out_channels
            graph.get_pruning_group(module, prune, removed).prune()
    for norm in norms_of(pruned):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in calibration:
            batch.through(pruned)
        pruned.eval()
        losses = [float(CLASS_IDS(batch.through(pruned), batch.targets)) * batch.size for batch in search]
    return sum(losses) / search.samples


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(
    model: nn.Module,
    policies: Sequence[PruningPolicy],
    found: Trace,
    evaluator: Evaluator,
    data: tuple[Batches, Batches],
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of every way, one entry a policy and round."""
    calibration, search = data
    times: dict[str, list[float]] = {"own": [], "ours": [], "plain": [], "default": []}
    rng = np.random.default_rng(0)
    for round_number in range(repeats + 1):  # the first is warm-up
        for policy in policies:
            kept = keep(found, evaluator.ranking, policy)
            last, first = evaluator.pruned(policy), evaluator.pruned(policy).to(memory_format=torch.contiguous_format)
            ways: dict[str, Callable[[], object]] = {
                "own": lambda m=last: own_passes(m, evaluator.calibration, evaluator.search),
                "ours": lambda p=policy: evaluator.evaluate(p),
                "plain": lambda k=kept: plain_way(model, found, k, calibration, search),
                "default": lambda m=first: own_passes(m, calibration, search),
            }
            if round_number == 0:
                losses = evaluator.evaluate(policy).loss, plain_way(model, found, kept, calibration, search)
                assert abs(losses[0] - losses[1]) < 1e-3, f"the two ways disagree: {losses}"
            for name in rng.permutation(list(ways)):
                taken = seconds(ways[name])
                if round_number:
                    times[name].append(taken)
    return times


def main() -> None:
    """Measure and print one line of JSON after a small table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONVOLUTIONAL, default="resnet20")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--samples", type=int, default=512, help="of the calibration and of the search split each")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = MODELS[args.model]().eval()
    x, y = torch.randn(2 * args.samples, 1, 32, 32), torch.arange(2 * args.samples) % 10
    calibration = HeldBatches.of(x[: args.samples], y[: args.samples], 128)
    search = HeldBatches.of(x[args.samples :], y[args.samples :], 128)
    found = trace(model, x[:1])
    ranking = rank_units(model, found, CRITERIA["magnitude"](), calibration, CLASS_IDS)
    evaluator = Evaluator(model, found, ranking, calibration, search)
    space = PolicySpace.on_grid(found.network.groups, 8, 0.9)
    rng = np.random.default_rng(1)
    policies = [found.network.policy(space.nearest(rng.uniform(0, 0.8, len(space.groups)))) for _ in range(3)]

    times = measure(model, policies, found, evaluator, (calibration, search), args.repeats)

    def ratio(above: str, below: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[above], times[below], strict=True)), 3)

    for name, values in times.items():
        print(f"{name:8s} median {1e3 * statistics.median(values):8.1f} ms   fastest {1e3 * min(values):8.1f} ms")
    result = {
        "ours/own": ratio("ours", "own"), "plain/own": ratio("plain", "own"), "plain/ours": ratio("plain", "ours"),
        "default/own": ratio("default", "own"), "model": args.model, "threads": args.threads, "samples": args.samples,
        "batch": evaluator.search.batch_size, "load": os.getloadavg()[0],
        "policies": len(policies), "rounds": args.repeats,
        "command": " ".join(["python", *sys.argv]), "machine": _cpu(),
        "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(result))


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.platform()


if __name__ == "__main__":
    main()
