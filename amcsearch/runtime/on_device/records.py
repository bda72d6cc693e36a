"""The result file: one JSON object a line, appended and synced, each with a checksum over its content.

A process may be killed and a disk may fill at any moment: then at most the last line is torn. It is cut off when the
file is opened again; a line that is whole but does not match its checksum was edited, and is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple

from amcsearch.runtime.on_device.errors import DeviceError

__all__ = ["Journal", "Lines", "checksum", "encoded", "parsed_lines"]

SUM = "sum"
BEGINNING = b'{"kind":"header"'
Record = Mapping[str, Any]


class Lines(NamedTuple):
    """Records of a file with their line numbers, how many bytes of it are whole, and what was repaired."""

    records: list[dict[str, Any]]
    numbers: list[int]
    whole_bytes: int
    notes: list[str]


def _json(record: Record, sort: bool) -> str:
    return json.dumps(record, sort_keys=sort, separators=(",", ":"))


def checksum(record: Record) -> str:
    """16 hexadecimal digits over the record's content, the checksum itself left out, in any order of keys."""
    content = {key: value for key, value in record.items() if key != SUM}
    return hashlib.sha256(_json(content, sort=True).encode()).hexdigest()[:16]


def encoded(record: Record) -> bytes:
    """The record's line, checksum and line end included."""
    return (_json({**record, SUM: checksum(record)}, sort=False) + "\n").encode()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        is_whole = isinstance(record, dict) and record.get(SUM) == checksum(record)
    except (ValueError, RecursionError):
        return None
    return record if is_whole else None


def parsed_lines(content: bytes, name: str) -> Lines:
    """Read a result file's content.

    Args:
        content: the whole file.
        name: of the file, for messages.

    Raises:
        DeviceError: a whole line does not match its checksum.
    """
    result = Lines([], [], 0, [])
    at = 0
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        record = _parsed(line) if line.endswith(b"\n") else None
        last = at + len(line) == len(content)
        if record is not None:
            result.records.append(record)
            result.numbers.append(number)
        elif last and not line.endswith(b"\n"):
            result.notes.append(f"{name}: line {number} is torn and was left out")
            break
        elif line.strip():
            raise DeviceError(f"{name}, line {number}: the line does not match its checksum: it was edited or damaged")
        at += len(line)
    return result._replace(whole_bytes=at)


def _refuse_alias(path: Path) -> None:
    """Refuse to add to a file that others may know under another name.

    Raises:
        DeviceError: it is a link, has a second name (a hard link), or is no file.
    """
    status = os.lstat(str(path))
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise DeviceError(f"{path} is a link, has a second name, or is no file; name another file with -o")


class Journal:
    """An append-only result file: what ``append`` returned from is on the disk.

    Opening reads what is there and cuts off a torn last line; ``records`` and ``notes`` say what was found.

    Raises:
        DeviceError: the file is no result, was edited, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        write: Callable[[int, bytes], int] = os.write,
        sync: Callable[[int], None] = os.fsync,
    ) -> None:
        self.path, self._write, self._sync = path, write, sync
        try:
            if os.path.lexists(str(path)):
                _refuse_alias(path)
            content = path.read_bytes() if path.exists() else b""
            if not (content.startswith(BEGINNING) or BEGINNING.startswith(content)):
                raise DeviceError(f"{path} is not a kit's result file: it does not begin with a header; name another")
            records = parsed_lines(content, str(path))
            self._file = os.open(str(path), os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            os.ftruncate(self._file, records.whole_bytes)
        except OSError as error:
            raise DeviceError(f"cannot write {path}: {error.strerror}; name another file with -o") from error
        self.records, self.notes = records.records, records.notes
        self._size = os.lseek(self._file, 0, os.SEEK_END)

    def append(self, record: Record) -> None:
        """Write one record and sync it to the disk.

        Raises:
            DeviceError: the disk is full or broken. What was written before stays whole.
        """
        line = encoded(record)
        try:
            done = 0
            while done < len(line):
                done += self._write(self._file, line[done:])
            self._sync(self._file)
        except OSError as error:
            self._forget_partial_line()
            cure = "free some space and" if error.errno == errno.ENOSPC else "repair that and"
            kept = f"{len(self.records)} records are safe"
            raise DeviceError(f"cannot write {self.path}: {error.strerror}; {kept}: {cure} run this again") from error
        self._size += len(line)
        self.records.append(dict(record))

    def _forget_partial_line(self) -> None:
        try:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
        except OSError:  # then the torn line is cut off when the file is opened again
            return

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
