"""Whole fronts: policies of least predicted error for every budget of every cost on several devices.

One set of error tables serves all of them: those of a selector that knows what every kept count does, else probes of
one group at a time. A front is one sweep of the exact programme. A few policies of the fronts are evaluated, so that
what their errors say of the metric is known.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from amcsearch.config import Config
from amcsearch.core import BadInputError, Evaluation, PolicySpace, PruningPolicy, Trial, TrialState
from amcsearch.costs import CostGrid
from amcsearch.evaluation import (
    NO_INCUMBENTS,
    Engine,
    Executor,
    Incumbents,
    PairedEvaluator,
    PolicySource,
    policies,
    rank_correlation,
)
from amcsearch.jobs.device import Device, policy_space, table_summary
from amcsearch.jobs.front_devices import AskedDevice, Target, device_of, targets_of
from amcsearch.jobs.machine_table import own_table
from amcsearch.jobs.observer import Observer, Phases
from amcsearch.jobs.selection import name_of_choice
from amcsearch.jobs.setup import Job, Prepared, judged, prepare
from amcsearch.jobs.workload import CONFIGURED, InMemory, Workload
from amcsearch.reporting import front_page
from amcsearch.runs import (
    FRONT_COLUMNS,
    ErrorTables,
    EvaluatedPolicy,
    FrontDevice,
    FrontFiles,
    FrontResult,
    FrontSummary,
    MetricRecord,
    RunFolder,
)
from amcsearch.search import Allocator, Budget, FeasibleSet, Study, probed_errors, removal_errors

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["front"]

MOST_EVALUATIONS: Final = 10_000
POINTS: Final = 200  # policies of a front: of a budget at most 1/200 of the front's range is left unused
SUMS: Final = 1e9  # additions that a front may take: less than a second
PROBES: Final = 6  # kept counts a group, where the errors are probed
CONFIDENCE: Final = 0.975  # of each side of an interval
_NEAR: Final = 0.1  # of an error: how far a front's policy may be from it
_FIRST: Final = ("latency_ms", "energy_mj", "macs")  # the costs whose fronts are evaluated first


@dataclass(frozen=True)
class _Front:
    """Policies of least error against the cost ``along`` on a device, the cheapest first; errors and prices (R,)."""

    device: str
    along: str
    error: NDArray[np.float64]
    prices: Mapping[str, NDArray[np.float64]]
    policies: tuple[PruningPolicy, ...]

    def nearest(self, error: float, without: Collection[PruningPolicy]) -> int | None:
        """Return which policy comes nearest to an error, of those that are not among others."""
        order = np.argsort(np.abs(self.error - error), kind="stable").tolist()
        return next((i for i in order if self.policies[i] not in without), None)


@dataclass(frozen=True)
class _DeviceFronts:
    """The fronts of all costs of a device, what is said of it, and what is to be warned of."""

    fronts: list[_Front]
    entry: FrontDevice
    warnings: list[str]


def front(
    config: Config,
    run: RunFolder,
    observer: Observer,
    given: InMemory = CONFIGURED,
    *,
    devices: Sequence[AskedDevice] = (),
    evaluations: int = 12,
    workers: int = 1,
    scheduler: str | None = None,
) -> FrontResult:
    """Make the fronts of all costs on all devices, and evaluate some of their policies.

    Without ``devices`` it is the configured one; its budget does not count. Writes ``errors.json``, ``front.csv``,
    ``front.json``, ``report.html`` and ``trials.csv``. What the run folder stores is taken up again: tables, probes and
    evaluations; other devices and more evaluations join by it.

    Raises:
        BadInputError: an unknown device or one named twice, a device whose table cannot price the network, fewer than 0
            evaluations, or as ``prepare`` and ``judged``.
    """
    if not 0 <= evaluations <= MOST_EVALUATIONS:
        raise BadInputError(f"evaluations = {evaluations}, must be from 0 to {MOST_EVALUATIONS}")
    engine = Engine(workers, scheduler)
    engine.prepare()
    targets = targets_of(config, devices)
    phases, loaded = Phases(observer, run.append_log), dict[str, Device]()

    def load(workload: Workload) -> Device:
        machine = cache(partial(own_table, config, workload, observer, run))
        loaded.update({target.name: device_of(config, workload, target, given, machine) for target in targets})
        return device_of(config, workload, Target(""), given)

    prepared = prepare(config, (), phases, given, run=run, load=load)
    judge = _Judge(prepared, phases, engine, run, observer)
    try:
        tables = judge.tables()
        with phases("fronts", "Finding the policies of least error for every budget"):
            made = [_fronts_of(target, loaded[target.name], tables) for target in targets]
        fronts = [front for device in made for front in device.fronts]
        with phases("evaluations", "Evaluating policies of the fronts"):
            dense, before = prepared.workload.trace.network.dense, _evaluated_before(run)
            chosen = _spread(fronts, evaluations, dense, before)
            evaluated = judge.evaluated(chosen, loaded, tables.dense_metric)
    finally:
        judge.close()
    summary = _summary(prepared, tables, made, evaluated, phases)
    for text in summary.warnings:
        observer.warn(text)
    return _written(summary, fronts, run)


def _summary(
    prepared: Prepared,
    tables: ErrorTables,
    made: Sequence[_DeviceFronts],
    evaluated: tuple[EvaluatedPolicy, ...],
    phases: Phases,
) -> FrontSummary:
    metric = prepared.workload.task.metric
    losses = [metric.gain(tables.dense_metric, each.metric) for each in evaluated]
    return FrontSummary(
        name=prepared.config.name,
        metric=MetricRecord.of(metric),
        dense_metric=tables.dense_metric,
        samples=tables.samples,
        errors_from=tables.source,
        devices=tuple(device.entry for device in made),
        evaluated=evaluated,
        rank_correlation=rank_correlation([each.error for each in evaluated], losses) if evaluated else None,
        warnings=tuple(text for device in made for text in device.warnings),
        seconds=phases.seconds,
    )


class _Judge:
    """Evaluates policies as an ``Executor`` does, and gives the error tables; ranks channels when that is needed."""

    def __init__(self, prepared: Prepared, phases: Phases, engine: Engine, run: RunFolder, observer: Observer) -> None:
        self.prepared, self.phases, self.engine, self.run, self.observer = prepared, phases, engine, run, observer
        self.studies: list[Study] = []

    @cached_property
    def job(self) -> Job:
        """The job with its channels ranked."""
        return judged(self.prepared, self.phases)

    @cached_property
    def paired(self) -> PairedEvaluator:
        """Evaluates on the whole search split, beside the dense network."""
        rows = np.arange(self.job.evaluator.search.samples, dtype=np.int64)
        return PairedEvaluator(self.job.evaluator, rows, CONFIDENCE)

    @cached_property
    def _executor(self) -> Executor:
        return self.engine.executor(self.paired, self.observer.warn)

    @property
    def capacity(self) -> int:
        """How many policies it evaluates at once."""
        return self._executor.capacity

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``; the workers start with the first."""
        yield from self._executor.map(policies, incumbents)

    def close(self) -> None:
        """End all workers, and write the trials."""
        if "_executor" in self.__dict__:
            self._executor.close()
        if self.studies:
            self.run.write_trials(trial for study in self.studies for trial in study.trials)

    def tables(self) -> ErrorTables:
        """The error tables of the run folder, or those that the selector knows or probes give, which are stored."""
        path = FrontFiles.of(self.run).tables
        if path.exists():
            return ErrorTables.read(path)
        config, network = self.prepared.config, self.prepared.workload.trace.network
        space = policy_space(config, network, 1)
        source, known = name_of_choice(config), self.job.errors
        if known is None:
            source = f"{source}, by probes"
            errors = self._probed(space)
        else:
            errors = removal_errors(space, known)
        by_group = list(zip(space.groups, space.choices, errors, strict=True))
        tables = ErrorTables(
            source=source,
            dense_metric=self.paired.dense_metric,
            samples=self.paired.samples,
            kept={group.name: tuple(choices.tolist()) for group, choices, _ in by_group},
            error={group.name: tuple(values.tolist()) for group, _, values in by_group},
        )
        self.run.write_json(path, tables)
        return tables

    def _probed(self, space: PolicySpace) -> list[NDArray[np.float64]]:
        grid = self.prepared.device.grid
        probes = len(policies(space, PROBES))
        with self.phases("probes", f"Probing every group at up to {PROBES} kept counts"):
            study = self._study("front probes", space, grid, FeasibleSet(space, grid, Budget({})), probes)
            return probed_errors(study, PROBES)

    def evaluated(
        self, chosen: Sequence[tuple[_Front, int]], devices: Mapping[str, Device], dense_metric: float
    ) -> tuple[EvaluatedPolicy, ...]:
        """Evaluate policies of fronts, each through its device's study; those without a finite loss are left out."""
        trials: dict[PruningPolicy, Trial] = {}
        for name, device in devices.items():
            policies = [front.policies[i] for front, i in chosen if front.device == name]
            if policies:
                study = self._study(f"front on {name}", device.space, device.grid, device.feasible, len(policies))
                trials.update(zip(policies, study.evaluate(policies), strict=True))
        return tuple(
            _as_evaluated(front, i, trials[front.policies[i]], dense_metric)
            for front, i in chosen
            if trials[front.policies[i]].state is TrialState.COMPLETE
        )

    def _study(self, agent: str, space: PolicySpace, grid: CostGrid, feasible: FeasibleSet, trials: int) -> Study:
        config, workload = self.prepared.config, self.prepared.workload
        study = Study(
            workload.trace.network,
            space,
            grid,
            feasible,
            self,
            lambda evaluation, _: workload.task.metric.gain(evaluation.metric, 0.0),
            agent=agent,
            seed=config.seed,
            trials=trials,
            storage=self.run.study_db,
            name=config.name,
            progress=self.observer.trial,
            fingerprint=self.prepared.fingerprint,
            metric=workload.task.metric,
        )
        self.studies.append(study)
        return study


def _as_evaluated(front: _Front, i: int, trial: Trial, dense_metric: float) -> EvaluatedPolicy:
    """The measured metric, and its interval from the bounds of the gain over the dense network."""
    metric, evaluation = trial.judged_by, trial.evaluation
    bounds = [evaluation.change_low, evaluation.change_high]
    ends = [metric.within(dense_metric + metric.gain(change, 0.0)) for change in bounds if change is not None]
    return EvaluatedPolicy(
        device=front.device,
        along=front.along,
        policy=front.policies[i],
        error=float(front.error[i]),
        metric=evaluation.metric,
        loss=evaluation.loss,
        low=min(ends, default=None),
        high=max(ends, default=None),
    )


def _evaluated_before(run: RunFolder) -> tuple[EvaluatedPolicy, ...]:
    """What a finished front in the run folder evaluated."""
    return FrontResult.open(run.path).summary.evaluated if FrontFiles.of(run).front.exists() else ()


def _spread(
    fronts: Sequence[_Front], count: int, dense: PruningPolicy, before: Sequence[EvaluatedPolicy] = ()
) -> list[tuple[_Front, int]]:
    """Choose up to ``count`` policies, each once and none dense: those of the fronts from ``before``, then new ones.

    The errors of new ones are spread from the largest down, half by how many points of the fronts have them and half by
    their size; those of old ones count. Of the fronts that have a policy of about such an error, it is taken from the
    one that gave the fewest.
    """
    if not count:
        return []
    ordered = sorted(fronts, key=lambda front: _FIRST.index(front.along) if front.along in _FIRST else len(_FIRST))
    errors = np.sort(np.concatenate([front.error for front in ordered]))
    share = (np.linspace(0.0, 1.0, len(errors)) + errors / max(errors[-1], 1e-300)) / 2
    wanted = np.interp(np.linspace(1.0, 0.0, count + 1)[:-1], share, errors).tolist()
    chosen = [place for each in before if (place := _place(ordered, each)) is not None]
    for known in [float(front.error[i]) for front, i in chosen[:count]]:
        wanted.remove(min(wanted, key=lambda error: abs(error - known)))
    given, taken = Counter(id(front) for front, _ in chosen), {dense, *(front.policies[i] for front, i in chosen)}
    for error in wanted:
        offers = [(front, at) for front in ordered if (at := front.nearest(error, taken)) is not None]
        if not offers:
            break
        gaps = [abs(float(front.error[at]) - error) for front, at in offers]
        near = [offer for offer, gap in zip(offers, gaps, strict=True) if gap <= max(_NEAR * error, min(gaps))]
        fewest = min(near, key=lambda offer: given[id(offer[0])])
        given[id(fewest[0])] += 1
        taken.add(fewest[0].policies[fewest[1]])
        chosen.append(fewest)
    return chosen


def _place(fronts: Sequence[_Front], evaluated: EvaluatedPolicy) -> tuple[_Front, int] | None:
    """A front that holds a policy, and where: the one that it was evaluated for, if that is among them."""
    holders = [front for front in fronts if evaluated.policy in front.policies]
    holders.sort(key=lambda front: (front.device, front.along) != (evaluated.device, evaluated.along))
    return (holders[0], holders[0].policies.index(evaluated.policy)) if holders else None


def _fronts_of(target: Target, device: Device, tables: ErrorTables) -> _DeviceFronts:
    """Find the fronts of all costs of a device.

    Raises:
        BadInputError: there is none against any.
    """
    start, name, space = time.perf_counter(), target.name, device.space
    errors = [tables.of(group.name, choices) for group, choices in zip(space.groups, space.choices, strict=True)]
    fronts, notes = list[_Front](), [f"device {name}: {text}" for text in device.warnings]
    for along in device.grid.names:
        try:
            kept, error = Allocator(device.feasible, sums=SUMS, axis=along).front(errors, POINTS)
        except BadInputError as problem:
            notes.append(f"device {name}: no front against {along}: {problem}")
            continue
        cheapest_first = tuple(map(device.grid.network.policy, kept))
        fronts.append(_Front(name, along, error, device.grid.price(kept), cheapest_first))
    if not fronts:
        raise BadInputError(notes[-1])
    entry = FrontDevice(
        name=name,
        profile=None if device.profile is None else device.profile.name,
        table=table_summary(device.table, _table_name(device, target), device.origin),
        channel_multiple=device.channel_multiple,
        dense=device.dense,
        seconds=time.perf_counter() - start,
    )
    return _DeviceFronts(fronts, entry, notes)


def _table_name(device: Device, target: Target) -> str:
    folder = target.table if device.origin is None else device.origin.folder
    return Path(folder).name if isinstance(folder, str) else target.name


def _rows(fronts: Sequence[_Front], summary: FrontSummary) -> "pd.DataFrame":
    """One policy a row, the fronts one after another, with ``FRONT_COLUMNS`` and a column for each cost."""
    import pandas as pd  # a third of a second that most processes need not wait

    costs = dict.fromkeys(name for front in fronts for name in front.prices)
    parts = [
        pd.DataFrame(
            {
                "device": front.device,
                "along": front.along,
                "error": front.error,
                "expected": summary.expected(front.error),
                **front.prices,
                "policy": [policy.to_json() for policy in front.policies],
            }
        )
        for front in fronts
    ]
    return pd.concat(parts, ignore_index=True)[[*FRONT_COLUMNS[:-1], *costs, FRONT_COLUMNS[-1]]]


def _written(summary: FrontSummary, fronts: Sequence[_Front], run: RunFolder) -> FrontResult:
    """Write the files of a front and return it with their paths."""
    files = FrontFiles.of(run)
    result = FrontResult(summary, _rows(fronts, summary), files.by_name)
    with run.replacing(files.points) as temporary:
        result.points.to_csv(temporary, index=False)
    run.write_report(front_page(result))
    run.write_json(files.front, summary)
    return result
