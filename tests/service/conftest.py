"""A service with a worker on a port of this machine, whose jobs of kind ``stub`` take milliseconds."""

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from amcsearch.service import job_kinds
from amcsearch.service.app import create_app
from amcsearch.service.job_table import JobTable
from amcsearch.service.settings import ServiceSettings
from amcsearch.service.worker import JobWorker, WorkerSettings

STUB = Path(__file__).parent / "stub_process.py"
PROGRAM = (sys.executable, str(STUB))


@pytest.fixture
def _stub_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("stub_process", STUB)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stub_process", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(job_kinds.KINDS, "stub", module.StubRequest)


@dataclass
class LiveService:
    """A service that listens; ``table`` is its job table."""

    settings: ServiceSettings
    table: JobTable
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def worker(self) -> Iterator[JobWorker]:
        """A worker for as long as the block lasts."""
        worker = JobWorker(
            self.table,
            WorkerSettings(self.settings.runs, name="worker", kinds=("stub",), poll_s=0.05, program=PROGRAM),
        )
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield worker
        finally:
            worker.stop()
            thread.join()


@contextmanager
def listening(settings: ServiceSettings, port: int = 0) -> Iterator[LiveService]:
    """Serve for as long as the block lasts."""
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=port, timeout_graceful_shutdown=1, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield LiveService(settings, app.state.service.table, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def live(tmp_path: Path, _stub_kind: None) -> Iterator[LiveService]:
    with listening(ServiceSettings(tmp_path / "runs", factories=("/*.py:*",), poll_s=0.02)) as service:
        yield service
