"""Sensitivity of a trained network, group by group, with and without recovery; and whether losses of groups add up."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from amcsearch.config import Config
from amcsearch.core import BadInputError, Cost, NetworkSpec, PolicySpace, PruningPolicy, Trial, TrialState
from amcsearch.evaluation import Curves, Evaluator, check_points, curves, expected_increase, policies, rank_correlation
from amcsearch.jobs.device import policy_space
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.rehearsal import half_of
from amcsearch.jobs.selection import check_named, with_selection
from amcsearch.jobs.setup import make_evaluator, settled
from amcsearch.jobs.workload import CONFIGURED, InMemory, load_workload
from amcsearch.reporting import check_charts, write_additivity, write_curves
from amcsearch.runs import Document

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Sensitivity", "sensitivity"]

CURVE_COLUMNS: Final = ("group", "kept", "loss", "accuracy", "recovery")

Evaluate = Callable[[Sequence[PruningPolicy]], list[Trial]]


@dataclass(frozen=True)
class Sensitivity(Document):
    """Loss and accuracy of one group pruned at a time, as the configuration recovers it and as it is cut.

    ``rank_correlation`` is Spearman's between summed and joint losses, None where it is not defined or was not asked
    for; ``files`` are the paths written, by what they are, none without a folder.
    """

    recovered: Curves
    bare: Curves
    joint: int
    rank_correlation: float | None
    files: Mapping[str, str]

    @property
    def curves(self) -> "pd.DataFrame":
        """One row a width of a group: ``group``, channels ``kept``, ``loss`` in nats, ``accuracy`` as a share.

        ``recovery`` is ``recovered`` or ``bare``; every group's rows end with all of its channels.
        """
        import pandas as pd  # a third of a second that most processes need not wait

        return pd.DataFrame(_rows(self.recovered, self.bare), columns=list(CURVE_COLUMNS))

    def to_json(self) -> dict[str, Any]:
        """Return the paths, and the rank correlation where policies were pruned jointly."""
        return {**self.files, **({"rank_correlation": self.rank_correlation} if self.joint else {})}


def sensitivity(
    config: Config,
    folder: Path | None,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    points: int = 5,
    joint: int = 50,
) -> Sensitivity:
    """Prune one group at a time, then ``joint`` random policies whole; return the curves and how well they add up.

    Writes to ``folder``, if there is one, ``sensitivity.csv`` and ``.svg``: every width as the configuration recovers
    it (``recovered``), and as it is cut (``bare``); and ``additivity.csv`` and ``.svg`` where ``joint`` is not 0.

    Raises:
        BadInputError: as ``check_named`` and ``load_workload``, fewer than 2 points, fewer than 0 joint policies, or a
            folder that cannot be written.
    """
    check_points(points)
    if joint < 0:
        raise BadInputError(f"sensitivity joint = {joint}, must be at least 0")
    check_named(config, given)
    check_charts(folder, "sensitivity", *["additivity"] * bool(joint))
    observer.phase("Loading or training the network")
    workload = load_workload(config, given, progress=observer.epoch)
    for text in workload.warnings:
        observer.warn(text)
    config, selection = with_selection(config, workload, given)
    observer.phase(f"Ranking channels by {selection}")
    network = workload.trace.network
    space = _space(config, network)
    evaluator, warnings = settled(config, make_evaluator(config, workload, given), half_of(network, space))
    for text in warnings:
        observer.warn(text)
    drawn = space.random(joint, np.random.default_rng(config.seed))
    together = [network.policy(row) for row in drawn]
    total = 2 * len(policies(space, points)) + len(together)
    observer.phase(f"Evaluating {total} policies")
    evaluate = _counting(config.seed, total, observer)
    recovered, bare = (curves(evaluate(each), space, points) for each in (evaluator, evaluator.bare()))
    files = {} if folder is None else write_curves(_rows(recovered, bare), folder)
    correlation = None
    if together:
        joint_rows = _joint(recovered, together, evaluate(evaluator))
        expected, measured, _ = zip(*joint_rows, strict=True)
        correlation = rank_correlation(expected, measured)
        files |= {} if folder is None else write_additivity(joint_rows, correlation, folder)
    return Sensitivity(recovered, bare, len(together), correlation, files)


def _space(config: Config, network: NetworkSpec) -> PolicySpace:
    multiple = config.device.channel_multiple
    return policy_space(config, network, 1 if multiple == "auto" else multiple)


def _rows(recovered: Curves, bare: Curves) -> list[tuple[str, int, float, float, str]]:
    """Points of both curves, with the values of ``CURVE_COLUMNS``."""
    return [(*row, name) for name, those in (("recovered", recovered), ("bare", bare)) for row in those.rows()]


def _counting(seed: int, total: int, observer: Observer) -> Callable[[Evaluator], Evaluate]:
    """Make doors to evaluators that share one progress bar of ``total`` policies."""
    done = 0

    def through(evaluator: Evaluator) -> Evaluate:
        def evaluate(batch: Sequence[PruningPolicy]) -> list[Trial]:
            nonlocal done
            trials = []
            for number, policy in enumerate(batch):
                evaluation = evaluator.evaluate(policy)
                trials.append(Trial(number, "sensitivity", seed, TrialState.PROBE, policy, evaluation, Cost(), 0.0))
                done += 1
                observer.progress(done / total, "policies evaluated")
            return trials

        return evaluate

    return through


def _joint(
    single: Curves, together: Sequence[PruningPolicy], evaluate: Evaluate
) -> list[tuple[float, float, PruningPolicy]]:
    """Loss increase of each policy: (expected, measured, policy); one that is not a number counts as infinite."""
    dense = float(next(iter(single.values())).loss[-1])
    rows = []
    for trial in evaluate(together):
        measured = trial.evaluation.loss - dense
        rows.append(
            (expected_increase(single, trial.policy), math.inf if math.isnan(measured) else measured, trial.policy)
        )
    return rows
