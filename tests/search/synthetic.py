"""A small made-up problem that every agent can be run on in milliseconds.

As a script it starts each named agent in a process of its own that kills itself with SIGKILL at the k-th evaluation.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace, PruningPolicy
from amcsearch.core.trial import Evaluation
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.search.budget import FeasibleSet, resolve_budget
from amcsearch.search.reward import RewardContext, bind
from amcsearch.search.study import Study

HALF_MACS = MappingProxyType({"macs": "0.5x"})


def chain(widths: Sequence[int], size: int = 8) -> NetworkSpec:
    """Convolutions one after another; each width but the last (the classes) is a group."""
    channels = [1, *widths, 10]
    layers = tuple(
        LayerSpec(f"c{i}", LayerKind.CONV, a, b, (3, 3), padding=(1, 1), in_size=(s, s), out_size=(s, s))
        for i, (a, b) in enumerate(pairwise(channels))
        for s in [max(1, size >> (i // 2))]
    )
    groups = tuple(
        ChannelGroup(f"g{i}", n, (Coupling(f"c{i}", Side.OUT), Coupling(f"c{i + 1}", Side.IN)))
        for i, n in enumerate(widths)
    )
    return NetworkSpec(layers, groups)


@dataclass
class Evaluator:
    """Accuracy falls with the weighted squares of the shares removed, so the optimum is not uniform."""

    network: NetworkSpec
    kill_at: int | None = None
    nan_at: frozenset[int] = frozenset()
    calls: list[PruningPolicy] = field(default_factory=list)

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        return (self.evaluate(policy) for policy in policies)

    def close(self) -> None:
        """Nothing is held."""

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        self.calls.append(policy)
        if self.kill_at is not None and len(self.calls) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        groups = self.network.groups
        removed = np.array([1 - policy[group.name] / group.channels for group in groups])
        harm = float(np.linspace(0.2, 1.0, len(groups)) @ removed**2) / max(1, len(groups))
        loss = math.nan if len(self.calls) in self.nan_at else harm
        return Evaluation(math.exp(-harm), loss, time.perf_counter())


def make_study(
    agent: str = "test",
    *,
    widths: Sequence[int] = (8, 8, 16, 16),
    budget: Mapping[str, str | float] = HALF_MACS,
    multiple: int = 1,
    max_pruning_ratio: float = 1.0,
    trials: int = 12,
    seed: int = 0,
    storage: str = "sqlite:///:memory:",
    kill_at: int | None = None,
    nan_at: frozenset[int] = frozenset(),
    objectives: tuple[str, ...] | None = None,
    batch: int = 1,
    fingerprint: str = "",
    progress=None,
) -> Study:
    network = chain(widths)
    space = PolicySpace.on_grid(network.groups, multiple, max_pruning_ratio)
    grid = CostGrid(network, [Macs(), Params()])
    dense = grid.cost(network.dense)
    limits = resolve_budget(budget, dense)
    return Study(
        network,
        space,
        grid,
        FeasibleSet(space, grid, limits),
        Evaluator(network, kill_at, nan_at),
        bind("accuracy", {}, RewardContext(dense, 1.0, limits)),
        agent=agent,
        seed=seed,
        trials=trials,
        storage=storage,
        name="synthetic",
        objectives=objectives,
        batch=batch,
        fingerprint=fingerprint,
        progress=progress,
    )


def run_and_die(agents: Sequence[str], folder: str, kill_at: int, trials: int) -> dict[str, int]:
    """Run each agent in a forked process that dies at its ``kill_at``-th evaluation; return the signals."""
    from amcsearch.search import AGENTS

    died = {}
    for agent in agents:
        child = os.fork()
        if child == 0:
            study = make_study(agent, trials=trials, storage=f"sqlite:///{folder}/{agent}.db", kill_at=kill_at)
            AGENTS[agent]().run(study, 0)
            os._exit(0)
        died[agent] = os.WTERMSIG(os.waitpid(child, 0)[1])
    return died


if __name__ == "__main__":
    folder, kill_at, trials, *agents = sys.argv[1:]
    sys.stdout.write(json.dumps(run_and_die(agents, folder, int(kill_at), int(trials))))
