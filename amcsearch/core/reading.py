"""Read files and JSON that others wrote: regular files of a bounded size, plain values of a bounded depth.

Nothing is read before its kind and size are known, so that a pipe cannot block, a device cannot be endless, and what is
read fits into memory. JSON is taken strictly: a repeated key, NaN and infinity are refused, because a reader that
chooses one of two values guesses.
"""

import csv
import io
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from amcsearch.core.errors import BadInputError

__all__ = [
    "DEEPEST",
    "MIB",
    "check_depth",
    "check_file",
    "open_file",
    "parse_json",
    "read_bytes",
    "read_text",
]

MIB: Final = 2**20
MOST_BYTES: Final = 64 * MIB  # of a text, where a reader knows no other bound: a page with its pictures
DEEPEST: Final = 64
"""Levels of lists and mappings in a file of values."""
_COLUMNS: Final = 1000  # of a table
_DIGITS: Final = 30  # of a whole number: no count, seed or size has more
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path, label: str, most_bytes: int) -> None:
    """Check that a path, or what a link there leads to, is a file of at most ``most_bytes``; ``label`` may name it.

    Raises:
        BadInputError: it is not there, is a folder, pipe or device, cannot be read, or is larger.
    """
    open_file(path, label, most_bytes).close()


def open_file(path: Path, label: str, most_bytes: int) -> io.BufferedReader:
    """Open a file for reading; raises as ``check_file``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        raise BadInputError(
            f"cannot read {_named(label, path)}: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        _check_status(os.fstat(descriptor), path, label, most_bytes)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _named(label: str, path: Path) -> str:
    return f"{label} {path}" if label else str(path)


def _check_status(status: os.stat_result, path: Path, label: str, most_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise BadInputError(f"cannot read {_named(label, path)}: it is {kind}, not a file")
    if status.st_size > most_bytes:
        raise _too_large(path, label, status.st_size, most_bytes)


def read_bytes(path: Path, label: str = "", most_bytes: int = MOST_BYTES) -> bytes:
    """Return what a file holds; raises as ``check_file``."""
    parts: list[bytes] = []
    left = most_bytes + 1
    with open_file(path, label, most_bytes) as stream:
        try:
            while left and (part := stream.read(min(left, MIB))):  # read(n) takes n bytes of memory at once
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise BadInputError(f"cannot read {_named(label, path)}: {error.strerror}") from error
    if not left:  # it grew, or the system does not tell its size
        raise _too_large(path, label, most_bytes + 1, most_bytes)
    return b"".join(parts)


def read_text(path: Path, label: str = "", most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a file of UTF-8, with a byte order mark or without.

    Raises:
        BadInputError: as ``check_file``, or it is not UTF-8.
    """
    return decoded(read_bytes(path, label, most_bytes), _named(label, path))


def decoded(content: bytes, where: str) -> str:
    """Return the text of UTF-8, with a byte order mark or without; ``where`` names it in errors.

    Raises:
        BadInputError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"cannot read {where}: it is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def check_csv(text: str, where: str, columns: Iterable[str]) -> None:
    """Check that the first line of CSV names ``columns``, each once, among at most ``_COLUMNS``.

    Raises:
        BadInputError: a null character, no CSV, or columns that are missing, repeated or too many.
    """
    if "\0" in text:
        raise BadInputError(f"cannot read {where}: it is no text, it holds a null character")
    try:
        header = next(csv.reader(io.StringIO(text, newline="")), [])
    except csv.Error as error:
        raise BadInputError(f"cannot read {where}: its first line is not CSV ({error})") from error
    if len(header) > _COLUMNS:
        raise BadInputError(f"cannot read {where}: it has {len(header)} columns, at most {_COLUMNS} are read")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise BadInputError(f"cannot read {where}: column {twice[0]!r:.80} is there twice, keep one")
    missing = [name for name in columns if name not in header]
    if missing:
        raise BadInputError(f"cannot read {where}: it lacks the columns {', '.join(missing)}")


def parse_json(text: str, where: str) -> Any:
    """Return the plain values of JSON; ``where`` names the text in errors.

    Raises:
        BadInputError: no JSON, a key twice in one object, NaN or infinity, a whole number of more than 30 digits, or
            more than ``DEEPEST`` levels.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_not_finite,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise BadInputError(f"{where} is not JSON ({error})") from error
    check_depth(value, where)
    return value


def check_depth(value: object, where: str) -> None:
    """Check that plain values have at most ``DEEPEST`` levels of lists and mappings.

    Raises:
        BadInputError: they have more.
    """
    level: list[object] = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep(where)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (twice, count), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r:.80} is given {count} times, keep one")
    return values


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON, write a finite one")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is beyond what a number can hold")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"{text[:_DIGITS]}… has {len(text)} digits, a whole number has at most {_DIGITS}")
    return int(text)


def _too_deep(where: str) -> BadInputError:
    return BadInputError(f"{where} is nested too deeply, at most {DEEPEST} levels are read; write it flatter")


def _too_large(path: Path, label: str, size: int, most: int) -> BadInputError:
    return BadInputError(
        f"cannot read {_named(label, path)}: it has {size} bytes, at most {most} are read; is it the right file?"
    )
