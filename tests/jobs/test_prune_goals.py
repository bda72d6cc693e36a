"""``prune --target`` and ``--keep-accuracy`` through the command line, on a job of seconds."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import amcsearch
from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.evaluation.executors import SerialExecutor
from amcsearch.jobs.prune.kept_accuracy import _too_few
from amcsearch.runs.folder import RunFolder

WriteConfig = Callable[..., Path]
THINET = ["--set", "selection.selector=thinet"]
UNTUNED = ["--set", "recovery.finetune.epochs=0"]
REWOUND = ["--set", "recovery.finetune.epochs=3", "--set", "recovery.finetune.schedule=rewound"]
MORE_DATA = ["--set", "data.kwargs.samples=900", "--set", "data.splits={calibration: 64, search: 300, test: 60}"]


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("target", "allocation", "selection"),
    [
        ("macs=0.5x", "global", "{criterion: taylor}"),
        ("bytes=0.3x", "uniform", "{criterion: taylor}"),
        ("energy_mj=0.6x", "per_cost", "{criterion: taylor}"),
        ("macs=0.5x", "exact", "{selector: obc}"),
        ("energy_mj=0.6x", "global", "{selector: obc}"),
        ("macs=0.6x", "per_cost", "{selector: obc}"),
    ],
)
def test_a_target_is_met_to_one_step_of_a_group(
    write_config: WriteConfig, tmp_path: Path, target: str, allocation: str, selection: str
) -> None:
    folder = tmp_path / "run"
    options = ["--target", target, "--allocation", allocation, "--set", f"selection={selection}", *UNTUNED]
    assert main(["prune", str(write_config()), *options, "-o", str(folder)]) == 0
    summary = summary_of(folder)
    goal = summary["goal"]
    assert (goal["kind"], goal["cost"], goal["allocation"]) == ("target", target.partition("=")[0], allocation)
    assert goal["limit"] == pytest.approx(float(target.partition("=")[2].rstrip("x")) * goal["dense"])
    assert 0.0 <= goal["limit"] - goal["achieved"] < goal["smallest_step"]
    if goal["cost"] == "bytes":
        assert goal["achieved"] == 4 * summary["finetuned"]["params"]  # the profile's words are 32 bits
    else:
        assert goal["achieved"] == pytest.approx(summary["finetuned"][goal["cost"]])
    assert "Asked and achieved" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("selection", "allocation"),
    [("{selector: obc}", "exact"), ("{selector: thinet}", "uniform"), ("{criterion: taylor}", "global")],
)
def test_the_allocation_is_the_best_that_the_selection_allows(
    write_config: WriteConfig, tmp_path: Path, selection: str, allocation: str
) -> None:
    options = ["--target", "macs=0.5x", "--set", f"selection={selection}", *UNTUNED, "-o", str(tmp_path / "run")]
    assert main(["prune", str(write_config()), *options]) == 0
    assert summary_of(tmp_path / "run")["goal"]["allocation"] == allocation


def test_accuracy_is_kept_along_the_exact_allocations_of_a_selector(write_config: WriteConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--keep-accuracy", "8", "--set", "selection={selector: obc}", *MORE_DATA, *UNTUNED, "-o", str(folder)]
    assert main(["prune", str(write_config()), *options]) == 0
    summary = summary_of(folder)
    goal = summary["goal"]
    assert (goal["allocation"], goal["rung"] > 0) == ("exact", True)
    assert goal["verification"]["change_low"] > -0.08
    assert summary["finetuned"]["macs"] < summary["dense"]["macs"]


def test_accuracy_is_kept_said_with_its_bound_and_not_evaluated_again(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    arguments = ["prune", str(write_config()), "--keep-accuracy", "8", *MORE_DATA, *UNTUNED, "-o", str(folder)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    goal = summary_of(folder)["goal"]
    assert goal["rung"] > 0
    assert goal["verification"]["samples"] == goal["search"]["samples"] == 150
    assert goal["verification"]["change_low"] > -0.08
    assert goal["verification"]["change"] > goal["verification"]["change_low"]
    assert goal["evaluated"] == "after batch-norm recalibration, before fine-tuning"
    assert "Verified on the part that it did not see" in said
    assert "Verified on the part that it did not see" in (folder / "report.html").read_text()
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == trials["policy"].nunique() <= 1 + math.ceil(math.log2(goal["rungs"])) + 4
    assert main(arguments) == 2  # holds a run already

    def again(self, policies):
        yield from (pytest.fail("again") for policy in policies if policy is not None)

    monkeypatch.setattr(SerialExecutor, "map", again)
    assert main([*arguments, "--resume"]) == 0
    assert summary_of(folder)["goal"] == goal
    pd.testing.assert_frame_equal(pd.read_csv(folder / "trials.csv"), trials)


def test_a_tolerance_that_nothing_meets_gives_the_dense_network(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(["prune", str(write_config()), "--keep-accuracy", "0.01", *MORE_DATA, "-o", str(folder)]) == 0
    summary = summary_of(folder)
    assert summary["goal"]["rung"] == 0
    assert all(entry["kept"] == entry["channels"] for entry in summary["network"])
    delivered = amcsearch.load(folder).model.state_dict()
    trained = load_file(RunFolder.open(folder).trained_safetensors)
    assert all(torch.equal(delivered[name], tensor) for name, tensor in trained.items())
    told = "150 samples cannot show a loss below 1.77 points even if no answer changes; raise data.splits.search to "
    assert f"{told}{2 * 27053 + 1}, or the tolerance" in " ".join(summary["warnings"])
    said = capsys.readouterr().err
    assert 0 < said.index(told) < said.index("Loading or training the network")


def test_the_samples_that_are_asked_for_are_enough_and_few(write_config: WriteConfig) -> None:
    """By hand: z² = 2.706 at 95 %, so that n samples show a loss below 2 points from n > 2.706 * 49 = 132.6."""
    config = load(write_config(), ["prune.keep_accuracy=2"])
    (text,) = _too_few(config, 100)
    assert "50 samples cannot show a loss below 5.13 points" in text
    assert text.endswith("raise data.splits.search to 267, or the tolerance")
    assert _too_few(config, 267) == ()
    assert _too_few(config, 264) != ()
    aside = load(write_config(), ["prune.keep_accuracy=2", "prune.verification=0.2"])
    assert _too_few(aside, 100)[0].endswith("raise data.splits.search to 666, or the tolerance")
    assert _too_few(aside, 666) == ()


def test_the_run_folder_keeps_the_goal(write_config: WriteConfig, tmp_path: Path) -> None:
    """The written configuration does it again without any option."""
    first, again = tmp_path / "first", tmp_path / "again"
    assert main(["prune", str(write_config()), "--target", "params=0.5x", *UNTUNED, "-o", str(first)]) == 0
    assert main(["prune", str(first / "config.yaml"), "-o", str(again)]) == 0
    assert (first / "policy.json").read_text() == (again / "policy.json").read_text()
    assert summary_of(first)["goal"] == summary_of(again)["goal"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give one of policy, target and keep_accuracy"),
        (["--target", "macs"], 2, "--target macs: expected COST=LIMIT"),
        (["--target", "flops=0.5x"], 2, "flops"),
        (["--target", "macs=1.5x"], 2, "1.5x"),
        (["--target", "macs=1e12"], 2, "prune.target.macs = 1000000000000.0"),
        (["--target", "latency_ms=0.5x"], 2, "prune.target.latency_ms needs a latency table"),
        (["--target", "macs=0.0001x"], 3, "smallest found"),
        (["--keep-accuracy", "0"], 2, "--keep-accuracy 0: prune.keep_accuracy = 0; expected a number above 0"),
        (["--keep-accuracy", "much"], 2, "--keep-accuracy much: prune.keep_accuracy = 'much'"),
        (["--policy", "nowhere.json"], 2, "nowhere.json"),
        (["--target", "macs=0.5x", "--set", "prune.normaliser=median"], 2, "normaliser = 'median' is unknown"),
        (["--target", "macs=0.5x", "--allocation", "global", *THINET], 2, "choose uniform, obc as the selector, or"),
        (["--target", "macs=0.5x", "--allocation", "exact", *THINET], 2, "thinet does not know; choose selection.sel"),
        (["--target", "macs=0.5x", "--allocation", "best"], 2, "prune.allocation = 'best' is unknown"),
        (["--target", "macs=0.5x", "--rounds", "0"], 2, "prune.rounds = 0"),
        (["--target", "macs=0.5x", "--rounds", "some"], 2, "prune.rounds = 'some'"),
        (["--keep-accuracy", "1", "--rounds", "2"], 2, "rounds = 2 lead to a target, and keep_accuracy is set"),
        (["--policy", __file__, "--rounds", "2"], 2, "give prune.target in its place, or prune.rounds = 1"),
        (["--target", "macs=0.5x", "--rounds", "2"], 2, "finetune.epochs = 1, must be at least prune.rounds = 2"),
        (["--target", "macs=0.5x", "--rounds", "2", *UNTUNED], 2, "finetune.epochs = 0, must be at least"),
        (["--target", "macs=0.5x", "--rounds", "2", "--set", "recovery.finetune=null"], 2, "raise the epochs"),
        (["--target", "macs=0.5x", "--rounds", "2", *REWOUND], 2, "the last 2 epochs of model.pretrain, which is null"),
    ],
)
def test_bad_input_is_one_line(
    write_config: WriteConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    config = str(write_config())
    assert main(["prune", config, "-o", str(tmp_path / "run"), "--set", "model.pretrain=null", *arguments]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcsearch: ")]
    assert words in line


def test_two_goals_are_one_too_many(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prune", str(write_config()), "--target", "macs=0.5x", "--keep-accuracy", "1"])
    assert stop.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
