"""Latency tables on disk: one table or the other at every moment, one writer, and no file of anybody else's."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from amcsearch.config.table_folder import TableFolder, read_latency_table, table_digest, write_latency_table
from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.rows import COLUMNS, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable

CALLS = ("open", "fsync", "replace", "unlink", "close", "rmdir", "mkdir")


class Killed(BaseException):
    """The process is dead: no handler of errors, and nothing else that changes the disk, runs after it."""


def table(ms: float, *names: str) -> LatencyTable:
    layer = LayerSpec("fc", LayerKind.LINEAR, 16, 4, has_bias=True)
    rows = [
        dict(zip(COLUMNS, (name, *row_key(layer), "Gemm", 1.0, ms, 0.0, 1, "profile"), strict=True)) for name in names
    ]
    networks = {name: {"constant_ms": 0.01, "fingerprint": name} for name in names}
    return LatencyTable.from_mapping(make_rows(rows), {"provenance": {"cpu": "a CPU"}, "networks": networks})


OLD, NEW = table(0.5, "one"), table(0.25, "one", "two")


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, number: int, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """Let the call of this number, among those that change the disk, raise; after a kill so do all later ones."""
    calls: list[str] = []

    def instead(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):  # type: ignore[operator]
                return original(*args, **kwargs)
            if name != "close":
                calls.append(name)
            is_dead = len(calls) > number and isinstance(error(), Killed)
            if (len(calls) == number and name != "close") or (is_dead and name != "close"):
                raise error()
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, instead(name, getattr(os, name)))
        yield calls


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def held(folder: Path) -> str | None:
    """Which table a folder holds, None where it holds none; what is neither is an error."""
    if not (folder / "device.yaml").exists() and not (folder / ".table.json").exists():
        return None
    digest = table_digest(read_latency_table(folder))
    return {table_digest(OLD): "old", table_digest(NEW): "new"}[digest]


def said(folder: Path) -> str:
    """What writing the new table says where it fails."""
    try:
        write_latency_table(NEW, folder)
    except (Killed, BadInputError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("error", [Killed, full], ids=["killed", "full disk"])
@pytest.mark.parametrize("there", [OLD, None], ids=["replaced", "begun"])
def test_whatever_call_fails_the_table_is_the_old_or_the_new_one(tmp_path, monkeypatch, error, there):
    before = None if there is None else "old"
    outcomes, number = [], 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        if there is not None:
            write_latency_table(there, folder)
        with failing(monkeypatch, number, error) as calls:
            message = said(folder)
        assert not message or "No space left on device" in message
        assert "\n" not in message
        if message or error is Killed:
            outcomes.append(held(folder))
        else:
            assert held(folder) == "new"  # a failure that changes nothing, such as of making the folder that is there
        write_latency_table(NEW, folder)  # goes on, whatever was left
        assert held(folder) == "new"
        assert sorted(path.name for path in folder.iterdir()) == ["device.yaml", "rows.csv"]
        if len(calls) < number:
            break
    assert number > 10
    assert set(outcomes) == {before, "new"}
    assert outcomes == sorted(outcomes, key=(before, "new").index)  # one moment at which it changes


def test_a_table_that_counts_already_is_read_before_its_files_are_in_place(tmp_path, monkeypatch):
    write_latency_table(OLD, tmp_path / "table")
    with failing(monkeypatch, 9, Killed), pytest.raises(Killed):
        write_latency_table(NEW, tmp_path / "table")
    assert (tmp_path / "table" / ".table.json").exists()
    shutil.copytree(tmp_path / "table", tmp_path / "copy")
    assert held(tmp_path / "copy") == "new"
    assert (tmp_path / "copy" / ".table.json").exists()  # who reads changes nothing
    with TableFolder.take(tmp_path / "table") as taken:
        assert taken.was_completed
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["device.yaml", "rows.csv"]


def test_a_reader_beside_a_writer_sees_one_table(tmp_path, monkeypatch):
    write_latency_table(OLD, tmp_path)
    from amcsearch.config import table_folder

    original, reads = table_folder.read_bytes, []

    def read_and_replace(path: Path, *bounds: object) -> bytes:
        content = original(path, *bounds)
        reads.append(path.name)
        if len(reads) == 1:  # between the two files
            write_latency_table(NEW, tmp_path)
        return content

    monkeypatch.setattr(table_folder, "read_bytes", read_and_replace)
    assert held(tmp_path) == "new"
    assert len(reads) == 4


def test_one_writer_at_a_time(tmp_path):
    with TableFolder.take(tmp_path / "table") as taken:
        with pytest.raises(BadInputError, match=rf"latency table .* is in use by process {os.getpid()}; wait"):
            write_latency_table(NEW, tmp_path / "table")
        taken.write(OLD)
        assert held(tmp_path / "table") == "old"  # reading is always possible
    write_latency_table(NEW, tmp_path / "table")
    assert held(tmp_path / "table") == "new"


def test_a_folder_that_came_to_nothing_goes(tmp_path):
    TableFolder.take(tmp_path / "table").close()
    assert not (tmp_path / "table").exists()
    (tmp_path / "empty").mkdir()
    TableFolder.take(tmp_path / "empty").close()
    assert not list((tmp_path / "empty").iterdir())


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(BadInputError, match=r"holds other files \(thesis\.tex\) and no latency table"):
        write_latency_table(NEW, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_links_in_a_table_are_replaced_and_not_followed(tmp_path):
    write_latency_table(OLD, tmp_path / "table")
    for name in ("rows.csv", "device.yaml"):
        (tmp_path / name).write_text("dear diary")
        (tmp_path / "table" / name).unlink()
        (tmp_path / "table" / name).symlink_to(tmp_path / name)
    write_latency_table(NEW, tmp_path / "table")
    assert held(tmp_path / "table") == "new"
    assert (tmp_path / "rows.csv").read_text() == (tmp_path / "device.yaml").read_text() == "dear diary"


def test_rows_that_an_earlier_version_left_without_provenance_are_replaced(tmp_path):
    (tmp_path / "rows.csv").write_text("network,kind\n")
    (tmp_path / ".device.yaml.tmp").write_text("half")
    write_latency_table(NEW, tmp_path)
    assert held(tmp_path) == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.yaml", "rows.csv"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows.csv": 1}', '{"rows.csv": "a"}'])
def test_a_damaged_file_of_a_table_in_the_making_is_named(tmp_path, text):
    write_latency_table(OLD, tmp_path)
    (tmp_path / ".table.json").write_text(text)
    for use in (lambda: read_latency_table(tmp_path), lambda: write_latency_table(NEW, tmp_path)):
        with pytest.raises(BadInputError, match=r"\.table\.json is damaged; delete it to have the table as it was"):
            use()
