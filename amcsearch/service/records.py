"""Jobs, progress and workers as the job table holds them: frozen values, the same over HTTP and in Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from amcsearch.core import BadInputError, InfeasibleBudgetError
from amcsearch.runs import Document, MetricRecord, StoredDocument

__all__ = [
    "ENDED",
    "LOOPBACK",
    "MOST_IMPROVEMENTS",
    "MOST_WARNINGS",
    "BestSoFar",
    "Claim",
    "JobPage",
    "JobProblem",
    "JobProgress",
    "JobRecord",
    "JobState",
    "StaleClaimError",
    "WorkerRecord",
    "problem_of",
]

LOOPBACK: Final = "loopback"
"""Name of a caller of this machine where no token is asked for."""
MOST_WARNINGS: Final = 50  # of one attempt; a job repeats what it warns of
MOST_IMPROVEMENTS: Final = 200  # that are kept, the latest


class JobState(StrEnum):
    """``queued`` waits for a worker, also after an interruption; ``done``, ``failed`` and ``cancelled`` are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED: Final = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True)
class BestSoFar(StoredDocument):
    """The best trial so far: its metric and what that is, predicted costs by name, and channels kept by group."""

    trial: int
    metric: float
    judged_by: MetricRecord
    costs: Mapping[str, float]
    policy: Mapping[str, int]


@dataclass(frozen=True)
class JobProgress(StoredDocument):
    """How far an attempt is.

    ``evaluations`` of ``total`` are done (``total`` 0 where it is not known); ``share`` of a measurement or training,
    from 0 to 1, where one runs; ``evaluations_per_s`` over this attempt. ``improvements`` of the agent that runs: the
    evaluations done and the metric of the best so far, at each new best of this attempt. ``dense`` are the channels of
    the dense network by group, once they are known.
    """

    phase: str = ""
    text: str = ""
    evaluations: int = 0
    total: int = 0
    share: float | None = None
    evaluations_per_s: float | None = None
    best: BestSoFar | None = None
    improvements: tuple[tuple[float, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    dense: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class JobProblem(StoredDocument):
    """Why a request or a job failed: a ``kind`` of the command line's (``bad_input``, …), and its one line."""

    kind: str
    detail: str
    key: str | None = None
    bound: str | None = None
    cure: str | None = None


def problem_of(error: BadInputError | InfeasibleBudgetError) -> JobProblem:
    """Return an error of a request as a problem; an error's line ends with its cure, after a semicolon."""
    kind = "infeasible" if isinstance(error, InfeasibleBudgetError) else "bad_input"
    _, semicolon, cure = str(error).rpartition("; ")
    return JobProblem(kind, str(error), error.key, error.bound, cure if semicolon else None)


@dataclass(frozen=True)
class JobRecord(StoredDocument):
    """One job.

    ``attempt`` counts claims and fences writes; ``revision`` counts changes of the record and numbers events.
    ``is_cancel_asked`` holds from the request to cancel until the worker has stopped. ``waits_for`` says what a queued
    job needs, or since when the worker of a running one is silent; ``device`` is the one without which it could not go
    on. ``run_folder`` is where the service has its files.
    Moments are seconds since 1970 by the database's clock. ``result`` is what the command line prints with ``--json``.
    """

    id: str
    sequence: int
    kind: str
    name: str
    owner: str
    state: JobState
    request: Mapping[str, object]
    attempt: int
    revision: int
    created_s: float
    changed_s: float
    started_s: float | None = None
    ended_s: float | None = None
    worker: str | None = None
    lost: int = 0
    is_cancel_asked: bool = False
    device: str | None = None
    waits_for: str | None = None
    run_folder: str | None = None
    progress: JobProgress = field(default_factory=JobProgress)
    result: Mapping[str, object] | None = None
    problem: JobProblem | None = None

    @property
    def has_ended(self) -> bool:
        """Whether no worker will change it any more."""
        return self.state in ENDED

    def with_files_in(self, folder: str) -> Self:
        """Return the job for who has its files in another folder: paths to them lead there, in every text."""
        return self.from_json(self.moved(self.to_json(), folder), f"job {self.id}")

    def moved(self, value: object, folder: str) -> object:
        """Return plain values, or a text, whose paths to the job's files lead to another folder."""
        if isinstance(value, str):
            return value if self.run_folder is None else value.replace(self.run_folder, folder)
        if isinstance(value, Mapping):
            return {key: self.moved(item, folder) for key, item in value.items()}
        return [self.moved(item, folder) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class JobPage(Document):
    """Jobs, the newest first, and the cursor of the next page, None on the last one."""

    jobs: Sequence[JobRecord]
    next_cursor: str | None


@dataclass(frozen=True)
class Claim:
    """A job that a worker holds; ``attempt`` is its fencing token: a later attempt makes all its writes refused."""

    job: JobRecord
    worker: str
    attempt: int
    lease_s: float


@dataclass(frozen=True)
class WorkerRecord(Document):
    """A worker with what it can run and its last sign of life, by the database's clock; ``age_s`` ago."""

    name: str
    kinds: tuple[str, ...]
    host: str
    job: str | None
    begun_s: float
    seen_s: float
    age_s: float


class StaleClaimError(Exception):
    """A worker wrote for an attempt that it no longer holds: the job was cancelled, taken over or removed."""
