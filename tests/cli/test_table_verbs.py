"""``amcsearch table``: bad input in one line, and (slow) every verb on a job of seconds."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amcsearch.cli.main import main
from amcsearch.config.table_folder import read_latency_table, write_latency_table
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.latency.entry import ChannelGrid, GridStep
from amcsearch.costs.latency.rows import COLUMNS, make_rows, row_key
from amcsearch.costs.latency.table import LatencyTable
from amcsearch.jobs import tables
from amcsearch.runtime.session import provenance

WriteConfig = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def fails(arguments: list[str], capsys: Capture) -> str:
    """What the verb says at its end: one line."""
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("amcsearch: ")] == said[-1:]
    return said[-1]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of this machine that holds one linear layer."""
    layer = LayerSpec("fc", LayerKind.LINEAR, 16, 4, has_bias=True)
    row = dict(zip(COLUMNS, ("one", *row_key(layer), "Gemm", 1.0, 0.5, 0.0, 1, "profile"), strict=True))
    info = {
        "provenance": provenance(1, 1).as_mapping(),
        "networks": {"one": {"constant_ms": 0.01, "fingerprint": "none"}},
    }
    write_latency_table(LatencyTable.from_mapping(make_rows([row]), info), tmp_path / "table")
    return tmp_path / "table"


def of_another_device(table: Path) -> None:
    header = table / "device.yaml"
    header.write_text(header.read_text().replace(provenance(1, 1).ort_version, "1.0.0"))


@pytest.mark.parametrize("verb", ["kit", "build", "measure", "check", "show"])
def test_every_verb_helps_with_an_example(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["table", verb, "--help"])
    assert stop.value.code == 0
    assert f"example: amcsearch table {verb}" in capsys.readouterr().out


def test_show_prints_what_a_table_says_of_itself(table: Path, capsys: Capture) -> None:
    assert main(["table", "show", str(table)]) == 0
    shown = capsys.readouterr().out
    assert provenance(1, 1).cpu in shown
    assert "not checked" in shown
    assert main(["table", "show", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1


def test_show_says_what_each_channel_multiple_saves(table: Path, capsys: Capture) -> None:
    before = read_latency_table(table)
    steps = (GridStep(8, macs_saved=0.4, time_saved=0.25), GridStep(4, macs_saved=0.2, time_saved=-0.1))
    entry = replace(before.networks["one"], channel_multiple=8, channel_grid=ChannelGrid(tried=steps))
    write_latency_table(before.with_entry("one", entry), table)
    assert main(["table", "show", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("time saved for MACs saved"))
    assert lines[at + 1].split() == ["used", "16", "to", "8", "8", "to", "4"]
    assert lines[at + 2].split() == ["one", "8", "25%", "for", "40%", "-10%", "for", "20%"]


def test_results_that_are_none_are_refused(tmp_path: Path, capsys: Capture) -> None:
    out = ["-o", str(tmp_path / "new")]
    assert "cannot read" in fails(["table", "build", str(tmp_path / "none.jsonl"), *out], capsys)
    (tmp_path / "diary.jsonl").write_text("dear diary\n")
    assert "diary.jsonl" in fails(["table", "build", str(tmp_path / "diary.jsonl"), *out], capsys)
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_table(tmp_path: Path, write_config: WriteConfig, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    line = fails(["table", "measure", str(write_config()), "-o", str(tmp_path / "file")], capsys)
    assert "is a file; a latency table is a folder" in line
    assert "does not exist" in fails(["table", "show", str(tmp_path / "none")], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kit", "CONFIG", "-o", "KIT", "--variants", "3"], "variants = 3 (0, or at least 12)"),
        (["kit", "CONFIG", "-o", "KIT", "--anchors", "-1"], "anchors = -1"),
        (["kit", "CONFIG", "CONFIG", "-o", "KIT", "--variants", "12"], "must have different names"),
        (["kit", "CONFIG", "-o", "NOWHERE/kit.pyz", "--variants", "12"], "cannot write"),
        (["kit", "nothing.yaml", "-o", "KIT"], "nothing.yaml"),
        (["kit", "CONFIG", "-o", "KIT", "--table", "NOWHERE"], "does not exist"),
        (["measure", "CONFIG", "-o", "NEW", "--variants", "3"], "variants = 3, must be at least 12; leave"),
        (["measure", "CONFIG", "-o", "NEW", "--variants", "0"], "variants = 0, must be at least 12"),
        (["measure", "CONFIG", "-o", "NEW", "--variants", "12", "--minutes", "0"], "minutes"),
        (["build", "RESULT", "-o", "NEW", "--from", "NOWHERE"], "does not exist"),
        (["check", "TABLE", "CONFIG", "--fresh", "2"], "2 fresh variants, at least 3"),
        (["check", "TABLE", "CONFIG", "--anchors", "-1"], "-1 anchors, at least 0"),
        (["check", "NOWHERE", "CONFIG"], "does not exist"),
        (
            ["check", "TABLE", "CONFIG", "--set", "device.dtype=int8"],
            "data type: the table was measured with 'float32'",
        ),
        (["measure", "CONFIG", "-o", "NEW", "--set", "device.dtype=int4"], "device.dtype"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    words: str,
    table: Path,
    tmp_path: Path,
    write_config: WriteConfig,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("tables", "table_check"):
        monkeypatch.setattr(f"amcsearch.jobs.{module}.subject_of", lambda *_: pytest.fail("a network was traced"))
    places = {"CONFIG": write_config(), "TABLE": table, "KIT": tmp_path / "kit.pyz", "NEW": tmp_path / "new"}
    places |= {"NOWHERE": tmp_path / "nowhere", "RESULT": tmp_path / "r.jsonl"}
    given = ["table"]
    for argument in arguments:
        name = argument.partition("/")[0]
        given.append(argument.replace(name, str(places[name])) if name in places else argument)
    assert words in fails(given, capsys)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "kit.pyz").exists()


def test_a_table_of_another_device_is_not_extended_and_learns_nothing_without_anchors(
    table: Path, write_config: WriteConfig, capsys: Capture
) -> None:
    of_another_device(table)
    config = str(write_config())
    line = fails(["table", "measure", config, "-o", str(table)], capsys)
    assert "cannot extend the table: ONNX Runtime" in line
    assert "1.0.0" in line
    assert "--anchors 10" in fails(["table", "check", str(table), config, "--write"], capsys)


def test_a_table_that_cannot_predict_the_network_says_which_layer_it_lacks(
    table: Path, write_config: WriteConfig, capsys: Capture
) -> None:
    plan = ["search", str(write_config()), "--set", f"device.table={table}", "--dry-run"]
    line = fails([*plan, "--set", "budget={latency_ms: 0.5x}"], capsys)
    assert "no row for conv" in line
    assert "table measure" in line


def run(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_a_kit_becomes_a_table_and_a_search_is_planned_with_it(
    tmp_path: Path, write_config: WriteConfig, capsys: Capture
) -> None:
    config, kit, folder = write_config(), tmp_path / "kit.pyz", tmp_path / "table"
    made = run(capsys, "table", "kit", config, "-o", kit, "--variants", 12)
    assert made["models"] >= 1 + 12
    assert made["networks"] == ["tiny"]
    command = [sys.executable, kit, "-o", tmp_path / "r.jsonl", "--minutes", "1"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    built = run(capsys, "table", "build", tmp_path / "r.jsonl", "-o", folder)
    assert built["networks"]["tiny"]["calibration"]["variants"] >= 12
    plan = ["search", config, "--set", f"device.table={folder}", "--set", "budget={latency_ms: 1x}", "--dry-run"]
    assert main([*map(str, plan)]) == 0
    assert "latency" in capsys.readouterr().out
    of_another_device(folder)
    assert main([*map(str, plan)]) == 0
    assert "1.0.0" in capsys.readouterr().out
    assert "1.0.0" in fails([*map(str, plan), "--strict"], capsys)


@pytest.mark.slow
def test_a_measured_table_is_checked_brought_up_to_date_and_extended(
    tmp_path: Path, write_config: WriteConfig, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "prior_of", lambda *_: None)  # what it knows depends on the machine
    config, folder = write_config(), tmp_path / "table"
    first = run(capsys, "table", "measure", config, "-o", folder, "--variants", 12, "--minutes", 0.5)
    assert first["networks"]["tiny"]["accuracy"]["variants"] >= 1
    found = run(capsys, "table", "check", folder, config, "--fresh", 6, "--anchors", 5, "--write")
    assert found["before"]["variants"] == found["after"]["variants"] == 6
    checked = run(capsys, "table", "show", folder)["networks"]["tiny"]
    assert checked["accuracy"] == pytest.approx(found["after"])
    assert checked["anchors"]["count"] >= 5
    other = config.with_name("other.yaml")
    other.write_text(config.read_text().replace("name: tiny", "name: broader").replace(":network", ":broader"))
    few = run(capsys, "table", "check", folder, other, "--fresh", 6, "--anchors", 5)  # a network it does not hold
    assert few["after"]["variants"] == 6
    assert 0.0 < few["after"]["mape"] < 1.0
    assert set(run(capsys, "table", "show", folder)["networks"]) == {"tiny"}  # nothing was written
    both = run(capsys, "table", "measure", other, "-o", folder, "--variants", 12, "--minutes", 0.5)
    assert set(both["networks"]) == {"tiny", "broader"}
    assert both["networks"]["tiny"] == checked
    assert both["rows"] > first["rows"]
    run(capsys, "table", "show", folder, "-o", tmp_path / "curves")
    assert list((tmp_path / "curves").iterdir())
