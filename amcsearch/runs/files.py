"""Files that are whole or absent after any kill, and a lock for one process at a time.

The lock is the kernel's: it dies with its process. What the operating system refuses becomes one line.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from amcsearch.core import BadInputError
from amcsearch.runs.documents import plain

__all__ = ["append_line", "make_folder", "read_text", "replacing", "take_lock", "writing"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one line that names ``path``.

    Raises:
        BadInputError: the disk is full, the folder is read-only, …
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise BadInputError(f"cannot write {path}: {reason}; free the disk, or name another --out") from error


def make_folder(folder: Path) -> None:
    """Make a folder for results, with those above it, unless it is there.

    Raises:
        BadInputError: the operating system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"cannot write {folder}: {error.strerror}; name another folder") from error


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        BadInputError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"cannot read {path}: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the place of ``path`` when all went well.

    Raises:
        BadInputError: as ``writing``.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with writing(path):
            temporary.unlink(missing_ok=True)


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Add a JSON object as one synced line; a last line torn by a kill is ended first.

    Raises:
        BadInputError: as ``writing``.
    """
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False)
    with writing(path), path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else "\n" + line
        stream.write(line.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> IO[str]:
    """Lock the file ``path`` for this process until the returned stream is closed; the file holds its number.

    Raises:
        BadInputError: another process holds it (names that process), or the file cannot be written or locked.
    """
    with writing(path):
        lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise BadInputError(
            f"run folder {path.parent} is in use by process {owner}; wait for it to end or name another --out"
        ) from error
    except OSError as error:
        lock.close()
        raise BadInputError(f"cannot lock {path}: {error.strerror}; name another --out") from error
    return lock
