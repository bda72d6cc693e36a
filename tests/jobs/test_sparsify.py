"""Training-time pruning through the command line, on a job of seconds: exact targets, resumable, a policy to go on."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from amcsearch.cli.main import main
from amcsearch.methods.gates import GATES
from amcsearch.methods.schedules import SCHEDULES
from tests.command_line import run

WriteConfig = Callable[..., Path]
SHORT = [
    *("--set", "sparsify.training={epochs: 3, learning_rate: 0.02, warmup_epochs: 0, batch_size: 32}"),
    *("--set", "search.max_pruning_ratio=0.9"),
]


METHODS = [*((name, None) for name in (*GATES, *SCHEDULES)), *((name, "channels") for name in SCHEDULES)]
# 15 steps of 0.1 cannot raise the noise from e^-10 to the size of the weights: the multiplier winds up instead, and
# the penalty drowns the data (accuracy by chance, and by the order of sums). From e^-6 on it learns: 0.8 and up.
SHORT_PARAMS = {"variational_dropout": "{log_variance: -6.0}"}


@pytest.mark.parametrize(("method", "granularity"), METHODS)
def test_every_method_meets_its_target(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, granularity: str | None
) -> None:
    folder = tmp_path / "run"
    asked = ["--set", f"sparsify.method={method}", "--set", "sparsify.target={sparsity: 0.4}"]
    asked += ["--set", f"sparsify.granularity={granularity}"] if granularity else []
    asked += ["--set", f"sparsify.params={SHORT_PARAMS[method]}"] if method in SHORT_PARAMS else []
    multiple = ["--set", "device.channel_multiple=1"]
    assert main(["sparsify", str(write_config()), *asked, *multiple, *SHORT, "--out", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["kept"] == summary["total"] - round(0.4 * summary["total"])
    assert summary["target"]["kept"] == pytest.approx(0.6, abs=1.0 / summary["total"])
    masks = safetensors.torch.load_file(folder / "masks.safetensors")
    assert sum(int(mask.sum()) for mask in masks.values()) == summary["kept"]
    tuned = safetensors.torch.load_file(folder / "pruned.safetensors")
    if summary["granularity"] == "weights":  # masked: zeros that fine-tuning has left alone
        assert all((tuned[name][~mask] == 0).all() for name, mask in masks.items())
    else:  # really smaller
        assert tuned["body.0.weight"].shape[0] < 24
        assert {name: int(mask.sum()) for name, mask in masks.items()} == summary["policy"]
    rows = pd.read_csv(folder / "densities.csv")
    assert rows["kept"].sum() == summary["kept"]
    policy = json.loads((folder / "policy.json").read_text())
    assert policy == summary["policy"]
    assert any(kept < {"stem.0": 16, "body.0": 24}[group] for group, kept in policy.items())
    assert summary["finetuned"]["accuracy"] > 0.3  # a quarter by chance


@pytest.mark.parametrize(
    ("method", "cost"),
    [
        ("hard_concrete", "macs"),
        ("slimming", "params"),
        ("gumbel_softmax", "bytes"),
        ("soft_threshold", "macs"),
        ("soft_threshold", "bytes"),
    ],
)
def test_costs_are_met_to_one_step(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, cost: str
) -> None:
    asked = ["--set", f"sparsify.method={method}", "--set", f"sparsify.target={{{cost}: 0.5x}}"]
    multiple = ["--set", "device.channel_multiple=1"]
    folder = ["--out", str(tmp_path / "run")]
    assert main(["sparsify", str(write_config()), *asked, *multiple, *SHORT, *folder, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    step = 0.0001 if summary["granularity"] == "weights" else 0.06  # a channel of 24 is a twenty-fourth of its layers
    assert 0.5 - step < summary["target"]["kept"] <= 0.5
    if cost == "bytes":
        assert summary["target"]["dense"] == 4 * summary["dense"]["params"]  # the profile's words are 32 bits
        assert summary["target"]["achieved"] <= summary["target"]["limit"] == 0.5 * summary["target"]["dense"]
    if cost == "bytes" and summary["granularity"] == "channels":
        assert summary["target"]["achieved"] == 4 * summary["sparse"]["params"]
    elif cost == "bytes":
        bitmaps = sum(row["total"] / 8 + 4 * row["kept"] for row in summary["densities"])
        rest = summary["dense"]["params"] - summary["total"]
        assert summary["target"]["achieved"] == pytest.approx(bitmaps + 4 * rest)
        assert summary["target"]["storage"] == "bitmap"
    elif summary["granularity"] == "channels":
        assert summary["sparse"][cost] == pytest.approx(summary["target"]["kept"] * summary["dense"][cost])


@pytest.mark.parametrize(
    ("method", "cost"),
    [*((name, "macs") for name in SCHEDULES), ("gradual", "bytes"), ("iterative", "params"), ("one_shot", "energy_mj")],
)
def test_schedules_on_channels_meet_a_cost_to_one_block(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, cost: str
) -> None:
    asked = [f"sparsify.method={method}", f"sparsify.target={{{cost}: 0.5x}}", "sparsify.granularity=channels"]
    arguments = [part for text in [*asked, "device.channel_multiple=2"] for part in ("--set", text)]
    folder = tmp_path / "run"
    assert main(["sparsify", str(write_config()), *arguments, *SHORT, "--out", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    target, policy = summary["target"], summary["policy"]
    assert 0.5 - 0.12 < target["kept"] <= 0.5  # two channels of 16 or 24 are at most an eighth of their layers
    assert target["achieved"] <= target["limit"] == pytest.approx(0.5 * target["dense"])
    priced = 4 * summary["sparse"]["params"] if cost == "bytes" else summary["sparse"][cost]
    assert target["achieved"] == pytest.approx(priced)
    assert all(kept % 2 == 0 for kept in policy.values())
    masks = safetensors.torch.load_file(folder / "masks.safetensors")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == policy
    tuned = safetensors.torch.load_file(folder / "pruned.safetensors")
    assert tuned["body.0.weight"].shape[:2] == (policy["body.0"], policy["stem.0"])
    assert summary["finetuned"]["accuracy"] > 0.3  # a quarter by chance


@pytest.mark.parametrize("method", ["hard_concrete", pytest.param("lottery", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_end(write_config: WriteConfig, tmp_path: Path, method: str) -> None:
    command = ["sparsify", write_config("fatal"), "--set", f"sparsify.method={method}", *SHORT, "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run([*command, whole]).returncode == 0
    assert run([*command, broken], TINY_JOB_DIES_AT="33").returncode == -9
    assert (broken / ".training.pt").exists()
    assert not (broken / "summary.json").exists()
    assert "--resume" in run([*command, broken]).stderr
    assert run([*command, broken, "--resume"]).returncode == 0
    one, other = (safetensors.torch.load_file(folder / "pruned.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "policy.json").read_text() == (broken / "policy.json").read_text()


def test_a_search_starts_from_the_learned_policy(write_config: WriteConfig, tmp_path: Path) -> None:
    config, learned, folder = str(write_config()), tmp_path / "learned", tmp_path / "search"
    assert main(["sparsify", config, "--set", "sparsify.method=hard_concrete", *SHORT, "--out", str(learned)]) == 0
    policy = learned / "policy.json"
    assert (
        main(["search", config, "--set", f"search.start={policy}", "--set", "search.trials=6", "--out", str(folder)])
        == 0
    )
    trials = pd.read_csv(folder / "trials.csv")
    firsts = trials[trials["number"] == 0]
    assert len(firsts) == 2  # the agent's and the baseline's
    assert firsts["policy"].nunique() == 1
    assert (trials["state"] == "complete").all()
    started = json.loads(firsts["policy"].iloc[0])
    asked = json.loads(policy.read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert started == asked or any("search.start was moved" in text for text in summary["warnings"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sparsify.method=rigel"], "rigl"),
        (["sparsify.method=gradual", "sparsify.target={macs: 0.5x}"], "hard_concrete"),
        (["sparsify={method: one_shot, params: {pattern: {n: 1, m: 4}}}"], "give sparsify.target {sparsity: 0.75}"),
        (["sparsify={method: one_shot, params: {pattern: {n: 5, m: 4}}}"], "n must be from 1 to m"),
        (["sparsify={method: one_shot, params: {pattern: 2 of 4}}"], "sparsify.params.pattern"),
        (
            ["sparsify={method: one_shot, params: {within: row}, granularity: channels}"],
            "give sparsify.granularity weights",
        ),
        (["sparsify.method=soft_threshold", "sparsify.target={params: 0.5x}"], "sparsity, macs or bytes"),
        (["sparsify.method=soft_threshold", "sparsify.target={bytes: 0.04x}"], "in bitmap storage"),
        (["sparsify.method=soft_threshold", "sparsify.target={bytes: 30000}"], "(0, 28944]"),
        (["sparsify.method=hard_concrete", "sparsify.target={latency_ms: 0.5x}"], "sparsify.target.latency_ms"),
        (["sparsify.method=hard_concrete", "sparsify.target={sparsity: 0.95}"], "max_pruning_ratio"),
        (["sparsify.granularity=weights", "sparsify.method=slimming"], "a gate on channels"),
        (["sparsify.params={speed: 3}"], "sparsify.params.speed"),
        (["sparsify.criterion=size"], "magnitude"),
        (["sparsify.training.epochs=0"], "epochs"),
        (["sparsify.method=lottery", "sparsify.params={rate: 0.001}"], "raise the epochs"),
        (["recovery.finetune.schedule=rewound", "recovery.finetune.epochs=9"], "model.pretrain"),
    ],
)
def test_bad_input_is_one_line(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], words: str
) -> None:
    arguments = [part for text in overrides for part in ("--set", text)]
    assert main(["sparsify", str(write_config()), *SHORT, *arguments, "--out", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("amcsearch:")]
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.parametrize(
    ("params", "sparsity"), [("{pattern: {n: 2, m: 4}}", 0.5), ("{within: row}", 0.4), ("{within: layer}", 0.4)]
)
def test_one_shot_within_rows_layers_and_patterns(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], params: str, sparsity: float
) -> None:
    folder = tmp_path / "run"
    asked = ["sparsify.method=one_shot", f"sparsify.params={params}", f"sparsify.target={{sparsity: {sparsity}}}"]
    asked += ["sparsify.criterion=wanda", "sparsify.criterion_params={}"]
    arguments = [part for text in asked for part in ("--set", text)]
    assert main(["sparsify", str(write_config()), *arguments, *SHORT, "--out", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    masks = safetensors.torch.load_file(folder / "masks.safetensors")
    tuned = safetensors.torch.load_file(folder / "pruned.safetensors")
    assert all((tuned[name][~mask] == 0).all() for name, mask in masks.items())
    assert summary["target"]["kept"] == pytest.approx(summary["kept"] / summary["total"])
    rows = [mask.flatten(1) for mask in masks.values()]
    if "pattern" in params:
        assert all((row[:, : row.shape[1] // 4 * 4].reshape(-1, 4).sum(1) == 2).all() for row in rows)
        assert summary["kept"] == sum(len(row) * (row.shape[1] // 4 * 2 + row.shape[1] % 4) for row in rows)
    elif "row" in params:
        assert all(((~row).sum(1) == round(0.4 * row.shape[1])).all() for row in rows)
    else:
        assert summary["kept"] == summary["total"] - round(0.4 * summary["total"])
        assert all(abs(int(row.sum()) - 0.6 * row.numel()) <= 1 for row in rows)


def test_a_target_no_width_meets_is_infeasible(write_config: WriteConfig, tmp_path: Path) -> None:
    asked = ["--set", "sparsify.method=slimming", "--set", "sparsify.target={macs: 0.001x}"]
    assert main(["sparsify", str(write_config()), *asked, "--out", str(tmp_path / "run")]) == 3


def test_rewound_learning_rates_replay_the_original_training(write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = ["--set", "recovery.finetune.schedule=rewound", "--set", "sparsify.method=one_shot"]
    assert main(["sparsify", str(write_config()), *overrides, *SHORT, "--out", str(tmp_path / "run")]) == 0
