"""How soon ``ladder`` finds the best policy: an enumerated network, and DDPG's final reward.

    OMP_NUM_THREADS=1 python benchmarks/ladder.py enumerate [--network strided --budget 0.3x --data FILE]
    OMP_NUM_THREADS=1 python benchmarks/ladder.py optimum [--without-errors] [--agents ladder …] [--budgets 0.3x …]
    OMP_NUM_THREADS=1 python benchmarks/ladder.py goal [--agent ddpg] [--evaluations 100] [--seeds 5] [--budgets 0.3x …]
    python benchmarks/ladder.py against runs/digits-resnet20-compared

``enumerate`` trains a little network on scikit-learn's digits, cuts it with ``obc``, evaluates all 16,807 policies
and writes ``tests/search/little_network.npz``: of every policy the pictures named right, out of 384, and the loss, and
the errors that ``obc`` knows. With ``--network strided`` it is another network, with ``--seed`` trained differently;
with ``--budget`` the policies within it alone. ``optimum`` and ``goal`` take the same ``--network`` and ``--data``.

``optimum`` runs agents on these, ten seeds of 30 evaluations each, and counts how many come within 1 % of the range of
rewards of the best policy in the budget. ``goal`` lets another agent search these without the exact programme's
policies, and counts the evaluations of ``ladder`` until it has that agent's final reward.
``against`` reads what ``amcsearch compare`` wrote: evaluations and seconds until each agent had the first one's final
best reward.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amcsearch.config.loading import load
from amcsearch.core.cost import Cost
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.core.trial import Evaluation, TrialState
from amcsearch.costs import CostGrid, Macs, ModelBytes, Params, PeakMemory
from amcsearch.graph import trace
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.setup import Job, assemble
from amcsearch.search import AGENTS, FeasibleSet, Study, removal_errors, resolve_budget, starting_policies
from amcsearch.search.local_search import walk_space

DATA = Path(__file__).parents[1] / "tests/search/little_network.npz"
PICTURES = 384
PLAIN = ("uniform", "random")
CONFIG = """
name: little
seed: {seed}
model:
  factory: {factory}
  pretrain: {{epochs: 12, learning_rate: 0.05, warmup_epochs: 1, batch_size: 32, max_shift: 1}}
data:
  factory: "amcsearch.training.data:digits"
  kwargs: {{test_share: 0.25, size: 8}}
  splits: {{calibration: 256, search: {pictures}}}
device: {{profile: x86_server, threads: 1, channel_multiple: 2}}
selection: {{selector: obc}}
"""


class Silent(Observer):
    """Watches nothing."""


class Little(nn.Module):
    """A stem, a residual block, two strided convolutions and a hidden layer, for 1x8x8 pictures."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = convolution(1, width)
        self.inner, self.outer = convolution(width, width), convolution(width, width)
        self.down, self.last = convolution(width, width, 2), convolution(width, width, 2)
        self.hidden, self.head = nn.Linear(4 * width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stem(x).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        x = self.last(self.down(x).relu()).relu()
        return self.head(self.hidden(x.flatten(1)).relu())


class Strided(nn.Module):
    """A stem, a second convolution, a strided one, a residual block, another strided one, for 1x8x8 pictures."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.mid, self.down = convolution(1, width), convolution(width, width), convolution(width, width, 2)
        self.inner, self.outer = convolution(width, width), convolution(width, width)
        self.last, self.head = convolution(width, width, 2), nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.down(self.mid(self.stem(x).relu()).relu()).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(self.last(x).relu().flatten(1))


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution and its batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


def little() -> nn.Module:
    """Make the network."""
    return Little()


def strided() -> nn.Module:
    """Make the other network."""
    return Strided()


NETWORKS = {"little": little, "strided": strided}


def little_job(settings: Sequence[str] = (), network: str = "little", seed: int = 0) -> Job:
    """Train the network and rank its channels; ``settings`` are further ones of its configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "little.yaml"
        path.write_text(CONFIG.format(factory=f"{__file__}:{network}", seed=seed, pictures=PICTURES))
        config = load(path, ["device.table=x86_epyc_avx512", *settings])
    return assemble(config, config.limits, Phases(Silent(), lambda _: None))


def enumerate_policies(options: argparse.Namespace) -> None:
    """Evaluate every policy within the budget, and write what came of it; other policies have no loss."""
    job, begun = little_job(network=options.network, seed=options.seed), time.perf_counter()
    network, space = job.workload.trace.network, job.device.space
    kept, grid = np.concatenate(list(walk_space(space))), CostGrid(network, [Macs()])
    limits = resolve_budget({"macs": options.budget}, grid.cost(network.dense))
    right, loss = np.zeros(len(kept), dtype=np.uint16), np.full(len(kept), np.nan, dtype=np.float16)
    for i in np.flatnonzero(FeasibleSet(space, grid, limits).contains(kept)):
        evaluation = job.evaluator.evaluate(network.policy(kept[i]))
        right[i], loss[i] = round(evaluation.metric * PICTURES), evaluation.loss
    assert job.errors is not None
    np.savez_compressed(
        options.data,
        right=right,
        loss=loss,
        errors=np.stack(removal_errors(space, job.errors)).astype(np.float32),
    )
    print(f"{np.isfinite(loss).sum()} policies, {time.perf_counter() - begun:.0f} s")


class Enumerated:
    """The little network's policies and what they cost; serves their stored evaluations."""

    capacity = 1

    def __init__(self, make: str = "little", data: Path = DATA) -> None:
        network = trace(NETWORKS[make](), torch.zeros(1, 1, 8, 8)).network
        self.network, self.space = network, PolicySpace.on_grid(network.groups, 2, 0.8)
        self.grid = CostGrid(network, [Macs(), Params(), ModelBytes(), PeakMemory(network)])
        with np.load(data) as held:
            self.right, self.loss = held["right"].astype(np.int64), held["loss"].astype(np.float64)
            self.errors: list[NDArray[np.float64]] = list(held["errors"])

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        """As ``Executor.map``."""
        sizes = [len(choices) for choices in self.space.choices]
        for policy in policies:
            at = np.ravel_multi_index(self.space.indices(self.network.kept_array(policy)), sizes)
            yield Evaluation(self.right[at] / PICTURES, float(self.loss[at]), 0.0)

    def close(self) -> None:
        """Nothing is held."""


def rewarded(judge: str, evaluation: Evaluation) -> float:
    """Accuracy, or the negative loss."""
    return evaluation.metric if judge == "accuracy" else -evaluation.loss


def optimum(options: argparse.Namespace) -> None:
    """Print how many of ten seeds come near the best policy, after how many evaluations, and what is left to it."""
    problem = Enumerated(options.network, options.data)
    errors = None if options.without_errors else problem.errors
    print("| reward | MACs | policies | agent | within 1 %, of 10 seeds | evaluations, median | mean regret |")
    print("|---|---|---|---|---|---|---|")
    for judge, budget, feasible, within in feasible_rewards(problem, ("accuracy", "loss"), options.budgets):
        for agent in options.agents:
            curves = [searched(problem, feasible, errors, judge, agent, seed) for seed in range(10)]
            regrets = (within.max() - np.stack(curves)) / np.ptp(within)  # (seeds, evaluations)
            first = np.where((regrets <= 0.01).any(axis=1), 1 + np.argmax(regrets <= 0.01, axis=1), np.inf)
            near, middle = int(np.isfinite(first).sum()), float(np.median(first))
            print(
                f"| {judge} | {budget} | {len(within):,} | {agent} | {near} | "
                f"{f'{middle:.0f}' if np.isfinite(middle) else '–'} | {100 * regrets[:, -1].mean():.2f} % |",
                flush=True,
            )


def feasible_rewards(
    problem: Enumerated, judges: Sequence[str], budgets: Sequence[str]
) -> Iterator[tuple[str, str, FeasibleSet, NDArray[np.float64]]]:
    """Yield judge, budget, the policies within it, and the true rewards of all of these."""
    kept = np.concatenate(list(walk_space(problem.space)))
    for judge in judges:
        rewards = problem.right / PICTURES if judge == "accuracy" else -problem.loss
        for budget in budgets:
            limits = resolve_budget({"macs": budget}, problem.grid.cost(problem.network.dense))
            feasible = FeasibleSet(problem.space, problem.grid, limits)
            yield judge, budget, feasible, rewards[feasible.contains(kept)]


def searched(
    problem: Enumerated,
    feasible: FeasibleSet,
    errors: list[NDArray[np.float64]] | None,
    judge: str,
    agent: str,
    seed: int,
    trials: int = 30,
    *,
    starts: bool = True,
) -> NDArray[np.float64]:
    """Best reward after each of so many evaluations; an agent that stops keeps its best."""

    def reward(evaluation: Evaluation, cost: Cost) -> float:
        del cost
        return rewarded(judge, evaluation)

    study = Study(
        problem.network,
        problem.space,
        problem.grid,
        feasible,
        problem,
        reward,
        agent=agent,
        seed=seed,
        trials=trials,
        storage="sqlite:///:memory:",
        name="optimum",
        errors=errors,
    )
    if starts and agent not in PLAIN:
        study.evaluate(starting_policies(study))
    AGENTS[agent]().run(study, seed)
    rewards = [t.reward if t.state is TrialState.COMPLETE else -np.inf for t in study.trials]
    best = np.maximum.accumulate(np.array(rewards))
    return np.append(best, np.full(trials - len(best), best[-1]))


def goal(options: argparse.Namespace) -> None:
    """Print after how many evaluations ``ladder`` has the final reward of another agent, seed by seed."""
    problem = Enumerated(options.network, options.data)
    print(
        f"| reward | MACs | seed | {options.agent}, regret after {options.evaluations} | its own evaluations to it "
        "| `ladder`, regret after 1 | evaluations to it | regret after 30 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for judge, budget, feasible, within in feasible_rewards(problem, ("loss", "accuracy"), options.budgets):
        for seed in range(options.seeds):
            search = partial(searched, problem, feasible, problem.errors, judge)
            other = search(options.agent, seed, options.evaluations, starts=False)
            ours = search("ladder", seed)
            other, ours = ((within.max() - curve) / np.ptp(within) for curve in (other, ours))
            soon = np.flatnonzero(ours <= other[-1] + 1e-12)
            print(
                f"| {judge} | {budget} | {seed} | {100 * other[-1]:.2f} % | {1 + int(np.argmin(other))} | "
                f"{100 * ours[0]:.2f} % | {1 + int(soon[0]) if len(soon) else '–'} | {100 * ours[-1]:.2f} % |",
                flush=True,
            )


def against(options: argparse.Namespace) -> None:
    """Print evaluations and seconds until each agent had the final best reward of the first, seed by seed."""
    curves = pd.read_csv(options.folder / "curves.csv")
    reference = curves["agent"].iloc[0]
    print("| agent | seed | final reward | evaluations | seconds | evaluations to the reference | seconds to it |")
    print("|---|---|---|---|---|---|---|")
    for (agent, seed), curve in curves.groupby(["agent", "seed"], sort=False):
        goal = curves[(curves["agent"] == reference) & (curves["seed"] == seed)]["best_reward"].max()
        reached = curve[curve["best_reward"] >= goal]
        soon = reached.iloc[0] if len(reached) else None
        told = "– | –" if soon is None else f"{soon['evaluation']:.0f} | {soon['seconds']:.1f}"
        last = curve.iloc[-1]
        whole = f"{last['best_reward']:.4f} | {last['evaluation']:.0f} | {last['seconds']:.1f}"
        print(f"| {agent} | {seed} | {whole} | {told} |")


def main() -> None:
    """Do one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    every = parts.add_parser("enumerate")
    every.add_argument("--seed", type=int, default=0, help="of the training")
    every.add_argument("--budget", default="1.0x", help="of the MACs")
    every.set_defaults(part=enumerate_policies)
    best = parts.add_parser("optimum")
    best.add_argument("--agents", nargs="+", default=["ladder", "dynamic_programming", "nsga2", "tpe", "random"])
    best.add_argument("--budgets", nargs="+", default=["0.4x", "0.3x", "0.25x", "0.2x"])
    best.add_argument("--without-errors", action="store_true", help="let agents know nothing of obc's errors")
    best.set_defaults(part=optimum)
    other = parts.add_parser("goal")
    other.add_argument("--agent", default="ddpg")
    other.add_argument("--evaluations", type=int, default=100)
    other.add_argument("--seeds", type=int, default=5)
    other.add_argument("--budgets", nargs="+", default=["0.3x", "0.2x"])
    other.set_defaults(part=goal)
    for part in (every, best, other):
        part.add_argument("--network", choices=NETWORKS, default="little")
        part.add_argument("--data", type=Path, default=DATA, help="file of the policies' evaluations")
    beside = parts.add_parser("against")
    beside.add_argument("folder", type=Path)
    beside.set_defaults(part=against)
    options = parser.parse_args()
    options.part(options)


if __name__ == "__main__":
    main()
