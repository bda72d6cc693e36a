import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from amcsearch.runtime.attribution import (
    LayerTime,
    _module_path,
    attribute_profile,
    optimised_owners,
    original_owners,
    profile_layers,
)
from amcsearch.runtime.onnx_export import exported


def graph_of(nodes, initializers=()):
    tensors = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in initializers]
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, "g", [x], [helper.make_empty_tensor_value_info(nodes[-1].output[0])], tensors)


def node(op, name, inputs, output):
    return helper.make_node(op, inputs, [output], name=name)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/network/stem/Conv", "stem"),
        ("/network/blocks/blocks.0/conv1/Conv", "blocks.0.conv1"),
        ("/network/features/features.1/conv/conv.0/conv.0.0/Conv", "features.1.conv.0.0"),
        ("/network/blocks/0/conv1/Conv.17", "blocks.0.conv1"),
        ("/network/stem_1/Conv", "stem"),
        ("/network/blocks/blocks.0/act/Relu", "blocks.0"),
        ("/network/Add", ""),
        ("Identity_3", ""),
    ],
)
def test_module_paths_of_both_exporters(name, path):
    known = {"stem", "blocks", "blocks.0", "blocks.0.conv1", "features", "features.1", "features.1.conv"}
    known |= {"features.1.conv.0", "features.1.conv.0.0"}
    assert _module_path(name, known) == path


def test_nodes_without_a_layer_belong_to_the_layer_they_follow_or_feed():
    graph = graph_of(
        [
            node("Cast", "/network/Cast", ["input"], "c"),
            node("Conv", "/network/a/Conv", ["c", "wa"], "a"),
            node("Relu", "/network/Relu", ["a"], "r"),
            node("Conv", "/network/b/Conv", ["r", "wb"], "b"),
            node("Add", "/network/Add", ["b", "a"], "s"),
            node("GlobalAveragePool", "/network/Pool", ["s"], "p"),
        ]
    )
    owners = original_owners(graph, ["a", "b"])
    assert [owners[n.name] for n in graph.node] == ["a", "a", "a", "b", "b", "b"]
    assert owners["s"] == "b"


def test_a_layer_called_without_its_module_is_known_by_its_weight():
    graph = graph_of(
        [
            node("Transpose", "/network/Transpose", ["network.proj.weight"], "t"),
            node("MatMul", "/network/MatMul", ["input", "t"], "m"),
            node("Gather", "/network/Gather", ["network.token", "m"], "g"),
            node("Gemm", "/network/attn/Gemm", ["g", "network.attn.out.weight"], "o"),
        ],
        ["network.proj.weight", "network.token", "network.attn.out.weight"],
    )
    owners = original_owners(graph, ["proj", "token", "attn", "attn.out"])
    assert [owners[n.name] for n in graph.node] == ["proj", "proj", "token", "attn.out"]


def test_nodes_of_the_optimised_graph_are_found_by_name_then_by_tensor_then_by_what_they_follow():
    owners = {"/network/a/Conv_output_0": "a", "/network/b/MatMul": "b", "/network/c_output_0": "c"}
    graph = graph_of(
        [
            node("ReorderInput", "ReorderInput", ["input"], "t0"),
            node("Conv", "/network/a/Conv_output_0_nchwc", ["t0"], "t1"),
            node("ReorderOutput", "ReorderOutput", ["t1"], "t2"),
            node("Gemm", "/network/b/MatMul/MatMulAddFusion", ["t2"], "t3"),
            node("SkipLayerNormalization", "SkipLayerNormalization", ["t3"], "/network/c_output_0"),
        ]
    )
    assert optimised_owners(graph, owners) == ["a", "a", "a", "b", "c"]


def event(name, us):
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {}}


END = {"cat": "Session", "name": "model_run", "dur": 99, "args": {}}


def test_each_microsecond_goes_to_one_layer_and_the_sum_is_kept():
    nodes = [node("Conv", "x", [], "1"), node("ReorderOutput", "R", ["1"], "2"), node("ReorderOutput", "R", [], "3")]
    one_run = [event("x", 10), event("R", 3), event("R", 5), END]
    result = attribute_profile(one_run * 4, nodes, ["a", "a", "b"], skip=1)
    assert result == {"a": LayerTime(pytest.approx(0.013), 2), "b": LayerTime(pytest.approx(0.005), 1)}


def test_first_runs_are_skipped_and_only_the_fastest_quarter_counts():
    nodes = [node("Conv", "x", [], "1"), node("Relu", "y", ["1"], "2")]
    runs = [(1, 1), (90, 5), (10, 4), (10, 30), (11, 5), (50, 50), (80, 80), (70, 70), (60, 60)]
    events = [e for x, y in runs for e in (event("x", x), event("y", y), END)]
    result = attribute_profile(events, nodes, ["a", "b"], skip=1)  # of eight runs (10, 4) and (11, 5) are the fastest
    assert result["a"].profiled_ms == pytest.approx(0.0105)
    assert result["b"].profiled_ms == pytest.approx(0.0045)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.conv(x)))
        return self.fc(x.mean((2, 3)))


def test_a_fused_residual_network_is_shared_out_completely():
    model = exported(Residual(), torch.zeros(1, 3, 8, 8))
    layers = ["stem", "conv", "norm", "fc"]
    x = np.zeros((1, 3, 8, 8), np.float32)
    first, times = profile_layers([model] * 2, [layers] * 2, x, threads=1, rounds=2, rng=np.random.default_rng(0))
    assert set(first) == set(times)
    assert set(times) == {"stem", "conv", "fc"}  # the batch norm is folded into its convolution
    assert all(time.nodes >= 1 and time.profiled_ms >= 0 for time in times.values())


def test_the_exported_graph_names_every_layer():
    proto = onnx.load_from_string(exported(Residual(), torch.zeros(1, 3, 8, 8)))
    owners = original_owners(proto.graph, ["stem", "conv", "norm", "fc"])
    computing = [n for n in proto.graph.node if n.op_type not in {"Identity", "Constant"}]
    assert all(n.name in owners for n in computing)
    assert {owners[n.name] for n in computing if n.op_type in {"Conv", "Gemm"}} == {"stem", "conv", "fc"}
