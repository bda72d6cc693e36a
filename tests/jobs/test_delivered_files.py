"""What is claimed is what is delivered: networks that no file can hold are refused, and the file itself is scored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import amcsearch
from amcsearch.cli.main import main
from amcsearch.config.loading import load
from amcsearch.core.errors import DeliveryError
from amcsearch.graph.batch import HeldBatches
from amcsearch.jobs import network_check
from amcsearch.jobs.workload import load_workload
from amcsearch.training.splits import stacked

WriteConfig = Callable[..., Path]
ODD = Path(__file__).parents[1] / "odd_networks.py"
SHORT = ["--set", "device.rounds=5"]

REFUSED = {
    "BranchOnBatch": "BranchOnBatch gives other outputs for the same samples in batches of 1",
    "BranchOnLarge": "BranchOnLarge is another network in its ONNX file",
    "BranchOnSize": "BranchOnSize gives other outputs for the same samples in batches of 1",
    "BatchStatistics": "BatchStatistics gives other outputs for the same samples in batches of 1",
    "ExportOther": "ExportOther is another network in its ONNX file, which differs by 2 of the outputs' scale",
    "ExportNan": "ExportNan is another network in its ONNX file, which gives NaN or infinity for",
    "ExportScaled": "at most 0.001 is allowed",
    "Noisy": "Noisy gives other outputs for the same samples from call to call",
    "DropoutAlways": "DropoutAlways gives other outputs for the same samples from call to call",
    "Drifting": "Drifting gives other outputs for the same samples from call to call",
    "Alternating": "Alternating gives other outputs for the same samples from call to call",
    "Accumulating": "Accumulating gives other outputs for the same samples from call to call",
    "InPlace": "InPlace changes its input in place",
    "NanForLarge": "NanForLarge gives NaN or infinity for 20 of 80 samples of the test split",
    "nan_weight": "Tiny: body.0.weight holds nan (1 of 3456 values), must be finite",
    "infinite_bias": "Tiny: head.bias holds -inf (1 of 4 values), must be finite",
    "nan_buffer": "Tiny: stem.1.running_mean holds nan (1 of 16 values), must be finite",
}
EXPORT_ALONE = {"BranchOnLarge", "ExportOther", "ExportNan", "ExportScaled"}


def refusal(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*map(str, arguments)]) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("amcsearch: ")
    return line


def odd(factory: str, data: str = "quadrants") -> list[str]:
    return ["--set", f"model.factory={ODD}:{factory}", "--set", f"data.factory={ODD}:{data}"]


@pytest.mark.parametrize("factory", list(REFUSED))
def test_a_network_that_no_file_can_hold_is_refused_before_work_is_spent(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], factory: str
) -> None:
    config = [write_config(), *odd(factory, "marked" if factory == "NanForLarge" else "quadrants")]
    config += ["--set", "data.splits={calibration: 64, search: 96}"] if factory == "NanForLarge" else []
    assert REFUSED[factory] in refusal(["search", *config, "--out", tmp_path / "search"], capsys)
    assert REFUSED[factory] in refusal(["search", *config, "--dry-run"], capsys)
    target = ["--target", "macs=0.5x", "--out", tmp_path / "prune"]
    assert REFUSED[factory] in refusal(["prune", *config, *target], capsys)
    if factory not in EXPORT_ALONE:  # it delivers no ONNX file
        assert REFUSED[factory] in refusal(["sparsify", *config, "--out", tmp_path / "sparse"], capsys)
    assert not (tmp_path / "cache").exists()  # nothing was trained
    assert not (tmp_path / "search" / "trials.csv").exists()


def test_a_checkpoint_is_looked_at_too(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {**load_workload(load(write_config()), train=False).model.state_dict()}
    weights["head.weight"] = weights["head.weight"].clone()
    weights["head.weight"][2, 3] = torch.inf
    torch.save(weights, tmp_path / "weights.pt")
    given = ["--set", f"model.checkpoint={tmp_path / 'weights.pt'}", "--set", "model.pretrain=null"]
    line = refusal(["search", write_config(), *given, "--out", tmp_path / "run"], capsys)
    assert "weights.pt: 1 of 64 numbers in head.weight are NaN or infinite" in line


def test_the_check_sees_the_most_extreme_samples() -> None:
    inputs = torch.zeros(1000, 2)
    inputs[:, 0] = torch.linspace(-1.0, 1.0, 1000)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    inputs[123, 1], inputs[456, 1] = 50.0, -50.0
    (probes,) = network_check._probes(HeldBatches.of(inputs, torch.zeros(1000), 256)).args
    assert len(probes) <= network_check.EVEN + 6 * network_check.EXTREME
    for row in (inputs[123], inputs[456], inputs[0], inputs[-1]):
        assert (probes == row).all(1).any()


def accuracy_of_file(folder: Path) -> float:
    """Share of the test split that the file on the disk gets right, one sample at a time."""
    inputs, targets = stacked(load_workload(load(folder / "config.yaml"), train=False).splits.test)
    session = ort.InferenceSession(str(folder / "pruned.onnx"))
    rows = [session.run(None, {"input": x[None].numpy()})[0][0] for x in inputs]
    right = [row.argmax() == int(y) and not np.isnan(row).any() for row, y in zip(rows, targets, strict=True)]
    return float(np.mean(right))


def pruned(write_config: WriteConfig, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    arguments = ["prune", str(write_config()), *SHORT, "--target", "macs=0.5x", "--out", str(folder), *options]
    code = main(arguments)
    return code, json.loads((folder / "summary.json").read_text())


def test_accuracy_is_that_of_the_file(write_config: WriteConfig, tmp_path: Path) -> None:
    code, summary = pruned(write_config, tmp_path / "run", *odd("Counting"))
    tuned = summary["finetuned"]
    assert code == 0
    assert tuned["accuracy"] == accuracy_of_file(tmp_path / "run")
    assert tuned["accuracy_torch"] == pytest.approx(tuned["accuracy"], abs=0.011)
    assert "accuracy_torch" not in summary["pruned"]
    assert [file["name"] for file in summary["files"]] == ["pruned.onnx", "pruned.safetensors", "pruned.pt2"]
    for file in summary["files"]:
        assert (file["samples"], file["predictions"], file["problem"]) == (96, 96, None)
        assert file["relative_diff"] < 1e-5
    assert summary["onnx_max_abs_diff"] == summary["files"][0]["max_abs_diff"]
    assert summary["verdict"]["state"] == "met"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Delivered files" in page
    assert "that of the ONNX file as delivered" in page


@pytest.mark.parametrize("verb", ["search", "prune"])
def test_a_file_that_is_another_network_after_pruning_is_an_error_that_keeps_everything(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    folder = tmp_path / "run"
    options = ["--target", "macs=0.5x"] if verb == "prune" else ["--set", "search.agent=random"]
    options += ["--set", "search.baseline=null"]
    line = refusal([verb, write_config(), *SHORT, *odd("WhenNarrow"), *options, "--out", folder], capsys)
    assert "pruned.onnx is not the network that was judged: on the test split it differs by" in line
    assert "at most 0.001 is allowed" in line
    assert "torch.where" in line
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"]["state"] == "refused"
    assert summary["finetuned"]["accuracy"] == accuracy_of_file(folder)
    assert summary["finetuned"]["accuracy"] < summary["finetuned"]["accuracy_torch"]
    assert any("pruned.onnx: differs by" in text for text in summary["warnings"])
    for name in ("pruned.onnx", "pruned.safetensors", "pruned.pt2", "policy.json", "trials.csv", "pareto.csv"):
        assert (folder / name).is_file()
    assert "differs by" in (folder / "report.html").read_text()


def test_nan_for_a_rare_input_is_an_error_and_never_equal(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, splits = tmp_path / "run", ["--set", "data.splits={calibration: 64, search: 96}"]
    code, summary = pruned(write_config, folder, *odd("NanWhenNarrow", "marked"), *splits)
    assert code == 2
    assert "gives NaN or infinity for 20 of 80 samples" in capsys.readouterr().err
    assert summary["onnx_max_abs_diff"] is None
    assert summary["finetuned"]["accuracy"] == accuracy_of_file(folder)
    assert "outputs cannot be compared" in (folder / "report.html").read_text()


@pytest.mark.parametrize("verb", ["prune", "sparsify"])
def test_weights_that_do_not_make_the_network_again_are_an_error(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    folder = tmp_path / "run"
    options = ["--target", "macs=0.5x"] if verb == "prune" else ["--set", "sparsify.training.epochs=1"]
    line = refusal([verb, write_config(), *SHORT, *odd("Unstored"), *options, "--out", folder], capsys)
    assert "pruned.safetensors is not the network that was judged" in line
    assert "keep all that forward computes with in parameters and buffers" in line
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"]["state"] == "refused"
    assert summary["verdict"]["problems"][0].startswith("pruned.safetensors: differs by")
    problems = {file["name"]: file["problem"] for file in summary["files"]}
    assert problems["pruned.pt2"] is None


def test_sparsify_judges_what_it_delivers(write_config: WriteConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--set", "sparsify.training.epochs=3", "--out", str(folder)]
    assert main(["sparsify", str(write_config()), *SHORT, *odd("plain"), *options]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert [file["name"] for file in summary["files"]] == ["pruned.safetensors", "pruned.pt2"]
    assert all(file["problem"] is None and file["relative_diff"] < 1e-5 for file in summary["files"])
    assert summary["verdict"]["state"] == "met"


class NarrowOther(nn.Module):
    """Is the negative of itself in the file as soon as it is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 16, 3), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return -y if self.conv.weight.shape[0] < 16 and torch.onnx.is_in_onnx_export() else y


def test_in_python_the_error_names_the_folder_that_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(200, 1, 8, 8, generator=generator), torch.randint(0, 4, (200,), generator=generator)
    settings = {"device.rounds": 5, "recovery.finetune": None, "data.splits": {"calibration": 64, "search": 64}}
    with pytest.raises(DeliveryError, match=r"pruned\.onnx is not the network that was judged") as caught:
        amcsearch.prune(NarrowOther(), data, target={"macs": "0.5x"}, settings=settings)
    (note,) = caught.value.__notes__
    folder = note.partition("amcsearch.load('")[2].rstrip("')")
    result = amcsearch.load(folder, NarrowOther())
    assert result.verdict.state == "refused"
    assert result.model.conv.weight.shape[0] < 16


def test_a_network_that_guesses_is_told_before_the_search(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary = pruned(write_config, tmp_path / "run", "--set", "model.pretrain=null")
    assert code == 0
    assert "the dense network guesses" in capsys.readouterr().err
    assert any("the dense network guesses" in text for text in summary["warnings"])
    code, summary = pruned(write_config, tmp_path / "trained", "--set", "model.pretrain.epochs=3")
    assert not any("the dense network guesses" in text for text in summary["warnings"])
