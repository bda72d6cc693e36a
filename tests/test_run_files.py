"""Files of a run under hostile names, links and kills: nothing outside the folder changes."""

import errno
import fcntl
import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.core.reading import read_bytes
from amcsearch.runs import files
from amcsearch.runs.files import append_line, expanded, replacing, sweep, take_lock
from amcsearch.runs.folder import RunFolder
from amcsearch.search.study_database import storage_url
from amcsearch.search.study_store import TrialStore

CONFIG = "name: x\nseed: 0\n"
NAMES = (
    *("q?v=1", "a%20b", "a%2Fb", "a#b", "x{y}", "{SCHEMA_VERSION}", "it's", 'say "so"', "new\nline", "größe-模", "a;b"),
    *("sqlite:", "a@b:c", "file:x?mode=ro", "-", "a&b=c", " ", "~", "$HOME", "*"),
)
IN_PLACE = ("study.db", "study.db-journal", "study.db-wal", "log.jsonl", ".lock")
RENAMED = ("config.yaml", "summary.json", "policy.json", "report.html", "trials.csv", "pruned.onnx")


def create(path, resume=False):
    return RunFolder.create(path, CONFIG, "abc123", resume=resume)


def store(storage):
    return TrialStore(storage, "name", "agent", 0, "fingerprint", None)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_stays_in_its_folder_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with create(tmp_path / name) as run:
        store(run.study_db)
        run.append_log({"phase": "search"})
    assert everything(tmp_path) == {name, *(f"{name}/{f}" for f in (".lock", "config.yaml", "study.db", "log.jsonl"))}
    with sqlite3.connect(tmp_path / name / "study.db") as database:
        assert database.execute("SELECT COUNT(*) FROM studies").fetchone() == (1,)
    store(tmp_path / name / "study.db")  # and is found again


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_the_url_of_a_file_leads_back_to_it(name: str) -> None:
    path = Path("/somewhere") / name / "study.db"
    assert storage_url(path).database == str(path)


@pytest.mark.parametrize("text", ["no url", "", "http://[", "sqlite:////nowhere/{a}/{0", "x{y}://z"])
def test_a_text_that_is_no_url_is_one_line(text):
    with pytest.raises(BadInputError, match="cannot be used") as caught:
        store(text)
    assert "\n" not in str(caught.value)


def test_a_password_is_not_shown():
    with pytest.raises(BadInputError, match="cannot be used") as caught:
        store("nodatabase://me:secret@host/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("tables", ["albums", "studies"])
def test_another_programs_database_is_left_as_it_is(tmp_path, tables):
    path = tmp_path / "study.db"
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE {tables} (title TEXT)")
        database.execute("CREATE TABLE notes (text TEXT)")
    before = path.read_bytes()
    for storage in (path, f"sqlite:///{path}"):
        with pytest.raises(BadInputError, match=r"database of another program \(its tables: .*notes.*name another"):
            store(storage)
    assert path.read_bytes() == before


def test_a_study_whose_tables_a_kill_left_half_made_goes_on(tmp_path):
    store(tmp_path / "whole.db")
    with sqlite3.connect(tmp_path / "whole.db") as whole, sqlite3.connect(tmp_path / "study.db") as half:
        query = "SELECT sql FROM sqlite_master WHERE name IN ('studies', 'version_info')"
        for (statement,) in whole.execute(query).fetchall():
            half.execute(statement)
    store(tmp_path / "study.db")
    (tmp_path / "empty.db").touch()
    store(tmp_path / "empty.db")


def test_home_is_expanded_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/x") == expanded(Path("~/x")) == Path("/home/me/x")
    assert expanded("~") == Path("/home/me")
    assert expanded("runs/~/x") == Path("runs/~/x")
    for text in ("./~/x", "./~", ".//~nobody/x", "runs/../~/x"):
        path = expanded(text)
        assert path.is_relative_to(tmp_path)
        assert expanded(path) == path
    for text in ("~nobody-of-that-name/x", "~nobody-of-that-name"):
        with pytest.raises(BadInputError, match=r"~nobody-of-that-name is no user's home.*\./~nobody-of-that-name"):
            expanded(text)
    with pytest.raises(BadInputError, match="null character"):
        expanded("a\0b")
    monkeypatch.setenv("HOME", "~")
    with pytest.raises(BadInputError, match="no user's home"):
        expanded("~/x")


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_what_grows_in_place_is_refused_where_it_has_another_name(tmp_path, name, link):
    target = tmp_path / "diary"
    target.write_text("dear diary")
    create(tmp_path / "run").close()
    (tmp_path / "run" / name).unlink(missing_ok=True)
    link(tmp_path / "run" / name, target)
    with pytest.raises(BadInputError, match=rf"cannot write .*{name}: (it is a link|.* names \(hard links\))"):
        create(tmp_path / "run", resume=True)
    assert target.read_text() == "dear diary"


def test_a_link_to_nowhere_makes_nothing_there(tmp_path):
    create(tmp_path / "run").close()
    for name in IN_PLACE:
        path = tmp_path / "run" / name
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BadInputError, match="it is a link"):
            create(tmp_path / "run", resume=True)
        path.unlink()
    assert not (tmp_path / "elsewhere").exists()


def test_a_log_that_becomes_a_link_during_a_run_is_not_followed(tmp_path):
    with create(tmp_path / "run") as run:
        run.log_jsonl.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BadInputError, match="it is a link"):
            run.append_log({"phase": "search"})
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", RENAMED)
def test_a_rename_replaces_the_link_and_not_its_target(tmp_path, name, link):
    target = tmp_path / "diary"
    target.write_text("dear diary")
    create(tmp_path / "run").close()
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True)
    link(path, target)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert (target.read_text(), path.read_text(), path.is_symlink()) == ("dear diary", "new", False)


@pytest.mark.parametrize("name", [*IN_PLACE, *RENAMED])
def test_pipes_and_folders_are_refused_at_once(tmp_path, name):
    for make in (os.mkfifo, os.mkdir):
        run = tmp_path / make.__name__
        create(run).close()
        (run / name).unlink(missing_ok=True)
        make(run / name)
        with pytest.raises(BadInputError, match=rf"cannot write .*{name}: it is a (pipe|folder)"):
            create(run, resume=True)


def test_a_device_is_neither_read_nor_replaced(tmp_path):
    with pytest.raises(BadInputError, match="cannot read /dev/zero: it is a device, not a file"):
        read_bytes(Path("/dev/zero"))
    with pytest.raises(BadInputError, match="cannot write /dev/null: it is a device"), replacing(Path("/dev/null")):
        pass
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="it is a pipe, not a file"):
        read_bytes(tmp_path / "pipe")


def test_the_run_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large_disk")
    with create(tmp_path / "run") as run:
        store(run.study_db)
    assert {"config.yaml", "study.db"} <= {path.name for path in (tmp_path / "large_disk").iterdir()}


def test_partial_files_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    dead, strange = tmp_path / ".partial-0123456789abcdef.json", tmp_path / ".partial-notes"
    dead.write_text("half")
    strange.write_text("not ours")
    with replacing(tmp_path / "a.json") as living:
        living.write_text("a")
        with replacing(tmp_path / "b.json") as other:
            other.write_text("b")
        sweep(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".partial-notes", "b.json", living.name])
    assert (tmp_path / "a.json").read_text() == "a"


def test_a_file_in_place_of_a_folder_is_no_full_disk(tmp_path):
    (tmp_path / "out").write_text("")
    refusal = pytest.raises(BadInputError, match="out: it is a file, and a folder is expected; name another one")
    with refusal, files.writing(tmp_path / "out"):
        (tmp_path / "out").mkdir(exist_ok=True)
    with pytest.raises(BadInputError, match="out, which is a file: File exists; name another folder"):
        files.make_folder(tmp_path / "out")


def test_a_partial_file_is_never_a_link_of_somebody_elses(tmp_path, monkeypatch):
    (tmp_path / "diary").write_text("dear diary")
    (tmp_path / ".partial-00000000000000aa.json").symlink_to(tmp_path / "diary")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "00000000000000aa")
    with pytest.raises(BadInputError, match="File exists"), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "diary").read_text() == "dear diary"


def test_a_disk_without_locks_writes_files_and_refuses_runs(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".partial-0123456789abcdef.json").write_text("whose?")
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("a")
    assert {p.name for p in tmp_path.iterdir()} == {".partial-0123456789abcdef.json", "a.json"}
    with pytest.raises(
        BadInputError, match=r"No locks available; this disk has no locks: name --out .in Python: folder. on another"
    ):
        take_lock(tmp_path / ".lock")


def test_a_lock_that_its_holder_removed_is_taken_anew(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    flock, removed = fcntl.flock, []

    def remove_first(stream, operation):
        if not removed:
            removed.append(path.unlink())
        flock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with take_lock(path):
        assert path.read_text() == str(os.getpid())
        with pytest.raises(BadInputError, match=f"in use by process {os.getpid()}"):
            take_lock(path)


def test_a_lock_of_a_dead_process_is_taken(tmp_path):
    (tmp_path / ".lock").write_text("999999999")
    take_lock(tmp_path / ".lock").close()


def test_looking_changes_nothing(tmp_path):
    with create(tmp_path / "run") as run:
        run.write_report("page")
    before = {p: p.stat().st_mtime_ns for p in [tmp_path / "run", *(tmp_path / "run").iterdir()]}
    with RunFolder.open(tmp_path / "run") as run:
        run.read_config()
        run.write_report("page")  # as it is already: the folder may be read-only
    assert {p: p.stat().st_mtime_ns for p in [tmp_path / "run", *(tmp_path / "run").iterdir()]} == before


def test_a_full_disk_leaves_a_log_that_can_be_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append_line(path, {"a": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(BadInputError, match=r"No space left on device; free the disk"):
            append_line(path, {"a": 2})
    append_line(path, {"a": 3})
    assert path.read_text().splitlines()[-1] == '{"a": 3}'
