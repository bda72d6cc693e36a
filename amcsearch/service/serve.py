"""A service on a machine: the HTTP interface, and workers beside it that are started again when they die."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from amcsearch.core import BadInputError
from amcsearch.service.job_request import JobEngine
from amcsearch.service.job_table import JobTable
from amcsearch.service.settings import ServiceSettings, is_loopback
from amcsearch.service.tokens import open_tokens
from amcsearch.service.worker import AWAY, JobLimits, WorkerSettings, ended_by, work, worker_name

__all__ = ["DATABASE_VARIABLE", "check_address", "serve", "work_beside"]

_log = logging.getLogger(__name__)
DATABASE_VARIABLE: Final = "AMCSEARCH_DATABASE"
"""Environment variable of the database's address, which a process list does not show."""
_AGAIN_S: Final = 2.0  # before a worker that died is started again
_CLOSE_S: Final = 5  # that followers have when the service ends
_WORKER: Final = (sys.executable, "-c", "from amcsearch.service.serve import work_beside; work_beside()")


def check_address(host: str, port: int, has_tokens: bool) -> None:
    """Check where a service is to listen: without tokens, on this machine alone.

    Raises:
        BadInputError: no such port, or an address that others reach, without tokens.
    """
    if not 0 <= port <= 65535:
        raise BadInputError(f"port {port}, must be at least 0 and at most 65535")
    if not is_loopback(host) and not has_tokens:
        raise BadInputError(
            f"host {host}: others reach it, and no token is valid; make one with amcsearch token create, or listen on "
            "127.0.0.1"
        )


def serve(
    settings: ServiceSettings,
    host: str,
    port: int,
    workers: int,
    limits: JobLimits | None = None,
    engine: JobEngine | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, with so many workers on this machine, each job within ``limits`` on ``engine``.

    Once any token is valid, every request needs one. A worker ends when the service does, also when the service is
    killed.

    Raises:
        BadInputError: as ``check_address`` and ``create_app``, or the extra is not installed.
    """
    with open_tokens(settings.runs, settings.database) as tokens:
        has_tokens = not tokens.is_empty()
    check_address(host, port, has_tokens)
    settings = replace(settings, needs_token=settings.needs_token or has_tokens)
    try:
        import uvicorn

        from amcsearch.service.app import create_app
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"the service needs the module {error.name}; type: pip install 'amcsearch[service]'"
        ) from error
    app = create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=_CLOSE_S, log_level="warning")
    )
    # uvicorn has its own handlers while it serves, and raises the signal again when it has closed
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _workers(app.state.service.table, settings, workers, limits or JobLimits(), engine or JobEngine()):
            server.run()
    except SystemExit:  # uvicorn's way to say that the address is taken; it has logged why
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not server.started:
        raise BadInputError(
            f"cannot listen on {host}:{port}: it is in use, or not of this machine; name another --port"
        )


@contextmanager
def _workers(
    table: JobTable, settings: ServiceSettings, count: int, limits: JobLimits, engine: JobEngine
) -> Iterator[None]:
    """Workers in processes of their own, each started again when it dies; at the end each gives its job back."""
    place = {"runs": str(settings.runs), "database": settings.database_url}
    message = {**place, "limits": asdict(limits), "engine": asdict(engine)}
    ending = threading.Event()

    def keep() -> None:
        before = ""
        while not ending.is_set():
            with subprocess.Popen(_WORKER, stdin=subprocess.PIPE, start_new_session=True) as process:
                assert process.stdin is not None
                name = worker_name(process.pid)
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps({**message, "name": name}).encode() + b"\n")
                    process.stdin.flush()
                if before:
                    _log.warning("worker %s is started in the place of %s", name, before)
                while process.poll() is None and not ending.wait(0.2):
                    pass
            if not ending.is_set():
                before = name
                _drop(table, name, process.returncode)
            ending.wait(_AGAIN_S)  # standard input is closed, which ends the worker

    threads = [threading.Thread(target=keep, name=f"worker {i}") for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _drop(table: JobTable, worker: str, code: int) -> None:
    """Say that a worker died, and count it no longer."""
    _log.warning("worker %s %s; a job that it ran goes on when its lease has run out", worker, ended_by(code))
    with suppress(*AWAY):
        table.part(worker)


def work_beside() -> None:
    """Run the worker that standard input describes until it closes: when the service ends, or is killed."""
    message = json.loads(sys.stdin.readline())
    limits, engine = JobLimits(**message["limits"]), JobEngine(**message["engine"])

    def end() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    runs, database = Path(message["runs"]), message["database"]
    work(WorkerSettings(runs, database, message["name"], limits=limits, engine=engine))
