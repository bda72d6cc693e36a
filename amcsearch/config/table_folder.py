"""Latency tables on disk: a folder with readable rows (``rows.csv``) beside their provenance (``device.yaml``).

A table of two files is replaced as a whole. The new one is first written as one file, ``.table.json``; from the rename
that puts it there it is the table, for every reader. Then its two files are brought to their places and it goes. Who
takes the folder next ends what a kill broke off in between.

Who writes holds the folder's lock from before the measuring. What is measured is kept in ``.measuring`` until the table
that was made of it is there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np

from amcsearch.config.lookup import TABLES, find
from amcsearch.config.messages import hint
from amcsearch.config.yaml_text import parse_mapping, to_yaml
from amcsearch.core import MIB, BadInputError, decoded, parse_json, read_bytes, read_text
from amcsearch.costs import LatencyTable, csv_of, parse_rows
from amcsearch.runs import replacing, sweep, take_lock, writing

__all__ = [
    "DEVICE_FILE",
    "ROWS_FILE",
    "TABLE_FILES",
    "TableFolder",
    "read_latency_table",
    "table_digest",
    "write_latency_table",
]

DEVICE_FILE: Final = "device.yaml"
ROWS_FILE: Final = "rows.csv"
_FILES: Final = (ROWS_FILE, DEVICE_FILE)
_WHOLE: Final = ".table.json"  # a new table, until its files are in their places
TABLE_FILES: Final = (*_FILES, _WHOLE)
"""Whatever of a folder counts as the table."""
_MEASURING: Final = ".measuring"
_LOCK: Final = ".lock"
_LEFT_BEFORE: Final = tuple(f".{name}.tmp" for name in _FILES)  # partial files of earlier versions
_MOST_BYTES: Final = 16 * MIB  # of rows.csv: a hundred thousand rows
_MOST_SAID: Final = MIB  # characters of device.yaml: eight hundred networks
_CURE: Final = "free the disk, or give another -o"


def read_latency_table(folder: Path | str) -> LatencyTable:
    """Read a latency table, a folder or a name: ``rows.csv``, ``device.yaml`` (provenance, calibration, accuracy).

    Raises:
        BadInputError: no such table (says how to measure one), or a file of it is missing or damaged.
    """
    folder = Path(folder) if Path(folder).is_absolute() else find(TABLES, folder)
    if folder.is_file():
        raise BadInputError(f"{folder} is a file, and a latency table is a folder; name the folder that holds it")
    if not folder.is_dir():
        others = sorted(p.parent.name for p in folder.parent.glob(f"*/{DEVICE_FILE}"))
        raise BadInputError(
            f"latency table {folder} does not exist{hint(folder.name, others)}; "
            f"make it with `amcsearch table measure CONFIG -o {folder}`"
        )
    content = _content(folder)
    text = decoded(content[DEVICE_FILE], str(folder / DEVICE_FILE))
    info, _ = parse_mapping(text, str(folder / DEVICE_FILE), _MOST_SAID)
    try:
        return LatencyTable.from_mapping(parse_rows(content[ROWS_FILE], folder / ROWS_FILE), info)
    except BadInputError as error:
        raise BadInputError(f"latency table {folder}: {error}") from error


def write_latency_table(table: LatencyTable, folder: Path | str) -> None:
    """Write a latency table as a whole: a reader sees the old one or the new one, whenever this process is killed.

    Raises:
        BadInputError: the folder cannot be made or written, holds other files, or is in use by another process.
    """
    with TableFolder.take(Path(folder)) as taken:
        taken.write(table)


def table_digest(table: LatencyTable) -> str:
    """Sixteen digits of what a table's files hold."""
    return hashlib.sha256("".join(_texts(table).values()).encode("utf-8")).hexdigest()[:16]


def _texts(table: LatencyTable) -> dict[str, str]:
    return {ROWS_FILE: csv_of(table.rows), DEVICE_FILE: to_yaml(_plain(table.as_mapping()))}


def _content(folder: Path) -> Mapping[str, bytes]:
    """The files of one table, by name, also while another process replaces it."""
    while True:
        before = _state(folder)
        try:
            whole = _whole(folder)
            content = whole or {name: _read(folder, name) for name in reversed(_FILES)}
        except BadInputError:
            if _state(folder) == before:
                raise
            continue
        if _state(folder) == before:
            return content


def _state(folder: Path) -> list[tuple[int, int, int] | None]:
    """What a replacement of a file changes."""
    return [_identity(folder / name) for name in (_WHOLE, *_FILES)]


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(folder: Path, name: str) -> bytes:
    if not any((folder / each).is_file() for each in _FILES):
        raise BadInputError(
            f"{folder} is no latency table: it has none of {', '.join(_FILES)}; give the folder of one, or a name of "
            "`amcsearch list tables`"
        )
    if not (folder / name).is_file():
        raise BadInputError(
            f"latency table {folder} has no {name}; make it again with `amcsearch table measure CONFIG -o {folder}`"
        )
    return read_bytes(folder / name, "latency table", _MOST_BYTES)


def _whole(folder: Path) -> dict[str, bytes] | None:
    """The files of a new table that is not in its place yet."""
    path = folder / _WHOLE
    if not os.path.lexists(path):
        return None
    try:
        texts = parse_json(read_text(path, "latency table", 2 * _MOST_BYTES), str(path))
        return {name: texts[name].encode("utf-8") for name in _FILES}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if not os.path.lexists(path):
            return None
        raise BadInputError(f"{path} is damaged; delete it to have the table as it was before") from error


class TableFolder(AbstractContextManager["TableFolder"]):
    """The folder of a latency table, taken for writing: no other process writes until ``close``."""

    def __init__(self, path: Path, lock: IO[bytes], *, is_new: bool) -> None:
        self.path, self._lock, self._is_new = path, lock, is_new
        self.was_completed = False
        """Whether the process before was killed after its table counted, and before its files were in their places."""

    @classmethod
    def take(cls, path: Path) -> Self:
        """Lock a folder, which is made where it is not there, and end what a killed process began to write there.

        Raises:
            BadInputError: the folder cannot be made or written, holds other files than a table's, or is in use by
                another process.
        """
        if os.path.exists(path) and not os.path.isdir(path):
            raise BadInputError(f"{path} is a file; a latency table is a folder: name another one")
        is_new = not os.path.exists(path)
        _check_content(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"cannot write latency table {path}: {error.strerror}; {_CURE}") from error
        taken = cls(path, take_lock(path / _LOCK, "latency table"), is_new=is_new)
        try:
            taken._tidy()
        except BaseException:
            taken.close()
            raise
        return taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def measuring(self) -> Path:
        """Where what is measured for the table is kept until the table is written."""
        return self.path / _MEASURING

    def read(self) -> LatencyTable | None:
        """Read the table, None where there is none yet.

        Raises:
            BadInputError: as ``read_latency_table``.
        """
        return read_latency_table(self.path.absolute()) if os.path.lexists(self.path / DEVICE_FILE) else None

    def write(self, table: LatencyTable, *, was_measured: bool = False) -> None:
        """Replace the table as a whole; ``was_measured``: of what is kept in ``measuring``, which then goes.

        Raises:
            BadInputError: the folder cannot be written; then the table is the old one or the new one.
        """
        texts = _texts(table)
        with replacing(self.path / _WHOLE, _CURE) as temporary:
            temporary.write_text(json.dumps({**texts, "was_measured": was_measured}), encoding="utf-8")
        self._bring_to_place()

    def close(self) -> None:
        """Give the lock back; a folder that was made for a table that came to nothing goes."""
        if self._lock.closed:
            return
        with self._lock, suppress(OSError):  # a folder that was removed or became read-only
            (self.path / _LOCK).unlink(missing_ok=True)  # who locks it next looks whether it is still there
            if self._is_new and not any(self.path.iterdir()):
                self.path.rmdir()

    def _tidy(self) -> None:
        sweep(self.path)
        with writing(self.path, _CURE):
            for name in _LEFT_BEFORE:
                (self.path / name).unlink(missing_ok=True)
        if os.path.lexists(self.path / _WHOLE):
            self._bring_to_place()
            self.was_completed = True

    def _bring_to_place(self) -> None:
        content = _whole(self.path)
        assert content is not None
        for name in _FILES:
            with replacing(self.path / name, _CURE) as temporary:
                temporary.write_bytes(content[name])
        text = read_text(self.path / _WHOLE, "latency table", 2 * _MOST_BYTES)
        if parse_json(text, _WHOLE).get("was_measured"):
            shutil.rmtree(self.measuring, ignore_errors=True)
        with writing(self.path, _CURE):
            (self.path / _WHOLE).unlink()


def _check_content(folder: Path) -> None:
    """Refuse a folder that holds something else than a table: its files would not be told apart."""
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    others = sorted(name for name in names - {*_FILES} if not name.startswith("."))
    if others and DEVICE_FILE not in names:
        raise BadInputError(
            f"{folder} holds other files ({', '.join(others[:3])}) and no latency table; name an empty or new folder"
        )


def _plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and tuples into what YAML holds."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value
