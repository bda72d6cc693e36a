"""Mutations of valid documents: of plain values, of their text, of the file itself.

A mutation is drawn by hypothesis as a few small numbers and applied by them, so that it can be repeated and shrunk.
"""

import copy
import csv
import io
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st

from amcsearch.config.yaml_text import to_yaml
from amcsearch.runtime.on_device.records import encoded

EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**30, 10**400, 10**5000),
    *(0.5, -0.0, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf, 1.5, 1e9),
    *("", " ", "x", "0.5x", "2x", "1", "-1", "1e999", "NaN", "nan", "null", "true", "[key]", "a.b", "none", "auto"),
    *("\0", "\ud800", "\x1b[31mred", "a\nb", "a\r\nb", "\u2028", "x" * 10_000, "é" * 300, "." * 5000),
    *("/", "/dev/zero", "..", "~nobody/x", "nothing.py:f", "a:b", "\0.py:f", "sqlite:///x", "file://x"),
    *([], {}, [[]], [1, 2], {"a": 1}, {"": {}}, {"[key]": 1}, [None], [0.1] * 1000, ["x"] * 300, {"macs": -1}),
)
SNIPPETS: tuple[bytes, ...] = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b'"', b"'", b",", b":", b"-", b"9", b"e", b"{", b"}", b"]"),
    *(b"&a ", b"*a", b"!!python/object:os.system ", b"!!binary ", b"<<: ", b"%YAML 9.9\n---\n", b"---\n", b"? ", b"| "),
    *(b"[" * 5000, b"{" * 5000, b" " * 5000, b"- " * 2000, b"NaN", b"1e999", b"9" * 5000, b"\\ud800", b"\xc3\x28"),
)

TENSORS: tuple[Any, ...] = (
    torch.full((3, 4), math.nan),
    torch.full((3, 4), math.inf),
    torch.full((3, 4), 1e300, dtype=torch.float64),
    torch.zeros(3, 4, dtype=torch.float16),
    torch.zeros(3, 4, dtype=torch.int64),
    torch.zeros(3, 4, dtype=torch.bool),
    torch.zeros(3, 4, dtype=torch.complex64),
    torch.zeros(3, 4).to_sparse(),
    torch.zeros(3, 4, device="meta"),
    torch.quantize_per_tensor(torch.zeros(3, 4), 0.1, 0, torch.qint8),
    torch.zeros(1).expand(10**6, 10**6),
    torch.zeros(1).expand(3, 4),
    torch.zeros(0),
    torch.zeros(()),
    torch.zeros(4, 3).T,
    torch.nn.Parameter(torch.zeros(3, 4)),
)

Edit = tuple[int, int, int]
"""Which operation, where, and with what: each taken modulo what there is."""

EDIT = st.tuples(st.integers(0, 255), st.integers(0, 2**20), st.integers(0, 255))
EDITS = st.lists(EDIT, min_size=1, max_size=3)


def edited_tree(tree: Any, edit: Edit, extremes: tuple[Any, ...] = EXTREMES) -> Any:
    """A copy of plain values with one of them dropped, repeated, renamed, moved or replaced."""
    operation, where, what = edit
    root = [copy.deepcopy(tree)]
    slots = list(_slots(root))
    holder, key = slots[where % len(slots)]
    extreme = extremes[what % len(extremes)]
    operations: tuple[Callable[[], None], ...] = (
        lambda: _put(holder, key, extreme),
        lambda: _put(holder, key, extreme),
        lambda: holder.pop(key),
        lambda: _rename(holder, key, extreme),
        lambda: _repeat(holder, key, 1 + what % 3),
        lambda: _put(holder, key, _deep(holder[key], what)),
        lambda: _put(holder, key, copy.deepcopy(_value(slots[what % len(slots)]))),
    )
    operations[operation % len(operations)]()
    return root[0] if root else None


def _slots(container: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _slots(container[key])


def _value(slot: tuple[Any, Any]) -> Any:
    return slot[0][slot[1]]


def _put(holder: Any, key: Any, value: Any) -> None:
    holder[key] = value


def _rename(holder: Any, key: Any, name: Any) -> None:
    if isinstance(holder, dict):
        holder[name if isinstance(name, str) else f"{key}_{type(name).__name__}"] = holder.pop(key)


def _repeat(holder: Any, key: Any, count: int) -> None:
    for i in range(count):
        if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[f"{key}{i}"] = copy.deepcopy(holder[key])


def _deep(value: Any, levels: int) -> Any:
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def edited_bytes(content: bytes, edit: Edit) -> bytes:
    """The bytes with some flipped, cut, inserted, repeated, or encoded otherwise."""
    operation, where, what = edit
    at = where % (len(content) + 1)
    end = at + 1 + what
    snippet = SNIPPETS[what % len(SNIPPETS)]
    line = content.count(b"\n", 0, at)
    lines = content.splitlines(keepends=True)
    operations: tuple[Callable[[], bytes], ...] = (
        lambda: content[:at] + bytes(b ^ (1 << what % 8) for b in content[at : at + 1]) + content[at + 1 :],
        lambda: content[:at],
        lambda: content[at:],
        lambda: content[:at] + snippet + content[at:],
        lambda: content[:at] + snippet + content[end:],
        lambda: content[:at] + content[end:],
        lambda: content[:end] + content[at:],
        lambda: b"".join([*lines[: line + 1], *lines[line:]]),
        lambda: content.decode("utf-8", "replace").encode(
            ("utf-16", "utf-32", "utf-8-sig", "cp037")[what % 4], "replace"
        ),
        lambda: content.replace(b"\n", (b"\r\n", b"\r", b"\n\n", b"\0")[what % 4]),
    )
    return operations[operation % len(operations)]()


def edited_place(path: Path, edit: Edit) -> None:
    """Put something else than a file at a path: nothing, a folder, a pipe, a link to a device or to itself."""
    path.unlink()
    operations: tuple[Callable[[], None], ...] = (
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
        lambda: path.write_bytes(b""),
    )
    operations[edit[0] % len(operations)]()


def edited_database(path: Path, edit: Edit) -> None:
    """Put an extreme value into a cell of a SQLite file, or drop a table or a row of it."""
    operation, where, what = edit
    database = sqlite3.connect(path)
    try:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        table = tables[where % len(tables)]
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        rows = [row for (row,) in database.execute(f"SELECT rowid FROM {table}")]
        if operation % 8 == 0:
            database.execute(f"DROP TABLE {table}")
        elif operation % 8 == 1 and rows:
            database.execute(f"DELETE FROM {table} WHERE rowid = ?", (rows[where % len(rows)],))
        elif rows:
            column, row = columns[(where // 7) % len(columns)], rows[(where // 3) % len(rows)]
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (_cell(what), row))
        database.commit()
    except (sqlite3.Error, OverflowError, UnicodeEncodeError, ZeroDivisionError):
        pass  # SQLite refuses the value, or an earlier edit left no database
    finally:
        database.close()


def _cell(what: int) -> Any:
    value = EXTREMES[what % len(EXTREMES)]
    if isinstance(value, int) and abs(value) >= 2**63:
        value = float(2**63)  # SQLite has no larger number
    return value if isinstance(value, int | float | str | None) and what % 2 else json.dumps(str(value))


def serialised(tree: Any, suffix: str) -> bytes:
    """Plain values or tensors as the bytes of a file."""
    if suffix == ".jsonl":
        return b"".join(encoded(record) if isinstance(record, dict) else _text(json.dumps(record)) for record in tree)
    if suffix == ".json":
        return _text(json.dumps(tree))
    if suffix == ".yaml":
        return _text(to_yaml(tree))
    if suffix == ".csv":
        return _csv(tree)
    buffer = io.BytesIO()
    if suffix == ".safetensors":
        return safetensors.torch.save(tree)
    torch.save(tree, buffer)
    return buffer.getvalue()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _csv(rows: Any) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for row in rows if isinstance(rows, list) else [rows]:
        writer.writerow(row if isinstance(row, list) else [row])
    return _text(stream.getvalue())


def mutate(folder: Path, base: dict[str, Any], edits: list[Edit]) -> None:
    """Fill a folder with the documents of ``base`` by name, one of them edited."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = list(base)
    chosen = names[sum(where for _, where, _ in edits) % len(names)]
    for name, document in base.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_edited(document, Path(name).suffix, edits if name == chosen else []))
    path = folder / chosen
    for operation, where, what in edits:
        if path.suffix == ".db" and path.is_file() and operation % 4:
            edited_database(path, (operation // 4, where, what))
        elif operation % 32 == 31 and path.is_file():
            edited_place(path, (operation // 32, where, what))


def _edited(document: Any, suffix: str, edits: list[Edit]) -> bytes:
    is_plain = not isinstance(document, bytes)
    of_tree = [edit for edit in edits if is_plain and edit[0] % 4 != 3]
    content = b""
    tree = document
    extremes = (*TENSORS, *EXTREMES) if suffix in (".pt", ".safetensors") else EXTREMES
    for edit in of_tree:
        tree = edited_tree(tree, (edit[0] // 4, *edit[1:]), extremes)
    try:
        content = document if isinstance(document, bytes) else serialised(tree, suffix)
    except (TypeError, ValueError, OverflowError, RecursionError, AttributeError, RuntimeError, KeyError, csv.Error):
        content = serialised(document, suffix)  # the format cannot hold the edited values
    for edit in edits:
        is_of_bytes = edit[0] % 4 == 0 if suffix == ".db" else edit not in of_tree and edit[0] % 32 != 31
        if is_of_bytes:
            content = edited_bytes(content, (edit[0] // 4, *edit[1:]))
    return content
