"""All outputs of a network are delivered, however it returns them; free axes, int8, and programs that print."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import nn

import amcsearch
from amcsearch.cli.main import main
from amcsearch.graph.batch import Batch
from amcsearch.jobs.example_file import read_example, write_example

WriteConfig = Callable[..., Path]
ODD = Path(__file__).parents[1] / "odd_networks.py"
PRUNE = ["--set", "device.rounds=5", "--set", "recovery.finetune=null", "--target", "macs=0.6x"]

NAMES = {
    "tuple": ["output_0", "output_1"],
    "list": ["output_0", "output_1"],
    "dict": ["scores", "box"],
    "dataclass": ["scores", "box"],
    "nested": ["heads_scores", "heads_box"],
    "listed": ["output_0_0", "output_0_1"],
}


JUDGED = {
    "tuple": "'0'",
    "list": "'0'",
    "dict": "scores",
    "dataclass": "scores",
    "nested": "heads.scores",
    "listed": "'0.0'",
}
"""Path of the output that is judged."""


def judged(path: str) -> list[str]:
    """Options that name the output a task judges."""
    return ["--set", f"task={{name: classification, params: {{output: {path}}}}}"]


def prune(config: Path, folder: Path, *options: str, factory: str = "TwoHeads", data: str = "quadrants") -> None:
    named = ["--set", f"model.factory={ODD}:{factory}", "--set", f"data.factory={ODD}:{data}"]
    assert main(["prune", str(config), *named, *PRUNE, *options, "--out", str(folder)]) == 0


@pytest.mark.parametrize("how", list(NAMES))
def test_every_output_is_delivered_and_loaded_however_it_is_returned(
    write_config: WriteConfig, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "run"
    options = ["--set", f"model.kwargs={{how: {how}}}", "--set", "model.pretrain=null", *judged(JUDGED[how])]
    prune(write_config(), folder, *options)
    session = ort.InferenceSession(folder / "pruned.onnx")
    assert [port.name for port in session.get_outputs()] == NAMES[how]
    summary = json.loads((folder / "summary.json").read_text())
    assert [file["name"] for file in summary["files"]] == ["pruned.onnx", "pruned.safetensors", "pruned.pt2"]
    assert all(file["problem"] is None and file["relative_diff"] < 1e-5 for file in summary["files"])
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = [torch.from_numpy(array) for array in session.run(None, {"input": x.numpy()})]
    program, factory = (amcsearch.load(folder, source=source).model(x) for source in ("program", "factory"))
    for output in (program, factory):
        tensors = [tensor.detach() for tensor in Batch((output,)).inputs.values()]
        torch.testing.assert_close(tensors, expected, atol=1e-5, rtol=1e-5)
    assert type(factory).__name__ == {"nested": "dict", "listed": "list", "dataclass": "Found"}.get(how, how)


def test_a_free_batch_and_another_opset_on_request(write_config: WriteConfig, tmp_path: Path) -> None:
    export = ["--set", "device.export={dynamic: [batch], opset: 17}", "--set", "model.pretrain=null", *judged("'0'")]
    prune(write_config(), tmp_path / "run", *export)
    session, model = ort.InferenceSession(tmp_path / "run" / "pruned.onnx"), amcsearch.load(tmp_path / "run").model
    assert [port.shape[0] for port in (*session.get_inputs(), *session.get_outputs())] == ["batch"] * 3
    for count in (1, 3, 8):
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
        arrays = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(tuple(map(torch.from_numpy, arrays)), model(x), atol=1e-5, rtol=1e-5)


def test_int8_delivers_every_output(write_config: WriteConfig, tmp_path: Path) -> None:
    prune(
        write_config(), tmp_path / "run", "--set", "device.dtype=int8", "--set", "model.pretrain=null", *judged("'0'")
    )
    session = ort.InferenceSession(tmp_path / "run" / "pruned.onnx")
    assert [port.name for port in session.get_outputs()] == NAMES["tuple"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["files"][0]["problem"] is None


def test_only_json_is_printed_where_networks_and_data_print(
    write_config: WriteConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prune(write_config(), tmp_path / "run", "--json", factory="Chatty", data="chatty")
    out, err = capfd.readouterr()
    assert json.loads(out)["finetuned"]["macs"] > 0
    assert "forward of" in err
    assert "item" in err


def test_the_schema_and_the_errors_of_free_axes(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for written, words in {
        "[depth]": "'depth' is unknown; known: batch, sequence, height, width",
        "{time: -1}": "expected a name with its axis in every input, from 0 to 15, or with {input: axis}",
        "batch": "expected names such as [batch], or names with axes such as {batch: 0}",
    }.items():
        config = [str(write_config()), "--set", f"device.export.dynamic={written}"]
        assert main(["prune", *config, *PRUNE, "--out", str(tmp_path / "run")]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert "device.export.dynamic" in line
        assert words in line


class Call(nn.Module):
    """Of a tree of inputs and keywords: the sum of all tensors beside the flag."""

    def forward(self, pair, *, extra, flag):
        return {"sum": pair["a"] + pair["more"][0] + extra.scores, "flag": flag}


def test_an_example_comes_back_as_the_call_it_was(tmp_path: Path) -> None:
    sys.path.append(str(ODD.parent))
    from odd_networks import Found

    pair = {"a": torch.ones(2, 1), "more": (torch.full((2, 1), 2.0), None, 3)}
    extra = Found(torch.full((2, 1), 4.0), torch.zeros(2, 1))
    batch = Batch((pair,), {"extra": extra, "flag": torch.tensor([True, False])}, None, 2)
    write_example(tmp_path / "example.safetensors", Call(), batch)
    stored = read_example(tmp_path / "example.safetensors")
    ((pair,), kwargs) = stored.batch.args, stored.batch.kwargs
    assert (type(pair["more"]), pair["more"][1:]) == (tuple, (None, 3))
    assert isinstance(kwargs["extra"], Found)
    assert [tensor.tolist() for tensor in stored.outputs] == [[[7.0]], [True]]
    assert stored.batch.through(Call())["sum"].tolist() == [[7.0]]
