"""Exact allocation: how long a solution takes, how near other agents come to it, and what it is worth in a real search.

    OMP_NUM_THREADS=1 python benchmarks/dynamic_programming.py solve
    OMP_NUM_THREADS=1 python benchmarks/dynamic_programming.py surrogate [--evaluations 200] [--seeds 0 1 2]
    OMP_NUM_THREADS=1 python benchmarks/dynamic_programming.py search CONFIG [--set a.b=v]… [--evaluations 200]

``solve`` times one solution in CPU seconds, half of the MACs, with errors c_g · r² of random c. ``surrogate`` runs
agents whose loss is exactly that sum (a made-up evaluation, through the study as always) and compares their best loss
with the optimum. ``search`` runs them on a configuration, its network really pruned and evaluated on the search split;
a seed changes the data split, the training and the search. All have the same number of evaluations, probes among them.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amcsearch.config.loading import load
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.core.trial import Evaluation, Trial
from amcsearch.costs.compute import Macs
from amcsearch.costs.grid import CostGrid
from amcsearch.evaluation.executors import Executor, SerialExecutor
from amcsearch.graph.tracing.trace import trace
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.search import AGENTS
from amcsearch.search.budget import Budget, FeasibleSet
from amcsearch.search.exact.allocator import Allocator
from amcsearch.search.reward import RewardContext, bind
from amcsearch.search.study import Study
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20

CASES = (("resnet20", 1), ("resnet20", 8), ("mobilenetv2", 1), ("mobilenetv2", 8), ("resnet50", 16), ("resnet50", 32))
COMPARED = ("dynamic_programming", "ddpg", "nsga2", "sensitivity", "random")


def traced(name: str) -> NetworkSpec:
    """Shapes of a reference network; ResNet-50 is transformers', at 224x224."""
    if name == "resnet50":
        from transformers import ResNetConfig, ResNetForImageClassification

        return trace(ResNetForImageClassification(ResNetConfig()), torch.zeros(1, 3, 224, 224), verify=False).network
    model = {"resnet20": resnet20, "mobilenetv2": mobilenetv2}[name](in_channels=3)
    return trace(model, torch.zeros(1, 3, 32, 32), verify=False).network


def half_macs(network: NetworkSpec, multiple: int) -> FeasibleSet:
    """The policies on a channel grid with at most half of the MACs."""
    grid = CostGrid(network, [Macs()])
    limit = 0.5 * float(grid.cost(network.dense)["macs"])
    return FeasibleSet(PolicySpace.on_grid(network.groups, multiple), grid, Budget({"macs": limit}))


def squares(space: PolicySpace, seed: int) -> list[NDArray[np.float64]]:
    """Errors c_g · r² of every choice, c uniform in [0, 1]."""
    weights = np.random.default_rng(seed).random(len(space.choices))
    return [c * (1.0 - kept / kept[-1]) ** 2 for c, kept in zip(weights, space.choices, strict=True)]


def solve(options: argparse.Namespace) -> None:
    """Print seconds a solution for networks, grids and buckets."""
    del options
    print("| network | groups | multiple | most choices | offered | buckets | first (s) | next (s) | budget used |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, multiple in CASES:
        feasible = half_macs(traced(name), multiple)
        for buckets in (4_000, 10_000):
            allocator = Allocator(feasible, buckets, 1e9, 8)
            seconds = []
            for seed in (0, 1):
                start = time.process_time()
                kept = allocator.best(squares(feasible.space, seed))
                seconds.append(time.process_time() - start)
            most = max(map(len, feasible.space.choices))
            print(
                f"| {name} | {len(kept)} | {multiple} | {most} | {allocator.offered} | {buckets:,} "
                f"| {seconds[0]:.2f} | {seconds[1]:.2f} | {feasible.overshoot(kept[None, :])[0]:.4f} |",
                flush=True,
            )


@dataclass(frozen=True)
class Surrogate:
    """A made-up evaluation whose loss is the sum of the groups' errors."""

    space: PolicySpace
    errors: list[NDArray[np.float64]]
    capacity = 1

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        """As ``Executor.map``."""
        for policy in policies:
            loss = self.loss([policy[group.name] for group in self.space.groups])
            yield Evaluation(math.exp(-loss), loss, 0.0)

    def close(self) -> None:
        """Nothing is held."""

    def loss(self, kept: Sequence[int]) -> float:
        """Sum of the errors of kept counts (G,)."""
        found = zip(self.errors, self.space.choices, kept, strict=True)
        return float(sum(e[np.searchsorted(choices, n)] for e, choices, n in found))


def run(agent: str, feasible: FeasibleSet, executor: Executor, accuracy: float, seed: int, trials: int) -> list[Trial]:
    """Run one agent and return its trials within the budget."""
    context = RewardContext(feasible.grid.cost(feasible.grid.network.dense), accuracy, feasible.budget)
    reward = bind("accuracy", {}, context)
    where = {"agent": agent, "seed": seed, "trials": trials, "storage": "sqlite:///:memory:", "name": "benchmark"}
    study = Study(feasible.grid.network, feasible.space, feasible.grid, feasible, executor, reward, **where)
    AGENTS[agent]().run(study, seed)
    assert study.remaining == 0
    return study.trials


def best_of(trials: list[Trial]) -> Trial:
    """The complete trial of the largest reward."""
    return max((trial for trial in trials if trial.state == "complete"), key=lambda trial: trial.reward)


def surrogate(options: argparse.Namespace) -> None:
    """Print how far each agent's best loss is above the optimum."""
    print(f"| network | agent | best loss / optimum at {options.evaluations} evaluations, by seed | mean |")
    print("|---|---|---|---|")
    for name, multiple in (("resnet20", 4), ("mobilenetv2", 8)):
        feasible = half_macs(traced(name), multiple)
        for agent in options.agents:
            ratios = []
            for seed in options.seeds:
                problem = Surrogate(feasible.space, squares(feasible.space, seed))
                optimum = problem.loss(Allocator(feasible, 10_000, 1e9, 8).best(problem.errors).tolist())
                trials = run(agent, feasible, problem, 1.0, seed, options.evaluations)
                ratios.append(best_of(trials).evaluation.loss / optimum)
            each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"| {name} | {agent} | {each} | {statistics.mean(ratios):.3f} |", flush=True)


class Silent(Observer):
    """Watches nothing."""


def job_of(config: Path, seed: int, overrides: Sequence[str]) -> Job:
    """The configuration's network, trained with a seed, on its device."""
    loaded = load(config, ["device.table=x86_epyc_avx512", f"seed={seed}", f"data.kwargs.seed={seed}", *overrides])
    return assemble(loaded, loaded.limits, Phases(Silent(), lambda _: None))


def search(options: argparse.Namespace) -> None:
    """Print each agent's best accuracy on the search split, after parts of its evaluations."""
    marks = [options.evaluations // 4, options.evaluations // 2, options.evaluations]
    print(f"| agent | seed | dense | best after {marks[0]} | {marks[1]} | {marks[2]} | loss of the best | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    final: dict[str, list[tuple[float, float]]] = {agent: [] for agent in options.agents}
    for seed in options.seeds:
        job = job_of(options.config, seed, options.set)
        for agent in options.agents:
            start = time.perf_counter()
            executor = SerialExecutor(job.evaluator)
            trials = run(agent, job.device.feasible, executor, job.dense.metric, seed, options.evaluations)
            seconds, evaluated = time.perf_counter() - start, best_of(trials).evaluation
            parts = " | ".join(accuracy_after(trials, mark) for mark in marks)
            print(
                f"| {agent} | {seed} | {job.dense.metric:.2%} | {parts} | {evaluated.loss:.3f} | {seconds:.0f} |",
                flush=True,
            )
            final[agent].append((evaluated.metric, evaluated.loss))
    for agent, found in final.items():
        accuracy, loss = (statistics.mean(column) for column in zip(*found, strict=True))
        print(f"| {agent} | mean | | | | {accuracy:.2%} | {loss:.3f} | |", flush=True)


def accuracy_after(trials: list[Trial], count: int) -> str:
    """Best accuracy among the first evaluations that are within the budget."""
    inside = [trial for trial in trials[:count] if trial.state == "complete"]
    return f"{best_of(inside).evaluation.metric:.2%}" if inside else "–"


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Any] = {"solve": solve, "surrogate": surrogate, "search": search}
    parser.add_argument("part", choices=parts)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/searches/digits.yaml"))
    parser.add_argument("--set", action="append", default=[], help="override a key of the configuration")
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--agents", nargs="+", default=list(COMPARED), choices=list(AGENTS))
    options = parser.parse_args()
    parts[options.part](options)


if __name__ == "__main__":
    main()
