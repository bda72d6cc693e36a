"""Pruning while training for a device that is not here: a kit, and then what the device measured."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import amcsearch
from amcsearch.cli.main import main
from amcsearch.runs.sparsify_summary import SparsifySummary
from amcsearch.runtime.on_device.plan import read_plan
from tests.measured_results import write_result
from tests.offline_run import offline_run

SHORT = [
    "sparsify.training={epochs: 1, learning_rate: 0.02, warmup_epochs: 0, batch_size: 32}",
    *("search.max_pruning_ratio=0.9", "sparsify.method=one_shot", "model.pretrain.epochs=1"),
]
ON_CHANNELS = ["sparsify.granularity=channels", "sparsify.target={latency_ms: 0.9x}", "device.location=offline"]


def sparsified(config: Path, folder: Path, settings: Sequence[str], *options: str) -> None:
    sets = [each for setting in (*SHORT, *settings) for each in ("--set", setting)]
    assert main(["sparsify", str(config), "-o", str(folder), *sets, *options]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of an offline run on channels that asks for latency, and what it printed."""
    with offline_run(tmp_path_factory.mktemp("sparse"), "sparsify", [*SHORT, *ON_CHANNELS]) as run_and_text:
        yield run_and_text


@pytest.fixture
def run(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of that folder, which a test may change."""
    return Path(shutil.copytree(made[0], tmp_path / "run"))


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def test_it_ends_with_predictions_and_two_commands(made: tuple[Path, str]) -> None:
    run, printed = made
    summary, report = summary_of(run), (run / "report.html").read_text()
    sentence = f"predicted, not yet measured on {summary['device']['name']}"
    assert sentence in printed
    assert sentence in report
    assert f"amcsearch verify kit {run} -o verify.pyz" in printed
    assert f"amcsearch verify {run} result.jsonl" in printed
    assert "amcsearch verify kit run -o verify.pyz" in report
    assert "amcsearch verify run result.jsonl" in report
    assert "Some files are missing" not in report
    assert summary["device"]["measured"] is None
    assert "latency" not in summary
    assert summary["verdict"]["state"] == "undecided"
    assert f"measure it on the device: amcsearch verify kit {run}" in summary["verdict"]["limits"][0]["reason"]
    assert SparsifySummary.from_json(summary).to_json() == summary


def test_the_kit_holds_the_dense_and_the_delivered_network(run: Path, tmp_path: Path) -> None:
    assert main(["verify", "kit", str(run), "-o", str(tmp_path / "kit.pyz")]) == 0
    plan = read_plan(tmp_path / "kit.pyz")
    assert [entry.id for entry in plan.entries] == ["dense", "finetuned"]
    assert plan.plan["info"]["policies"] == {"finetuned": summary_of(run)["policy"]}


def test_what_the_device_measured_is_taken(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (run / "pruned.safetensors").read_bytes()
    times = {"dense": 1.0, "finetuned": 0.4}
    result = write_result(run / "verify.pyz", tmp_path / "result.jsonl", times, cpu="Cortex-A76")
    assert main(["verify", str(run), str(result)]) == 0
    printed = capsys.readouterr().out
    assert "0.400x of dense, measured in pairs (0.400–0.400) on Cortex-A76" in printed
    assert "latency_ms = 0.9x met" in printed
    assert (run / "pruned.safetensors").read_bytes() == weights
    assert (run / "measured.jsonl").read_bytes() == result.read_bytes()
    summary = summary_of(run)
    assert summary["device"]["name"] == "Cortex-A76"
    assert summary["latency"]["ratio"]["median"] == pytest.approx(0.4)
    assert summary["latency"]["finetuned_ms"]["median"] == pytest.approx(0.4, rel=2e-3)
    assert summary["latency"]["dense_ms"]["median"] == pytest.approx(1.0, rel=2e-3)
    assert summary["verdict"]["limits"][0]["measured"]["median"] == pytest.approx(0.4)
    assert any("predicted for" in text and "measured on Cortex-A76" in text for text in summary["warnings"])
    assert SparsifySummary.from_json(summary).to_json() == summary
    report = (run / "report.html").read_text()
    assert "network on Cortex-A76" in report
    assert "not yet" not in report
    again = amcsearch.verify(run, result)  # the same measurement again changes nothing
    assert isinstance(again, amcsearch.SparsifyResult)
    assert again.summary.to_json() == summary


def test_a_delivered_network_that_is_too_slow_misses_the_target(run: Path, tmp_path: Path) -> None:
    result = write_result(run / "verify.pyz", tmp_path / "result.jsonl", {"dense": 1.0, "finetuned": 1.1})
    verdict = amcsearch.verify(run, result).verdict
    assert verdict.state == "missed"
    assert any("slower than the dense one" in text for text in verdict.warnings)


def test_zeros_for_a_device_by_name_and_a_run_that_goes_on_for_it(
    tmp_path: Path, write_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was to be measured nowhere has no kit; the same command with a device writes it and trains no more."""
    folder, kit = tmp_path / "run", tmp_path / "kit.pyz"
    sparsified(write_config(), folder, ["sparsify.target={sparsity: 0.5}"])
    assert not (folder / "verify.pyz").exists()
    assert not {"device", "latency"} & set(summary_of(folder))
    assert main(["verify", "kit", str(folder), "-o", str(kit)]) == 2
    assert "was to be measured by no device; to have another device" in capsys.readouterr().err
    weights = (folder / "pruned.safetensors").read_bytes()
    sparsified(write_config(), folder, ["sparsify.target={sparsity: 0.5}", "device.location=pi5"], "--resume")
    assert (folder / "pruned.safetensors").read_bytes() == weights
    shown = capsys.readouterr()
    assert "of one_shot, epoch" not in shown.err
    assert "latency: not yet measured on pi5" in shown.out
    assert main(["verify", "kit", str(folder), "-o", str(kit)]) == 0
    assert read_plan(kit).plan["info"]["policies"] == {}
    result = write_result(kit, tmp_path / "result.jsonl", {"dense": 1.0, "finetuned": 1.0}, cpu="Cortex-A76")
    amcsearch.verify(folder, result)
    assert "on pi5 (Cortex-A76)" in (folder / "report.html").read_text()
    assert summary_of(folder)["verdict"]["state"] == "met"  # the sparsity; that it is no faster is a warning
    assert any("slower than the dense one" in text for text in summary_of(folder)["warnings"])
