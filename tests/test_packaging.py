"""What an installation holds beside its code, and commands from a folder that holds nothing."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import amcsearch
from amcsearch.config import AUTO
from amcsearch.config.loading import load
from amcsearch.config.lookup import CONFIGURATIONS, DEVICES, TABLES, listed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_SHIPPED = {"configs/searches/efficientnet_lite0.yaml", "configs/searches/sentence-encoder.yaml"}
TINY = ["--set", "model.pretrain=null", "--set", "model.kwargs.depth=8", "--set", "data.kwargs.size=8"]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; the user has no folder."""
    monkeypatch.setenv("AMCSEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AMCSEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def run(folder: Path, *arguments: str) -> str:
    paths = [str(Path(amcsearch.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "amcsearch", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def at_the_top() -> set[str]:
    paths = [path for folder in ("configs", "latency_tables") for path in (ROOT / folder).rglob("*")]
    return {path.relative_to(ROOT).as_posix() for path in paths if path.is_file()}


def test_the_installation_holds_its_data() -> None:
    package = files("amcsearch")
    assert (package / "py.typed").is_file()
    for name in at_the_top() - NOT_SHIPPED:
        assert (package / name).read_bytes() == (ROOT / name).read_bytes()


def test_every_file_at_the_top_is_package_data() -> None:
    data, excluded = (
        PROJECT["tool"]["setuptools"][key]["amcsearch"] for key in ("package-data", "exclude-package-data")
    )
    assert "py.typed" in data
    assert set(excluded) == NOT_SHIPPED
    shipped = {path.relative_to(ROOT).as_posix() for pattern in data for path in ROOT.glob(pattern)}
    assert {name for name in shipped if (ROOT / name).is_file()} == at_the_top()


def test_the_version_is_written_once() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "amcsearch.__version__"}
    tree = ast.parse((ROOT / "amcsearch/__init__.py").read_text(encoding="utf-8"))
    literals = [
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert literals == [f"__version__ = {amcsearch.__version__!r}"]  # a build reads it without importing torch


def test_everything_listed_is_found_from_an_empty_folder(empty: Path) -> None:
    for kind, registry in (("devices", DEVICES), ("tables", TABLES)):
        shipped = {
            p.stem for folder in registry.shipped_folders for p in folder.iterdir() if not p.name.startswith(".")
        }
        lines = json.loads(run(empty, "list", kind, "--json"))
        assert set(lines) == shipped
        assert all(line.endswith(f"{name}{'' if registry.is_folder else '.yaml'}") for name, line in lines.items())


def test_list_shows_which_of_two_counts(empty: Path) -> None:
    users = empty.parent / "home/devices/x86_server.yaml"
    users.parent.mkdir(parents=True)
    users.write_bytes(Path(listed(DEVICES)["x86_server"][0]).read_bytes())
    line = json.loads(run(empty, "list", "devices", "--json"))["x86_server"]
    assert f"{users}, instead of {DEVICES.shipped_folders[0]}/x86_server.yaml" in line


def test_energy_from_an_empty_folder(empty: Path) -> None:
    report = json.loads(run(empty, "energy", "digits", "--device", "eyeriss_65nm", *TINY, "--json"))
    assert report["device"] == "eyeriss_65nm"
    assert report["networks"]["dense"]["energy_mj"] > 0.0
    assert (empty / "energy/energy.csv").is_file()


@pytest.mark.parametrize("name", ["digits", "configs/searches/digits.yaml"])
def test_a_shipped_search_is_planned_from_an_empty_folder(empty: Path, name: str) -> None:
    text = run(
        empty,
        "search",
        name,
        "--dry-run",
        *TINY,
        "--set",
        "budget={macs: 0.9x}",
        "--set",
        "device.table=x86_epyc_avx512",
    )
    assert text.startswith("digits-resnet20: amcsearch.training.models:resnet20, 19 layers")
    costs = {line.split()[0] for line in text.splitlines() if line.strip()}
    assert {"latency_ms", "energy_mj"} <= costs  # the table and the profile were found


def test_every_shipped_configuration_names_what_is_shipped(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(empty)
    for name in listed(CONFIGURATIONS):
        device = load(name).device
        for kind, path in ((DEVICES, device.profile), (TABLES, device.table)):
            assert path in (None, AUTO) or Path(path).parent in kind.shipped_folders
