"""``search.vanish`` through the command line, on a job of seconds: branches go, and killed runs resume to the same."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import safetensors.torch
import torch

from amcsearch.cli.main import main
from tests.command_line import run

WriteConfig = Callable[..., Path]
VANISH = ["--set", "search.vanish=true"]
TRAINED = ["--set", "recovery.finetune.epochs=3"]
SHORT = ["--set", "sparsify.training={epochs: 3, learning_rate: 0.02, warmup_epochs: 0, batch_size: 32}"]


def killed(arguments: Sequence[object], at: int) -> Path:
    """Run in a process that dies at a forward pass; return the run folder."""
    assert run(arguments, TINY_JOB_DIES_AT=str(at)).returncode == -9
    return Path(str(arguments[-1]))


def check_equal(whole: Path, resumed: Path) -> None:
    one, other = (safetensors.torch.load_file(folder / "pruned.safetensors") for folder in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "policy.json").read_text() == (resumed / "policy.json").read_text()


@pytest.mark.parametrize("goal", [["--target", "macs=0.05x"], ["--set", "prune.policy={stem.0: 16, body.0: 0}"]])
def test_a_killed_prune_without_the_branch_resumes_to_the_same_end(
    write_config: WriteConfig, tmp_path: Path, goal: list[str]
) -> None:
    vanish = VANISH if "--target" in goal else []  # a policy with a 0 needs no switch
    command = ["prune", str(write_config("fatal")), *goal, *vanish, *TRAINED, "-o"]
    whole = tmp_path / "whole"
    assert main([*command, str(whole)]) == 0
    broken = killed([*command, tmp_path / "broken"], at=60)
    assert (broken / ".finetuning.pt").exists()
    assert not (broken / "summary.json").exists()
    assert main([*command, str(broken), "--resume"]) == 0
    check_equal(whole, broken)
    assert json.loads((whole / "policy.json").read_text()) == {"stem.0": 16, "body.0": 0}
    convolutions = [node for node in onnx.load(whole / "pruned.onnx").graph.node if node.op_type == "Conv"]
    groups = [next((a.i for a in node.attribute if a.name == "group"), 1) for node in convolutions]
    assert groups == [1, 16]  # the stem, and what adds the constant to each of its channels


def test_a_killed_sparsify_keeps_the_branch_whatever_the_switch_says(write_config: WriteConfig, tmp_path: Path) -> None:
    target = ["--set", "sparsify.method=hard_concrete", "--set", "sparsify.target={macs: 0.3x}"]
    command = ["sparsify", str(write_config("fatal")), *target, *SHORT, *VANISH, "-o"]
    without = tmp_path / "without"
    assert main([*command[:-3], *command[-1:], str(without)]) == 0
    broken = killed([*command, tmp_path / "broken"], at=36)
    assert (broken / ".training.pt").exists()
    assert main([*command, str(broken), "--resume"]) == 0
    check_equal(without, broken)
    assert json.loads((broken / "policy.json").read_text())["body.0"] > 0
