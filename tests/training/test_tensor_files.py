"""Files of tensors that are odd in every way are one line that names the file and the cure."""

import os
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.training.checkpoint import load_checkpoint
from amcsearch.training.resume import StateFile
from amcsearch.training.tensor_files import load_tensors, read_texts, save_tensors

WEIGHT = torch.ones(3, 4)


def refused(path: Path) -> str:
    model = nn.Linear(4, 3, bias=False)
    before = model.weight.clone()
    with pytest.raises(BadInputError) as caught:
        load_checkpoint(model, path)
    assert torch.equal(model.weight, before)
    line = str(caught.value)
    assert str(path) in line
    assert len(line.splitlines()) == 1
    return line


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({3: WEIGHT}, "3 is a int, expected the name of a tensor"),
        ({"weight": WEIGHT, "epoch": 4}, "'epoch' is a int, expected a tensor"),
        ({"weight": WEIGHT.to_sparse()}, "layout torch.sparse_coo"),
        ({"weight": WEIGHT.to("meta")}, "without values (device meta)"),
        ({"weight": WEIGHT.to(torch.complex64)}, "torch.complex64, expected real numbers"),
        ({"weight": torch.ones(3, 4, dtype=torch.int64)}, "1 of other numbers (weight torch.int64 for torch.float32)"),
        ({"weight": torch.full((3, 4), torch.nan)}, "12 of 12 numbers in weight are NaN or infinite"),
        ({"weight": torch.full((3, 4), 1e300, dtype=torch.float64)}, "12 of 12 numbers in weight are NaN or infinite"),
        ({"weight": torch.zeros(1).expand(10**6, 10**6)}, "weight (1000000, 1000000) for (3, 4)"),
        ([WEIGHT], "holds a list, expected a state dict"),
        (nn.Linear(4, 3), "it holds objects beside tensors; save model.state_dict()"),
    ],
)
def test_what_is_no_state_of_the_network_is_refused(tmp_path: Path, state: object, words: str) -> None:
    torch.save(state, tmp_path / "net.pt")
    assert words in refused(tmp_path / "net.pt")


def test_other_types_of_real_numbers_are_taken(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((3, 4), 0.5, dtype=torch.float16)}, tmp_path / "net.pt")
    model = nn.Linear(4, 3, bias=False)
    load_checkpoint(model, tmp_path / "net.pt")
    assert model.weight.dtype == torch.float32
    assert (model.weight == 0.5).all()


def test_a_buffer_may_hold_infinity_and_no_nan(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("mask", torch.zeros(2))
    torch.save({"mask": torch.tensor([0.0, -torch.inf])}, tmp_path / "net.pt")
    load_checkpoint(model, tmp_path / "net.pt")
    assert model.mask[1] == -torch.inf
    torch.save({"mask": torch.tensor([0.0, torch.nan])}, tmp_path / "net.pt")
    with pytest.raises(BadInputError, match="1 of 2 numbers in mask are NaN"):
        load_checkpoint(model, tmp_path / "net.pt")


def test_an_archive_that_unpacks_to_more_than_it_holds_is_never_unpacked(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "net.pt", "w") as packed:
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record), zipfile.ZIP_DEFLATED)
    assert "its records are compressed or overlap" in refused(tmp_path / "net.pt")


@pytest.mark.parametrize("length", [0, 1, 7, 2**20, 2**63 - 1, 2**64 - 1])
def test_a_header_of_a_wrong_length_is_damage(tmp_path: Path, length: int) -> None:
    content = safetensors.torch.save({"weight": WEIGHT})
    (tmp_path / "net.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    assert "is damaged" in refused(tmp_path / "net.safetensors")


def test_a_checkpoint_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "endless.pt").symlink_to("/dev/zero")
    assert "is a directory" in refused(tmp_path / "folder.pt")
    assert "is a pipe" in refused(tmp_path / "pipe.safetensors")
    assert "is a device" in refused(tmp_path / "endless.pt")


def test_every_damage_of_a_saved_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_tensors({"weight": WEIGHT}, path, {"said": "by whom"})
    assert read_texts(path)["said"] == "by whom"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at])
        with pytest.raises(BadInputError):
            load_tensors(path)


def test_a_state_of_a_training_that_holds_something_else_is_named(tmp_path: Path) -> None:
    torch.save([1], tmp_path / ".training.pt")
    with pytest.raises(BadInputError, match=r"\.training\.pt: it holds a list; delete it"):
        StateFile(tmp_path / ".training.pt").load()
