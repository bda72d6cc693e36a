"""Prune as far as the metric demonstrably stays within a tolerance of the dense network's.

The search split is cut in two by seed, every class in its share: levels of the sequence are accepted on one part, and
what was accepted is verified on the other. The test split stays for the end, as in a search.
"""

import math
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from amcsearch.config import Config
from amcsearch.core import BadInputError, Cost, Evaluation, Metric
from amcsearch.evaluation import PairedEvaluator, SerialExecutor, tango_low
from amcsearch.graph import evaluating
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.prune.target_cost import Proposal, sequence_of
from amcsearch.jobs.setup import Job
from amcsearch.jobs.workload import Workload, judged_batches
from amcsearch.runs import FailedLevel, KeepAccuracyGoal, PairedChange, RunFolder
from amcsearch.search import Study, accepted_levels, calls_at_most, last_verified, safest_first
from amcsearch.training import stratified

__all__ = ["check_tolerance", "keep_accuracy", "warn_of_few_samples"]

EXACT_LEVELS: Final = 128  # budgets of the exact programme: steps of less than a hundredth of the dense cost


def keep_accuracy(job: Job, run: RunFolder, observer: Observer) -> Proposal:
    """Find the boldest verified policy; the dense one where nothing bolder is.

    Every evaluation of the search goes through a ``Study`` and is stored before the next, so a killed run goes on.

    Raises:
        BadInputError: as ``sequence_of``, a search split too small to be cut, or storage that cannot be used.
    """
    prune, network, metric = job.config.prune, job.workload.trace.network, job.workload.task.metric
    assert prune.keep_accuracy is not None
    tolerance = prune.keep_accuracy / metric.scale
    allocation, sequence = sequence_of(job, "latency_ms" if job.device.table is not None else "macs", EXACT_LEVELS)
    levels = [network.policy(kept) for kept in sequence]
    searched, held_out = (PairedEvaluator(job.evaluator, rows, prune.confidence) for rows in _halves(job))
    is_mean = searched.is_mean and held_out.is_mean and metric.is_share
    warnings = _too_few(job.config, job.evaluator.search.samples) if is_mean else ()  # said already, before training
    study = _study(job, searched, tolerance, 1 + calls_at_most(len(levels), prune.scan), run.study_db, observer)
    study.evaluate(levels[:1])
    accepted = accepted_levels(
        len(levels), lambda level: _keeps(study.evaluate([levels[level]])[0].evaluation, tolerance), prune.scan
    )
    run.write_trials(study.trials)
    run.write_pareto(study.front)
    candidates, verified = safest_first(accepted), dict[int, Evaluation]()

    def verify(level: int) -> bool:
        verified[level] = held_out.evaluate(levels[level])
        observer.progress(len(verified) / (len(candidates) - 1), "of the candidates verified")
        return _keeps(verified[level], tolerance)

    last = last_verified(candidates, verify)
    evaluations = {trial.policy: trial.evaluation for trial in study.trials}
    goal = KeepAccuracyGoal(
        points=prune.keep_accuracy,
        confidence=prune.confidence,
        allocation=allocation,
        evaluated=_how_evaluated(job),
        levels=len(levels),
        level=last,
        accepted=tuple(accepted),
        search=_change(evaluations.get(levels[last]), searched, metric),
        verification=_change(verified.get(last), held_out, metric),
        failed=_failed(verified, held_out, tolerance, metric),
    )
    return Proposal(levels[last], "keep_accuracy", len(study.trials), goal, warnings)


def check_tolerance(tolerance: float, metric: Metric) -> None:
    """Refuse more than there is to lose: ``tolerance`` is percentage points of a share, else in the metric's own unit.

    Raises:
        BadInputError: a share that may be lost wholly.
    """
    if metric.is_share and tolerance >= 100.0:
        raise BadInputError(f"prune.keep_accuracy = {tolerance:g} points of {metric.word}, must be below 100")


def _halves(job: Job) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the search split, (n,) each: those to search on, and those set aside to verify."""
    evaluator = job.evaluator
    classes = [evaluator.task.labels(batch.targets) for batch in evaluator.search]
    rows = np.arange(evaluator.search.samples, dtype=np.int64)
    known = [ids for ids in classes if ids is not None]
    labels = torch.cat(known).cpu().numpy() if len(known) == len(classes) else None
    held_out = stratified(rows, labels, _set_aside(job.config, len(rows)), np.random.default_rng([job.config.seed, 23]))
    return np.setdiff1d(rows, held_out), held_out


def _study(
    job: Job, evaluator: PairedEvaluator, tolerance: float, trials: int, storage: Path | str, observer: Observer
) -> Study:
    dense_macs = job.device.dense["macs"]

    def reward(evaluation: Evaluation, cost: Cost) -> float:
        """Share of MACs saved where the metric is kept (the dense network keeps its own), else the bound, below 0."""
        saved = 1.0 - cost["macs"] / dense_macs
        return saved if saved == 0.0 or _keeps(evaluation, tolerance) else float(evaluation.change_low or 0.0)

    return Study(
        job.workload.trace.network,
        job.device.space,
        job.device.grid,
        job.device.feasible,
        SerialExecutor(evaluator),
        reward,
        agent="keep_accuracy",
        seed=job.config.seed,
        trials=trials,
        storage=storage,
        name=job.config.name,
        progress=observer.trial,
        fingerprint=job.fingerprint,
        metric=job.workload.task.metric,
    )


def _keeps(evaluation: Evaluation, tolerance: float) -> bool:
    return evaluation.change_low is not None and evaluation.change_low > -tolerance


def _change(evaluation: Evaluation | None, evaluator: PairedEvaluator, metric: Metric) -> PairedChange:
    """Samples, and where the policy was evaluated on them what it gains over dense, and the lower bound of that."""
    if evaluation is None:
        return PairedChange(evaluator.samples, None, None)
    change = metric.gain(evaluation.metric, evaluator.dense_metric)
    return PairedChange(evaluator.samples, change, evaluation.change_low)


def _failed(
    verified: dict[int, Evaluation], held_out: PairedEvaluator, tolerance: float, metric: Metric
) -> tuple[FailedLevel, ...]:
    """Levels that the verification did not accept, with their bounds."""
    levels = [(level, evaluation) for level, evaluation in verified.items() if not _keeps(evaluation, tolerance)]
    return tuple(FailedLevel(level, _change(evaluation, held_out, metric)) for level, evaluation in levels)


def warn_of_few_samples(config: Config, network: Workload, observer: Observer) -> None:
    """Say before anything is trained or evaluated that the search split is too small for the tolerance."""
    model, task = network.model, network.task
    if config.prune.keep_accuracy is None or config.data.targets != "given" or not task.metric.is_share:
        return
    (sample,) = judged_batches(config, network, "search").chosen([0])
    with evaluating(model), torch.inference_mode():
        is_mean = task.sample_values(sample.through(model), sample.targets) is not None
    for text in _too_few(config, network.samples["search"]) if is_mean else ():
        observer.warn(text)


def _too_few(config: Config, samples: int) -> tuple[str, ...]:
    """Where even answers that are all the same would not be proof enough, where they are right or wrong.

    Tango's bound of no change at all on n samples is -z² / (n + z²).
    """
    prune = config.prune
    assert prune.keep_accuracy is not None
    aside = _set_aside(config, samples)
    part = min(aside, samples - aside)
    least = -100.0 * tango_low(0, 0, part, prune.confidence)
    if least < prune.keep_accuracy:
        return ()
    z = NormalDist().inv_cdf(prune.confidence)
    needed = (math.floor(z**2 * (100.0 / prune.keep_accuracy - 1.0)) + 1) / min(
        prune.verification, 1.0 - prune.verification
    )
    return (
        f"prune.keep_accuracy = {prune.keep_accuracy:g} points: {part} samples cannot show a loss below {least:.2f} "
        f"points even if no answer changes; raise data.splits.search to {math.ceil(needed) + 1}, or the tolerance",
    )


def _set_aside(config: Config, samples: int) -> int:
    """How many samples of the search split verify what the others accepted."""
    return round(config.prune.verification * samples)


def _how_evaluated(job: Job) -> str:
    done = ["batch-norm recalibration"] if job.evaluator.recalibrates else []
    refit = job.evaluator.reconstruction
    done += [f"reconstruction ({refit.refit})"] if refit is not None else []
    return f"after {' and '.join(done)}, before fine-tuning" if done else "as pruned, before fine-tuning"
