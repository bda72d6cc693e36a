"""A worker: claims jobs, runs each in a process of its own under limits, renews its lease, and writes how it ended.

SIGINT and SIGTERM stop the running job so that it can be resumed, and give it back. What a worker that was killed had
begun is claimed by another when its lease has run out, and goes on from its run folder. While the database is away the
job goes on as long as the lease holds; then its process is killed, because another worker may have it.
"""

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from sqlalchemy.exc import InterfaceError, OperationalError

from amcsearch.core import MIB, BadInputError, parse_json
from amcsearch.runs import make_folder
from amcsearch.service.database import Database
from amcsearch.service.job_kinds import KINDS
from amcsearch.service.job_process import Message
from amcsearch.service.job_request import JobEngine
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import Claim, JobProblem, JobProgress, JobRecord, StaleClaimError
from amcsearch.service.settings import default_database

__all__ = ["AWAY", "JobLimits", "JobWorker", "WorkerSettings", "ended_by", "work", "worker_name"]

_log = logging.getLogger(__name__)
AWAY: Final = (OperationalError, InterfaceError)
"""What is raised while the database is away."""
_GREET_S: Final = 15.0  # between two signs of life of an idle worker
_DYING_S: Final = 10.0
_DYING_POLL_S: Final = 0.01
_PROC: Final = Path("/proc")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class JobLimits:
    """What one job may take: seconds of an attempt, resident bytes and processes of all that it starts; None: any.

    Raises:
        BadInputError: a bound below what any job takes, or a system that does not tell what processes take.
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("seconds", self.seconds, 1),
            ("memory_bytes", self.memory_bytes, 64 * MIB),
            ("processes", self.processes, 1),
        ):
            if value is not None and value < least:
                raise BadInputError(f"limit {name} = {value}, must be at least {least}; leave it out for no limit")
        if not (self.memory_bytes is None and self.processes is None) and not (_PROC / "self/stat").exists():
            raise BadInputError("memory and process limits need /proc, which this system lacks; leave them out")


@dataclass(frozen=True)
class WorkerSettings:
    """A worker.

    Args:
        runs: folder of all jobs, the same that the service has.
        database: SQLAlchemy's address of the job table; "" is ``service.db`` in ``runs``.
        name: of this worker, different from all others; "" makes one of the host's name.
        kinds: of jobs that it runs.
        lease_s: seconds after which a silent worker's job is another's.
        poll_s: between two looks at the job table.
        grace_s: that a job may take to stop before it is killed.
        limits: of each job.
        engine: of searches.
        program: command that runs ``job_process.main``.
    """

    runs: Path
    database: str = ""
    name: str = ""
    kinds: tuple[str, ...] = tuple(KINDS)
    lease_s: float = 30.0
    poll_s: float = 1.0
    grace_s: float = 30.0
    limits: JobLimits = field(default_factory=JobLimits)
    engine: JobEngine = field(default_factory=JobEngine)
    program: tuple[str, ...] = (sys.executable, "-c", "from amcsearch.service.job_process import main; main()")

    @property
    def database_url(self) -> str:
        """The address of the database."""
        return self.database or default_database(self.runs)

    def __post_init__(self) -> None:
        if not self.kinds:
            raise BadInputError(f"no kinds: a worker runs at least one of {', '.join(KINDS)}")
        if self.lease_s < 2 * self.poll_s:
            raise BadInputError(f"lease = {self.lease_s:g} s, must be at least {2 * self.poll_s:g}, two looks")


def worker_name(pid: int) -> str:
    """Return a name for the worker in a process of this machine, different from all others."""
    return f"{socket.gethostname()[:64]}-{pid}-{secrets.token_hex(3)}"


def ended_by(code: int) -> str:
    """Say how a process ended by its exit code: ``was killed by SIGKILL`` or ``exited with 1``."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


class _JobProcess:
    """The process of one attempt, with all that it starts: a session of its own."""

    def __init__(self, record: JobRecord, settings: WorkerSettings) -> None:
        folder = settings.runs / record.id
        make_folder(folder)
        self._settings, self._begun_s = settings, time.monotonic()
        self._asked_s: float | None = None
        self.last: Message | None = None
        self.progress: JobProgress | None = None
        with (folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                settings.program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        task = {
            "kind": record.kind,
            "request": record.request,
            "folder": str(folder.absolute()),
            "database": settings.database_url,
            "engine": asdict(settings.engine),
        }
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(BadInputError):  # the last line of a process that was killed
                message = Message.from_json(parse_json(line.decode(errors="replace"), "message"), "message")
                self.last, self.progress = message, message.progress or self.progress

    @property
    def was_asked(self) -> bool:
        """Whether the job was asked to stop."""
        return self._asked_s is not None

    def wait(self, seconds: float) -> bool:
        """Whether the process has ended within so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def ask_to_stop(self) -> None:
        """Send SIGTERM once; a job that has not stopped after the grace is killed, which it can be resumed from."""
        if self._asked_s is None:
            self._asked_s = time.monotonic()
            self._process.terminate()
        elif time.monotonic() > self._asked_s + self._settings.grace_s:
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left of the session, wait until nothing of it lives, and read what it said last."""
        self._kill()
        self._process.wait()
        deadline = time.monotonic() + _DYING_S
        while list(_resident_bytes(self._process.pid)) and time.monotonic() < deadline:
            time.sleep(_DYING_POLL_S)  # a process that was sent SIGKILL lives until it is scheduled
        self._reader.join(self._settings.grace_s)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    @property
    def end(self) -> str:
        """How the process ended, for people."""
        return f"its process {ended_by(self._process.returncode)}"

    def exceeded(self) -> JobProblem | None:
        """Return the limit that the job exceeds, if it does."""
        limits = self._settings.limits
        if limits.seconds is not None and time.monotonic() - self._begun_s > limits.seconds:
            return _exceeded("ran longer than", f"{limits.seconds:g} s", "the limit of time")
        if limits.memory_bytes is None and limits.processes is None:
            return None
        sizes = list(_resident_bytes(self._process.pid))
        if limits.memory_bytes is not None and sum(sizes) > limits.memory_bytes:
            return _exceeded("took more than", f"{limits.memory_bytes / MIB:.0f} MiB", "the limit of memory")
        if limits.processes is not None and len(sizes) > limits.processes:
            return _exceeded("started more than", f"{limits.processes} processes", "the limit of processes")
        return None


def _exceeded(did: str, bound: str, limit: str) -> JobProblem:
    cure = f"raise {limit} of the worker or ask for less, then resume it"
    return JobProblem("limit", f"the job {did} {bound}; {cure}", bound=bound, cure=cure)


def _resident_bytes(session: int) -> Iterator[int]:
    """Resident bytes of every process of a session; pages that several share count for each. None without /proc."""
    for folder in _PROC.iterdir() if _PROC.is_dir() else ():
        if folder.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                _, _, fields = (folder / "stat").read_text(errors="replace").rpartition(")")
                values = fields.split()  # from the third field on: state, parent, group, session, …
                if int(values[3]) == session and values[0] != "Z":
                    yield int(values[21]) * _PAGE_BYTES


class JobWorker:
    """Runs jobs of a table, one after another."""

    def __init__(self, table: JobTable, settings: WorkerSettings) -> None:
        self.table, self.settings = table, settings
        self.name = settings.name or worker_name(os.getpid())
        self._stopping = threading.Event()
        self._greeted_s = -_GREET_S

    def stop(self) -> None:
        """Stop after giving back the running job; may be called from a handler of a signal."""
        self._stopping.set()

    def run(self) -> None:
        """Run jobs until ``stop``."""
        while not self._stopping.is_set():
            try:
                is_idle = not self.run_one()
            except AWAY as error:
                _log.warning("the database does not answer: %s", error.__class__.__name__)
                is_idle = True
            if is_idle:
                self._stopping.wait(self.settings.poll_s)
        with suppress(*AWAY):
            self.table.part(self.name)

    def run_one(self) -> bool:
        """Run one job to its end, if one waits; whether one did."""
        self._greet(None)
        claim = self.table.claim(self.name, self.settings.kinds, self.settings.lease_s)
        if claim is None:
            return False
        self._greet(claim.job.id, at_once=True)
        process = _JobProcess(claim.job, self.settings)
        problem: JobProblem | None = None
        held_s, shown = time.monotonic(), None
        try:
            while not process.wait(self.settings.poll_s):
                problem = problem or process.exceeded()
                if problem is not None or self._stopping.is_set():
                    process.ask_to_stop()
                progress = process.progress
                try:
                    record = self.table.renew(claim, None if progress is shown else progress)
                    held_s, shown = time.monotonic(), progress
                    if record.is_cancel_asked:
                        process.ask_to_stop()
                except AWAY:
                    if time.monotonic() > held_s + claim.lease_s:
                        return True
                self._greet(claim.job.id)
        except StaleClaimError as error:
            _log.warning("%s; its process is killed", error)
            return True
        finally:
            process.close()
        self._insist(lambda: self._write_end(claim, process, problem))
        self._greet(None, at_once=True)
        return True

    def _write_end(self, claim: Claim, process: _JobProcess, problem: JobProblem | None) -> None:
        message = process.last or Message()
        if process.progress is not None:
            self.table.renew(claim, process.progress)
        if message.result is not None:
            self.table.finish(claim, message.result)
        elif problem is not None or message.problem is not None:
            self.table.fail(claim, problem or message.problem or JobProblem("internal", process.end))
        elif message.is_stopped or process.was_asked or message.device is not None:
            self.table.release(claim, message.device)
        else:
            self.table.lose(claim, "an earlier attempt still runs" if message.is_busy else process.end)

    def _insist(self, write: Callable[[], None]) -> None:
        """Write how a job ended, also when the database is away for a while."""
        while True:
            try:
                write()
            except StaleClaimError as error:
                _log.warning("%s; its end is not written", error)
            except AWAY:
                if not self._stopping.wait(self.settings.poll_s):
                    continue
            return

    def _greet(self, job: str | None, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() >= self._greeted_s + _GREET_S:
            with suppress(*AWAY):
                self.table.greet(self.name, self.settings.kinds, socket.gethostname(), job)
                self._greeted_s = time.monotonic()


def work(settings: WorkerSettings) -> None:
    """Run a worker until SIGINT or SIGTERM.

    Raises:
        BadInputError: a database that cannot be opened, or a folder of runs that cannot be made.
    """
    make_folder(settings.runs)
    database = Database(settings.database_url)
    worker = JobWorker(JobTable(database), settings)

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        worker.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        worker.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        database.close()
