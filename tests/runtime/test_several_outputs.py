"""Networks of several inputs and outputs: names, files with every output, axes that are free, int8, and comparisons."""

import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from amcsearch.core.errors import BadInputError
from amcsearch.graph.batch import Batch
from amcsearch.runtime.comparison import Compared, InBatches, compare
from amcsearch.runtime.export import EXPORTERS, OnnxSettings, exported
from amcsearch.runtime.on_device.session import bound_call
from amcsearch.runtime.paired_latency import measure_many
from amcsearch.runtime.quantisation.quantisation import quantised
from amcsearch.runtime.session import OnnxModule, make_session
from amcsearch.runtime.signature import arrays_of, signature_of
from amcsearch.runtime.torch_programs import program_module, torch_program


@dataclass
class Found:
    scores: Tensor
    box: Tensor


Pair = namedtuple("Pair", "scores box")

HOW = {
    "tuple": (lambda a, b: (a, b), ["output_0", "output_1"]),
    "list": (lambda a, b: [a, b], ["output_0", "output_1"]),
    "dict": (lambda a, b: {"scores": a, "box": b}, ["scores", "box"]),
    "ordered": (lambda a, b: OrderedDict(scores=a, box=b), ["scores", "box"]),
    "dataclass": (Found, ["scores", "box"]),
    "named tuple": (Pair, ["scores", "box"]),
    "nested": (lambda a, b: {"heads": {"scores": a, "box": b}, "none": None}, ["heads_scores", "heads_box"]),
    "listed": (lambda a, b: [[a, b]], ["output_0_0", "output_0_1"]),
    "clash": (lambda a, b: {"input": a, "a.b": b, "a_b": b}, ["output_input", "a_b", "a_b_"]),
}


class Heads(nn.Module):
    """scores = 2x, box = x + 1, for x (N, 2)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.scores, self.box = nn.Linear(2, 2), nn.Linear(2, 2)
        with torch.no_grad():
            self.scores.weight.copy_(2 * torch.eye(2)), self.scores.bias.zero_()
            self.box.weight.copy_(torch.eye(2)), self.box.bias.fill_(1.0)

    def forward(self, x: Tensor) -> object:
        return HOW[self.how][0](self.scores(x), self.box(x))


@pytest.mark.parametrize("how", list(HOW))
def test_every_output_is_in_the_file_and_comes_back_as_the_network_gives_it(how, tmp_path):
    model, x = Heads(how), torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]])
    content, signature = exported(model, x[:1]), signature_of(model, x[:1])
    session = ort.InferenceSession(content)
    assert [port.name for port in session.get_inputs()] == ["input"]
    assert [port.name for port in session.get_outputs()] == HOW[how][1] == list(signature.outputs)
    scores, box, *_ = session.run(None, {"input": x[:1].numpy()})
    assert (scores.tolist(), box.tolist()) == ([[2.0, 4.0]], [[2.0, 3.0]])
    file = OnnxModule(content, signature=signature)
    output = file(x)  # three calls of one sample
    assert type(output) is type(model(x))
    assert compare(model, file, x).max_abs == 0.0
    path = tmp_path / "program.pt2"
    path.write_bytes(torch_program(model, x[:1]))
    assert compare(model, program_module(path, signature), x).max_abs == 0.0
    assert type(torch.export.load(path).module()(x)) in (tuple, list, dict)


@pytest.mark.parametrize("how", ["dataclass", "nested"])
def test_a_difference_in_any_output_is_seen_and_named(how):
    model, x = Heads(how), torch.ones(4, 2)
    content, signature = exported(model, x[:1]), signature_of(model, x[:1])
    with torch.no_grad():
        model.box.bias += 1.0  # box is 3 in torch, 2 in the file
    result = compare(model, OnnxModule(content, signature=signature), x)
    assert (result.max_abs, result.relative, result.beyond) == (1.0, pytest.approx(1 / 3), 4)
    assert result.output.endswith("box")
    assert f"of the outputs' scale (output {result.output}), at most 0.001" in result.problem
    only_scores = compare(model, Constant(model(x)["heads"]["scores"] if how == "nested" else model(x).scores), x)
    assert only_scores.relative == float("inf")  # an output that is not there differs


class Constant(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


def test_integers_are_compared_as_predictions():
    ours = {"scores": torch.ones(4, 2), "ids": torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])}
    theirs = {"scores": torch.ones(4, 2), "ids": torch.tensor([[1, 2], [3, 9], [5, 9], [9, 9]])}
    result = compare(Constant(ours), Constant(theirs), torch.zeros(4, 1), labels=False)
    assert (result.max_abs, result.changed, result.predictions) == (0.0, 4, 8)
    assert result.problem == "changes 4 of 8 predictions, at most 1% is allowed"


class Sequences(nn.Module):
    """Two trees of inputs, positional and by keyword; hidden states whose samples are on axis 1; integers; a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.extra = nn.LSTM(3, 5, batch_first=True), nn.Linear(2, 5)

    def forward(self, signal: dict[str, Tensor], unused: Tensor, *, extra: Tensor, mask: Tensor) -> dict[str, object]:
        states, hidden = self.lstm(signal["x"])
        states = (states + self.extra(extra)[:, None]) * mask[..., None]
        return {"states": states, "hidden": hidden, "ids": states.argmax(-1), "mask": mask, "one": states.sum() * 0 + 1}


def sequences(count: int, length: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(count)
    x, unused = torch.randn(count, length, 3, generator=generator), torch.zeros(count, 1)
    mask = torch.rand(count, length, generator=generator) > 0.3
    return Batch(({"x": x}, unused), {"extra": torch.randn(count, 2, generator=generator), "mask": mask}, None, count)


INPUTS = ["signal_x", "unused", "extra", "mask"]
OUTPUTS = ["states", "hidden_0", "hidden_1", "ids", "output_mask", "one"]


def test_trees_of_inputs_by_hand():
    signature = signature_of(Sequences(), sequences(1))
    assert list(signature.inputs) == INPUTS
    assert list(signature.outputs) == OUTPUTS
    assert signature.axes == (0, 1, 1, 0, 0, None)


def test_inputs_by_position_are_named_as_the_parameters_of_forward():
    class Any(nn.Module):
        def forward(self, image: Tensor, output: Tensor, *args: Tensor) -> Tensor:
            return image + output + args[0]

    x = torch.ones(1, 2)
    signature = signature_of(Any(), Batch((x, x, x), {}))
    assert signature.inputs == ("image", "output", "input_2")
    assert signature.outputs == ("output_output",)


def test_files_of_several_inputs_give_every_output_for_any_number_of_samples():
    torch.manual_seed(0)
    model = Sequences().eval()
    content, signature = exported(model, sequences(1)), signature_of(model, sequences(1))
    assert [port.name for port in make_session(content).get_inputs()] == INPUTS
    file = OnnxModule(content, signature=signature)
    result = compare(InBatches(model, 1, signature), file, [sequences(5)], labels=False)
    assert result.problem is None
    assert (result.samples, result.predictions) == (5, 5 * 6 + 5 * 6)  # ids and the mask
    output = file(*sequences(5).args, **sequences(5).kwargs)
    assert output["hidden"][0].shape == (1, 5, 5)
    assert output["one"].tolist() == [1.0] * 5  # one a call
    program = InBatches(model, 2, signature)
    assert compare(model, program, [sequences(4)], labels=False).problem is None  # "one" is left out: two calls


@pytest.mark.parametrize("name", list(EXPORTERS))
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_a_free_batch_takes_any_number_in_one_call(name, samples, monkeypatch):
    from amcsearch.runtime import export

    monkeypatch.setattr(export, "EXPORTERS", {name: EXPORTERS[name]})
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    session = make_session(exported(model, torch.zeros(1, 1, 8, 8), OnnxSettings(dynamic={"batch": 0})))
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    x = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (output,) = session.run(None, {"input": x.numpy()})
    np.testing.assert_allclose(output, model(x).detach().numpy(), atol=1e-6)


def test_named_axes_of_several_inputs_are_free():
    model = Sequences().eval()
    free = OnnxSettings(dynamic={"batch": 0, "sequence": {"signal_x": 1, "mask": 1}})
    content, signature = exported(model, sequences(1), free), signature_of(model, sequences(1))
    session = make_session(content)
    shapes = {port.name: port.shape for port in session.get_inputs()}
    assert (shapes["signal_x"], shapes["mask"]) == (["batch", "sequence", 3], ["batch", "sequence"])
    assert session.get_outputs()[1].shape == [1, "batch", 5]
    for count, length in ((1, 6), (3, 2), (8, 11)):
        batch = sequences(count, length)
        assert compare(model, OnnxModule(content, signature=signature), [batch], labels=False).problem is None


class Tagger(nn.Module):
    """Scores of every position, by keywords, in a data class."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(2, 4)

    def forward(self, signal: Tensor, mask: Tensor | None = None, **options: object) -> Found:
        scores = self.scores(signal)
        return Found(scores, scores if mask is None else scores * mask[..., None])


def test_a_program_of_keywords_and_a_data_class_has_free_axes(tmp_path):
    def batch(samples: int, length: int) -> Batch:
        return Batch(
            (), {"signal": torch.randn(samples, length, 2), "mask": torch.ones(samples, length)}, None, samples
        )

    model, example = Tagger().eval(), batch(1, 6)
    path = tmp_path / "program.pt2"
    path.write_bytes(torch_program(model, example, [{1}, {1}]))
    for samples, length in ((1, 6), (3, 2), (8, 11)):
        program = program_module(path, signature_of(model, example))
        assert compare(model, program, [batch(samples, length)], labels=False).max_abs == 0.0


class ReadsSize(nn.Module):
    """Computes with the number of samples as a number of Python: an exporter writes that number down."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.zeros((len(x), 1), np.float32)) + x


class Fixed(nn.Module):
    """Two samples, no more and no less."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3) * 2


def test_a_batch_that_an_exporter_writes_down_is_not_called_free():
    free = OnnxSettings(dynamic={"batch": 0})
    file = make_session(exported(ReadsSize(), torch.ones(1, 2), free))
    assert file.run(None, {"input": np.ones((5, 2), np.float32)})[0].shape == (5, 2)
    with pytest.raises(BadInputError, match=r"cannot export Fixed to ONNX.*free fewer by device\.export\.dynamic"):
        exported(Fixed(), torch.ones(2, 3), free)


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"time": 3}, r"dynamic.time = 3: no input has such an axis: \{'input': \(1, 2\)\}"),
        ({"time": {"x": 1}}, r"dynamic.time: the network has no input 'x'; it has \['input'\]"),
    ],
)
def test_axes_that_no_input_has(dynamic, message):
    with pytest.raises(BadInputError, match=message):
        exported(nn.Linear(2, 2), torch.zeros(1, 2), OnnxSettings(dynamic=dynamic))


def test_the_opset_is_the_one_asked_for():
    content = exported(nn.Linear(2, 2), torch.zeros(1, 2), OnnxSettings(opset=17))
    assert [entry.version for entry in onnx.load_from_string(content).opset_import if not entry.domain] == [17]


class Two(nn.Module):
    """y = ([1, 2]·a, [3]·b), for a (N, 2) and b (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0, 2.0]])), self.b.weight.fill_(3.0)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.a(a), self.b(b)], 1)


def two(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        (torch.randn(count, 2, generator=generator), torch.randn(count, 1, generator=generator)), {}, None, count
    )


def test_int8_calibrates_on_batches_of_two_inputs():
    model, batch = Two(), two(64)
    content = quantised(exported(model, two(2)), [batch.chosen(range(32)), batch.chosen(range(32, 64))])
    operators = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert operators.count("QuantizeLinear") >= 2  # both inputs
    expected = batch.through(model)
    error = (batch.through(OnnxModule(content)) - expected).detach().abs().max() / expected.abs().max()
    assert 0.0 < float(error) < 0.05


def test_timing_feeds_every_input():
    dense = exported(Two(), two(1))
    (latency,) = measure_many(dense, [dense], arrays_of(two(1)), rounds=2, min_ms=0.1)
    assert latency.rounds >= 1
    with pytest.raises(BadInputError, match="the model has 2 inputs, 1 were given"):
        measure_many(dense, [dense], arrays_of(two(1))[:1], rounds=2, min_ms=0.1)
    bound_call(make_session(dense), arrays_of(two(1)))()
    with pytest.raises(BadInputError, match=r"it has 2 inputs \(a, b\), 1 were given"):
        OnnxModule(dense)(torch.zeros(1, 2))


class Chatty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sys.stdout.write(f"forward of {tuple(x.shape)}")
        return x + 1


def test_exporters_and_networks_that_print_leave_standard_output_alone(capfd):
    exported(nn.Sequential(Chatty(), nn.Linear(2, 2)), torch.zeros(1, 2))
    torch_program(nn.Sequential(Chatty(), nn.Linear(2, 2)), torch.zeros(1, 2))
    assert capfd.readouterr().out == ""


def test_a_network_without_a_tensor_is_refused():
    with pytest.raises(BadInputError, match="returns a NoneType without a tensor"):
        signature_of(Constant(None), torch.zeros(1, 2))
    with pytest.raises(BadInputError, match="returns a NoneType without a tensor"):
        Compared(nn.Identity(), Constant(None))(torch.zeros(1, 2))
