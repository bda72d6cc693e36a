"""Bearer tokens and the audit log, in the database of the jobs.

A token is ``amc_ID_SECRET``. The database holds its SHA-256 (FIPS 180-4) alone, which is enough: the secret has 256
random bits, so no list of passwords leads to it. ``ID`` finds the row, and the hash is compared in constant time.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Row, Select, and_, insert, or_, select, update
from sqlalchemy.sql.expression import ColumnElement

from amcsearch.core import BadInputError
from amcsearch.runs import Document
from amcsearch.service.database import AUDIT, TOKENS, Database
from amcsearch.service.settings import default_database

__all__ = ["AuditEntry", "NewToken", "Scope", "TokenRecord", "TokenTable", "open_tokens", "read_lifetime"]

_TOKEN: Final = re.compile(r"amc_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_LIFETIME: Final = re.compile(r"([1-9]\d{0,3})([hdw])")
_SECONDS: Final[Mapping[str, float]] = {"h": 3600.0, "d": 86400.0, "w": 604800.0}
_NO_HASH: Final = "0" * 64  # what an unknown token is compared with, so that it takes as long as a known one
_MOST_ENTRIES: Final = 500  # a page
_LONGEST: Final = 200  # characters of a path or an address in the log


class Scope(StrEnum):
    """What a token allows: look, submit jobs, measure on devices, or administer, which includes the others."""

    READ = "read"
    SUBMIT = "submit"
    MEASURE = "measure"
    ADMIN = "admin"


@dataclass(frozen=True)
class TokenRecord(Document):
    """A token without its secret; ``most_jobs`` that wait or run at once, None for the service's limit."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created_s: float
    expires_s: float | None
    revoked_s: float | None
    is_valid: bool
    most_jobs: int | None = None


@dataclass(frozen=True)
class NewToken:
    """A token just made: the only moment at which its text exists."""

    record: TokenRecord
    text: str = field(repr=False)


@dataclass(frozen=True)
class AuditEntry(Document):
    """One line of the audit log: ``action`` is the method of HTTP or the command's, ``target`` what it went to."""

    caller: str
    action: str
    target: str
    status: int
    address: str
    at_s: float = 0.0
    number: int = 0


def read_lifetime(text: str) -> float:
    """Return the seconds of a lifetime such as ``90d``, ``12h`` or ``2w``.

    Raises:
        BadInputError: no such text.
    """
    match = _LIFETIME.fullmatch(text)
    if match is None:
        raise BadInputError(
            f"expires = {text[:40]!r}, expected a number of hours, days or weeks, such as 12h, 90d or 2w"
        )
    return int(match[1]) * _SECONDS[match[2]]


@contextmanager
def open_tokens(runs: Path, database: str = "") -> Iterator["TokenTable"]:
    """Open the tokens of a service by its folder of runs and its database's address, "" for the file in that folder.

    Raises:
        BadInputError: a database that cannot be opened.
    """
    opened = Database(database or default_database(runs))
    try:
        yield TokenTable(opened)
    finally:
        opened.close()


class TokenTable:
    """All tokens of a service, and the audit log."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._are_needed = False

    def create(
        self, name: str, scopes: Collection[Scope], lifetime_s: float | None, most_jobs: int | None = None
    ) -> NewToken:
        """Make a token.

        Args:
            name: of who uses it, who then owns the jobs that it submits.
            scopes: what it allows.
            lifetime_s: seconds until it expires; None never.
            most_jobs: that may wait or run at once; None takes the service's limit.

        Raises:
            BadInputError: a name that is none or is in use, no scope, or a limit below 1.
        """
        if not _NAME.fullmatch(name):
            raise BadInputError(f"name = {name[:70]!r}, expected up to 64 letters, digits and . _ @ -, such as ci")
        if not scopes:
            raise BadInputError(f"scopes: none is named; name some of {', '.join(Scope)}")
        if most_jobs is not None and most_jobs < 1:
            raise BadInputError(f"most_jobs = {most_jobs}, must be at least 1")
        number, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        text, now = f"amc_{number}_{secret}", self.database.now
        values: dict[str, object] = {
            "id": number,
            "name": name,
            "sha256": _digest(text),
            "scopes": sorted(scopes),
            "most_jobs": most_jobs,
            "created_s": now,
            "expires_s": None if lifetime_s is None else now + lifetime_s,
        }
        with self.database.writing() as connection:
            used = connection.execute(select(TOKENS.c.id).where(TOKENS.c.name == name, self._is_valid)).first()
            if used is not None:
                raise BadInputError(
                    f"name = {name!r} has the valid token {used.id}; revoke it first, or take another name"
                )
            connection.execute(insert(TOKENS).values(values))
            record = _record(connection.execute(self._selected.where(TOKENS.c.id == number)).one())
        return NewToken(record, text)

    def every(self) -> Sequence[TokenRecord]:
        """Return all tokens, the oldest first."""
        with self.database.reading() as connection:
            rows = connection.execute(self._selected.order_by(TOKENS.c.created_s, TOKENS.c.id)).all()
        return [_record(row) for row in rows]

    def revoke(self, token: str) -> TokenRecord:
        """End a token by its id or by its name; one that was revoked stays so.

        Raises:
            BadInputError: there is no such token.
        """
        is_meant = or_(TOKENS.c.id == token, and_(TOKENS.c.name == token, self._is_valid))
        with self.database.writing() as connection:
            row = connection.execute(self._selected.where(is_meant)).first()
            if row is None:
                raise BadInputError(
                    f"token {token[:64]!r}: no valid one has that id or name; amcsearch token list shows all"
                )
            revoked = update(TOKENS).where(TOKENS.c.id == row.id, TOKENS.c.revoked_s.is_(None))
            connection.execute(revoked.values(revoked_s=self.database.now))
            return _record(connection.execute(self._selected.where(TOKENS.c.id == row.id)).one())

    def holder(self, text: str) -> TokenRecord | None:
        """Return the record of a token's text, None unless it is valid now."""
        match = _TOKEN.fullmatch(text)
        query = select(TOKENS, self._is_valid.label("is_valid")).where(TOKENS.c.id == (match[1] if match else ""))
        with self.database.reading() as connection:
            row = connection.execute(query).first()
        is_equal = hmac.compare_digest(_NO_HASH if row is None else row.sha256, _digest(text))
        return _record(row) if row is not None and is_equal and row.is_valid else None

    def is_empty(self) -> bool:
        """Whether no token is valid."""
        with self.database.reading() as connection:
            return connection.execute(select(TOKENS.c.id).where(self._is_valid).limit(1)).first() is None

    def are_needed(self) -> bool:
        """Whether a token has been valid since the service began: that it expired opens nothing."""
        self._are_needed = self._are_needed or not self.is_empty()
        return self._are_needed

    def note(self, entry: AuditEntry) -> None:
        """Add a line to the audit log."""
        values = {
            "caller": entry.caller[:64],
            "action": entry.action[:16],
            "target": entry.target[:_LONGEST],
            "status": entry.status,
            "address": entry.address[:64],
            "at_s": self.database.now,
        }
        with self.database.writing() as connection:
            connection.execute(insert(AUDIT).values(values))

    def audit(self, before: int | None = None, limit: int = 100) -> Sequence[AuditEntry]:
        """Return lines of the audit log, the newest first, from below the number ``before``.

        Raises:
            BadInputError: a limit out of bounds.
        """
        if not 1 <= limit <= _MOST_ENTRIES:
            raise BadInputError(f"limit = {limit}, must be at least 1 and at most {_MOST_ENTRIES}")
        query = select(AUDIT).order_by(AUDIT.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(AUDIT.c.number < before)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            AuditEntry(row.caller, row.action, row.target, row.status, row.address, row.at_s, row.number)
            for row in rows
        ]

    @property
    def _is_valid(self) -> ColumnElement[bool]:
        lasts = or_(TOKENS.c.expires_s.is_(None), TOKENS.c.expires_s > self.database.now)
        return and_(TOKENS.c.revoked_s.is_(None), lasts)

    @property
    def _selected(self) -> Select[Any]:
        return select(TOKENS, self._is_valid.label("is_valid"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord(
        id=row.id,
        name=row.name,
        scopes=tuple(Scope(scope) for scope in row.scopes),
        created_s=row.created_s,
        expires_s=row.expires_s,
        revoked_s=row.revoked_s,
        is_valid=bool(row.is_valid),
        most_jobs=row.most_jobs,
    )
