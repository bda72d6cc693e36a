"""What a service can be asked for: a request for each verb, checked as the command line checks it, and how to run it.

A submission is an object of JSON: ``kind``, ``config`` (the configuration's keys as in YAML), ``settings`` (further
keys by dotted name, which win), and the arguments of the verb. Running imports torch, submitting does not.
"""

import re
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from amcsearch.config import Config, check_priced, from_mapping, hint, json_schema
from amcsearch.core import BadInputError
from amcsearch.runs import StoredDocument, read_as

if TYPE_CHECKING:
    from amcsearch.jobs import Observer

__all__ = ["KINDS", "MEASURING", "JobEngine", "JobRequest", "read_request", "request_of", "submission_schema"]

_MOST_WORKERS: Final = 1024
_MOST_EVALUATIONS: Final = 1_000_000
_JOB: Final = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class JobEngine:
    """What the operator lets searches run on: a Dask scheduler in place of their workers, and a shared storage.

    Args:
        scheduler: its address; None lets a job start as many workers as it asks for.
        storage: Optuna's address of a database for all studies; None keeps each in the folder of its run.

    Raises:
        BadInputError: no address of a scheduler, or Dask is not installed.
    """

    scheduler: str | None = None
    storage: str | None = field(default=None, repr=False)  # it may hold a password

    def __post_init__(self) -> None:
        if self.scheduler is None:
            return
        if not self.scheduler.startswith(("tcp://", "tls://")):
            raise BadInputError(
                f"scheduler = {self.scheduler!r:.80}, expected the address that `dask scheduler` prints, such as "
                "tcp://10.0.0.1:8786"
            )
        if find_spec("distributed") is None:
            raise BadInputError("scheduler needs the module distributed; type: pip install 'amcsearch[cluster]'")

    def workers(self, wanted: int) -> int:
        """Workers that a job starts itself."""
        return wanted if self.scheduler is None else 1

    def own_study(self, config: Config, folder: Path) -> Config:
        """A configuration whose study is the job's own, by its name, also where others' are in the same storage."""
        if self.storage is None:
            return config
        return config.model_copy(update={"name": f"{config.name[:60]}-{folder.parent.name}"})


_PLAIN: Final = JobEngine()


@dataclass(frozen=True)
class JobRequest(StoredDocument):
    """A request of one kind; ``config`` is the whole configuration, every default written out."""

    config: Mapping[str, object]

    @property
    def configuration(self) -> Config:
        """The configuration, valid."""
        return from_mapping(self.config, "")

    def check(self) -> None:
        """Check the arguments beside the configuration.

        Raises:
            BadInputError: one is out of bounds.
        """

    @abstractmethod
    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Do it in a folder, from where an earlier attempt ended; return what the verb prints with ``--json``.

        ``engine`` is what searches, comparisons and fronts evaluate with.

        Raises:
            BadInputError, InfeasibleBudgetError: as the verb.
        """


def _check_count(name: str, value: int | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise BadInputError(f"{name} = {value}, must be at least {least} and at most {most}")


@dataclass(frozen=True)
class SearchRequest(JobRequest):
    """``amcsearch search``."""

    workers: int = 1
    strict: bool = False

    def check(self) -> None:
        """Check that workers are possible, and that every limited cost can be priced."""
        _check_count("workers", self.workers, 1, _MOST_WORKERS)
        config = self.configuration
        check_priced(config, config.limits)

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Search."""
        from amcsearch import api

        result = api.search(
            config=engine.own_study(self.configuration, folder),
            folder=folder,
            resume=True,
            workers=engine.workers(self.workers),
            scheduler=engine.scheduler,
            storage=engine.storage,
            strict=self.strict,
            observer=observer,
        )
        return result.summary.to_json()

    def extended(self, trials: int) -> Self:
        """Return the request with further trials for the search that has ended."""
        _check_count("trials", trials, 1, _MOST_EVALUATIONS)
        further = (*self.configuration.search.further_trials, trials)
        config = from_mapping(self.config, "", {"search.further_trials": list(further)})
        return replace(self, config=config.model_dump(mode="json"))


@dataclass(frozen=True)
class PruneRequest(JobRequest):
    """``amcsearch prune``; its goal is in section ``prune`` of the configuration."""

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Prune."""
        del engine
        from amcsearch import api

        result = api.prune(config=self.configuration, folder=folder, resume=True, observer=observer)
        return result.summary.to_json()


@dataclass(frozen=True)
class SparsifyRequest(JobRequest):
    """``amcsearch sparsify``."""

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Sparsify."""
        del engine
        from amcsearch import api

        result = api.sparsify(config=self.configuration, folder=folder, resume=True, observer=observer)
        return result.summary.to_json()


@dataclass(frozen=True)
class FrontRequest(JobRequest):
    """``amcsearch front``; ``devices`` are names of profiles and tables."""

    devices: tuple[str, ...] = ()
    evaluations: int = 12
    workers: int = 1

    def check(self) -> None:
        """Check counts."""
        _check_count("evaluations", self.evaluations, 0, _MOST_EVALUATIONS)
        _check_count("workers", self.workers, 1, _MOST_WORKERS)

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Make the fronts."""
        from amcsearch import api

        result = api.front(
            config=self.configuration,
            devices=self.devices,
            evaluations=self.evaluations,
            workers=engine.workers(self.workers),
            scheduler=engine.scheduler,
            folder=folder,
            resume=True,
            observer=observer,
        )
        return result.to_json()


@dataclass(frozen=True)
class CompareRequest(JobRequest):
    """``amcsearch compare``; the first of ``agents`` is the reference."""

    agents: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 1
    strict: bool = False

    def check(self) -> None:
        """Check that there are agents and seeds."""
        _check_count("workers", self.workers, 1, _MOST_WORKERS)
        if not self.agents or not self.seeds:
            raise BadInputError("agents and seeds: at least one of each is needed; name them")

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Compare."""
        from amcsearch import api

        result = api.compare(
            config=self.configuration,
            agents=self.agents,
            seeds=self.seeds,
            workers=engine.workers(self.workers),
            scheduler=engine.scheduler,
            strict=self.strict,
            folder=folder,
            resume=True,
            observer=observer,
        )
        return result.to_json()


@dataclass(frozen=True)
class TableRequest(JobRequest):
    """``amcsearch table measure``: a latency table of the machine that runs the job."""

    variants: int | None = None
    minutes: float | None = None

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Measure the table."""
        del engine
        from amcsearch import api

        table = api.measure_latency_table(
            config=self.configuration,
            variants=self.variants,
            minutes=self.minutes,
            folder=folder,
            resume=True,
            observer=observer,
        )
        return {**table.as_mapping(), "rows": len(table.rows)}


@dataclass(frozen=True)
class CheckRequest(JobRequest):
    """``amcsearch table check``: a table held to networks measured now, on the machine that runs the job."""

    table: str
    fresh: int = 24
    anchors: int = 0

    def check(self) -> None:
        """Check counts, and that there is such a table."""
        _check_count("fresh", self.fresh, 1, _MOST_EVALUATIONS)
        _check_count("anchors", self.anchors, 0, _MOST_EVALUATIONS)

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Check the table; what anchors teach is written to the job's folder."""
        del engine
        from amcsearch.jobs import check_into

        checked = check_into(
            folder,
            self.table,
            self.configuration,
            observer,
            fresh=self.fresh,
            anchors=self.anchors,
            resume=True,
        )
        errors = {"before": checked.before, "after": checked.after}
        return {name: None if error is None else error.as_mapping() for name, error in errors.items()}


@dataclass(frozen=True)
class VerifyRequest(JobRequest):
    """``amcsearch verify``: the run of a job whose device is offline, and what its kit measured there.

    The run is copied, so that of ``job`` stays as it is; ``config`` is its configuration.
    """

    job: str
    result: str

    def check(self) -> None:
        """Check the form of the job's name, which is that of a folder."""
        if not _JOB.fullmatch(self.job):
            raise BadInputError(f"job = {self.job!r:.60}, expected the id of a job; GET /jobs lists them")

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = _PLAIN) -> Mapping[str, object]:
        """Copy the run, and finish it with what was measured."""
        del engine
        from amcsearch import api

        if not folder.exists():
            copied = folder.with_name(f".{folder.name}")
            shutil.rmtree(copied, ignore_errors=True)
            source = folder.parents[1] / self.job / folder.name
            try:
                shutil.copytree(source, copied)
            except (OSError, shutil.Error) as error:
                raise BadInputError(f"the run of job {self.job} cannot be copied: {error}") from error
            copied.rename(folder)
        return api.verify(folder, self.result, observer=observer).summary.to_json()


KINDS: Final[Mapping[str, type[JobRequest]]] = {
    "search": SearchRequest,
    "prune": PruneRequest,
    "sparsify": SparsifyRequest,
    "front": FrontRequest,
    "compare": CompareRequest,
    "table_measure": TableRequest,
    "table_check": CheckRequest,
    "verify": VerifyRequest,
}
"""Kinds of jobs by name."""
MEASURING: Final = frozenset({"table_measure", "table_check"})
"""Kinds that keep a machine to themselves while they measure it."""


def read_request(submission: object) -> tuple[str, JobRequest]:
    """Return the kind and the request of a submission, checked as the command line checks it.

    Raises:
        BadInputError: no object, an unknown kind or key, or a value that cannot be used.
    """
    values = dict(read_as(Mapping[str, object], submission, "the request"))
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInputError(f"kind = {kind!r:.60}, expected one of {', '.join(KINDS)}{hint(str(kind), KINDS)}")
    settings = read_as(Mapping[str, object], values.pop("settings", {}), "settings")
    known = [item.name for item in fields(KINDS[kind])]
    unknown = next((key for key in values if key not in known), None)
    if unknown is not None:
        close = hint(unknown, known) or f"; known: kind, settings, {', '.join(known)}"
        raise BadInputError(f"unknown key {unknown:.60} of kind {kind}{close}")
    config = from_mapping(read_as(Mapping[str, object], values.get("config", {}), "config"), "", settings)
    request = KINDS[kind].from_json({**values, "config": config.model_dump(mode="json")}, "the request")
    request.check()
    return kind, request


def request_of(kind: str, stored: Mapping[str, object]) -> JobRequest:
    """Return the request that the job table holds.

    Raises:
        BadInputError: another version wrote what this one does not know.
    """
    if kind not in KINDS:
        raise BadInputError(f"kind {kind} is not known to this version; known: {', '.join(KINDS)}")
    return KINDS[kind].from_json(stored, "the request")


def submission_schema() -> dict[str, object]:
    """JSON schema of a submission, for OpenAPI."""
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {
            "kind": {"type": "string", "enum": list(KINDS)},
            "config": {**json_schema()},
            "settings": {"type": "object", "description": "further keys of the configuration by dotted name"},
            "workers": {"type": "integer", "minimum": 1, "maximum": _MOST_WORKERS},
            "strict": {"type": "boolean"},
            "devices": {"type": "array", "items": {"type": "string"}},
            "evaluations": {"type": "integer", "minimum": 0},
            "agents": {"type": "array", "items": {"type": "string"}},
            "seeds": {"type": "array", "items": {"type": "integer"}},
            "variants": {"type": ["integer", "null"]},
            "minutes": {"type": ["number", "null"]},
            "table": {"type": "string"},
            "fresh": {"type": "integer"},
            "anchors": {"type": "integer"},
            "job": {"type": "string"},
            "result": {"type": "string"},
        },
        "additionalProperties": False,
    }
