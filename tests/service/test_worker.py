"""Workers: every way in which a job can end, be stopped, or lose the process that runs it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest

from amcsearch.core import MIB, BadInputError
from amcsearch.service import job_process, job_table
from amcsearch.service.database import Database
from amcsearch.service.device_table import DeviceTable
from amcsearch.service.job_kinds import SearchRequest
from amcsearch.service.job_request import JobEngine
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import JobRecord, JobState
from amcsearch.service.worker import JobLimits, JobWorker, WorkerSettings

PATIENCE_S = 60.0  # a machine under load
STUB = Path(__file__).parent / "stub_process.py"


@pytest.fixture
def table(tmp_path: Path) -> Iterator[JobTable]:
    database = Database(f"sqlite:///{tmp_path}/service.db")
    yield JobTable(database)
    database.close()


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(
        tmp_path, name="worker", kinds=("stub",), poll_s=0.05, grace_s=PATIENCE_S, program=(sys.executable, str(STUB))
    )


def submitted(table: JobTable, does: str = "end", evaluations: int = 3, pause_s: float = 0.0) -> str:
    request = {"config": {}, "does": does, "evaluations": evaluations, "pause_s": pause_s}
    return table.submit("stub", "stub", request, "ada").id


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(table: JobTable, settings: WorkerSettings, job: str) -> JobRecord:
    assert JobWorker(table, settings).run_one()
    return table.get(job)


def evaluations(settings: WorkerSettings, job: str) -> list[str]:
    stored = settings.runs / job / "run" / "evaluations.txt"
    return stored.read_text().split() if stored.exists() else []


def test_a_job_runs_to_its_end(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table)
    record = ended(table, settings, job)
    assert (record.state, record.result, record.worker) == (JobState.DONE, {"evaluations": 3, "nan": None}, None)
    progress = record.progress
    assert (progress.phase, progress.text) == ("Searching", "stub trial 3/3")
    assert (progress.evaluations, progress.total) == (3, 3)
    assert progress.best is not None
    assert (progress.best.policy, progress.best.costs, progress.best.metric) == ({"conv": 3}, {"macs": 5.0}, 0.9)
    assert "what the job prints" in (settings.runs / job / "output.log").read_text()
    assert not JobWorker(table, settings).run_one()


def test_a_job_that_lacks_its_device_gives_its_worker_back_and_goes_on(
    table: JobTable, settings: WorkerSettings
) -> None:
    job = submitted(table, "lack_device")
    record = ended(table, settings, job)
    assert (record.state, record.device, record.worker, record.lost) == (JobState.QUEUED, "pi5", None, 0)
    assert not JobWorker(table, settings).run_one()
    DeviceTable(table.database).greet("pi5", "board", {}, None)
    assert ended(table, settings, job).state is JobState.DONE
    assert evaluations(settings, job) == ["0", "1", "2"]  # none is repeated


@pytest.mark.parametrize(
    ("does", "kind", "detail"),
    [
        ("refuse", "bad_input", "search.trials = 0; expected a number above 0"),
        ("find_nothing", "infeasible", "budget.macs = 0.01x: the smallest is 0.1x"),
        ("break_down", "bad_input", "your code raised RuntimeError: no such thing"),
    ],
)
def test_an_error_ends_it_in_one_line(
    table: JobTable, settings: WorkerSettings, does: str, kind: str, detail: str
) -> None:
    record = ended(table, settings, submitted(table, does))
    assert record.state is JobState.FAILED
    assert record.problem is not None
    assert record.problem.kind == kind
    assert detail in record.problem.detail


def test_a_fault_of_ours_leaves_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_process, "request_of", {}.__getitem__)
    message = job_process._done("stub", {}, tmp_path, StringIO(), "", JobEngine())
    assert message.problem is not None
    assert message.problem.kind == "internal"
    assert message.problem.detail.startswith("the job raised TypeError: dict.__getitem__() takes")
    assert message.problem.detail.endswith("; its output.log has the traceback")
    assert "Traceback" in capsys.readouterr().err


def test_a_request_of_another_version_is_refused(table: JobTable, settings: WorkerSettings) -> None:
    job = table.submit("later", "later", {"config": {}}, "ada").id
    record = ended(table, replace(settings, kinds=("later",)), job)
    assert record.problem is not None
    assert record.problem.detail.startswith("kind later is not known to this version; known: search")


def test_a_job_whose_process_dies_is_run_again(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table, "die_once")
    assert ended(table, settings, job).state is JobState.QUEUED
    record = ended(table, settings, job)
    assert (record.state, record.attempt) == (JobState.DONE, 2)
    assert evaluations(settings, job) == ["0", "1", "2"]


def test_but_not_for_ever(table: JobTable, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_table, "MOST_LOST", 1)
    job = submitted(table, "die", evaluations=0)
    assert ended(table, settings, job).state is JobState.QUEUED
    record = ended(table, settings, job)
    assert record.problem is not None
    assert record.problem.detail.startswith("its process was killed by SIGKILL, 2 times in a row; look at its output")


@pytest.mark.parametrize(
    ("does", "limits", "words"),
    [
        ("wait", JobLimits(seconds=1.0), "the job ran longer than 1 s; raise the limit of time of the worker"),
        ("swell", JobLimits(memory_bytes=300 * MIB), "the job took more than 300 MiB; raise the limit of memory"),
        ("spread", JobLimits(processes=3), "the job started more than 3 processes; raise the limit of processes"),
    ],
)
def test_limits_stop_a_job(table: JobTable, settings: WorkerSettings, does: str, limits: JobLimits, words: str) -> None:
    record = ended(table, replace(settings, limits=limits), submitted(table, does))
    assert record.state is JobState.FAILED
    assert record.problem is not None
    assert record.problem.detail.startswith(words)
    if does == "spread":
        assert not _session_of(settings, record.id)


def _session_of(settings: WorkerSettings, job: str) -> list[int]:
    """Processes of a job that still live."""
    from amcsearch.service.worker import _resident_bytes

    return list(_resident_bytes(int((settings.runs / job / "run" / "process").read_text())))


def test_a_limit_that_nothing_fits_in_is_refused() -> None:
    with pytest.raises(BadInputError, match="limit seconds = 0, must be at least 1; leave it out for no limit"):
        JobLimits(seconds=0)


def running(table: JobTable, settings: WorkerSettings, job: str) -> tuple[JobWorker, threading.Thread]:
    worker = JobWorker(table, settings)
    thread = threading.Thread(target=worker.run_one)
    thread.start()
    until(lambda: (settings.runs / job / "run" / "waits").exists())
    return worker, thread


def test_a_cancelled_job_stops_and_can_go_on(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table, "wait")
    _, thread = running(table, settings, job)
    table.cancel(job)
    thread.join()
    assert table.get(job).state is JobState.CANCELLED
    assert not _session_of(settings, job)
    assert table.resume(job).state is JobState.QUEUED


def test_a_worker_that_is_stopped_gives_its_job_back(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table, "wait")
    worker, thread = running(table, settings, job)
    worker.stop()
    thread.join()
    record = table.get(job)
    assert (record.state, record.lost) == (JobState.QUEUED, 0)
    assert evaluations(settings, job) == ["0", "1", "2"]


def test_a_job_that_does_not_stop_is_killed(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table, "hang")
    worker, thread = running(table, replace(settings, grace_s=0.1), job)
    worker.stop()
    thread.join()
    assert table.get(job).state is JobState.QUEUED
    assert not _session_of(settings, job)


def test_a_worker_that_lost_its_job_kills_the_process(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table, "wait")
    _, thread = running(table, settings, job)
    with table.database.writing() as connection:  # as if the lease had run out and another had claimed it
        connection.exec_driver_sql("UPDATE amcsearch_jobs SET attempt = attempt + 1, worker = 'other'")
    thread.join()
    assert not _session_of(settings, job)
    assert table.get(job).worker == "other"


class _Process:
    """A worker in a process of its own, on short leases."""

    def __init__(self, settings: WorkerSettings, name: str, database: str = "") -> None:
        script = (
            "import sys; from pathlib import Path; from amcsearch.service.worker import *; "
            f"work(WorkerSettings(Path({str(settings.runs)!r}), {database!r}, {name!r}, ('stub',), lease_s=0.5, "
            f"poll_s=0.05, program={settings.program!r}))"
        )
        self.process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_sigterm_ends_a_worker_and_its_job_waits_again(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table, "wait")
    with _Process(settings, "first") as worker:
        until(lambda: (settings.runs / job / "run" / "waits").exists())
        worker.process.terminate()
        assert worker.process.wait(PATIENCE_S) == 0
    record = table.get(job)
    assert (record.state, record.lost) == (JobState.QUEUED, 0)
    assert table.workers() == []


def test_killed_workers_lose_no_job_and_repeat_no_evaluation(table: JobTable, settings: WorkerSettings) -> None:
    job = submitted(table, "end", evaluations=30, pause_s=0.02)
    for kill in range(2):
        with _Process(settings, f"worker {kill}") as worker:
            until(lambda kill=kill: table.get(job).attempt > kill)
            until(lambda kill=kill: len(evaluations(settings, job)) > 5 * kill)
            worker.process.kill()
    with _Process(settings, "last"):
        until(lambda: table.get(job).has_ended)
    record = table.get(job)
    assert (record.result, record.attempt) == ({"evaluations": 30, "nan": None}, 3)
    assert evaluations(settings, job) == [str(number) for number in range(30)]


CONFIG = {
    "name": "mine",
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}


@dataclass
class Given:
    """What a search was called with."""

    arguments: dict[str, object]

    def __call__(self, **arguments: object) -> "Given":
        self.arguments.update(arguments)
        return self

    @property
    def summary(self) -> "Given":
        return self

    def to_json(self) -> dict[str, object]:
        return {}


def test_searches_run_on_what_the_operator_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = Given({})
    monkeypatch.setattr("amcsearch.api.search", given)
    request, folder = SearchRequest(CONFIG, workers=4), tmp_path / "0123abcd" / "run"
    request.run(folder, None)
    assert (given.arguments["workers"], given.arguments["scheduler"], given.arguments["storage"]) == (4, None, None)
    assert given.arguments["config"].name == "mine"
    monkeypatch.setattr("amcsearch.service.job_request.find_spec", lambda _: object())
    engine = JobEngine("tcp://10.0.0.1:8786", "postgresql+psycopg://a:secret@db/studies")
    request.run(folder, None, engine)
    assert (given.arguments["workers"], given.arguments["scheduler"]) == (1, "tcp://10.0.0.1:8786")
    assert (given.arguments["storage"], given.arguments["config"].name) == (engine.storage, "mine-0123abcd")
    assert "secret" not in repr(engine)


def test_a_job_gets_the_operators_engine(table: JobTable, tmp_path: Path) -> None:
    """By standard input, so that no list of processes shows a password."""
    program = (sys.executable, "-c", "import sys; sys.stderr.write(sys.stdin.readline())")
    engine = JobEngine(storage="postgresql+psycopg://a:secret@db/studies")
    job = table.submit("stub", "stub", {"config": {}}, "ada").id
    settings = WorkerSettings(tmp_path, kinds=("stub",), poll_s=0.01, program=program, engine=engine)
    assert JobWorker(table, settings).run_one()
    task = json.loads((tmp_path / job / "output.log").read_text())
    assert task["engine"] == {"scheduler": None, "storage": engine.storage}


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ("10.0.0.1:8786", "scheduler = '10.0.0.1:8786', expected the address that `dask scheduler` prints"),
        ("tcp://10.0.0.1:8786", "scheduler needs the module distributed; type: pip install"),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, scheduler: str, words: str
) -> None:
    monkeypatch.setattr("amcsearch.service.job_request.find_spec", lambda _: None)
    with pytest.raises(BadInputError, match=words):
        JobEngine(scheduler)
