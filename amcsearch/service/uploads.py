"""Files that callers send: checkpoints and results of kits, limited in size and count, in the folder of runs.

A file lies at ``uploads/ID/NAME``, whose ID has 128 random bits: a request names it by that path. It is whole, or it is
not there. A checkpoint is read as safetensors, or as ``.pt`` with ``weights_only``, by the worker; here its first bytes
alone are looked at, so that a wrong file is refused before a job waits with it.
"""

import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from sqlalchemy import Row, delete, func, insert, select

from amcsearch.core import MIB, BadInputError
from amcsearch.runs import StoredDocument, make_folder
from amcsearch.service.allowed import UPLOADS
from amcsearch.service.database import UPLOAD_TABLE, Database
from amcsearch.service.settings import ServiceLimits

__all__ = ["Upload", "UploadTable"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STARTS: Final = {".pt": b"PK\x03\x04", ".pth": b"PK\x03\x04", ".safetensors": None, ".jsonl": b"{"}
"""Suffixes that are taken, and how such a file begins; a safetensors file begins with the size of its header."""
_MOST_HEADER: Final = 100 * 2**20  # that safetensors itself reads
_LEFT_S: Final = 86400.0  # after which what an interrupted sending left is removed


@dataclass(frozen=True)
class Upload(StoredDocument):
    """A file that a caller sent; ``path`` is how a request names it."""

    id: str
    owner: str
    name: str
    path: str
    bytes: int
    sha256: str
    created_s: float


class UploadTable:
    """All files that were sent to a service.

    Args:
        database: of the service.
        runs: folder of all jobs.
        limits: of one caller: bytes of one file, and files.
    """

    def __init__(self, database: Database, runs: Path, limits: ServiceLimits) -> None:
        self.database, self.limits = database, limits
        self.folder = (runs / UPLOADS).absolute()

    def begin(self, owner: str, name: str) -> "Sending":
        """Begin to take a file.

        Raises:
            BadInputError: a name or a suffix that is not taken, too many files of the owner, or a full disk.
        """
        if self.limits.upload_bytes == 0:
            raise BadInputError("this service takes no files; let its operator raise --most-upload")
        if not _NAME.fullmatch(name):
            raise BadInputError(f"name = {name!r:.110}, expected up to 100 letters, digits and . _ -, such as a.pt")
        if Path(name).suffix not in _STARTS:
            raise BadInputError(f"name = {name!r:.110}, expected one that ends with {', '.join(_STARTS)}")
        self._check_count(owner)
        make_folder(self.folder)
        self._clean()
        return Sending(self.folder / f".{secrets.token_hex(16)}", name, self.limits.upload_bytes)

    def keep(self, owner: str, sending: "Sending") -> Upload:
        """Keep a file that was sent; the same file under the same name again is the one that is there.

        Raises:
            BadInputError: it does not begin as such a file, or the owner has too many.
        """
        sending.check()
        number, sha256 = secrets.token_hex(16), sending.sha256
        is_same = (UPLOAD_TABLE.c.owner == owner, UPLOAD_TABLE.c.name == sending.name, UPLOAD_TABLE.c.sha256 == sha256)
        with self.database.writing() as connection:
            row = connection.execute(select(UPLOAD_TABLE).where(*is_same)).first()
            if row is not None and Path(self._upload(row).path).is_file():
                return self._upload(row)
            count = connection.execute(self._counted(owner)).scalar_one()
            self._refuse(owner, count)
            make_folder(self.folder / number)
            sending.path.rename(self.folder / number / sending.name)
            values = {"id": number, "owner": owner, "name": sending.name, "bytes": sending.size, "sha256": sha256}
            added = insert(UPLOAD_TABLE).values(**values, created_s=self.database.now).returning(UPLOAD_TABLE)
            return self._upload(connection.execute(added).one())

    def every(self, owner: str | None) -> Sequence[Upload]:
        """Return the files of an owner, of all for None, the newest first."""
        query = select(UPLOAD_TABLE).order_by(UPLOAD_TABLE.c.created_s.desc())
        with self.database.reading() as connection:
            rows = connection.execute(query if owner is None else query.where(UPLOAD_TABLE.c.owner == owner)).all()
        return [self._upload(row) for row in rows]

    def remove(self, owner: str | None, number: str) -> bool:
        """Remove a file of an owner, of anybody for None; whether there was one."""
        is_meant = UPLOAD_TABLE.c.id == number
        if owner is not None:
            is_meant = is_meant & (UPLOAD_TABLE.c.owner == owner)
        with self.database.writing() as connection:
            if not connection.execute(delete(UPLOAD_TABLE).where(is_meant)).rowcount:
                return False
        shutil.rmtree(self.folder / number, ignore_errors=True)
        return True

    def _check_count(self, owner: str) -> None:
        with self.database.reading() as connection:
            self._refuse(owner, connection.execute(self._counted(owner)).scalar_one())

    def _refuse(self, owner: str, count: int) -> None:
        if count >= self.limits.uploads:
            raise BadInputError(
                f"{owner} has {count} files here, at most {self.limits.uploads}; remove one with DELETE /uploads/ID"
            )

    def _counted(self, owner: str) -> Any:
        return select(func.count()).select_from(UPLOAD_TABLE).where(UPLOAD_TABLE.c.owner == owner)

    def _upload(self, row: Row[Any]) -> Upload:
        path = str(self.folder / row.id / row.name)
        return Upload(row.id, row.owner, row.name, path, row.bytes, row.sha256, row.created_s)

    def _clean(self) -> None:
        """Remove what sendings left that were interrupted."""
        for path in self.folder.glob(".*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_S:
                    path.unlink()


class Sending:
    """A file on its way; use it as a context, which removes what is not kept."""

    def __init__(self, path: Path, name: str, most_bytes: int) -> None:
        self.path, self.name, self.size = path, name, 0
        self._most_bytes, self._hash = most_bytes, hashlib.sha256()
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> "Sending":
        """Open the file."""
        try:
            self._stream = self.path.open("xb")
        except OSError as error:
            raise BadInputError(f"the file cannot be written here: {error.strerror}; tell the operator") from error
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not kept."""
        if self._stream is not None:
            self._stream.close()
        self.path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Of the content so far."""
        return self._hash.hexdigest()

    def write(self, part: bytes) -> None:
        """Add a part.

        Raises:
            BadInputError: the file grows too large, or the disk is full.
        """
        assert self._stream is not None
        self.size += len(part)
        if self.size > self._most_bytes:
            raise BadInputError(
                f"{self.name} has more than {self._most_bytes / MIB:g} MiB; let the operator raise --most-upload"
            )
        self._hash.update(part)
        try:
            self._stream.write(part)
        except OSError as error:
            raise BadInputError(f"the file cannot be written here: {error.strerror}; tell the operator") from error

    def check(self) -> None:
        """Check that the file begins as its name says.

        Raises:
            BadInputError: it does not.
        """
        assert self._stream is not None
        self._stream.flush()
        with self.path.open("rb") as stream:
            begins = stream.read(9)
        wanted = _STARTS[Path(self.name).suffix]
        if wanted is None:
            size = int.from_bytes(begins[:8], "little")
            is_right = begins[8:] == b"{" and 2 <= size <= min(_MOST_HEADER, self.size - 8)
        else:
            is_right = begins.startswith(wanted)
        if not is_right:
            raise BadInputError(f"{self.name} does not begin as such a file does; is it whole, and of that format?")
