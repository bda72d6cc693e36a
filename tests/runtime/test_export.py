import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.graph import remove, trace
from amcsearch.runtime import export
from amcsearch.runtime.comparison import compare
from amcsearch.runtime.export import EXPORTERS, exported
from amcsearch.runtime.session import OnnxModule
from amcsearch.runtime.torch_programs import program_module, torch_program


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens):
        return {"tokens": tokens, "states": self.encoder(self.embed(tokens))}


class Untraceable(nn.Module):
    def forward(self, x):
        raise RuntimeError("no way through")


@pytest.mark.parametrize("name", list(EXPORTERS))
def test_both_exporters_give_the_network_and_its_module_names(name, monkeypatch):
    monkeypatch.setattr(export, "EXPORTERS", {name: EXPORTERS[name]})
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    content = exported(model, torch.zeros(2, 1, 8, 8))
    assert compare(model, OnnxModule(content), torch.randn(4, 1, 8, 8)).max_abs < 1e-5
    names = [n.name for n in onnx.load_from_string(content).graph.node]
    assert any(n.startswith("/network/") and "4" in n.split("/")[2] for n in names)


def test_mappings_tokens_and_dropout():
    model, tokens = Tokens(), torch.randint(0, 11, (2, 5))
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = exported(model, tokens)
    assert model.training
    assert model.encoder.layers[0].dropout.training
    assert torch.backends.mha.get_fastpath_enabled()
    assert compare(model, OnnxModule(content), tokens).max_abs < 1e-5
    graph = onnx.load_from_string(content).graph
    assert [i.name for i in graph.input] == ["input"]  # weights are initializers, else the fast layout is off
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


class Residual(nn.Module):
    def __init__(self, bias, norm):
        super().__init__()
        self.stem, self.up, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 5, 3)
        self.down = nn.Sequential(nn.Conv2d(6, 8, 1, bias=bias), *([nn.BatchNorm2d(8)] if norm else []))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.down(torch.relu(self.up(x)))))


def without_branch(bias, norm, x):
    torch.manual_seed(0)
    model = Residual(bias, norm).eval()
    if norm:
        nn.init.uniform_(model.down[1].bias, 0.5, 1.5)
    return remove(model, trace(model, x), {"up": np.zeros(0, dtype=np.int64)})


@pytest.mark.parametrize(("bias", "norm", "additions"), [(False, False, 0), (True, False, 1), (False, True, 1)])
def test_of_a_branch_that_is_gone_only_a_constant_is_left(bias, norm, additions):
    """1 · x + c by a convolution of single channels: the blocked layout has no addition of a constant."""
    x = torch.randn(1, 3, 8, 8)
    small = without_branch(bias, norm, x)
    content = exported(small, x)
    graph = onnx.load_from_string(content).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds == ["Conv", "Relu", *["Constant", "ConstantOfShape", "Conv"] * additions, "Relu", "Conv"]
    assert len(graph.initializer) == 4 + additions  # the ones are no weight of the file
    for node in graph.node[4:5] * additions:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"group": 8, "kernel_shape": [1, 1]}
    assert compare(small, OnnxModule(content), x).max_abs < 1e-5


def test_maps_of_any_number_of_samples_take_the_constant():
    small = without_branch(True, True, torch.randn(1, 3, 8, 8))
    content = exported(small, torch.zeros(2, 3, 8, 8), export.OnnxSettings(dynamic={"batch": 0}))
    assert "ConstantOfShape" in [node.op_type for node in onnx.load_from_string(content).graph.node]
    for n in (1, 5):
        assert compare(small, OnnxModule(content), torch.randn(n, 3, 8, 8)).max_abs < 1e-5


def test_a_difference_is_seen():
    model = nn.Linear(2, 1, bias=False)
    content = exported(model, torch.zeros(1, 2))
    with torch.no_grad():
        model.weight += 0.5
    assert compare(model, OnnxModule(content), torch.tensor([[1.0, 1.0], [2.0, 2.0]])).max_abs == pytest.approx(2.0)


def test_a_file_of_a_fixed_batch_takes_any_number_of_samples():
    model = nn.Linear(2, 1)
    assert compare(model, OnnxModule(exported(model, torch.zeros(2, 2))), torch.randn(3, 2)).max_abs < 1e-6
    with pytest.raises(BadInputError, match="0 samples were compared"):
        compare(model, model, torch.zeros(0, 2))


class Fixed(nn.Module):
    """Two samples, no more and no less."""

    def forward(self, x):
        return x.reshape(2, 3).cumsum(1)


@pytest.mark.parametrize("model", [nn.Linear(3, 2), Fixed()], ids=["free batch", "fixed batch"])
def test_a_program_is_read_back_for_any_number_of_samples(model, tmp_path):
    path, inputs = tmp_path / "program.pt2", torch.arange(15.0).reshape(5, 3)
    path.write_bytes(torch_program(model, inputs[:2]))
    expected = inputs.cumsum(1) if isinstance(model, Fixed) else model(inputs).detach()
    program = program_module(path).eval()
    torch.testing.assert_close(program(inputs).detach(), expected)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInputError, match="cannot read"):
        program_module(path)


def test_modules_that_cannot_be_traced():
    with pytest.raises(BadInputError, match=r"cannot export Untraceable to ONNX .*no way through"):
        exported(Untraceable(), torch.zeros(1, 2))


class Linear(nn.Module):
    """x + branch(x) of what a convolution writes, and again, and ``reads`` more of it."""

    def __init__(self, reads):
        super().__init__()
        self.stem, self.head, self.reads = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), reads
        self.one, self.two = (nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1)) for _ in range(2))

    def forward(self, x):
        first = self.stem(x)
        x = first + self.one(first)
        x = x + self.two(x)
        return self.head(torch.relu(x * first if self.reads else x))


@pytest.mark.parametrize(
    ("reads", "kinds"),
    [
        (False, ["Conv", "Add", "Add", "Relu", "Conv"]),
        (True, ["Conv", *["Constant", "ConstantOfShape", "Conv"] * 2, "Mul", "Relu", "Conv"]),
    ],
)
def test_constants_that_the_runtime_folds_into_the_convolution_before_them_stay_additions(reads, kinds):
    model, x = Linear(reads).eval(), torch.randn(1, 3, 8, 8)
    small = remove(model, trace(model, x), dict.fromkeys(["one.0", "two.0"], np.zeros(0, dtype=np.int64)))
    content = exported(small, x)
    assert [node.op_type for node in onnx.load_from_string(content).graph.node] == kinds
    assert compare(small, OnnxModule(content), x).max_abs < 1e-5


class Tall(nn.Module):
    """An activation of x + branch(x) of tokens (N, 8, 3)."""

    def __init__(self):
        super().__init__()
        self.first, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.first(x).relu()
        return (x + self.down(self.up(x).relu())).relu()


def test_a_constant_is_added_to_tokens_by_an_addition():
    model, x = Tall().eval(), torch.randn(2, 8, 3)
    small = remove(model, trace(model, x[:1]), {"up": np.zeros(0, dtype=np.int64)})
    content = exported(small, x)
    assert "Conv" not in [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert compare(small, OnnxModule(content), x).max_abs < 1e-6
