"""A training that diverges, in its last step too, is never delivered as a success, and never ends a search."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amcsearch.cli.main import main
from amcsearch.core import DivergedError
from amcsearch.jobs import restarts
from amcsearch.jobs.restarts import restarting
from amcsearch.training import StateFile, StateStore, TrainingRecipe

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


def delivered(arguments: list[object], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    assert main([*map(str, arguments), "--out", str(folder)]) == 0
    return capsys.readouterr().err, json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("verb", ["prune", "sparsify"])
def test_fine_tuning_that_diverges_begins_anew_at_a_lower_rate(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    options = ["--set", "sparsify.training.epochs=1"] if verb == "sparsify" else [*SHORT, "--target", "macs=0.5x"]
    options += ["--set", f"recovery.finetune={FAR}"]
    told, summary = delivered([verb, write_config(), *options], tmp_path / "run", capsys)
    assert "recovery.finetune.learning_rate = 200: " in told
    assert "it begins anew from the same weights at 20" in told
    (warning,) = [text for text in summary["warnings"] if "recovery.finetune" in text]
    assert warning.startswith("recovery.finetune.learning_rate: the training diverged at 200")
    assert "so it was done at" in warning


@pytest.mark.parametrize("verb", ["prune", "sparsify"])
def test_where_every_rate_diverges_the_pruned_network_is_delivered(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    options = ["--target", "macs=0.5x"] if verb == "prune" else []
    options += ["--set", "sparsify.training.epochs=1"] if verb == "sparsify" else SHORT
    options += ["--set", f"recovery.finetune={LAST_STEP}"]
    told, summary = delivered([verb, write_config(), *options], tmp_path / "run", capsys)
    assert "(restart 3 of 3)" in told
    (warning,) = [text for text in summary["warnings"] if "recovery.finetune" in text]
    assert "the pruned network is delivered as it was before, NOT fine-tuned" in warning
    assert "learning_rate = 1e+03" in warning
    assert "NOT fine-tuned" in told
    before = summary["sparse" if verb == "sparsify" else "pruned"]
    assert summary["finetuned"].get("accuracy_torch", summary["finetuned"]["accuracy"]) == before["accuracy"]


def test_the_rate_of_a_killed_training_is_kept(tmp_path: Path) -> None:
    """Diverges at 1 and at 0.1; is killed in the training at 0.01, and goes on there."""
    store, rates, clips = StateFile(tmp_path / "state.pt"), list[float](), list[float | None]()

    def train(recipe: TrainingRecipe, kept: StateStore | None) -> str:
        assert kept is not None
        rates.append(recipe.learning_rate), clips.append(recipe.clip_norm)
        if recipe.learning_rate > 0.05:
            kept.save({"epochs": 1})
            raise DivergedError("loss is nan")
        if kept.load() is None:
            kept.save({"epochs": 2})
            raise KeyboardInterrupt
        assert kept.load() == {"epochs": 2}
        return "trained"

    told = list[str]()
    with pytest.raises(KeyboardInterrupt):
        restarting("a.rate", TrainingRecipe(5, 1.0), store, told.append, train)
    done = restarting("a.rate", TrainingRecipe(5, 1.0), store, told.append, train)
    assert rates == pytest.approx([1.0, 0.1, 0.01, 0.01])
    assert (done.result, done.rate) == ("trained", pytest.approx(0.01))
    said = "with gradients of a length of at most 1"
    assert done.notes == (
        f"a.rate: the training diverged at 1, 0.1, so it was done at 0.01 {said}; set it to that, and a.clip_norm to 1",
    )
    assert told[0] == f"a.rate = 1: loss is nan; it begins anew from the same weights at 0.1 {said} (restart 1 of 3)"
    assert clips == [None, 1.0, 1.0, 1.0]


def test_a_rehearsal_shows_a_training_that_diverges(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", f"recovery.finetune={FAR}", "--set", "model.pretrain=null", "--dry-run"]
    assert main(["search", str(write_config()), *options]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "WARNING: recovery.finetune.learning_rate = 200: 10 steps of fine-tuning diverge on a pruned copy" in text
    assert "a training that diverges begins anew at lower rates" in text


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


def test_sparse_training_begins_anew_at_lower_rates(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", f"sparsify.training={FAR.replace('200.0', '1.0e+6')}", "--out", str(tmp_path / "run")]
    assert "sparsify.training: the training diverged in epoch 2" in refusal(
        ["sparsify", write_config(), *options], capsys
    )
    options = ["--set", f"sparsify.training={FAR}"]
    _, summary = delivered(["sparsify", write_config(), *options], tmp_path / "mended", capsys)
    assert any("sparsify.training.learning_rate: the training diverged at 200" in text for text in summary["warnings"])


def test_a_round_that_diverges_begins_anew(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = FAR.replace("epochs: 2", "epochs: 2, keep: last")
    options = ["--target", "macs=0.5x", "--rounds", "2", "--set", f"recovery.finetune={recipe}"]
    told, summary = delivered(["prune", write_config(), *SHORT, *options], tmp_path / "run", capsys)
    assert told.count("recovery.finetune.learning_rate = 200: ") == 2
    assert any("the training diverged at 200" in text for text in summary["warnings"])


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


def test_sparse_training_is_judged_by_the_loss_that_it_ends_with(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "MOST_LOSS", 1e-9)
    line = refusal(["sparsify", write_config(), "--out", str(tmp_path / "run")], capsys)
    assert "sparsify.training: the training diverged in epoch" in line
    assert "the loss of the calibration split is" in line
