"""``prune --target --rounds``: a cost reached in rounds of pruning and training, on a job of seconds."""

import json
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.core.errors import BadInputError
from amcsearch.jobs.prune import rounds
from amcsearch.jobs.prune.rounds import round_limits, shares_of_training
from tests.command_line import run

WriteConfig = Callable[..., Path]
FINE = ["--set", "device.channel_multiple=1"]
ALMOST_ALL = ["--set", "search.max_pruning_ratio=0.97"]
SIX_EPOCHS = ["--set", "recovery.finetune.epochs=6"]
SEVEN_EPOCHS = ["--set", "recovery.finetune.epochs=7"]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def kept_after(folder: Path, number: int) -> dict[str, int]:
    """Channels that a round left, from what the run folder keeps of it; the last is the policy."""
    state = folder / f".round-{number}.pt"
    if not state.exists():
        return json.loads((folder / "policy.json").read_text())
    cut = torch.load(state, weights_only=True)["cut"]
    return {name: len(channels) for name, channels in cut["kept"].items()}


def same_network(one: Path, other: Path) -> bool:
    first, second = (safetensors.torch.load_file(folder / "pruned.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_limits_by_hand() -> None:
    assert round_limits(1000.0, 125.0, 3, "geometric") == pytest.approx([500.0, 250.0, 125.0])
    assert round_limits(1000.0, 100.0, 3, "linear") == pytest.approx([700.0, 400.0, 100.0])
    assert round_limits(1000.0, 190.0, 3, "cubic") == pytest.approx([430.0, 220.0, 190.0])  # 0.81 * (19/27, 26/27, 1)
    assert all(round_limits(3.0, 0.7, 5, shape)[-1] == 0.7 for shape in ("geometric", "linear", "cubic"))
    assert round_limits(1000.0, 125.0, 1, "geometric") == [125.0]


def test_the_epochs_of_one_shot_are_shared(write_config: WriteConfig) -> None:
    def epochs(*overrides: str) -> list[int]:
        return [share.epochs for share in shares_of_training(load(write_config(), overrides))]

    assert epochs("prune.rounds=3", "recovery.finetune.epochs=8") == [2, 2, 4]
    assert epochs("prune.rounds=1", "recovery.finetune.epochs=0") == [0]
    rewound = ["prune.rounds=3", "recovery.finetune.schedule=rewound"]  # the pretraining has 2 epochs
    assert epochs(*rewound, "recovery.finetune.epochs=6") == [2, 2, 2]
    with pytest.raises(BadInputError, match=r"the last 3 epochs of model\.pretrain, which is 2 epochs"):
        epochs(*rewound, "recovery.finetune.epochs=7")


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("macs=0.3x", ["--round-shape", "geometric"]),
        ("bytes=0.4x", ["--round-shape", "cubic", "--allocation", "uniform", "--set", "selection.selector=thinet"]),
        (
            "energy_mj=0.5x",
            ["--round-shape", "linear", "--allocation", "per_cost", "--set", "recovery.reconstruction=least_squares"],
        ),
    ],
)
def test_every_round_is_met_to_one_step_and_nested(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, options: list[str]
) -> None:
    folder = tmp_path / "run"
    arguments = ["--target", target, "--rounds", "3", *options, *FINE, "--set", "recovery.finetune.epochs=3"]
    assert main(["prune", str(write_config()), *arguments, "-o", str(folder)]) == 0
    said, summary = capsys.readouterr(), summary_of(folder)
    goal, dense = summary["goal"], summary["goal"]["dense"]
    assert goal["limit"] == pytest.approx(float(target.partition("=")[2].rstrip("x")) * dense)
    assert 0.0 <= goal["limit"] - goal["achieved"] < goal["smallest_step"]
    shape = options[options.index("--round-shape") + 1]
    limits = [part["limit"] for part in goal["rounds"]]
    assert limits == pytest.approx(round_limits(dense, goal["limit"], 3, shape))
    assert all(0.0 <= part["limit"] - part["achieved"] < 0.12 * dense for part in goal["rounds"])
    assert goal["rounds"][-1]["achieved"] == goal["achieved"]
    assert all(0.0 < part[f"accuracy_{when}"] <= 1.0 for part in goal["rounds"] for when in ("pruned", "finetuned"))
    kept = [{"stem.0": 16, "body.0": 24}, *(kept_after(folder, number) for number in (1, 2, 3))]
    assert kept[3] == {entry["group"]: entry["kept"] for entry in summary["network"]}
    assert [entry["channels"] for entry in summary["network"]] == [16, 24]
    assert all(after[name] <= before[name] for before, after in pairwise(kept) for name in after)
    assert kept[1] != kept[2] != kept[3]
    assert {"round_1", "round_2", "finetune"} < set(summary["seconds"])
    assert all(f"Round {number} of 3: pruning to" in said.err for number in (1, 2, 3))
    assert all(f"Round {number}: " in text for number in (1, 2, 3) for text in (said.out, _page(folder)))


def _page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_one_round_is_one_shot(write_config: WriteConfig, tmp_path: Path) -> None:
    config, plain, single = str(write_config()), tmp_path / "plain", tmp_path / "single"
    assert main(["prune", config, "--target", "macs=0.4x", "-o", str(plain)]) == 0
    assert main(["prune", config, "--target", "macs=0.4x", "--rounds", "1", "-o", str(single)]) == 0
    assert summary_of(plain)["goal"] == summary_of(single)["goal"]
    assert "rounds" not in summary_of(single)["goal"]
    assert not list(single.glob(".round-*"))
    assert same_network(plain, single)


def test_a_group_cut_to_its_last_channel_stays_a_group(write_config: WriteConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--target", "macs=0.004x", "--rounds", "6", "--round-shape", "geometric", "--allocation", "uniform"]
    options += [*FINE, *SIX_EPOCHS, *ALMOST_ALL]
    assert main(["prune", str(write_config()), *options, "-o", str(folder)]) == 0
    assert kept_after(folder, 5) == {"stem.0": 1, "body.0": 3}  # 4 036 MACs of at most 4 535
    assert kept_after(folder, 6) == {"stem.0": 1, "body.0": 1}


def test_the_run_folder_keeps_the_rounds(write_config: WriteConfig, tmp_path: Path) -> None:
    """The written configuration does it again without any option."""
    first, again = tmp_path / "first", tmp_path / "again"
    options = ["--target", "params=0.5x", "--rounds", "2", "--round-shape", "linear", *SIX_EPOCHS]
    assert main(["prune", str(write_config()), *options, "-o", str(first)]) == 0
    assert main(["prune", str(first / "config.yaml"), "-o", str(again)]) == 0
    assert summary_of(first)["goal"] == summary_of(again)["goal"]
    assert same_network(first, again)


def test_a_killed_run_resumes_to_the_same_end(write_config: WriteConfig, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = ["prune", str(write_config("fatal")), "--target", "macs=0.2x", "--rounds", "3", *SEVEN_EPOCHS, "-o"]
    assert main([*command, str(whole)]) == 0
    killed = run([*command, broken], TINY_JOB_DIES_AT="94")  # in the second epoch of the second round
    assert killed.returncode == -9
    assert torch.load(broken / ".round-2.pt", weights_only=True)["training"]["epochs"] == 1
    assert main([*command, str(broken), "--resume"]) == 0
    assert summary_of(whole)["goal"] == summary_of(broken)["goal"]
    assert same_network(whole, broken)


def test_a_finished_round_is_neither_cut_nor_trained_again(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder, whole = str(write_config()), tmp_path / "run", tmp_path / "whole"
    command = ["prune", config, "--target", "macs=0.3x", "--rounds", "2", *SIX_EPOCHS, "-o"]
    assert main([*command, str(whole)]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "reranked", _stop)
        assert main([*command, str(folder)]) == 130
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "_cut", lambda *given: pytest.fail("cut again"))
        assert main([*command, str(folder), "--resume"]) == 0
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["state"] for entry in log if entry["phase"] == "round_1"] == ["begun", "begun", "done"]
    assert summary_of(folder)["goal"] == summary_of(whole)["goal"]
    assert same_network(folder, whole)


def _stop(*given: object) -> None:
    signal.raise_signal(signal.SIGINT)
