"""Devices, tables and configurations by path and by name: which of several wins, and what is said where none is."""

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amcsearch.config.devices import read_device
from amcsearch.config.identity import config_hash
from amcsearch.config.loading import dump, load
from amcsearch.config.lookup import CONFIGURATIONS, DEVICES, TABLES, find, find_file, listed, lookup, writable
from amcsearch.config.table_folder import read_latency_table
from amcsearch.core.errors import BadInputError

SHIPPED = Path(str(files("amcsearch"))).resolve()
MINIMAL = 'model: {factory: "a.b:net"}\ndata: {factory: "a.b:data"}\n'

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file below the test's folder; the current folder is ``here`` in it, the user's is ``home``."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("AMCSEARCH_HOME", str(tmp_path / "home"))

    def write_file(name: str, text: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(BadInputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_first_of_the_order_wins(write: Write, tmp_path: Path) -> None:
    shipped = (SHIPPED / "configs/devices/x86_server.yaml").resolve()
    assert find(DEVICES, "x86_server", tmp_path / "there") == shipped
    for name in (
        "home/devices/x86_server.yaml",
        "here/configs/devices/x86_server.yaml",
        "there/x86_server",
        "here/x86_server",
    ):
        path = write(name)
        assert find(DEVICES, "x86_server", tmp_path / "there") == path
    assert listed(DEVICES)["x86_server"] == (
        *(tmp_path / "here/configs/devices/x86_server.yaml", tmp_path / "home/devices/x86_server.yaml", shipped),
    )


@pytest.mark.parametrize("value", ["x86_server", "x86_server.yaml", "configs/devices/x86_server.yaml"])
def test_a_name_may_be_written_as_its_file(write: Write, value: str) -> None:
    del write
    assert find(DEVICES, value) == (SHIPPED / "configs/devices/x86_server.yaml").resolve()
    assert read_device(value).name == "x86_server"


@pytest.mark.parametrize("value", ["x86_epyc_avx512", "latency_tables/x86_epyc_avx512"])
def test_a_table_is_a_folder_with_a_name(write: Write, tmp_path: Path, value: str) -> None:
    write("here/x86_epyc_avx512")  # a file is no table
    assert find(TABLES, value) == (SHIPPED / "latency_tables/x86_epyc_avx512").resolve()
    assert len(read_latency_table(value).rows)
    write("home/latency_tables/x86_epyc_avx512/device.yaml")
    assert find(TABLES, value) == tmp_path / "home/latency_tables/x86_epyc_avx512"


def test_a_linked_file_goes_by_the_name_of_the_link(write: Write, tmp_path: Path) -> None:
    write("home/devices/first.yaml")
    (tmp_path / "home/devices/second.yaml").symlink_to(tmp_path / "home/devices/first.yaml")
    assert find(DEVICES, "second") == tmp_path / "home/devices/second.yaml"


def test_a_folder_of_the_name_does_not_hide_a_configuration(write: Write, tmp_path: Path) -> None:
    write("here/digits/notes.txt")
    assert find(CONFIGURATIONS, "digits") == (SHIPPED / "configs/searches/digits.yaml").resolve()
    assert find(CONFIGURATIONS, "digits-l0") == (SHIPPED / "configs/sparsify/digits-l0.yaml").resolve()
    write("here/folder/notes.txt")
    assert find(CONFIGURATIONS, "folder") == tmp_path / "here/folder"  # for the reader to refuse
    assert "is a folder, expected a configuration" in refusal(lambda: load("folder"))


def test_the_users_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("AMCSEARCH_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert DEVICES.user_folders == [tmp_path / ".config/amcsearch/devices"]
    monkeypatch.setenv("XDG_CONFIG_HOME", "/xdg")
    assert TABLES.user_folders == [Path("/xdg/amcsearch/latency_tables")]
    monkeypatch.setenv("AMCSEARCH_HOME", "~/mine")
    assert CONFIGURATIONS.user_folders == [tmp_path / "mine/searches", tmp_path / "mine/sparsify"]


def test_an_unknown_name_says_where_it_was_looked_for_and_the_cure(write: Write, tmp_path: Path) -> None:
    path = write("there/search.yaml", MINIMAL + "device: {profile: x86_sever}\n")
    message = refusal(lambda: load(path))
    assert message.startswith(
        f"{path}:3: device.profile: device profile x86_sever does not exist in {tmp_path}/here or "
    )
    for part in (
        f"{tmp_path}/there or {tmp_path}/home/devices or the package",
        "did you mean 'x86_server'?",
        "edge_cpu, ",
    ):
        assert part in message
    message = refusal(lambda: load("digitz"))
    assert message.startswith("configuration digitz does not exist in ")
    assert "did you mean 'digits'?; give a file or one of digits, " in message
    message = refusal(lambda: find(DEVICES, "deep/x86_sever.yaml"))
    assert message.startswith(f"device profile deep/x86_sever.yaml does not exist in {tmp_path}/here; did you mean")
    assert refusal(lambda: find(DEVICES, "/x.yaml")).startswith("device profile /x.yaml does not exist; give a file or")


def test_a_table_that_is_not_there_yet_keeps_its_name(write: Write, tmp_path: Path) -> None:
    config = load(write("here/search.yaml", MINIMAL), ["device.table=my_machine"])
    assert config.device.table == "my_machine"
    message = refusal(lambda: read_latency_table(str(config.device.table)))
    assert "latency table my_machine does not exist in " in message
    assert "one of x86_epyc_avx512, or make it with `amcsearch table measure CONFIG -o latency_tables/NAME`" in message
    write("home/latency_tables/my_machine/device.yaml")
    again = load(write("here/copy.yaml", dump(config)))
    assert again.device.table == str(tmp_path / "home/latency_tables/my_machine")


def test_a_hash_is_the_same_by_name_and_by_path(write: Write, tmp_path: Path) -> None:
    path = write("here/search.yaml", MINIMAL)
    profile, table = SHIPPED / "configs/devices/x86_server.yaml", SHIPPED / "latency_tables/x86_epyc_avx512"
    by_path = load(path, [f"device.profile={profile}", f"device.table={table}"])
    by_name = load(path, ["device.profile=x86_server", "device.table=x86_epyc_avx512"])
    assert config_hash(by_name) == config_hash(by_path) != config_hash(load(path))
    write("home/devices/x86_server.yaml", profile.read_text())
    copied = load(path, ["device.profile=x86_server", "device.table=x86_epyc_avx512"])
    assert copied.device.profile == str(tmp_path / "home/devices/x86_server.yaml")
    assert config_hash(copied) == config_hash(by_name)
    write("home/devices/x86_server.yaml", "name: another")
    assert config_hash(copied) != config_hash(by_name)


def test_what_is_shipped_is_written_to_the_users_folder(write: Write, tmp_path: Path) -> None:
    users = tmp_path / "home/latency_tables/x86_epyc_avx512"
    assert writable(TABLES, Path("x86_epyc_avx512")) == users
    assert writable(TABLES, Path("latency_tables/x86_epyc_avx512")) == users
    given = write("here/latency_tables/x86_epyc_avx512/device.yaml").parent
    assert writable(TABLES, Path("latency_tables/x86_epyc_avx512")) == given
    shipped = SHIPPED / "latency_tables/x86_epyc_avx512"
    assert writable(TABLES, shipped) == shipped  # a path that was typed means that path
    assert "does not exist" in refusal(lambda: writable(TABLES, Path("nowhere")))


def test_a_file_of_the_users_has_no_name(write: Write, tmp_path: Path) -> None:
    path = write("there/weights.pt")
    assert find_file("weights.pt", tmp_path / "there", "model.checkpoint") == str(path)
    message = refusal(lambda: find_file("x86_server", tmp_path / "there", "model.checkpoint"))
    assert message == f"model.checkpoint: file x86_server does not exist in {tmp_path}/here or {tmp_path}/there"


def test_a_file_beside_a_configuration_is_found_through_a_link(write: Write, tmp_path: Path) -> None:
    net, folder = write("project/net.py"), write("project/configs/deep/search.yaml").parent
    (tmp_path / "link").symlink_to(folder)
    assert find_file("../../net.py", tmp_path / "link", "model.factory") == str(net)


def without_home(text: str) -> str:
    """The text without the ~ that would make it the home folder of somebody, or of nobody."""
    return text.lstrip("~")


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=300).map(without_home))
@example("a" * 256)
def test_any_text_is_found_or_refused_in_one_line(text: str) -> None:
    if max(len(part.encode()) for part in text.split("/")) > 255:  # no file has such a name
        assert "255 are possible: name another one" in refusal(lambda: lookup(DEVICES, text))
        return
    path = lookup(DEVICES, text)
    if path is None:
        assert f"device profile {Path(text)} does not exist" in refusal(lambda: find(DEVICES, Path(text)))
    else:
        assert path.is_absolute()
        assert os.path.exists(path)
