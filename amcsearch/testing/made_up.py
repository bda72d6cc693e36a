"""A made-up problem that any agent searches in milliseconds: a chain of convolutions and a formula for its accuracy."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import numpy as np

from amcsearch.core import (
    ChannelGroup,
    Coupling,
    Evaluation,
    Incumbent,
    LayerKind,
    LayerSpec,
    NetworkSpec,
    PolicySpace,
    PruningPolicy,
    Side,
)
from amcsearch.costs import CostGrid, Macs, Params
from amcsearch.evaluation import NO_INCUMBENTS, Executor, Incumbents, PolicySource
from amcsearch.search import FeasibleSet, Progress, RewardContext, Study, bind, resolve_budget

__all__ = ["TIGHT", "MadeUpEvaluator", "chain", "make_study"]

HALF_MACS: Final = MappingProxyType({"macs": "0.5x"})
TIGHT: Final = MappingProxyType({"macs": "0.3x", "params": "0.4x"})


def chain(widths: Sequence[int], size: int = 8, *, vanish: bool = False) -> NetworkSpec:
    """Return convolutions one after another; each width but the last (the classes) is a group.

    With ``vanish`` every second group may keep no channels.
    """
    channels = [1, *widths, 10]
    layers = tuple(
        LayerSpec(f"c{i}", LayerKind.CONV, a, b, (3, 3), padding=(1, 1), in_size=(s, s), out_size=(s, s))
        for i, (a, b) in enumerate(pairwise(channels))
        for s in [max(1, size >> (i // 2))]
    )
    groups = tuple(
        ChannelGroup(
            f"g{i}", n, (Coupling(f"c{i}", Side.OUT), Coupling(f"c{i + 1}", Side.IN)), can_vanish=vanish and i % 2 == 1
        )
        for i, n in enumerate(widths)
    )
    return NetworkSpec(layers, groups)


@dataclass
class MadeUpEvaluator:
    """Accuracy falls with the weighted squares of the shares removed, so the optimum is not uniform.

    The loss of the evaluations numbered in ``nan_at``, from 1, is not a number; ``calls`` are the policies evaluated.
    What does not beat its incumbent stops.
    """

    network: NetworkSpec
    nan_at: frozenset[int] = frozenset()
    calls: list[PruningPolicy] = field(default_factory=list)
    capacity = 1

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``."""
        for policy in policies:
            if policy is None:
                return
            yield self.evaluate(policy, incumbents[policy]) if policy in incumbents else self.evaluate(policy)

    def close(self) -> None:
        """Nothing is held."""

    def evaluate(self, policy: PruningPolicy, incumbent: Incumbent | None = None) -> Evaluation:
        """Return the made-up accuracy and loss."""
        self.calls.append(policy)
        groups = self.network.groups
        removed = np.array([1 - policy[group.name] / group.channels for group in groups])
        harm = float(np.linspace(0.2, 1.0, len(groups)) @ removed**2) / max(1, len(groups))
        loss = math.nan if len(self.calls) in self.nan_at else harm
        evaluation = Evaluation(math.exp(-harm), loss, time.perf_counter())
        if incumbent is None or evaluation.metric > incumbent.to_beat:
            return evaluation
        return replace(evaluation, stopped_after=1, metric_bound=incumbent.to_beat)


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
    evaluator: Callable[[NetworkSpec], Executor] = MadeUpEvaluator,
    objectives: tuple[str, ...] | None = None,
    batch: int = 1,
    fingerprint: str = "",
    progress: Progress | None = None,
    errors: bool = False,
    vanish: bool = False,
    stops: bool = False,
) -> Study:
    """Return a study of the made-up problem: a chain of convolutions, priced in MACs and parameters.

    With ``errors`` it knows those of every choice: its own squares, but all of one weight. With ``stops`` what
    does not beat the best stops.
    """
    grid = CostGrid(chain(widths, vanish=vanish), [Macs(), Params()])
    space = PolicySpace.on_grid(grid.network.groups, multiple, max_pruning_ratio, vanish=vanish)
    dense = grid.cost(grid.network.dense)
    limits = resolve_budget(budget, dense)
    reward = bind("accuracy", {}, RewardContext(dense, 1.0, limits))
    return Study(
        *(grid.network, space, grid, FeasibleSet(space, grid, limits), evaluator(grid.network), reward),
        agent=agent,
        seed=seed,
        trials=trials,
        storage=storage,
        name="synthetic",
        objectives=objectives,
        batch=batch,
        fingerprint=fingerprint,
        progress=progress,
        errors=[(1.0 - choices / choices[-1]) ** 2 for choices in space.choices] if errors else None,
        stops=stops,
    )
