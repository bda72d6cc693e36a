"""What evaluating a policy costs beyond the pruned network's own forward passes.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_overhead.py [--model resnet20] [--threads 1] [--repeats 9]

Each round times, one after the other in a shuffled order, on the same policies and batches:

- own      the pruned network's forward passes alone: batch norms in train mode over the calibration images, then eval
           mode over the search images (channels-last and with freed memory kept, as a search runs it)
- ours     Evaluator.evaluate: choose, remove, recalibrate, evaluate
- plain    copy.deepcopy, prune through torch_pruning's DependencyGraph, recalibrate, evaluate (torch's default layout)
- analytic remove, refit by least squares, batch norms by the inputs' moments, and 32 search images through the network;
           refits are cached, as those of a search around one policy are
- default  the pruned network's forward passes alone in torch's default layout

and prints the medians over rounds of the ratios within a round. ``plain`` and ``default`` run in a process of their
own, whose memory is allocated as glibc does it by itself. Times are processor seconds, which a busy host changes least.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from amcsearch.core.memory import keep_freed_memory
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import Batch, Batches, HeldBatches
from amcsearch.graph.slices import Kept, Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.ranking import keep, rank_units
from amcsearch.methods.selector import Calibration, problem_of, select
from amcsearch.methods.selectors.obc import Obc
from amcsearch.recovery import Reconstruction
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


@torch.inference_mode()
def judge_few(model: nn.Module, few: Batch) -> None:
    """Run a few images through a network."""
    few.through(model)


@dataclass(frozen=True)
class Scene:
    """A network, its policies and its data, made anew in every process."""

    model: nn.Module
    trace: Trace
    evaluator: Evaluator
    calibration: Batches
    search: Batches
    policies: Sequence[PruningPolicy]
    refitted: Evaluator  # by obc, without a recalibration
    few: Batch

    @classmethod
    def of(cls, name: str, samples: int, threads: int) -> "Scene":
        """Return the scene of a network with as many calibration and search samples each."""
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        x, y = torch.randn(2 * samples, 1, 32, 32), torch.arange(2 * samples) % 10
        calibration = HeldBatches.of(x[:samples], y[:samples], 128)
        search = HeldBatches.of(x[samples:], y[samples:], 128)
        traced = trace(model, x[:1])
        ranking = rank_units(model, traced, CRITERIA["magnitude"](), calibration, CLASS_IDS)
        space = PolicySpace.on_grid(traced.network.groups, 8, 0.9)
        rng = np.random.default_rng(1)
        policies = [traced.network.policy(space.nearest(rng.uniform(0, 0.8, len(space.groups)))) for _ in range(3)]
        evaluator = Evaluator(model, traced, ranking, calibration, search)
        selected = select(problem_of(Calibration(model, traced, calibration, CLASS_IDS)), Obc())
        refits = Reconstruction(model, traced, selected.inputs.values(), "least_squares")
        refitted = Evaluator(model, traced, selected.orders, None, search, reconstruction=refits)
        (few,) = refitted.search.chosen(range(32)).batched(32)
        return cls(model, traced, evaluator, calibration, search, policies, refitted, few)

    def run(self, way: str, number: int) -> tuple[float, float | None]:
        """Return processor seconds of a policy evaluated in one way, and its loss where it has one."""
        policy, evaluator = self.policies[number], self.evaluator
        call: Callable[[], float | None]
        if way == "ours":
            call = lambda: evaluator.evaluate(policy).loss  # noqa: E731
        elif way == "plain":
            kept = keep(self.trace, evaluator.ranking, policy)
            call = lambda: plain_way(self.model, self.trace, kept, self.calibration, self.search)  # noqa: E731
        elif way == "analytic":
            call = lambda: judge_few(self.refitted.pruned(policy), self.few)  # noqa: E731
        elif way == "own":
            last = evaluator.pruned(policy)
            call = lambda: own_passes(last, evaluator.calibration, evaluator.search)  # noqa: E731
        else:
            first = evaluator.pruned(policy).to(memory_format=torch.contiguous_format)
            call = lambda: own_passes(first, self.calibration, self.search)  # noqa: E731
        start = time.process_time()
        loss = call()
        return time.process_time() - start, loss


def answer(connection: Connection, name: str, samples: int, threads: int) -> None:
    """Run what is asked for in a process whose memory is allocated as glibc does it by itself."""
    scene = Scene.of(name, samples, threads)
    for way, number in iter(connection.recv, None):
        connection.send(scene.run(way, number))


def measure(scene: Scene, plainly: Connection, repeats: int) -> dict[str, list[float]]:
    """Processor seconds of every way, one entry a policy and round."""
    seconds: dict[str, list[float]] = {"own": [], "ours": [], "plain": [], "analytic": [], "default": []}
    rng = np.random.default_rng(0)
    for round_number in range(repeats + 1):  # the first is warm-up
        for number in range(len(scene.policies)):
            losses = []
            for way in rng.permutation(list(seconds)).tolist():
                if way in ("plain", "default"):
                    plainly.send((way, number))
                    taken, loss = plainly.recv()
                else:
                    taken, loss = scene.run(way, number)
                losses += [] if loss is None else [loss]
                if round_number:
                    seconds[way].append(taken)
            assert abs(losses[0] - losses[1]) < 1e-3, f"the two ways disagree: {losses}"
    return seconds


def main() -> None:
    """Measure and print one line of JSON after a small table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONVOLUTIONAL, default="resnet20")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--samples", type=int, default=512, help="of the calibration and of the search split each")
    args = parser.parse_args()

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=answer, args=(there, args.model, args.samples, args.threads)
    )
    process.start()
    keep_freed_memory()
    scene = Scene.of(args.model, args.samples, args.threads)
    times = measure(scene, here, args.repeats)
    here.send(None)
    process.join()

    def ratio(above: str, below: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[above], times[below], strict=True)), 3)

    for name, values in times.items():
        print(f"{name:8s} median {1e3 * statistics.median(values):8.1f} ms   fastest {1e3 * min(values):8.1f} ms")
    result = {
        "ours/own": ratio("ours", "own"), "plain/own": ratio("plain", "own"), "plain/ours": ratio("plain", "ours"),
        "plain/analytic": ratio("plain", "analytic"),
        "default/own": ratio("default", "own"), "model": args.model, "threads": args.threads, "samples": args.samples,
        "batch": scene.evaluator.search.batch_size, "load": os.getloadavg()[0],
        "policies": len(scene.policies), "rounds": args.repeats,
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
