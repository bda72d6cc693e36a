"""A PostgreSQL server for tests, in a temporary folder; it listens on a Unix socket alone, so no port is taken."""

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL

START_S = 60.0  # a machine under load; an idle one takes one second
PROGRAMS = "/usr/lib/postgresql"


def _program(name: str) -> str:
    """Path of a server program; Debian keeps them off PATH, in a folder a version."""
    newest = sorted(Path(PROGRAMS).glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    program = str(newest[-1]) if newest else shutil.which(name)
    assert program, f"{name} of PostgreSQL is neither in {PROGRAMS} nor on PATH; apt-get install postgresql"
    return program


class PostgreSQL:
    """A server whose user is ``tests``, with a random ``password`` that no output may show."""

    def __init__(self) -> None:
        self.password = f"secret-{secrets.token_hex(12)}"
        self._numbers = itertools.count()
        self._folder = Path(tempfile.mkdtemp(prefix="amcsearch-postgresql-"))
        self._data = self._folder / "data"
        # initdb and postgres refuse to run as root
        self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        word = self._folder / "password"
        word.write_text(self.password)
        if self._user:
            for path in (self._folder, word):
                shutil.chown(path, "nobody", "nogroup")
        options = ["-U", "tests", "-A", "scram-sha-256", f"--pwfile={word}", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([_program("initdb"), "-D", self._data, *options], check=True, capture_output=True, **self._user)
        self.start()

    def url(self, database: str = "postgres") -> str:
        """SQLAlchemy's address of a database, with the password."""
        return URL.create(
            "postgresql+psycopg", "tests", self.password, database=database, query={"host": str(self._folder)}
        ).render_as_string(hide_password=False)

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Connect as psycopg itself does, each statement its own transaction."""
        return psycopg.connect(
            host=str(self._folder), user="tests", password=self.password, dbname=database, autocommit=True
        )

    def new_database(self, encoding: str = "UTF8") -> str:
        """Make an empty database of an encoding and return its address."""
        name = f"database{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")  # type: ignore[arg-type]
        return self.url(name)

    def start(self) -> None:
        """Start the server, also after ``kill``, and wait until it answers."""
        deadline = time.monotonic() + START_S
        options = {"listen_addresses": "", "unix_socket_directories": self._folder, "fsync": "off"}
        while True:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", self._data, *(f"--{key}={value}" for key, value in options.items())],
                stdout=subprocess.DEVNULL,
                stderr=(self._folder / "log").open("a"),
                start_new_session=True,  # Ctrl-C is the tests' to handle
                **self._user,
            )
            while self._process.poll() is None:  # ends by itself while children of a killed server still live
                with contextlib.suppress(psycopg.OperationalError):
                    self.connect().close()
                    return
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.05)
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT rolls back what is under way; SIGKILL is a crash."""
        self._process.send_signal(number)
        self._process.wait()

    def close(self) -> None:
        """End the server and remove its folder."""
        if self._process.poll() is None:
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def running() -> Iterator[PostgreSQL]:
    """A server for as long as the block lasts."""
    server = PostgreSQL()
    try:
        yield server
    finally:
        server.close()
