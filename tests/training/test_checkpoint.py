import logging

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import TensorDataset

from amcsearch.core.errors import BadInputError
from amcsearch.training.checkpoint import load_checkpoint, pretrained, save_state
from amcsearch.training.models.transformer import language_model
from amcsearch.training.recipe import TrainingRecipe


def network(seed=0, width=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


DATA = TensorDataset(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2)
RECIPE = TrainingRecipe(epochs=2, learning_rate=0.1, batch_size=8)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_come_back_bit_for_bit(tmp_path, suffix):
    saved, loaded, path = network(0), network(1), tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_state(saved, path)
    else:
        torch.save({"state_dict": saved.state_dict()}, path)
    load_checkpoint(loaded, path)
    assert same(saved, loaded)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    kwargs = {"vocabulary": 10, "context": 4, "dim": 8, "depth": 1, "mlp_width": 8, "tie_embeddings": True}
    saved, loaded = language_model(**kwargs), language_model(**kwargs)
    save_state(saved, tmp_path / "net.safetensors")
    assert "head.weight" not in safetensors.torch.load_file(tmp_path / "net.safetensors")
    load_checkpoint(loaded, tmp_path / "net.safetensors")
    assert same(saved, loaded)
    assert loaded.head.weight is loaded.tokens.weight


def test_foreign_safetensors_without_digest_load(tmp_path):
    saved, loaded = network(0), network(1)
    safetensors.torch.save_file(saved.state_dict(), tmp_path / "net.safetensors")
    load_checkpoint(loaded, tmp_path / "net.safetensors")
    assert same(saved, loaded)


def test_misfits_are_named_and_leave_the_model_as_it_was(tmp_path):
    state = network(0).state_dict()
    state["2.weight"] = torch.zeros(2, 9)
    state["3.weight"] = state.pop("2.bias")
    torch.save(state, tmp_path / "net.pt")
    model, before = network(1), network(1)
    with pytest.raises(BadInputError) as error:
        load_checkpoint(model, tmp_path / "net.pt")
    message = str(error.value)
    assert "1 missing (2.bias)" in message
    assert "1 unexpected (3.weight)" in message
    assert "2.weight (2, 9) for (2, 3)" in message
    assert "\n" not in message
    assert same(model, before)


class Surprise:
    pass


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.safetensors", b"", "damaged"),
        ("net.safetensors", b"\xff" * 40, "damaged"),
        ("net.pt", b"", "damaged"),
        ("net.pt", b"not a checkpoint", "damaged"),
        ("net.onnx", b"", "expected .safetensors or .pt"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInputError, match=message) as error:
        load_checkpoint(network(), tmp_path / name)
    assert name in str(error.value)


def test_pickled_objects_are_never_executed(tmp_path):
    torch.save({"a": Surprise()}, tmp_path / "net.pt")
    with pytest.raises(BadInputError, match="damaged or no plain state dict"):
        load_checkpoint(network(), tmp_path / "net.pt")


def test_missing_and_foreign_content(tmp_path):
    with pytest.raises(BadInputError, match="cannot read checkpoint"):
        load_checkpoint(network(), tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BadInputError, match="holds a list"):
        load_checkpoint(network(), tmp_path / "list.pt")


def test_flipped_bit_in_the_weights_is_noticed(tmp_path):
    path = tmp_path / "net.safetensors"
    save_state(network(), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInputError, match="digest"):
        load_checkpoint(network(), path)


def test_unwritable_target_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot write"):
        save_state(network(), tmp_path / "file" / "net.safetensors")


def train(cache, model=None, dataset=DATA, recipe=RECIPE, key="net", seed=0):
    model = network() if model is None else model
    heard = []
    cached = pretrained(
        model, dataset, recipe, key=key, seed=seed, cache_dir=cache, progress=lambda epoch, _: heard.append(epoch)
    )
    assert bool(heard) != cached
    return model, cached


def test_second_call_loads_what_the_first_trained(tmp_path):
    first, cached = train(tmp_path / "deep" / "cache")
    assert not cached
    second, cached = train(tmp_path / "deep" / "cache")
    assert cached
    assert same(first, second)
    assert not second.training


@pytest.mark.parametrize(
    "change",
    [
        {"model": network(1)},
        {"dataset": TensorDataset(DATA.tensors[0] * 2, DATA.tensors[1])},
        {"dataset": TensorDataset(DATA.tensors[0], 1 - DATA.tensors[1])},
        {"recipe": TrainingRecipe(epochs=2, learning_rate=0.2, batch_size=8)},
        {"key": "other"},
        {"seed": 1},
    ],
)
def test_whatever_decides_the_result_decides_the_file(tmp_path, change):
    train(tmp_path)
    assert not train(tmp_path, **change)[1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-8], lambda data: b"", lambda data: data[:-1] + b"\x55"])
def test_damaged_cache_is_trained_again_with_a_warning(tmp_path, damage, caplog):
    first, _ = train(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again, cached = train(tmp_path)
    assert not cached
    assert "trained again" in caplog.text
    assert same(first, again)
    assert train(tmp_path)[1]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net.", "0."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict"])
def test_names_behind_the_prefix_of_a_wrapper_are_those_of_the_network(tmp_path, prefix, wrapper):
    saved, loaded, path = network(0), network(1), tmp_path / "net.pt"
    state = {prefix + name: tensor for name, tensor in saved.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3}, path)
    load_checkpoint(loaded, path)
    assert same(saved, loaded)


def test_a_prefix_that_not_all_names_have_is_kept(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in network(0).state_dict().items()}
    torch.save(state | {"head.weight": torch.zeros(2)}, tmp_path / "net.pt")
    with pytest.raises(BadInputError, match=r"unexpected \(head.weight, module.0.bias, module.0.weight"):
        load_checkpoint(network(1), tmp_path / "net.pt")
