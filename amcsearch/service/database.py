"""The service's database, SQLite or PostgreSQL: tables beside Optuna's, clock, transactions and migrations."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.sql.expression import ColumnElement, literal_column

from amcsearch.core import BadInputError, check_encoding, without_passwords
from amcsearch.runs import make_folder

__all__ = [
    "AUDIT",
    "DEVICES",
    "DEVICE_REQUESTS",
    "JOBS",
    "MEASUREMENTS",
    "METADATA",
    "TOKENS",
    "UPLOAD_TABLE",
    "WORKERS",
    "Database",
]

_BUSY_S: Final = 30.0  # that a connection waits for another's transaction on SQLite
_MIGRATION_LOCK: Final = 4_026_531_840_117  # any number of our own, for PostgreSQL's advisory lock
_CLOCKS: Final = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from statement_timestamp())::double precision",
}

METADATA = MetaData()
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by INTEGER alone

JOBS = Table(
    "amcsearch_jobs",
    METADATA,
    Column("sequence", _NUMBER, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("kind", String(32), nullable=False),
    Column("name", String(128), nullable=False),
    Column("owner", String(128), nullable=False),
    Column("idempotency_key", String(128)),
    Column("request", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("is_cancel_asked", Boolean, nullable=False),
    Column("worker", String(128)),
    Column("device", String(64)),
    Column("attempt", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("lease_until_s", Double),
    Column("revision", Integer, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("changed_s", Double, nullable=False),
    Column("started_s", Double),
    Column("ended_s", Double),
    Column("progress", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("problem", JSON(none_as_null=True)),
    UniqueConstraint("owner", "idempotency_key", name="amcsearch_jobs_idempotency"),
    Index("amcsearch_jobs_queue", "state", "sequence"),
    Index("amcsearch_jobs_kinds", "state", "kind", "sequence"),
    Index("amcsearch_jobs_leases", "state", "lease_until_s"),
)
"""One job a row; the moments are seconds since 1970 by the database's clock."""

WORKERS = Table(
    "amcsearch_workers",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("kinds", JSON, nullable=False),
    Column("host", String(255), nullable=False),
    Column("job", String(32)),
    Column("begun_s", Double, nullable=False),
    Column("seen_s", Double, nullable=False),
)
"""One worker a row, with its last sign of life."""

DEVICES = Table(
    "amcsearch_devices",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("says", JSON, nullable=False),
    Column("measurement", String(64)),
    Column("records", Integer, nullable=False),
    Column("expected", Integer, nullable=False),
    Column("begun_s", Double, nullable=False),
    Column("seen_s", Double, nullable=False),
)
"""One device with an agent a row: whose token serves it, what it says of itself, and its last sign of life."""

MEASUREMENTS = Table(
    "amcsearch_measurements",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("job", String(32), nullable=False),
    Column("owner", String(64)),
)
"""For which job a device measures, or for whom where it belongs to none: ``job`` is empty then."""

DEVICE_REQUESTS = Table(
    "amcsearch_device_requests",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("job", String(32), nullable=False),
    Column("method", String(8), nullable=False),
    Column("target", String(2048), nullable=False),
    Column("body", LargeBinary),
    Column("status", Integer),
    Column("answer", LargeBinary),
    Column("asked_s", Double, nullable=False),
    Index("amcsearch_device_requests_open", "status"),
)
"""What running jobs ask the work list of devices, which the service holds, and its answers until they are taken."""

UPLOAD_TABLE = Table(
    "amcsearch_uploads",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_s", Double, nullable=False),
    Index("amcsearch_uploads_owners", "owner"),
)
"""One file that a caller sent a row."""

TOKENS = Table(
    "amcsearch_tokens",
    METADATA,
    Column("id", String(8), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("most_jobs", Integer),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double),
    Column("revoked_s", Double),
)
"""One token a row; the moments are seconds since 1970 by the database's clock."""

AUDIT = Table(
    "amcsearch_audit",
    METADATA,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("at_s", Double, nullable=False),
    Column("caller", String(64), nullable=False),
    Column("action", String(16), nullable=False),
    Column("target", String(255), nullable=False),
    Column("status", Integer, nullable=False),
    Column("address", String(64), nullable=False),
)
"""Who did what, when and from where; triggers refuse every change of a row and every removal."""


class Database:
    """Connections to one database whose tables are up to date; ``is_new`` says that they were made just now.

    Args:
        url: SQLAlchemy's address, such as ``sqlite:////srv/runs/service.db`` or ``postgresql+psycopg://user@host/name``.

    Raises:
        BadInputError: an address of another database, or one that cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.kind = self.engine.dialect.name
        self.now: ColumnElement[float] = literal_column(_CLOCKS[self.kind], Double)
        self._writing = self.engine.execution_options(is_writing=True)
        try:
            self._migrate()
        except (SQLAlchemyError, sqlite3.Error) as error:
            self.engine.dispose()
            raise BadInputError(
                f"cannot open the database {self.address}: {_first_line(error)}; start it, or name another one"
            ) from error

    @property
    def address(self) -> str:
        """Its address without a password."""
        return without_passwords(self.engine.url.render_as_string())

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that only reads."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that writes; on SQLite it holds the write lock from its beginning (``BEGIN IMMEDIATE``)."""
        with self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _migrate(self) -> None:
        from alembic import command  # a fifth of a second, which the process of a job need not wait
        from alembic.config import Config as AlembicConfig

        config = AlembicConfig()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self.writing() as connection:
            if self.kind == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            self.is_new = not inspect(connection).has_table(JOBS.name)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _engine(url: str) -> Engine:
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:  # a port that is no number is the latter
        raise BadInputError(
            f"database {without_passwords(url)!r:.42} is no address; write sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        ) from error
    kind = address.get_backend_name()
    if kind not in _CLOCKS:
        raise BadInputError(f"database {kind}: only sqlite and postgresql are known; write postgresql+psycopg://…")
    if kind == "sqlite":
        return _sqlite_engine(url)
    try:
        engine = create_engine(address, pool_pre_ping=True, pool_size=16, max_overflow=16)
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"database {kind} needs the module {error.name}; type: pip install 'amcsearch[service]'"
        ) from error

    def check(connection: Any, _: object) -> None:
        check_encoding(connection.info.parameter_status("server_encoding"), without_passwords(url))

    event.listen(engine, "connect", check, insert=True)  # before SQLAlchemy asks: SQL_ASCII answers in bytes
    return engine


def _sqlite_engine(url: str) -> Engine:
    file = make_url(url).database
    if not file or file == ":memory:":
        raise BadInputError(f"database {url}: the service and its workers share a file; write sqlite:///FILE")
    make_folder(Path(file).parent)
    engine = create_engine(url, connect_args={"timeout": _BUSY_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # else the driver begins transactions by itself, and later than we say
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get("is_writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine


def _first_line(error: Exception) -> str:
    return next(iter(str(getattr(error, "orig", None) or error).splitlines()), type(error).__name__)
