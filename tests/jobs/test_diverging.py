"""A training that diverges, in its last step too, is never delivered as a success."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from amcsearch.cli.main import main

WriteConfig = Callable[..., Path]
# one step an epoch: the last step is followed by no loss
LAST_STEP = "{epochs: 1, learning_rate: 1.0e+6, batch_size: 100000, schedule: constant, warmup_epochs: 0}"
FAR = "{epochs: 2, learning_rate: 200.0, batch_size: 64, schedule: constant, warmup_epochs: 0}"
SHORT = ["--set", "device.rounds=5", "--set", "search.agent=random", "--set", "search.baseline=null"]


def refusal(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*map(str, arguments)]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("amcsearch: ")
    return line


@pytest.mark.parametrize("recipe", [LAST_STEP, FAR], ids=["last step", "all along"])
@pytest.mark.parametrize("verb", ["search", "prune", "sparsify"])
def test_fine_tuning_that_diverges_is_an_error(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, recipe: str
) -> None:
    folder = tmp_path / "run"
    options = ["--target", "macs=0.5x"] if verb == "prune" else []
    options += ["--set", "sparsify.training.epochs=1"] if verb == "sparsify" else SHORT
    options += ["--set", f"recovery.finetune={recipe}", "--out", str(folder)]
    line = refusal([verb, write_config(), *options], capsys)
    assert "recovery.finetune: " in line
    assert "epoch " in line
    assert "loss" in line
    assert "lower the learning rate" in line
    assert ("learning_rate = 1e+06" in line) == (recipe == LAST_STEP)
    assert not (folder / "summary.json").exists()
    if verb != "sparsify":
        assert (folder / "trials.csv").is_file()
        policy = json.loads((folder / "policy.json").read_text())
        cure = ["prune", folder / "config.yaml", "--policy", folder / "policy.json"]
        assert " ".join(map(str, ["amcsearch", *cure])) in line
        mended = ["--set", "recovery.finetune={epochs: 1, learning_rate: 0.02, batch_size: 32}"]
        assert main([*map(str, cure), *mended, "--out", str(tmp_path / "mended")]) == 0
        assert json.loads((tmp_path / "mended" / "policy.json").read_text()) == policy


@pytest.mark.parametrize("verb", ["search", "prune", "sparsify"])
def test_pretraining_that_diverges_is_an_error_and_never_cached(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    options = ["--target", "macs=0.5x"] if verb == "prune" else []
    options += ["--set", f"model.pretrain={LAST_STEP}", "--out", str(tmp_path / "run")]
    line = refusal([verb, write_config(), *options], capsys)
    assert "model.pretrain: the training diverged in epoch 1" in line
    assert "learning_rate = 1e+06" in line
    assert not list(tmp_path.glob("cache/*"))


def test_sparse_training_that_diverges_is_an_error(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", f"sparsify.training={LAST_STEP}", "--out", str(tmp_path / "run")]
    assert "sparsify.training: the training diverged in epoch 1" in refusal(
        ["sparsify", write_config(), *options], capsys
    )


def test_a_round_that_diverges_is_an_error(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = LAST_STEP.replace("epochs: 1", "epochs: 2")
    options = ["--target", "macs=0.5x", "--rounds", "2", "--set", f"recovery.finetune={recipe}"]
    line = refusal(["prune", write_config(), *SHORT, *options, "--out", tmp_path / "run"], capsys)
    assert "recovery.finetune: the training diverged in epoch 1" in line


def test_a_missed_budget_is_in_the_exit_status_on_request(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"stem.0": 16, "body.0": 24}))  # dense: over the budget of 0.6x MACs, 0.7x parameters
    arguments = ["prune", str(write_config()), "--policy", str(policy), *SHORT]
    assert main([*arguments, "--out", str(tmp_path / "told")]) == 0
    assert "verdict: missed (macs = 0.6x missed, params = 0.7x missed)" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "run"), "--fail-on-miss", "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"]["state"] == "missed"  # the result is written and printed all the same
    *_, line = err.strip().splitlines()
    assert "--fail-on-miss: the budget is missed: macs = 0.6x is missed: 1x of dense by its shapes" in line
    policy.write_text(json.dumps({"stem.0": 8, "body.0": 12}))
    assert main([*arguments, "--out", str(tmp_path / "within"), "--fail-on-miss"]) == 0
