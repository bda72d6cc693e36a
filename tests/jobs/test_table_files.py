"""Tables measured into a folder: what is measured survives, and only what is missing is measured again."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import amcsearch
from amcsearch.cli.main import main
from amcsearch.config.table_folder import TableFolder, read_latency_table, table_digest
from amcsearch.core.errors import BadInputError
from amcsearch.costs import LatencyTable
from amcsearch.jobs import tables
from amcsearch.jobs.measurements import Measurements
from amcsearch.measure.kit.kit import KitPlan, KitRun, measure_here

WriteConfig = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
VARIANTS = ("--variants", "36")  # enough for two stages


class Device:
    """Measures here in a hurry; broken off when this share is done; keeps what each run began with."""

    def __init__(self) -> None:
        self.stop_at: float | None = None
        self.signal = signal.SIGTERM
        self.before: list[bytes] = []
        self.after: list[bytes] = []

    def measure(
        self,
        plan: KitPlan,
        out: Path,
        threads: int,
        provider: str,
        minutes: float | None,
        progress: object,
        runtime: None,
    ) -> KitRun:
        del provider, minutes, progress, runtime
        quick = replace(plan, passes=2, rounds=2, sample_ms=0.05, profile_rounds=1)
        self.before.append(out.read_bytes() if out.exists() else b"")
        try:
            return measure_here(quick, out, threads, progress=self.report)
        finally:
            self.after.append(out.read_bytes())

    def report(self, share: float, text: str) -> None:
        del text
        if self.stop_at is not None and share > self.stop_at:
            signal.raise_signal(self.signal)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(tables, "measure_here", made.measure)
    monkeypatch.setattr(tables, "prior_of", lambda *_: None)  # what it knows depends on the machine
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def says(capsys: Capture, *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("amcsearch: ")
    return line


def test_an_interrupted_measuring_goes_on_where_it_was(
    tmp_path: Path, write_config: WriteConfig, device: Device, capsys: Capture
) -> None:
    folder = tmp_path / "table"
    command = ["table", "measure", str(write_config()), "-o", str(folder), *VARIANTS]
    device.stop_at = 0.5
    assert main(command) == 130
    assert names(folder) == [".measuring"]
    assert "measurements of an interrupted run; go on with --resume (in Python: resume=True), or delete" in says(
        capsys, *command
    )
    other = [*command[:-1], "30", "--resume"]
    assert "variants was 36 and is 30; restore it, or delete the folder" in says(capsys, *other)
    assert "seed was 0 and is 7" in says(capsys, *command, "--resume", "--set", "seed=7")
    device.stop_at = None
    assert main([*command, "--resume"]) == 0
    assert names(folder) == ["device.yaml", "rows.csv"]
    assert device.after[0]
    assert device.before[1] == device.after[0]
    assert device.after[1].startswith(device.before[1])  # nothing is measured twice
    assert set(read_latency_table(folder).networks) == {"tiny"}


def test_a_measuring_in_python_goes_on_where_it_was(tmp_path: Path, device: Device) -> None:
    model = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Conv2d(40, 40, 3), nn.ReLU(), nn.Conv2d(40, 8, 3))
    example, folder = torch.zeros(1, 1, 8, 8), tmp_path / "table"

    def measure(**options: object) -> LatencyTable:
        return amcsearch.measure_latency_table(model, example, variants=36, folder=folder, **options)

    device.stop_at, device.signal = 0.5, signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        measure()
    with pytest.raises(BadInputError, match="measurements of an interrupted run"):
        measure()
    device.stop_at = None
    table = measure(resume=True)
    assert device.before[1] == device.after[0]
    assert table_digest(read_latency_table(folder)) == table_digest(table)
    with pytest.raises(BadInputError, match="known and folder are both given"):
        measure(known=table)


def test_a_closed_stage_is_read_and_not_measured(
    tmp_path: Path, write_config: WriteConfig, device: Device, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = tmp_path / "table"
    command = ["table", "measure", str(write_config()), "-o", str(folder), *VARIANTS]

    def full(table: object, *, was_measured: bool) -> None:
        raise BadInputError("cannot write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TableFolder, "write", lambda self, table, was_measured: full(table, was_measured=was_measured))
        assert "No space left" in says(capsys, *command)
    assert len(device.after) == 2
    assert names(folder) == [".measuring"]
    assert main([*command, "--resume"]) == 0
    assert device.before[2:] == device.after[1:2]  # the last stage alone is looked at, and it is whole
    assert device.after[2] == device.before[2]
    assert names(folder) == ["device.yaml", "rows.csv"]


def test_a_check_that_writes_goes_on_with_its_own_variants(
    tmp_path: Path, write_config: WriteConfig, device: Device, capsys: Capture
) -> None:
    folder, config = tmp_path / "table", write_config()
    assert main(["table", "measure", str(config), "-o", str(folder), "--variants", "12"]) == 0
    before = table_digest(read_latency_table(folder))
    check = ["table", "check", str(folder), str(config), "--fresh", "4", "--anchors", "5", "--write"]
    device.stop_at = 0.5
    assert main(check) == 130
    assert names(folder) == [".measuring", "device.yaml", "rows.csv"]
    assert table_digest(read_latency_table(folder)) == before
    assert "verb was check and is measure" in says(
        capsys, "table", "measure", config, "-o", folder, "--variants", 12, "--resume"
    )
    device.stop_at = None
    assert main([*check, "--resume"]) == 0
    assert device.before[-1] == device.after[-2] != b""
    assert device.after[-1].startswith(device.before[-1])
    assert names(folder) == ["device.yaml", "rows.csv"]
    assert table_digest(read_latency_table(folder)) != before
    assert "without --write nothing is kept" in says(capsys, *check[:-1], "--resume")


def test_a_bad_folder_is_refused_before_anything_is_measured(
    tmp_path: Path, write_config: WriteConfig, device: Device, capsys: Capture
) -> None:
    config = write_config()
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("dear diary")
    (tmp_path / "file").write_text("")
    for folder, words in (
        (tmp_path / "diary", "holds other files (monday.txt)"),
        (tmp_path / "file" / "below", "cannot write"),
        ("/proc/table", "cannot write"),
    ):
        command = ["table", "measure", str(config), "-o", str(folder)]
        assert words in says(capsys, *command)
        assert words in says(capsys, *command, "--force")
    for folder, words in (
        (tmp_path / ("x" * 300), "300 in one name; at most"),
        ("~nobody-of-that-name/x", "is no user's home folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["table", "measure", str(config), "-o", str(folder)])
        assert words in capsys.readouterr().err
    assert not device.before


def test_two_at_once_are_one_after_the_other(
    tmp_path: Path, write_config: WriteConfig, device: Device, capsys: Capture
) -> None:
    with TableFolder.take(tmp_path / "table"):
        command = ("table", "measure", write_config(), "-o", tmp_path / "table")
        assert "is in use by process" in says(capsys, *command)
        assert "is in use by process" in says(capsys, "table", "build", "r.jsonl", "-o", tmp_path / "table")
    assert not device.before


def test_measurements_with_nothing_in_them_are_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ".measuring"
    folder.mkdir()
    (folder / "request.json").write_text("{}")
    (folder / "stage-1.jsonl").write_text('{"kind":"header"}\n')
    assert Measurements(folder, resume=False).before is None
    assert not folder.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"verb": "measure"})])
def test_a_damaged_request_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "request.json").write_text(text)
    (tmp_path / "stage-1.jsonl").write_text('{"kind":"timing"}\n')
    with pytest.raises(BadInputError, match=r"request\.json is damaged .*delete .* to begin anew"):
        Measurements(tmp_path, resume=True)


def test_a_table_that_was_complete_when_its_process_was_killed_is_not_measured_again(
    tmp_path: Path, write_config: WriteConfig, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = tmp_path / "table", write_config()
    assert main(["table", "measure", str(config), "-o", str(folder), "--variants", "12"]) == 0
    table = read_latency_table(folder)
    (folder / ".measuring").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(TableFolder, "_bring_to_place", lambda self: None)
        with TableFolder.take(folder) as taken:
            taken.write(table, was_measured=True)
    assert names(folder) == [".measuring", ".table.json", "device.yaml", "rows.csv"]
    count = len(device.before)
    assert main(["table", "measure", str(config), "-o", str(folder), "--variants", "12", "--resume"]) == 0
    assert (len(device.before), names(folder)) == (count, ["device.yaml", "rows.csv"])
