"""The database of studies: its address, whose it is, how it is opened, and what is done while its server is away."""

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import optuna
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from amcsearch.core import OUT, RESUME, BadInputError, check_encoding, check_file, check_interrupt, without_passwords

__all__ = ["LOCK_TIMEOUT_S", "Server", "check_owner", "open_storage", "opened_by_one", "storage_url"]

RETRIED_S: Final = 120.0
"""How long a database on a server may be away."""
MOST_REFUSALS: Final = 3
_PAUSE_S: Final = 0.5
_PING_S: Final = 5  # seconds that a server may take to answer

MOST_BYTES: Final = 2**34
"""Of a SQLite file: millions of trials."""
LOCK_TIMEOUT_S: Final = 5.0
"""How long a statement waits for another process that holds a SQLite file."""

_LOCK: Final = 6_702_881_517
"""Number of the PostgreSQL lock under which drivers open a database one after the other."""

_STUDY_TABLES: Final = frozenset(
    {"studies", "study_user_attributes", "trials", "trial_user_attributes", "version_info"}
)
"""Tables of every version of Optuna's storage."""


def storage_url(storage: Path | str) -> URL:
    """Return the address of a database; the name of a file may hold any character.

    Raises:
        BadInputError: a text that is no URL, or a file that this SQLAlchemy cannot address.
    """
    if not isinstance(storage, Path):
        try:
            return make_url(storage)
        except (ArgumentError, ValueError):
            raise BadInputError(
                f"study storage {without_passwords(storage)} cannot be used: it is no URL; name one such as "
                "sqlite:////tmp/study.db or postgresql+psycopg://user@host/database"
            ) from None
    url = URL.create("sqlite", database=str(storage.absolute()))
    if make_url(url.render_as_string()) != url:  # before SQLAlchemy 2.1
        raise BadInputError(f"study storage {storage} cannot be used: its name holds `?` or `%`; name another {OUT}")
    return url


def check_owner(url: URL) -> None:
    """Refuse what is no file, another program's SQLite file, and one that lost tables, before any is added.

    Raises:
        BadInputError: it is one of these.
    """
    file = url.database or ""
    if url.get_backend_name() != "sqlite" or file in ("", ":memory:") or file.startswith("file:"):
        return
    path = Path(file).absolute()
    if not path.exists():
        return
    check_file(path, "study storage", MOST_BYTES)
    if not path.stat().st_size:
        return
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=LOCK_TIMEOUT_S)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        known = sorted(tables & _STUDY_TABLES)
        has_rows = any(database.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in known)
    lost = sorted(_STUDY_TABLES - tables)
    if lost and has_rows:  # Optuna would make them anew, and the trials would be gone without a word
        raise BadInputError(
            f"study storage {path} is damaged: it lacks the tables {', '.join(lost)}; restore it, or name another "
            f"--storage or {OUT}"
        )
    tables = {name for name in tables if not name.startswith("sqlite_")}
    if tables and not tables >= _STUDY_TABLES and not tables <= _tables_of_optuna():
        raise BadInputError(
            f"study storage {path} is the database of another program (its tables: {', '.join(sorted(tables)[:5])}); "
            f"name another --storage or {OUT}"
        )


def _tables_of_optuna() -> set[str]:
    """The tables that a new storage has: a killed run may have made some of them."""
    storage = optuna.storages.RDBStorage("sqlite:///:memory:")
    return {*inspect(storage.engine).get_table_names(), "alembic_version"}


def open_storage(url: URL) -> optuna.storages.RDBStorage:
    """Open a database, and make its tables where they lack."""
    address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it
    is_file = url.get_backend_name() == "sqlite"
    settings: dict[str, Any] = {"connect_args": {"timeout": LOCK_TIMEOUT_S}} if is_file else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(address, engine_kwargs=settings)


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error


def _is_lost(error: BaseException) -> bool:
    cause = _cause(error)
    if isinstance(cause, PendingRollbackError):  # Optuna went on in the transaction that ended with the connection
        return True
    return isinstance(cause, DBAPIError) and cause.connection_invalidated


_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Server:
    """The server of a database, which may be away for a while; ``warn`` is told so, once for each time."""

    url: URL
    warn: Callable[[str], None]

    def retried(self, call: Callable[[], _Value], *, opens: bool = False) -> _Value:
        """Call again while the server is away; what is called may have been done by a call that failed.

        ``opens`` for the first call: a server that answers and refuses ``MOST_REFUSALS`` times in a row, as it does a
        wrong password, is not asked again.
        """
        deadline, refusals, is_told = time.monotonic() + RETRIED_S, 0, False
        while True:
            try:
                return call()
            except Exception as error:
                if not self.is_away(error) or time.monotonic() >= deadline:
                    raise
                refusals = refusals + 1 if opens and not _is_lost(error) and self._answers() else 0
                if refusals == MOST_REFUSALS:
                    raise
                if not (refusals or is_told):
                    is_told = True
                    self.warn(
                        f"the database {self.shown} is away ({self.reason(error)}); waiting for it, at most "
                        f"{RETRIED_S:.0f} s, after which the same command with {RESUME} goes on"
                    )
            check_interrupt()
            time.sleep(_PAUSE_S)

    def is_away(self, error: BaseException) -> bool:
        """Whether an error is that of a database whose server is away, or takes no more connections."""
        is_server = self.url.get_backend_name() != "sqlite"
        return is_server and (_is_lost(error) or isinstance(_cause(error), OperationalError | InterfaceError))

    @property
    def shown(self) -> str:
        """The address without its password."""
        return without_passwords(self.url.render_as_string())

    def reason(self, error: BaseException) -> str:
        """Return the first line of what the database said, without its password."""
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause) or type(cause).__name__
        if self.url.password:
            reason = reason.replace(str(self.url.password), "***")
        return reason.splitlines()[0]

    def _answers(self) -> bool:
        """Whether it takes connections, or refuses this one for good; known of PostgreSQL by psycopg, else assumed."""
        if self.url.drivername != "postgresql+psycopg":
            return True
        import psycopg

        _, arguments = self.url.get_dialect()().create_connect_args(self.url)
        try:
            address = psycopg.conninfo.make_conninfo(**{**arguments, "connect_timeout": _PING_S})
        except psycopg.ProgrammingError:  # no address
            return True
        state = psycopg.pq.PGconn.ping(address.encode())
        return state not in (psycopg.pq.Ping.REJECT, psycopg.pq.Ping.NO_RESPONSE)


def _check_encoding(connection: Any, _: object) -> None:
    shown = f"{connection.info.dbname} of the study storage"
    check_encoding(connection.info.parameter_status("server_encoding"), shown)


@contextmanager
def opened_by_one(url: URL) -> Iterator[None]:
    """Let drivers that start together make the tables of a shared database one after the other.

    Beside a SQLite file the lock is a file, which stays: ``study.db.lock``.
    """
    kind, name = url.get_backend_name(), url.database or ""
    if kind == "postgresql":
        engine = create_engine(url)
        if url.drivername == "postgresql+psycopg":
            event.listen(engine, "connect", _check_encoding, insert=True)  # SQLAlchemy fails where it is SQL_ASCII
        try:
            with engine.connect() as connection:
                connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
                yield
        finally:
            engine.dispose()  # the lock ends with its connection
    elif kind == "sqlite" and name and not name.startswith((":memory:", "file:")):
        with Path(f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    else:
        yield
