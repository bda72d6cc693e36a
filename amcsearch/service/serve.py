"""A service on a machine: the HTTP interface, and workers beside it that are started again when they die."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from amcsearch.core import BadInputError
from amcsearch.service.settings import ServiceSettings, is_loopback
from amcsearch.service.tokens import open_tokens

__all__ = ["DATABASE_VARIABLE", "check_address", "serve"]

DATABASE_VARIABLE: Final = "AMCSEARCH_DATABASE"
"""Environment variable of the database's address, which a process list does not show."""
_AGAIN_S: Final = 2.0  # before a worker that died is started again
_CLOSE_S: Final = 5  # that followers have when the service ends


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


def serve(settings: ServiceSettings, host: str, port: int, workers: int, options: Sequence[str] = ()) -> None:
    """Serve until SIGINT or SIGTERM, with so many workers on this machine; ``options`` are those of each worker.

    Where any token is valid at the start, every request needs one.

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
        with _workers(settings, workers, options):
            server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not server.started:
        raise BadInputError(f"cannot listen on {host}:{port}; name another --port")


@contextmanager
def _workers(settings: ServiceSettings, count: int, options: Sequence[str]) -> Iterator[None]:
    """Workers in processes of their own; at the end each gives its job back."""
    command = [sys.executable, "-m", "amcsearch", "worker", "--runs", str(settings.runs), *options]
    environment = {**os.environ, DATABASE_VARIABLE: settings.database_url}
    ending = threading.Event()

    def keep() -> None:
        while not ending.is_set():
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            while process.poll() is None:
                if ending.wait(0.2):
                    process.terminate()
                    process.wait()
                    return
            ending.wait(_AGAIN_S)

    threads = [threading.Thread(target=keep, name=f"worker {i}") for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()
