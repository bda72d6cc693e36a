"""Files that are whole or absent after any kill, and a lock for one process at a time.

A file is written beside its place under a name of its own and renamed. While it is written its process holds the
kernel's lock on it, so that what a killed process left half-written is known by the lock it no longer holds. No link is
followed for writing: a rename replaces the link itself, and what grows in place is refused where it is a link or has a
second name. What the operating system refuses becomes one line.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from amcsearch.core import OUT, BadInputError, read_bytes
from amcsearch.runs.documents import plain

__all__ = [
    "InUseError",
    "append_line",
    "check_in_place",
    "check_outputs",
    "check_replaceable",
    "expanded",
    "make_folder",
    "replacing",
    "sweep",
    "take_lock",
    "writing",
]

_PARTIAL: Final = re.compile(r"\.partial-[0-9a-f]{16}(\..*)?")
_LONGEST_SUFFIX: Final = 32  # bytes, of a partial file's name
_LONGEST_NAME: Final = 255  # bytes
_LONGEST_PATH: Final = 3800  # bytes; Linux takes 4095, and files come below a folder
_CURE: Final = f"free the disk, or name another {OUT}"
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expanded(path: Path | str) -> Path:
    """Return the path of what a user typed, with ``~`` and ``~NAME`` replaced by the home folder that they mean.

    What comes back stays as it is when it is expanded again. ``./~`` is a folder of that name.

    Raises:
        BadInputError: there is no such user, a null character, text that no file system takes, or a name that is too
            long.
    """
    if not isinstance(path, str | os.PathLike):
        raise BadInputError(f"path {path!r:.60} is a {type(path).__name__}, expected text or a Path")
    text = os.fspath(path)
    if "\0" in text:
        raise BadInputError(f"path {text!r} has a null character; name another one")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise BadInputError(f"path {text!r} cannot be encoded for the file system; name another one") from error
    longest = max(encoded.split(b"/"), key=len)
    if len(longest) > _LONGEST_NAME or len(encoded) > _LONGEST_PATH:
        raise BadInputError(
            f"path {text[:40]!r}… has {len(encoded)} bytes, {len(longest)} in one name; at most {_LONGEST_PATH} and "
            f"{_LONGEST_NAME} are possible: name another one"
        )
    if not text.startswith("~"):
        return Path(os.path.abspath(text)) if os.path.normpath(text).startswith("~") else Path(text)
    home = os.path.expanduser(text)
    if home.startswith("~"):
        name = text.partition("/")[0]
        raise BadInputError(f"path {text}: {name} is no user's home folder; write ./{name} for a folder of that name")
    return Path(home)


@contextmanager
def writing(path: Path, cure: str = _CURE) -> Iterator[None]:
    """Turn what the operating system refuses into one line that names ``path`` and the cure.

    Raises:
        BadInputError: the disk is full, the folder is read-only, …
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileExistsError) and error.filename == str(path):
            reason, cure = "it is a file, and a folder is expected", "name another one"
        raise BadInputError(f"cannot write {path}: {reason}; {cure}") from error


def make_folder(folder: Path) -> None:
    """Make a folder for results, with those above it, unless it is there.

    Raises:
        BadInputError: the operating system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = ", which is a file" if folder.is_file() else ""
        raise BadInputError(f"cannot write {folder}{where}: {error.strerror}; name another folder") from error


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of a folder, a pipe or a device.

    Raises:
        BadInputError: one of these is at ``path``, or what is there cannot be looked at.
    """
    with writing(path):
        if not os.path.lexists(path):
            return
        mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise BadInputError(f"cannot write {path}: it is {_kind(mode)}; name another {OUT}")


def check_outputs(table: Path, beginning: str, pictures: Iterable[Path]) -> None:
    """Refuse to replace a table and its pictures where somebody else's files have their names.

    ``beginning`` is what every such table begins with. Pictures are ours where they lie beside our table.

    Raises:
        BadInputError: a file that is not ours, or not a file; the folder cannot be made.
    """
    make_folder(table.parent)
    check_replaceable(table)
    is_ours = os.path.isfile(table) and read_bytes(table).startswith(beginning.encode())
    for path in (table, *pictures):
        check_replaceable(path)
        if os.path.lexists(path) and not is_ours:
            raise BadInputError(f"{path} is there and was not written by amcsearch; move it, or name another {OUT}")


def check_in_place(path: Path) -> None:
    """Refuse to write into a file that others may know under another name.

    Raises:
        BadInputError: ``path`` is a link, has a second name (a hard link), or is no file.
    """
    with writing(path):
        if not os.path.lexists(path):
            return
        _refuse_alias(path, os.lstat(path))


def _refuse_alias(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise BadInputError(f"cannot write {path}: it is a link; put a copy of the file in its place")
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"cannot write {path}: it is {_kind(status.st_mode)}, not a file; name another {OUT}")
    if status.st_nlink > 1:
        raise BadInputError(
            f"cannot write {path}: the file has {status.st_nlink} names (hard links); put a copy of it in its place"
        )


def _open_in_place(path: Path) -> IO[bytes]:
    """Open a file to read it and add to its end; it is made where it is not there."""
    check_in_place(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with writing(path):
        stream = open(os.open(path, flags, 0o666), "ab+")  # noqa: SIM115 (the caller closes it)
    try:
        _refuse_alias(path, os.fstat(stream.fileno()))
    except BaseException:
        stream.close()
        raise
    return stream


@contextmanager
def replacing(path: Path, cure: str = _CURE) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the place of ``path`` when all went well.

    What killed processes left half-written in the folder is removed.

    Raises:
        BadInputError: as ``writing`` and ``check_replaceable``.
    """
    check_replaceable(path)
    sweep(path.parent)
    with writing(path, cure):
        temporary, descriptor = _partial(path)
    try:
        with writing(path, cure):
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        os.close(descriptor)
        with writing(path, cure):
            temporary.unlink(missing_ok=True)


def _partial(path: Path) -> tuple[Path, int]:
    """Make an empty file with a name that nobody can guess, locked by this process."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    while True:
        temporary = path.with_name(f".partial-{secrets.token_hex(8)}{suffix}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        is_swept = False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_swept = True
        except OSError:  # a disk without locks, where nothing is swept
            pass
        if not is_swept and os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the partial files that killed processes left in a folder; those that are being written stay."""
    with suppress(OSError):
        for name in filter(_PARTIAL.fullmatch, os.listdir(folder)):
            _remove_unlocked(folder / name)


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Add a JSON object as one synced line; a last line torn by a kill is ended first.

    Raises:
        BadInputError: as ``writing`` and ``check_in_place``.
    """
    line = json.dumps(plain(record), ensure_ascii=False, allow_nan=False)
    with writing(path), _open_in_place(path) as stream:
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


class InUseError(BadInputError):
    """Another process holds a lock."""


def take_lock(path: Path, label: str = "run folder") -> IO[bytes]:
    """Lock the file ``path`` for this process until the returned stream is closed; the file holds its number.

    ``label`` names the folder of the file in errors.

    Raises:
        InUseError: another process holds it; names that process.
        BadInputError: the file cannot be written or locked.
    """
    while True:
        lock = _open_in_place(path)
        try:
            _lock_now(lock, path, label)
            if _is_at(lock, path):  # else it was removed by the process that held it
                lock.truncate(0)
                lock.write(str(os.getpid()).encode())
                lock.flush()
                return lock
        except OSError as error:
            lock.close()
            cure = f"; this disk has no locks: name {OUT} on another" if error.errno in _NO_LOCKS else ""
            raise BadInputError(f"cannot lock {path}: {error.strerror}{cure or f'; name another {OUT}'}") from error
        except BaseException:
            lock.close()
            raise
        lock.close()


def _lock_now(lock: IO[bytes], path: Path, label: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read(20).decode("ascii", "replace").strip() or "unknown"
        raise InUseError(
            f"{label} {path.parent} is in use by process {owner}; wait for it to end or name another {OUT}"
        ) from error


def _is_at(stream: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False
