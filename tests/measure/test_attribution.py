import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from amcsearch.core.layer import LayerKind
from amcsearch.core.policy import PruningPolicy
from amcsearch.graph.removal import remove
from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.build.attribution import (
    KernelRun,
    _module_path,
    kernel_name,
    kernel_runs,
    optimised_owners,
    original_owners,
)
from amcsearch.measure.plan.variants import random_kept
from amcsearch.runtime.export import exported
from amcsearch.runtime.on_device.program import ExecutedNode, profile_models
from amcsearch.runtime.on_device.session import optimised_model
from amcsearch.runtime.session import detect_nchwc_block
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20
from amcsearch.training.models.transformer import vit


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


def test_products_inside_a_module_are_its_products_of_maps_in_order():
    """Scores, an activation and sums by scores; a third product of the same shapes is counted with the last."""
    graph = graph_of(
        [
            node("MatMul", "/network/block/q/MatMul", ["input", "q.weight"], "q"),
            node("Transpose", "/network/block/Transpose", ["q"], "k"),
            node("MatMul", "/network/block/MatMul", ["q", "k"], "scores"),
            node("Relu", "/network/block/Relu", ["scores"], "positive"),
            node("MatMul", "/network/block/MatMul_1", ["positive", "q"], "sums"),
            node("Einsum", "/network/block/Einsum", ["positive", "sums"], "more"),
            node("MatMul", "/network/block/o/MatMul", ["more", "o.weight"], "output"),
        ],
        ["q.weight", "o.weight"],
    )
    layers = ["block.q", "block.product#2", "block.product", "block.o"]
    owners = original_owners(graph, layers)
    assert [owners[each.name] for each in graph.node] == [
        *("block.q", "block.q", "block.product", "block.product", "block.product#2", "block.product#2", "block.o")
    ]


@pytest.mark.parametrize("name", ["linear", "relu", "covariance"])
def test_the_time_of_products_of_maps_is_theirs(name, products_of_maps):
    model, x = products_of_maps.NETWORKS[name]().eval(), products_of_maps.EXAMPLE
    content, layers = exported(model, x), trace(model, x, verify=False).network.layers
    names = [layer.name for layer in layers]
    owners = original_owners(onnx.load_from_string(content).graph, names)
    runs = kernel_runs(onnx.load_from_string(optimised_model(content)).graph, owners)
    multiplying = [run.layer for run in runs if "MatMul" in run.kernel]
    products = {each for each in names if "product" in each}
    assert [each for each in multiplying if each in products] == sorted(products)


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


def test_kernel_names_hold_what_is_fused():
    conv = node("Conv", "c", ["x", "w", "b", "sum"], "y")
    conv.domain = "com.microsoft.nchwc"
    conv.attribute.append(helper.make_attribute("activation", "Relu"))
    assert kernel_name(conv) == "nchwc.Conv+Relu+Add"
    plain = node("FusedConv", "c", ["x", "w", "b"], "y")
    plain.domain = "com.microsoft"
    assert kernel_name(plain) == "ms.FusedConv"
    assert kernel_name(node("Conv", "c", ["x", "w", "b", ""], "y")) == "Conv"
    elsewhere = node("Conv", "c", ["x", "w"], "y")
    elsewhere.domain = "org.acme"
    assert kernel_name(elsewhere) == "org.acme.Conv"


def test_every_node_of_a_profile_is_a_kernel_of_one_layer():
    graph = graph_of(
        [
            node("Conv", "/network/a/Conv", ["input"], "a"),
            node("ReorderOutput", "ReorderOutput", ["a"], "r"),
            node("Gemm", "/network/b/Gemm", ["r"], "b"),
        ]
    )
    owners = {"/network/a/Conv": "a", "/network/b/Gemm": "b"}
    names = {
        "/network/a/Conv": "Conv",
        "ReorderOutput": "ReorderOutput",
        "MyFusion": "Tuned",
        "/network/b/Gemm": "Gemm",
    }
    profile = [ExecutedNode(name, op_type, 500.0, [], []) for name, op_type in names.items()]
    assert kernel_runs(graph, owners, profile) == [
        KernelRun("a", "Conv", 0.5),
        KernelRun("a", "ReorderOutput", 0.5),
        KernelRun("a", "Tuned", 0.5),  # in the profile alone: a provider's own
        KernelRun("b", "Gemm", 0.5),
    ]
    assert kernel_runs(graph, owners) == [
        KernelRun("a", "Conv", 0.0),
        KernelRun("a", "ReorderOutput", 0.0),
        KernelRun("b", "Gemm", 0.0),
    ]


def test_inserted_nodes_of_a_profile_are_told_by_when_they_ran_and_not_by_their_names():
    graph = graph_of(
        [
            node("Conv", "/network/a/Conv", ["input"], "a"),
            node("ReorderOutput", "ReorderOutput", ["a"], "ra"),
            node("Conv", "/network/b/Conv", ["ra"], "b"),
            node("ReorderOutput", "ReorderOutput_token_1", ["b"], "rb"),
            node("Conv", "/network/c/Conv", ["rb"], "c"),
            node("ReorderOutput", "ReorderOutput_token_2", ["c"], "rc"),
        ]
    )
    owners = {f"/network/{name}/Conv": name for name in "abc"}
    took_us = {
        "/network/a/Conv": 10.0,
        "ReorderOutput_token_2": 1.0,
        "/network/b/Conv": 20.0,
        "ReorderOutput": 2.0,
        "/network/c/Conv": 30.0,
        "ReorderOutput_token_1": 3.0,
    }
    profile = [
        ExecutedNode(name, "Conv" if "Conv" in name else "ReorderOutput", us, [], []) for name, us in took_us.items()
    ]
    assert [(run.layer, run.profiled_ms * 1e3) for run in kernel_runs(graph, owners, profile)] == [
        *[("a", 10.0), ("a", 1.0), ("b", 20.0), ("b", 2.0), ("c", 30.0), ("c", 3.0)]
    ]


def test_inserted_nodes_of_branches_are_told_by_their_shapes():
    graph = graph_of(
        [
            node("Conv", "/network/a/Conv", ["input"], "a"),
            node("Conv", "/network/b/Conv", ["input"], "b"),
            node("ReorderOutput", "ReorderOutput", ["a"], "ra"),
            node("ReorderOutput", "ReorderOutput_token_1", ["b"], "rb"),
            node("Concat", "/network/Concat", ["ra", "rb"], "c"),
        ]
    )
    owners = {"/network/a/Conv": "a", "/network/b/Conv": "b", "/network/Concat": "b"}
    wide, narrow = [[1, 32, 8, 8]], [[1, 16, 8, 8]]
    profile = [
        ExecutedNode("/network/a/Conv", "Conv", 10.0, [], wide),
        ExecutedNode("/network/b/Conv", "Conv", 20.0, [], narrow),
        ExecutedNode("ReorderOutput", "ReorderOutput", 2.0, narrow, [[1, 9, 8, 8]]),
        ExecutedNode("ReorderOutput_token_1", "ReorderOutput", 1.0, wide, [[1, 31, 8, 8]]),
        ExecutedNode("/network/Concat", "Concat", 5.0, [], []),
    ]
    assert [run.layer for run in kernel_runs(graph, owners, profile)] == ["a", "b", "b", "a", "b"]


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


def runs_of(model, x, layers):
    """Kernels of the graph that the runtime makes of a module, each with its layer."""
    exported_model = exported(model, x)
    owners = original_owners(onnx.load_from_string(exported_model).graph, layers)
    return kernel_runs(onnx.load_from_string(optimised_model(exported_model)).graph, owners)


def pruned(make, n_keep):
    """A network with ``n_keep`` of each group's channels, or as many units as that holds; and its layers."""
    torch.manual_seed(0)
    model, x = make().eval(), torch.zeros(1, 1, 32, 32)
    found = trace(model, x, verify=False)
    units = {g.name: max(1, min(n_keep, g.channels) // g.unit) for g in found.network.groups}
    policy = PruningPolicy({g.name: g.unit * units[g.name] for g in found.network.groups})
    kept = random_kept(found, policy, np.random.default_rng(0))
    return remove(model, found, kept), x, found.network


needs_blocks = pytest.mark.skipif(detect_nchwc_block() == 0, reason="kernels of a runtime with blocks of channels")


def test_a_fused_residual_network_is_shared_out_completely():
    runs = runs_of(Residual(), torch.zeros(1, 3, 8, 8), ["stem", "conv", "norm", "fc"])
    assert {run.layer for run in runs} == {"stem", "conv", "fc"}  # the batch norm is folded into its convolution


@needs_blocks
def test_kernels_of_resnet20_on_the_grid():
    model, x, network = pruned(resnet20, 64)
    kinds = {layer.name: layer.kind for layer in network.layers}
    runs = runs_of(model, x, list(kinds))
    convolutions = [run for run in runs if "Conv" in run.kernel]
    assert {run.layer for run in convolutions} == {name for name, kind in kinds.items() if kind is LayerKind.CONV}
    assert len(convolutions) == len({run.layer for run in convolutions})
    assert {run.kernel for run in convolutions} == {"nchwc.Conv", "nchwc.Conv+Relu", "nchwc.Conv+Relu+Add"}
    assert sum(run.kernel.endswith("+Add") for run in convolutions) == 9  # one a block
    assert all(kinds[run.layer] is not LayerKind.BATCH_NORM for run in runs)


@needs_blocks
def test_off_the_grid_reorders_belong_to_the_layers_that_made_them_necessary():
    model, x, network = pruned(mobilenetv2, 21)
    kinds = {layer.name: layer.kind for layer in network.layers}
    runs = runs_of(model, x, list(kinds))
    reorders = [i for i, run in enumerate(runs) if run.kernel.startswith("nchwc.Reorder")]
    assert reorders
    assert all(kinds[runs[i].layer] is LayerKind.CONV for i in reorders)
    outputs = [i for i in reorders if runs[i].kernel == "nchwc.ReorderOutput"]
    blocked = {run.layer for run in runs if run.kernel.startswith("nchwc.Conv")}
    assert {runs[i].layer for i in outputs} <= blocked  # only a blocked kernel's output is reordered
    assert {run.layer for run in runs} == {n for n, k in kinds.items() if k in (LayerKind.CONV, LayerKind.LINEAR)}


@needs_blocks
def test_a_profiled_reorder_is_of_the_layer_whose_channels_it_moves():
    model, x, network = pruned(resnet20, 13)
    content = exported(model, x)
    owners = original_owners(onnx.load_from_string(content).graph, [layer.name for layer in network.layers])
    graph = onnx.load_from_string(optimised_model(content)).graph  # one load of the model; the profile is of another
    (profile,) = profile_models([content], [[x.numpy()]], 3, np.random.default_rng(0))
    widths = {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    sizes = {layer.name: layer.out_size for layer in network.layers}
    moved = [
        ((run.layer, *node.output_shapes[0][1:]), (run.layer, widths[run.layer], *sizes[run.layer]))
        for node, run in zip(profile, kernel_runs(graph, owners, profile), strict=True)
        if run.kernel == "nchwc.ReorderOutput" and run.layer in widths
    ]
    assert len(moved) > 12
    assert [got for got, _ in moved] == [wanted for _, wanted in moved]


def test_a_transformers_kernels_reach_its_norms_attention_and_linear_layers():
    model, x, network = pruned(vit, 48)
    runs = runs_of(model, x, [layer.name for layer in network.layers])
    kinds = {layer.name: layer.kind for layer in network.layers}
    owners = {kinds[run.layer] for run in runs}
    assert {LayerKind.LINEAR, LayerKind.LAYER_NORM, LayerKind.ATTENTION} <= owners
    norms = {run.kernel for run in runs if kinds[run.layer] is LayerKind.LAYER_NORM}
    assert norms <= {"LayerNormalization", "ms.SkipLayerNormalization", "Reshape", "Gather"}
    softmax = [run for run in runs if "Softmax" in run.kernel or "Attention" in run.kernel]
    assert softmax
    assert {kinds[run.layer] for run in softmax} == {LayerKind.ATTENTION}


def test_the_exported_graph_names_every_layer():
    proto = onnx.load_from_string(exported(Residual(), torch.zeros(1, 3, 8, 8)))
    owners = original_owners(proto.graph, ["stem", "conv", "norm", "fc"])
    computing = [n for n in proto.graph.node if n.op_type not in {"Identity", "Constant"}]
    assert all(n.name in owners for n in computing)
    assert {owners[n.name] for n in computing if n.op_type in {"Conv", "Gemm"}} == {"stem", "conv", "fc"}
