"""The latency table of ``device.table: auto``: this machine's own, found, measured or brought up to date.

It lies in the cache folder, below ``tables``, under a name made of what identifies machine, runtime and setting. A
network that it lacks is measured into it. One that it holds is used as it is where its runs are of the last minutes;
else a few runs say whether the machine has drifted, and where it has, or where the runs are a day old, ten anchors
bring the table up to date.

One job measures at a time: another waits, and then reads. A run keeps the table that it began with, for its trials are
priced by it. A cache that cannot be written costs the table after the job, not the job.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch

from amcsearch.config import AUTO, TABLES, Config, TableFolder, asks_latency, read_latency_table, write_latency_table
from amcsearch.core import BadInputError, Limit, NetworkSpec, check_interrupt
from amcsearch.costs import LatencyTable, fingerprint
from amcsearch.graph import evaluating
from amcsearch.jobs.measurements import Measurements
from amcsearch.jobs.observer import Observer, wall_s
from amcsearch.jobs.runtimes import other_runtime, runtime_of
from amcsearch.jobs.table_check import check_table, machine_folder, other_setting
from amcsearch.jobs.tables import (
    default_variants,
    measure_table,
    measured_count,
    measured_here,
    prior_of,
    subject_from,
    wanted_variants,
)
from amcsearch.jobs.workload import InMemory, TracedNetwork
from amcsearch.measure import KitPlan, MeasuredSubject, measured_variants, measurement_plan
from amcsearch.runs import InUseError, RunFolder, TableOrigin
from amcsearch.runtime import OnnxSettings

__all__ = [
    "ExpectedTable",
    "MachineTable",
    "expected_table",
    "machine_table",
    "own_table",
]

RECENT_S: Final = 600.0  # a machine drifts by percents within an hour
OLD_S: Final = 86_400.0
NOISE: Final = 0.10  # mean difference of measuring twice: a network measured so is measured again
DRIFT: Final = 0.03  # share by which runs may differ from predictions
PROBES: Final = 3  # runs that ask for the drift, beside the dense network
ANCHORS: Final = 10
FRESH: Final = 8  # variants that say how far the table errs after anchors
WAIT_S: Final = 0.5
PATIENCE: Final = 3.0  # a bound is so many times what is expected: the machine may be busy
PASSES: Final = 3  # of each network that is run
ROUNDS: Final = 12  # of a pass, some of them disturbed
PROFILED: Final = 180  # calls of the profile, which count twice: it slows them
WARM_MS: Final = 10.0  # before the first


@dataclass(frozen=True)
class MachineTable:
    """This machine's table, and where it is from; not ``is_final`` where another one prices a plan in its place."""

    table: LatencyTable
    origin: TableOrigin
    is_final: bool = True


@dataclass(frozen=True)
class ExpectedTable:
    """What a job would do for its table before it begins.

    ``table`` prices the network until then: this machine's, or another's, or None where no table can. ``seconds`` are
    expected, 0 where nothing is to be measured; ``text`` says what is.
    """

    table: MachineTable | None
    seconds: float
    text: str | None


def machine_table(
    config: Config,
    network: TracedNetwork,
    limits: Sequence[Limit],
    given: InMemory,
    observer: Observer,
    run: RunFolder | None = None,
) -> MachineTable | None:
    """Return this machine's table with the network in it; what it lacks is measured first.

    None where the configuration names a table, one is in memory, or nothing asks for latency.

    Raises:
        BadInputError: the runtime does not work here, a network that cannot be exported, or as ``measure_table``.
    """
    return own_table(config, network, observer, run) if _is_asked(config, limits, given) else None


def _is_asked(config: Config, limits: Sequence[Limit], given: InMemory) -> bool:
    return given.table is None and config.device.table == AUTO and asks_latency(config, limits)


def own_table(config: Config, network: TracedNetwork, observer: Observer, run: RunFolder | None = None) -> MachineTable:
    """Return this machine's table with the network in it; a run goes on with the one that it began with.

    Raises:
        BadInputError: as ``machine_table``, or a run folder that cannot be written.
    """
    if run is not None and run.latency_table.is_dir():
        return _kept(run)
    machine = _Keeper(config, network, observer).table()
    if run is None:
        return machine
    extra = {**machine.table.extra, "origin": machine.origin.to_json()}
    write_latency_table(replace(machine.table, extra=extra), run.latency_table)
    return _kept(run)  # the file has fewer digits, and a resumed run prices its trials by the file


def _kept(run: RunFolder) -> MachineTable:
    table = read_latency_table(run.latency_table.absolute())
    origin = table.extra.get("origin", {"folder": str(run.latency_table), "device": "unknown", "done": "used"})
    return MachineTable(table, TableOrigin.from_json(origin, f"{run.latency_table}: origin"))


def expected_table(
    config: Config, network: TracedNetwork, limits: Sequence[Limit], given: InMemory
) -> ExpectedTable | None:
    """Return what ``machine_table`` would do; nothing is measured or written.

    Raises:
        BadInputError: the runtime does not work here, or a table that is damaged.
    """
    return _Keeper(config, network, None).expected() if _is_asked(config, limits, given) else None


@dataclass
class _Keeper:
    """Finds, measures and updates the machine's table of one network; tells ``observer`` if there is one."""

    config: Config
    network: TracedNetwork
    observer: Observer | None
    models: int = 0
    drift: float | None = None
    begun: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.folder = machine_folder(self.config)

    @property
    def spec(self) -> NetworkSpec:
        return self.network.trace.network

    @cached_property
    def prior(self) -> LatencyTable | None:
        """Another machine's table that knows the network."""
        return prior_of(self.config, self.spec)

    def table(self) -> MachineTable:
        """The table, measured as far as that is needed."""
        table = self._read()
        if table is not None and self._is_recent(table):
            return self._made(table, "used")
        with self._taken() as taken:
            table = self._read()  # another job may have measured meanwhile
            if table is None or table.name_of(self.spec) is None:
                return self._written(taken, self._measured(table, taken), "measured")
            age_s = self._age_s(table)
            why = None if self._is_recent(table) else self._why_due(table) or self._drifted(table)
            if why is None:
                return self._made(table, "used", age_s)
            return self._written(taken, self._updated(table, taken, why), "updated", age_s)

    def expected(self) -> ExpectedTable:
        """What ``table`` would do."""
        table = self._read()
        is_there = table is not None and table.name_of(self.spec) is not None
        why = self._why_due(table) if table is not None and is_there else None
        if table is not None and is_there and why is None:
            return ExpectedTable(self._made(table, "used"), 0.0, None)
        models = 1 + ANCHORS + FRESH if is_there else self._models(table)
        seconds = self._seconds(models)
        step = (
            f"latency table {self.folder} {why} and will be brought up to date"
            if is_there
            else "no latency table of this machine holds this network"
            f"{other_setting(self.config, self.spec)}: it will be measured into {self.folder}"
        )
        text = f"{step} ({models} networks, at most {_minutes(seconds)} minutes)"
        pricing = table if table is not None and self._predicts(table) else self.prior
        if pricing is None or not self._predicts(pricing):
            unknown = "until then nothing prices latency: this plan leaves it out, and whether a limit on it can be met"
            return ExpectedTable(
                None, seconds, f"{text}; {unknown} is known once the table is measured, before trial 1"
            )
        if not is_there:
            text += f"; until then the table of {pricing.provenance.cpu} prices latency"
        return ExpectedTable(replace(self._made(pricing, "used"), is_final=False), seconds, text)

    def _predicts(self, table: LatencyTable) -> bool:
        try:
            table.bind(self.spec).predict(self.spec.layers)
        except BadInputError:
            return False
        return True

    def _read(self) -> LatencyTable | None:
        if not TABLES.is_one(self.folder):
            return None
        try:
            table = read_latency_table(self.folder.absolute())
            name = table.name_of(self.spec)
            if name is not None and table.networks[name].is_misattributed:
                older = "an older amcsearch gave the times of reorders to random layers"
                raise BadInputError(f"latency table {self.folder}: {older}")
            return table
        except BadInputError as error:
            self._warn(f"{error}; it is measured anew")
            return None

    def _age_s(self, table: LatencyTable) -> float:
        """Seconds since the network was measured, infinite where it never was."""
        when = self._when(table)
        return math.inf if when is None else max((datetime.now(UTC) - when).total_seconds(), 0.0)

    def _is_recent(self, table: LatencyTable) -> bool:
        return self._age_s(table) < RECENT_S and self._why_due(table) is None

    def _why_due(self, table: LatencyTable) -> str | None:
        """Why the network must be brought up to date whatever the machine does now, None where it need not."""
        accuracy = None if (name := table.name_of(self.spec)) is None else table.networks[name].accuracy
        if accuracy is not None and (accuracy.noise_mape or 0.0) > NOISE:
            return f"was measured on a busy machine (measuring twice differed by {accuracy.noise_mape:.0%})"
        return "was measured more than a day ago" if self._age_s(table) >= OLD_S else None

    def _when(self, table: LatencyTable) -> datetime | None:
        name = table.name_of(self.spec)
        text = None if name is None else table.networks[name].brought_up_to_date or table.provenance.timestamp
        try:
            when = None if text is None else datetime.fromisoformat(text)
        except ValueError:
            return None
        return when.replace(tzinfo=UTC) if when is not None and when.tzinfo is None else when

    @contextmanager
    def _taken(self) -> Iterator[TableFolder]:
        """The folder for this job alone, or a temporary one where the cache cannot be written."""
        taken = self._take()
        if taken is not None:
            with taken:
                yield taken
            return
        with tempfile.TemporaryDirectory() as folder, TableFolder.take(Path(folder) / self.folder.name) as taken:
            yield taken

    def _take(self) -> TableFolder | None:
        is_told = False
        while True:
            try:
                return TableFolder.take(self.folder)
            except InUseError as error:
                if not is_told:
                    self._phase(f"Waiting for another job that measures this machine: {str(error).partition(';')[0]}")
                is_told = True
                check_interrupt()
                time.sleep(WAIT_S)
            except BadInputError as error:
                self._warn(f"this machine's latency table cannot be kept: {error}; it is of this job alone")
                return None

    def _subject(self, table: LatencyTable | None) -> MeasuredSubject:
        """The network under the name that it has in the table, or one that no other network has."""
        name = self.config.name
        if table is not None:
            known = table.name_of(self.spec)
            name = known or (f"{name}-{fingerprint(self.spec)[:6]}" if name in table.networks else name)
        return subject_from(name, self.network)

    def _measured(self, table: LatencyTable | None, taken: TableFolder) -> LatencyTable:
        """Measure the network, beside what the table holds."""
        self.models = self._models(table)
        minutes = _minutes(self._seconds(self.models))
        self._phase(
            f"Measuring this machine's latency table{other_setting(self.config, self.spec)}: {self.models} networks, "
            f"at most {minutes} minutes, kept in {taken.path}; Ctrl-C keeps what is measured"
        )
        observer, subject = self._observer(), self._subject(table)
        kept = Measurements(taken.measuring, resume=True, anew=True)
        return measure_table(self.config, observer, known=table, minutes=minutes, measurements=kept, subject=subject)

    def _updated(self, table: LatencyTable, taken: TableFolder, why: str) -> LatencyTable:
        """Bring the network up to date by anchors."""
        self.models += 1 + ANCHORS + FRESH
        minutes = _minutes(self._seconds(self.models))
        self._phase(
            f"Bringing this machine's latency table up to date, which {why}: {self.models} networks, at most {minutes} "
            f"minutes, kept in {taken.path}"
        )
        kept = Measurements(taken.measuring, resume=True, anew=True)
        checked = check_table(
            table,
            self.config,
            self._observer(),
            fresh=FRESH,
            anchors=ANCHORS,
            measurements=kept,
            subject=self._subject(table),
            minutes=minutes,
        )
        return checked.table

    def _drifted(self, table: LatencyTable) -> str | None:
        """What a few runs say of their predictions, None where they agree."""
        subject, device = self._subject(table), self.config.device
        self._phase("Asking whether this machine has drifted since its latency table was measured")
        plan = measurement_plan(
            [subject],
            variants=0,
            held_out=0,
            anchors=PROBES,
            batch=device.batch,
            dtype=device.dtype,
            opset=device.export.opset,
            passes=1,
            seed=self.config.seed,
            runtime=other_runtime(self.config),
        )
        plan = replace(plan, profile_rounds=1)
        result = measured_here(plan, self.config, self._observer())
        runs = [run for run in measured_variants(result, subject.name).building if run.passes_ms]
        predicted = table.bind(self.spec).predict_all([run.layers for run in runs])
        self.models += len(runs)
        self.drift = float(np.median([run.latency_ms for run in runs] / predicted)) - 1.0
        return f"is {abs(self.drift):.1%} off today" if abs(self.drift) > DRIFT else None

    def _models(self, table: LatencyTable | None) -> int:
        """How many models a measurement of the network has: dense, building and held out."""
        prior = self.prior if table is None else None
        return measured_count(wanted_variants(table, prior, self.spec, default_variants(self.config)))

    def _seconds(self, models: int) -> float:
        """Time of preparing and measuring so many models of the dense network's size."""
        example, device = self.network.example.chosen([0] * self.config.device.batch), self.config.device
        settings = OnnxSettings(device.export.opset)
        runtime = runtime_of(self.config)
        export_s = wall_s(lambda: runtime.exported(self.network.model, example, settings))
        with evaluating(self.network.model), torch.inference_mode():
            call_ms = 1e3 * wall_s(lambda: example.through(self.network.model))
        timed_ms = PASSES * (ROUNDS * (max(KitPlan.sample_ms, call_ms) + call_ms) + WARM_MS) + PROFILED * call_ms
        return models * (2.0 * export_s + timed_ms / 1e3)

    def _written(self, taken: TableFolder, table: LatencyTable, done: str, age_s: float | None = None) -> MachineTable:
        try:
            taken.write(table, was_measured=True)
        except BadInputError as error:
            self._warn(f"this machine's latency table cannot be kept: {error}; it is of this job alone")
        return self._made(table, done, age_s)

    def _made(self, table: LatencyTable, done: str, age_s: float | None = None) -> MachineTable:
        when = self._when(table)
        origin = TableOrigin(
            folder=str(self.folder),
            device=table.provenance.cpu or "this machine",
            done=done,
            measured=None if when is None else when.isoformat(timespec="seconds"),
            age_s=None if when is None else self._age_s(table) if age_s is None else age_s,
            models=self.models,
            seconds=time.perf_counter() - self.begun,
            drift=self.drift,
        )
        return MachineTable(table, origin)

    def _observer(self) -> Observer:
        assert self.observer is not None
        return self.observer

    def _phase(self, text: str) -> None:
        self._observer().phase(text)

    def _warn(self, text: str) -> None:
        if self.observer is not None:
            self.observer.warn(text)


def _minutes(seconds: float) -> int:
    """The bound of a measurement that is expected to take so long."""
    return math.ceil(PATIENCE * seconds / 60)
