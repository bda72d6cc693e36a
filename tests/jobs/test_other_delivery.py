"""A finished search goes on with another recovery, finalists and delivery; what decides trials stays."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import amcsearch
from amcsearch.cli.main import main
from amcsearch.config import AFTER_SEARCH, load, settings_hash, trial_settings
from amcsearch.config.loading import dump

WriteConfig = Callable[..., Path]
SHORT = ["--set", "device.rounds=5", "--set", "recovery.finetune.epochs=1"]


def test_a_finished_search_is_delivered_anew_without_new_trials(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "run", str(write_config())
    assert main(["search", config, *SHORT, "--out", str(folder)]) == 0
    trials, study = (folder / "trials.csv").read_bytes(), (folder / "study.db").stat().st_size
    other = ["--set", "recovery.finetune=null", "--set", "search.finalists=1", "--set", "device.rounds=6"]
    other += ["--set", "device.export={dynamic: [batch]}", "--out", str(folder), "--resume"]
    assert main(["search", config, *other]) == 0
    assert (folder / "trials.csv").read_bytes() == trials
    assert (folder / "study.db").stat().st_size == study
    ports = onnx.load(folder / "pruned.onnx").graph.input
    assert ports[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert load(folder / "config.yaml").recovery.finetune is None
    summary = amcsearch.load(folder).summary
    assert summary.pruned.cost == summary.finetuned.cost
    capsys.readouterr()
    assert main(["search", config, *other, "--set", "search.trials=9"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "belongs to another configuration: it had 'trials: " in line
    assert "finetune" not in line  # that may differ


def test_a_delivery_that_fails_leaves_the_configuration_of_the_files_that_are_there(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    folder, config = tmp_path / "run", str(write_config())
    arguments = ["search", config, *SHORT, "--out", str(folder)]
    assert main(arguments) == 0
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "summary.json", "pruned.onnx")}
    (tmp_path / "boom.py").write_text(
        "def train(request):\n    (request.folder / 'mine').touch()\n    raise OSError('no')\n"
    )
    (tmp_path / "calm.py").write_text(
        "def train(request):\n    assert not any(request.folder.iterdir())\n    return request.model\n"
    )
    other = ["--resume", "--set", f"recovery.finetune.factory={tmp_path}"]
    assert main([*arguments, *other[:-1], f"{other[-1]}/boom.py:train"]) == 2
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert main([*arguments, *other[:-1], f"{other[-1]}/calm.py:train"]) == 0
    assert "calm.py" in (folder / "config.yaml").read_text()


def test_rounds_of_pruning_keep_their_training(write_config: WriteConfig, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", str(write_config())
    arguments = ["prune", config, *SHORT, "--target", "macs=0.5x", "--out", str(folder)]
    assert main(arguments) == 0
    assert main([*arguments, "--set", "recovery.finetune=null", "--resume"]) == 0
    rounds = ["prune", config, *SHORT, "--target", "macs=0.5x", "--rounds", "2"]
    rounds += ["--set", "recovery.finetune.epochs=2", "--out", str(tmp_path / "rounds")]
    assert main(rounds) == 0
    assert main([*rounds, "--set", "recovery.finetune.epochs=3", "--resume"]) == 2


def test_what_decides_no_trial_by_hand(write_config: WriteConfig) -> None:
    config = load(write_config())
    other = load(write_config(), ["recovery.finetune=null", "search.finalists=7", "device.rounds=9"])
    assert settings_hash(config) == settings_hash(other)
    assert trial_settings(dump(config)) == trial_settings(dump(other))
    for text in ("search.trials=9", "recovery.bn_recalibration=false", "device.batch=2", "seed=5"):
        assert settings_hash(load(write_config(), [text])) != settings_hash(config)
    assert trial_settings("a: [") == "a: ["
    assert set(AFTER_SEARCH) == {
        *("search.further_trials", "search.finalists", "search.finalist_epochs"),
        *("recovery.finetune", "device.rounds", "device.patience_s", "device.export", "device.location"),
    }
