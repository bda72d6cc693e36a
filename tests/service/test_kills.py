"""SIGKILL of workers, the service and the database while jobs run: none is lost, no evaluation is repeated.

``pytest -n 0 -rP -m slow tests/service/test_kills.py --kills 20 --crash-seed 7`` kills 100 times on each database.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError

import amcsearch
from amcsearch.config import read_latency_table
from amcsearch.core import BadInputError
from amcsearch.measure.kit.kit import write_kit
from amcsearch.service.client import connect
from amcsearch.service.database import Database
from amcsearch.service.job_request import JobEngine
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import JobState
from amcsearch.service.serve import _workers, serve
from amcsearch.service.settings import ServiceSettings
from amcsearch.service.worker import JobLimits, JobWorker, WorkerSettings

from .conftest import PROGRAM

PATIENCE_S = 120.0  # a machine under load
TINY_JOB = Path(__file__).parents[1] / "tiny_job.py"
SERVER = Path(__file__).parent / "stub_server.py"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def submitted(table: JobTable, evaluations: int, pause_s: float) -> str:
    return table.submit("stub", "stub", {"config": {}, "evaluations": evaluations, "pause_s": pause_s}, "ada").id


def stored(runs: Path, job: str) -> list[str]:
    file = runs / job / "run" / "evaluations.txt"
    return file.read_text().split() if file.exists() else []


def test_a_killed_database_costs_a_running_job_nothing(postgresql, postgresql_url: str, tmp_path: Path) -> None:
    database = Database(postgresql_url)
    table = JobTable(database)
    job = submitted(table, 60, 0.02)
    worker = JobWorker(table, WorkerSettings(tmp_path, kinds=("stub",), poll_s=0.05, program=PROGRAM))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        until(lambda: len(stored(tmp_path, job)) > 5)
        postgresql.stop(signal.SIGKILL)
        with pytest.raises(OperationalError):
            table.get(job)
        until(lambda: len(stored(tmp_path, job)) > 20)
        postgresql.start()
        until(lambda: table.get(job).has_ended)
        record = table.get(job)
        assert (record.state, record.attempt) == (JobState.DONE, 1)
        assert stored(tmp_path, job) == [str(number) for number in range(60)]
    finally:
        worker.stop()
        thread.join()
        database.close()


def test_workers_beside_a_service_end_with_it_also_when_it_is_killed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/service.db")
    table = JobTable(database)
    with process(str(SERVER), str(tmp_path), str(database.engine.url), "1") as server:
        until(lambda: bool(table.workers()))
        server.kill()
        until(lambda: not table.workers())
    database.close()


def test_a_worker_beside_a_service_that_dies_is_told_and_counts_no_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[serve.__module__], "_AGAIN_S", 0.0)
    settings = ServiceSettings(tmp_path)
    database = Database(settings.database_url)
    table = JobTable(database)
    with _workers(table, settings, 1, JobLimits(), JobEngine()):
        until(lambda: bool(table.workers()))
        (first,) = table.workers()
        os.kill(int(first.name.split("-")[-2]), signal.SIGKILL)
        until(lambda: len(caplog.messages) == 2)
        assert first.name not in {worker.name for worker in table.workers()}
        until(lambda: bool(table.workers()))
        (second,) = table.workers()
    assert caplog.messages == [
        f"worker {first.name} was killed by SIGKILL; a job that it ran goes on when its lease has run out",
        f"worker {second.name} is started in the place of {first.name}",
    ]
    assert table.workers() == []  # an end that was asked for is no death
    database.close()


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInputError, match=f"cannot listen on 127.0.0.1:{port}: it is in use") as error:
            serve(ServiceSettings(tmp_path), "127.0.0.1", port, workers=0)
    assert "name another --port" in str(error.value)


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, which is killed at the end."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True) as started:
        try:
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


class Fleet:
    """Two workers and a service as processes; whatever is killed is started again."""

    def __init__(self, stack: ExitStack, runs: Path, database: str) -> None:
        script = (
            "import sys; from pathlib import Path; from amcsearch.service.worker import *; "
            f"work(WorkerSettings(Path({str(runs)!r}), {database!r}, kinds=('stub',), lease_s=1.0, poll_s=0.05, "
            f"program={PROGRAM!r}))"
        )
        commands = [("-c", script), ("-c", script), (str(SERVER), str(runs), database)]
        self._stack, self._commands = stack, commands
        self._processes = [stack.enter_context(process(*command)) for command in commands]

    def kill(self, number: int) -> None:
        self._processes[number].kill()
        self._processes[number].wait()
        self._start(number)

    def keep(self) -> None:
        """Start again what has ended by itself, as it does that is started while the database is away."""
        for number, each in enumerate(self._processes):
            if each.poll() is not None:
                self._start(number)

    def _start(self, number: int) -> None:
        self._processes[number] = self._stack.enter_context(process(*self._commands[number]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_jobs_outlive_whatever_is_killed(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    kills, chance = 5 * request.config.option.kills, random.Random(request.config.option.crash_seed)
    is_file = kind == "sqlite"
    url = f"sqlite:///{tmp_path}/service.db" if is_file else request.getfixturevalue("postgresql_url")
    database = Database(url)
    table = JobTable(database)
    jobs = [submitted(table, 40, 0.05) for _ in range(kills + 5)]
    with ExitStack() as stack:
        fleet = Fleet(stack, tmp_path, url)
        for _ in range(kills):
            time.sleep(chance.uniform(0.2, 4.0))
            fleet.keep()
            victim = chance.randrange(3 if is_file else 4)
            if victim < 3:
                fleet.kill(victim)
            else:
                server = request.getfixturevalue("postgresql")
                server.stop(signal.SIGKILL)
                server.start()
        for job in jobs:  # each has its own patience
            until(lambda job=job: fleet.keep() or table.get(job).has_ended)
    sys.stdout.write(f"{kills} kills, {sum(table.get(job).attempt for job in jobs)} attempts at {len(jobs)} jobs\n")
    for job in jobs:
        record = table.get(job)
        assert (record.state, record.result) == (JobState.DONE, {"evaluations": 40, "nan": None})
        assert stored(tmp_path, job) == [str(number) for number in range(40)]
    database.close()


@pytest.mark.slow
def test_a_search_through_a_service_is_the_local_search(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config, runs = write_config(), tmp_path / "runs"
    local = amcsearch.search(config=config, folder=tmp_path / "local")
    port = free_port()
    allowed = ("--allow", f"{TINY_JOB}:*", "--allow-files", str(TINY_JOB.parent))
    with process("-m", "amcsearch", "serve", "--runs", str(runs), "--port", port, "--workers", "0", *allowed):
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(url))
        job = connect(url).submit("search", config)
        worker = ("-m", "amcsearch", "worker", "--runs", str(runs))
        with process(*worker) as first:
            until(lambda: connect(url).job(job.id).record.progress.evaluations > 2)
            first.kill()
        with process(*worker):
            result = job.result(tmp_path / "fetched")
    columns = ["number", "agent", "state", "policy", "reward"]
    assert type(result) is type(local)
    assert result.trials[columns].equals(local.trials[columns])
    assert dict(result.policy) == dict(local.policy)
    assert job.record.attempt == 2


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def _answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz").is_success
    return False


@pytest.mark.slow
def test_a_table_is_measured_by_the_agent_of_a_device(
    write_config: Callable[..., Path], small_plan: Callable[..., Any], tmp_path: Path
) -> None:
    write_kit(small_plan(), tmp_path / "kit.pyz")
    runs, port = tmp_path / "runs", free_port()
    allowed = ("--allow", f"{TINY_JOB}:*", "--allow-files", str(TINY_JOB.parent))
    with process("-m", "amcsearch", "serve", "--runs", str(runs), "--port", port, *allowed):
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(url))
        client, settings = connect(url), {"device.location": "pi5", "device.rounds": 4}
        says = {"instance": "a" * 32, "device": {}}
        # the service knows the name, and forgets the device before the job asks for it
        httpx.post(f"{url}/v1/agents/pi5/next", json=says, timeout=PATIENCE_S).raise_for_status()
        job = client.submit("table_measure", write_config(), settings=settings, arguments={"variants": 12})
        httpx.delete(f"{url}/devices/pi5", timeout=PATIENCE_S).raise_for_status()
        until(lambda: client.job(job.id).record.device is not None or client.job(job.id).record.has_ended)
        waiting = client.job(job.id).record
        assert (waiting.state, waiting.device, waiting.worker) == (JobState.QUEUED, "pi5", None)
        agent = ("agent", "--connect", url, "--name", "pi5", "--folder", str(tmp_path / "agent"), "--poll", "0.1")
        with process(str(tmp_path / "kit.pyz"), *agent):
            assert job.wait().state is JobState.DONE
        folder = job.fetch(tmp_path / "table")
    assert len(read_latency_table(folder).rows) > 0
