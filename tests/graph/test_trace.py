"""What a trace finds: groups, units, slices, layers, and a reason for everything left alone."""

import pickle

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import Side
from amcsearch.core.layer import LayerKind
from amcsearch.graph.outputs import first_tensor
from amcsearch.graph.tracing.recorder import UNUSED
from amcsearch.graph.tracing.trace import trace


def test_slices_of_a_small_network_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    found = trace(model, torch.randn(1, 1, 4, 4))
    assert [(g.name, g.channels, g.unit) for g in found.network.groups] == [("0", 2, 1)]
    where = {(s.tensor, s.dim, s.side): s.positions.tolist() for s in found.slices["0"]}
    assert where == {
        ("0.weight", 0, Side.OUT): [[0], [1]],
        ("0.bias", 0, Side.OUT): [[0], [1]],
        ("1.weight", 0, Side.OUT): [[0], [1]],
        ("1.bias", 0, Side.OUT): [[0], [1]],
        ("1.running_mean", 0, Side.OUT): [[0], [1]],
        ("1.running_var", 0, Side.OUT): [[0], [1]],
        ("4.weight", 1, Side.IN): [[0, 1, 2, 3], [4, 5, 6, 7]],  # flatten: 2 x 2 positions a channel
    }


def test_groups_are_in_order_of_execution_and_layers_are_known(traced):
    order = traced.trace.network.layer_index
    first = [min(order[c.layer] for c in group.couplings) for group in traced.trace.network.groups]
    assert first == sorted(first)
    for group in traced.trace.network.groups:
        units = traced.trace.units[group.name]
        assert sorted(units.ravel().tolist()) == list(range(group.channels))
        assert units.shape[1] == group.unit
        assert all(len(s.positions) == group.channels for s in traced.trace.slices[group.name])
        assert all(s.layer in order for s in traced.trace.slices[group.name])


def test_survives_pickling(traced):
    again = pickle.loads(pickle.dumps(traced.trace))
    assert again.network == traced.trace.network
    assert again.skipped == traced.trace.skipped
    for name, slices in traced.trace.slices.items():
        assert [s.tensor for s in again.slices[name]] == [s.tensor for s in slices]
        assert np.array_equal(again.units[name], traced.trace.units[name])


def test_output_channels_are_never_offered(traced):
    offered = {c.layer for group in traced.trace.network.groups for c in group.couplings if c.side is Side.OUT}
    last = [x for x in traced.trace.network.layers if x.kind in (LayerKind.CONV, LayerKind.LINEAR)][-1]
    assert last.name not in offered
    assert last.name in traced.reasons or "tied" in traced.name or traced.name == "hf_gpt2"


def test_mode_gradients_and_hooks_are_left_as_found():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    model[1].eval()
    trace(model, torch.randn(1, 3))
    assert [m.training for m in model] == [True, False, True]
    assert not model[0].weight.requires_grad
    assert model[2].weight.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("dense_block", [("a", 8, 1), ("b", 6, 1), ("c", 4, 1)]),
        ("grouped", [("a", 24, 4), ("grouped", 48, 12), ("hidden", 20, 1)]),
        ("unet", [("a", 8, 1), ("b", 16, 1), ("up", 10, 1), ("mix", 12, 1)]),
        ("unet_grouped", [("a", 8, 1), ("b", 16, 1), ("mix", 12, 2)]),
        ("squeeze_excite", [("a", 16, 1), ("down", 4, 1), ("c", 8, 1)]),
        ("called_twice", [("a", 10, 1)]),
        ("tied", [("embed", 8, 1), ("up", 12, 1)]),
        ("tied_plain_code", [("embed", 8, 1), ("up", 12, 1)]),
        ("packed_attention", [("embed", 16, 1), ("block.self_attn.in_proj", 16, 4), ("block.linear1", 24, 1)]),
        ("plain_code", [("a", 8, 1), ("w", 8, 1), ("b", 6, 1), ("c", 5, 1)]),
        ("fused_attention", [("embed", 16, 1), ("qkv", 16, 4)]),
        ("one_dimensional", [("a", 8, 1), ("c", 4, 1), ("lstm.weight_ih_l0", 6, 1)]),
        ("bare", [("a", 8, 2)]),
        (
            "hf_gpt2",
            [
                ("transformer.wte", 32, 1),
                ("transformer.h.0.attn.c_attn.weight", 32, 8),
                ("transformer.h.0.mlp.c_fc.weight", 128, 1),
            ],
        ),
        (
            "hf_llama_grouped",
            [
                ("model.embed_tokens", 32, 1),
                ("model.layers.0.self_attn.q_proj", 16, 8),
                ("model.layers.0.mlp.gate_proj", 48, 1),
            ],
        ),
    ],
)
def test_groups_of_the_toys(traced_network, name, groups):
    found = traced_network(name).trace.network.groups
    assert [(g.name, g.channels, g.unit) for g in found] == groups


@pytest.mark.parametrize("name", ["vit", "hf_vit", "hf_bert", "hf_bert_eager", "language_model", "hf_llama"])
def test_transformers_offer_streams_heads_and_feed_forward_widths(traced_network, name):
    network = traced_network(name)
    attentions = [x for x in network.trace.network.layers if x.kind is LayerKind.ATTENTION]
    groups = network.trace.network.groups
    heads = [g for g in groups if any(c.layer in {a.name for a in attentions} for c in g.couplings)]
    assert [(g.channels, g.unit) for g in heads] == [
        (a.out_channels, a.out_channels // a.conv_groups) for a in attentions
    ]
    stream = groups[0]
    norms = [x for x in network.trace.network.layers if x.kind is LayerKind.LAYER_NORM]
    assert {n.name for n in norms} <= {c.layer for c in stream.couplings}
    assert len(groups) >= 1 + 2 * len(attentions)
    assert len(network.trace.skipped) == 1  # the output alone


@pytest.mark.parametrize(
    ("network", "name", "reason"),
    [
        ("tied", "head", "output"),
        ("tied_plain_code", "embed.weight", "output"),
        ("unet_grouped", "up", "only leave all together"),
        ("hf_gpt2", "lm_head", "output"),
    ],
)
def test_what_is_left_alone_is_named_with_the_reason(traced_network, network, name, reason):
    assert reason in traced_network(network).reasons[name]


def test_module_called_twice_is_priced_twice_but_owned_once(traced_network):
    layers = [x for x in traced_network("called_twice").trace.network.layers if x.name.startswith("again")]
    assert [(x.name, x.has_weight, x.has_bias) for x in layers] == [("again", True, True), ("again#2", False, False)]


def test_network_input_added_to_channels_keeps_them():
    class AddsInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head(self.b(x + self.a(x)))

    found = trace(AddsInput(), torch.randn(1, 4, 5, 5))
    assert [g.name for g in found.network.groups] == ["b"]
    assert {s.name: s.reason for s in found.skipped}["a"] == "is combined (add) with a tensor of fixed width"


def test_channel_mixing_code_is_named():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.a(x).softmax(-1))

    reasons = {s.name: s.reason for s in trace(Mixes(), torch.randn(1, 4)).skipped}
    assert list(reasons) == ["a", "head"]
    assert reasons["a"] == "its channels are combined with one another (softmax)"


def test_code_that_depends_on_a_width_is_caught_by_verification():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x):
            x = self.a(x)
            return self.head(self.b(x / x.shape[-1]))

    found = trace(Scales(), torch.randn(1, 4))
    assert [g.name for g in found.network.groups] == ["b"]
    assert "another than with zeros in them" in {s.name: s.reason for s in found.skipped}["a"]
    assert [g.name for g in trace(Scales(), torch.randn(1, 4), verify=False).network.groups] == ["a", "b"]


@pytest.mark.parametrize("example", [torch.randn(2, 3), torch.randn(1, 4), torch.tensor(1.0)])
def test_examples_that_do_not_fit_are_refused_in_one_line(example):
    with pytest.raises(BadInputError) as error:
        trace(nn.Linear(3, 2), example)
    assert "\n" not in str(error.value)


def test_first_tensor_of_tensors_tuples_and_mappings():
    tensor = torch.ones(2)
    for output in (tensor, (torch.ones(1, dtype=torch.int64), tensor), {"loss": None, "logits": tensor}, [tensor]):
        assert first_tensor(output) is tensor
    with pytest.raises(BadInputError, match="int"):
        first_tensor(3)


def test_mixtures_of_experts_and_state_space_models_offer_their_inner_widths():
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "use_cache": False}
    mixtral = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **sizes, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4
        )
    ).eval()
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    tokens = torch.randint(0, 60, (1, 9))
    groups = [[(g.channels, g.unit) for g in trace(m, tokens).network.groups] for m in (mixtral, mamba)]
    # the stream, whole key-value groups, the experts' width; the stream, the inner width, the state, the step's rank
    # experts' rows are multiplied in whole 16 bytes, so four channels leave together
    assert groups == [[(32, 4), (16, 8), (48, 4)], [(32, 1), (64, 1), (16, 1), (2, 1)]]


class BiasesRead(nn.Module):
    """Runs two layers as one by their tensors, and has one that it never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.idle, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = torch.cat([self.a.weight, self.b.weight]), torch.cat([self.a.bias, self.b.bias])
        return self.head(F.relu(F.linear(x, weight, bias)))


def test_only_parameters_that_nothing_reads_are_called_unused() -> None:
    traced = trace(BiasesRead().eval(), torch.randn(1, 6))
    assert [x.name for x in traced.skipped if x.reason == UNUSED] == ["idle.weight", "idle.bias"]
