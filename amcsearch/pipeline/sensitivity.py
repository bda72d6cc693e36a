"""Sensitivity of a trained network, group by group, as a CSV and a picture."""

from collections.abc import Sequence
from pathlib import Path

from amcsearch.config import Config
from amcsearch.core import Cost, PolicySpace, PruningPolicy, Trial, TrialState
from amcsearch.evaluation.sensitivity import curves, policies
from amcsearch.pipeline.job import make_evaluator
from amcsearch.pipeline.network import load_network
from amcsearch.pipeline.observer import Observer
from amcsearch.reporting.sensitivity import write_curves

__all__ = ["write_sensitivity"]


def write_sensitivity(config: Config, folder: Path, points: int, observer: Observer) -> dict[str, str]:
    """Prune one group at a time and write ``sensitivity.csv`` and ``sensitivity.svg``; returns their paths.

    Raises:
        BadInputError: as ``load_network``, fewer than two points, or a folder that cannot be written.
    """
    observer.phase("Loading or training the network")
    network = load_network(config, progress=observer.epoch)
    evaluator = make_evaluator(config, network)
    multiple = config.device.channel_multiple
    space = PolicySpace.on_grid(
        network.trace.network.groups, 1 if multiple == "auto" else multiple, config.search.max_pruning_ratio
    )
    total = len(policies(space, points))
    observer.phase(f"Evaluating {total} policies")

    def evaluate(batch: Sequence[PruningPolicy]) -> list[Trial]:
        trials = []
        for number, policy in enumerate(batch):
            evaluation = evaluator.evaluate(policy)
            trial = Trial(number, "sensitivity", config.seed, TrialState.PROBE, policy, evaluation, Cost(), 0.0)
            trials.append(trial)
            observer.progress((number + 1) / total, "policies evaluated")
        return trials

    return write_curves(curves(evaluate, space, points).rows(), folder)
