"""Memory costs beside the delivered file: bytes of its initialisers, and what is live as its nodes run in order."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from amcsearch.core import PruningPolicy
from amcsearch.costs import CostGrid, ModelBytes, Params, PeakMemory
from amcsearch.graph import as_batch, remove, trace
from amcsearch.runtime import OnnxModule, compare, exported
from amcsearch.runtime.quantisation.quantisation import quantised
from amcsearch.training.models import language_model, mobilenetv2, resnet20, vgg, vit

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose")
IMAGE = torch.zeros(1, 1, 16, 16)
NETWORKS = {
    "resnet20": (lambda: resnet20(), IMAGE),
    "mobilenetv2": (lambda: mobilenetv2(), IMAGE),
    "vgg": (lambda: vgg(width=4, input_size=16), IMAGE),
    "vit": (lambda: vit(image_size=16, depth=2), IMAGE),
    "language_model": (lambda: language_model(depth=2), torch.arange(64)[None]),
    "tied": (lambda: language_model(depth=1, tie_embeddings=True), torch.arange(64)[None]),
}


def varied(make, x):
    """A network with distinct numbers everywhere, and its trace."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():  # equal vectors would be stored once
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
    return trace(model, x), model


def halved(name):
    """A network's shapes, half of every group, and what is left of it."""
    make, x = NETWORKS[name]
    traced, model = varied(make, x)
    kept = {key: np.sort(units[: (len(units) + 1) // 2].ravel()) for key, units in traced.units.items()}
    policy = PruningPolicy({key: len(index) for key, index in kept.items()})
    return traced.network, policy, remove(model, traced, kept).eval(), x


def initialiser_bytes(content):
    return sum(numpy_helper.to_array(x).nbytes for x in onnx.load_from_string(content).graph.initializer)


def peak_of_file(content, x):
    """Largest sum of live tensors over the nodes that depend on the input, in the order of the file."""
    graph, shown = onnx.load_from_string(content).graph, onnx.load_from_string(content)
    outputs = {value.name for value in graph.output}
    hidden = [name for node in graph.node for name in node.output if name and name not in outputs]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in hidden)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run(None, {graph.input[0].name: x.numpy()})
    sizes = {value.name: array.nbytes for value, array in zip(session.get_outputs(), arrays, strict=True)}
    sizes[graph.input[0].name] = x.numpy().nbytes
    lies_in, first, last, moment = {}, {graph.input[0].name: 0}, {}, 0
    for node in graph.node:
        reads = [lies_in.get(name, name) for name in node.input]
        reads = [name for name in reads if name in first]
        if not reads:
            continue
        if node.op_type in VIEWS:
            lies_in[node.output[0]] = reads[0]
            continue
        first |= dict.fromkeys(node.output, moment)
        last |= dict.fromkeys([*reads, *node.output], moment)
        moment += 1
    live = np.zeros(moment)
    for name in first:
        until = moment - 1 if name in outputs or name in {lies_in.get(output) for output in outputs} else last[name]
        live[first[name] : until + 1] += sizes[name]
    return float(live.max())


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_are_those_of_the_delivered_file(name):
    network, policy, small, x = halved(name)
    cost = CostGrid(network, [ModelBytes(), PeakMemory(network)]).cost(policy)
    content = exported(small, x)
    assert cost["model_bytes"] == pytest.approx(initialiser_bytes(content), abs=64)
    assert cost["peak_memory_bytes"] == peak_of_file(content, x)


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vit", "language_model"])
def test_costs_of_a_file_without_blocks_that_can_vanish(name):
    make, x = NETWORKS[name]
    traced, model = varied(make, x)
    assert traced.vanishing
    grid = CostGrid(traced.network, [ModelBytes(), PeakMemory(traced.network)])
    rng = np.random.default_rng(0)
    half = [group for group in traced.vanishing if rng.random() < 0.5]
    for gone, shares in ((list(traced.vanishing), 1), (half, 2)):
        kept = {key: np.sort(units[: (len(units) + 1) // shares].ravel()) for key, units in traced.units.items()}
        kept |= dict.fromkeys(gone, np.zeros(0, dtype=np.int64))
        small = remove(model, traced, kept).eval()
        cost = grid.cost(PruningPolicy({key: len(index) for key, index in kept.items()}))
        content = exported(small, x)
        assert cost["model_bytes"] == pytest.approx(initialiser_bytes(content), abs=64)
        assert cost["peak_memory_bytes"] == peak_of_file(content, x)
        assert compare(small, OnnxModule(content), x).relative < 1e-5


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2", "vit"])
def test_bytes_of_an_int8_file_are_those_of_integers_with_their_scales(name):
    network, policy, small, x = halved(name)
    cost = CostGrid(network, [ModelBytes("int8")]).cost(policy)
    samples = as_batch(torch.rand(4, *x.shape[1:]))
    content = quantised(exported(small, x), [samples])
    assert cost["model_bytes"] == pytest.approx(initialiser_bytes(content), rel=0.03)


class HeadForTraining(torch.nn.Module):
    """Four inputs, eight units, two outputs; a second head takes part only in training."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = (torch.nn.Linear(*widths) for widths in ((4, 8), (8, 2), (8, 16)))

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return (self.head(hidden), self.auxiliary(hidden)) if self.training else self.head(hidden)


@pytest.mark.parametrize(("dtype", "dense", "halved_bytes"), [("float32", 232.0, 120.0), ("int8", 178.0, 102.0)])
def test_a_head_for_training_takes_no_bytes_of_the_file(dtype, dense, halved_bytes):
    x = torch.ones(1, 4)
    traced, model = varied(HeadForTraining, x)
    # float32: 4 · (4·8 + 8 + 8·2 + 2); int8: 48 weights, and 13 bytes an output: a scale, a zero point, a bias of 8
    grid = CostGrid(traced.network, [ModelBytes(dtype), Params()])
    assert grid.cost(traced.network.dense)["model_bytes"] == dense
    assert grid.cost(traced.network.dense)["params"] == 58 + 8 * 16 + 16  # the network in torch has them
    ((name, units),) = traced.units.items()
    half = grid.cost(PruningPolicy({name: 4}))
    assert half["model_bytes"] == halved_bytes
    small = remove(model, traced, {name: np.sort(units[:4].ravel())}).eval()
    assert sum(p.numel() for p in small.parameters()) == 30 + 4 * 16 + 16
    if dtype == "float32":
        assert initialiser_bytes(exported(small, x)) == halved_bytes
