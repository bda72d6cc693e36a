"""Blocks that vanish: which groups may keep no channels, and that removing a branch computes what masking it does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amcsearch.core.errors import BadInputError
from amcsearch.core.layer import LayerKind
from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.graph.masks import masked
from amcsearch.graph.outputs import first_tensor
from amcsearch.graph.removal import remove, renumbered
from amcsearch.graph.slices import Kept, Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.graph.vanished import ConstantLayer

NONE = np.zeros(0, dtype=np.int64)
MAP = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EXAMPLES = settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


class Residual(nn.Module):
    """A stem, then x + branch(x), then a head; ``writes_in_place`` as in torchvision's networks."""

    def __init__(self, branch: nn.Module, width: int = 8, *, writes_in_place: bool = False) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, width, 3, padding=1), branch, nn.Linear(width, 5)
        self.writes_in_place = writes_in_place

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.branch(x)
        if self.writes_in_place:
            y += x
            y = F.relu(y, inplace=True)
        else:
            y = F.relu(x + y)
        return self.head(y.mean((2, 3)))


class Scale(nn.Module):
    """Squeeze and excitation with a pooling that refuses maps of no channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(self.pool(x)))).sigmoid()


def conv(inside: int, outside: int, size: int = 3, **more: int) -> nn.Sequential:
    layer = nn.Conv2d(inside, outside, size, padding=size // 2, bias=False, **more)  # type: ignore[arg-type]
    return nn.Sequential(layer, nn.BatchNorm2d(outside))


def basic() -> nn.Module:
    return nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 8))


def bottleneck() -> nn.Module:
    return nn.Sequential(conv(8, 6, 1), nn.ReLU(), conv(6, 4), nn.ReLU(), conv(4, 8, 1))


def inverted() -> nn.Module:
    return nn.Sequential(conv(8, 16, 1), nn.ReLU6(), conv(16, 16, groups=16), nn.ReLU6(), Scale(16), conv(16, 8, 1))


def biased() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)
    )


BRANCHES = {
    "basic": (basic, {"branch.0.0"}),
    "bottleneck": (bottleneck, {"branch.0.0", "branch.2.0"}),
    "inverted residual": (inverted, {"branch.0.0", "branch.4.fc1"}),
    "pre-activation": (biased, {"branch.2"}),
}


def lively(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            for vector in (module.bias, module.running_mean):
                nn.init.uniform_(vector, -0.5, 0.5)
    return model.eval()


def without(traced: Trace, *names: str) -> Kept:
    return dict.fromkeys(names or traced.vanishing, NONE)


def random_kept(traced: Trace, seed: int) -> Kept:
    """Random units of every group; about half of the groups that can vanish keep none."""
    rng, kept = np.random.default_rng(seed), {}
    for group in traced.network.groups:
        units = traced.units[group.name]
        count = 0 if group.can_vanish and rng.random() < 0.5 else rng.integers(1, len(units) + 1)
        kept[group.name] = np.sort(units[rng.permutation(len(units))[:count]].ravel())
    return kept


def policy_of(traced: Trace, kept: Kept) -> PruningPolicy:
    return PruningPolicy({**traced.network.dense, **{name: len(channels) for name, channels in kept.items()}})


def outputs(model: nn.Module, traced: Trace, kept: Kept, x: Tensor) -> tuple[Tensor, Tensor]:
    """What masking computes, and what removal does."""
    with torch.no_grad():
        with masked(model, traced, kept):
            expected = first_tensor(model(x))
        return expected, first_tensor(remove(model, traced, kept)(x))


def shapes_of(traced: Trace) -> list[tuple[LayerKind, int, int]]:
    """Kind and widths of every layer; of a parameter its size, for where one channel is left none is the wider side."""
    return [
        (x.kind, 1, x.in_channels * x.out_channels)
        if x.kind is LayerKind.PARAMETER
        else (x.kind, x.in_channels, x.out_channels)
        for x in traced.network.layers
    ]


def test_a_branch_that_is_gone_leaves_the_shortcut_and_a_constant() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.down, self.head = (nn.Linear(2, 2) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.down(F.relu(self.up(x))))

    model = Tiny().eval()
    x = torch.randn(1, 2)
    traced = trace(model, x)
    assert list(traced.vanishing) == ["up"]
    small = remove(model, traced, without(traced))
    with torch.no_grad():
        assert torch.allclose(small(x), model.head(model.stem(x) + model.down.bias))
    assert sorted(name for name, _ in small.named_parameters()) == [
        "down.bias", "head.bias", "head.weight", "stem.bias", "stem.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", BRANCHES)
@pytest.mark.parametrize("writes_in_place", [False, True])
def test_a_residual_branch_can_vanish(kind: str, writes_in_place: bool) -> None:
    make, names = BRANCHES[kind]
    model = lively(Residual(make(), writes_in_place=writes_in_place))
    traced = trace(model, MAP)
    assert set(traced.vanishing) == names == {g.name for g in traced.network.groups if g.can_vanish}
    expected, computed = outputs(model, traced, without(traced), MAP)
    assert torch.allclose(computed, expected, atol=1e-6)
    for name in names:
        expected, computed = outputs(model, traced, without(traced, name), MAP)
        assert torch.allclose(computed, expected, atol=1e-6), name


class Gated(nn.Module):
    """The MLP of Llama: one linear layer gates another."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate, self.act, self.up, self.down = nn.Linear(8, 12), gate, nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Four heads of two channels, from one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 2)).movedim(-3, 0).transpose(-3, -2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))


class Tokens(nn.Module):
    """A stem, a branch behind a layer norm with its shortcut, and a head, over tokens."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm, self.branch, self.head = nn.Linear(4, 8), nn.LayerNorm(8), branch, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(self.norm(x)))


TOKENS = {
    "MLP": (lambda: nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)), {"branch.0"}),
    "MLP without biases": (
        lambda: nn.Sequential(nn.Linear(8, 12, bias=False), nn.SiLU(), nn.Linear(12, 8, bias=False)),
        {"branch.0"},
    ),
    "gated MLP": (lambda: Gated(nn.SiLU()), {"branch.gate"}),
    "MLP gated by a sigmoid": (lambda: Gated(nn.Sigmoid()), {"branch.gate"}),
    "attention": (Attention, {"branch.qkv"}),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True),
        {"branch.self_attn.in_proj", "branch.linear1"},
    ),
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_branch_over_tokens_can_vanish(kind: str) -> None:
    make, names = TOKENS[kind]
    torch.manual_seed(2)
    model, x = Tokens(make()).eval(), torch.randn(1, 5, 4)
    traced = trace(model, x)
    assert set(traced.vanishing) == names
    for gone in ([name] for name in names):
        expected, computed = outputs(model, traced, without(traced, *gone), x)
        assert torch.allclose(computed, expected, atol=1e-6), gone
    expected, computed = outputs(model, traced, without(traced), x)
    assert torch.allclose(computed, expected, atol=1e-6)
    assert not torch.allclose(computed, model(x), atol=1e-3)
    small = remove(model, traced, without(traced))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 3)),
    ],
    ids=["convolutions", "linear layers"],
)
def test_a_chain_never_vanishes(model: nn.Module) -> None:
    assert not trace(model, MAP).vanishing


class Two(nn.Module):
    """f(x) + g(x) without a shortcut: one of the two branches must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.g, self.head = nn.Conv2d(3, 8, 3), basic(), basic(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.f(x) + self.g(x)))


def test_of_branches_without_a_shortcut_one_stays() -> None:
    assert list(trace(lively(Two()), MAP).vanishing) == ["f.0.0"]


class Beside(nn.Module):
    """A branch whose result is concatenated, not added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Conv2d(3, 8, 3), basic(), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([x, self.f(x)], 1))


def test_a_branch_that_is_concatenated_stays() -> None:
    assert not trace(lively(Beside()), MAP).vanishing


@EXAMPLES
@given(seed=st.integers(0, 2**16))
def test_removal_is_masking_with_branches_gone(traced, seed):
    if not traced.trace.vanishing:
        return
    kept = random_kept(traced.trace, seed)
    expected, computed = outputs(traced.model, traced.trace, kept, traced.example)
    assert computed.shape == expected.shape
    assert float((computed - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    small = remove(traced.model, traced.trace, kept)
    cost = CostGrid(traced.trace.network, [Macs(), Params()]).cost(policy_of(traced.trace, kept))
    assert cost.params == sum(p.numel() for p in small.parameters())
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        small(traced.example)
    assert cost.macs == counter.get_total_flops() / 2


@EXAMPLES
@given(seed=st.integers(0, 2**16))
def test_what_is_left_can_be_traced_and_cut_again(traced, seed):
    if not traced.trace.vanishing:
        return
    kept = random_kept(traced.trace, seed)
    small, smaller = remove(traced.model, traced.trace, kept), renumbered(traced.trace, kept)
    again = trace(small, traced.example)
    assert shapes_of(again) == shapes_of(smaller)
    several = [
        group for group in smaller.network.groups if group.channels > group.unit
    ]  # a lone unit may be cut inside
    channels = {group.name: group.channels for group in several}
    for group in again.network.groups:
        assert channels.get(group.name, group.channels) == group.channels
    expected, computed = outputs(small, smaller, random_kept(smaller, seed + 1), traced.example)
    assert float((computed - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_layers_that_only_a_branch_reads_go_with_it() -> None:
    model = lively(Residual(bottleneck()))
    traced = trace(model, MAP)
    assert traced.vanishing["branch.2.0"].idle == ("branch.0.0", "branch.0.1")
    spec = traced.network.with_channels(policy_of(traced, without(traced, "branch.2.0")))
    assert [layer.name for layer in spec.layers] == ["stem", "branch.4.1", "head"]
    assert [group.name for group in spec.groups] == ["stem"]
    assert not [m for m in remove(model, traced, without(traced)).branch.modules() if isinstance(m, nn.Conv2d)]


def test_what_follows_may_write_into_the_constant() -> None:
    branch = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.ReLU(inplace=True))
    model = Residual(branch).eval()
    traced = trace(model, MAP)
    small = remove(model, traced, without(traced))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    with torch.no_grad():
        first, second = small(MAP), small(MAP)
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_what_is_left_trains_and_is_stored() -> None:
    model = lively(Residual(inverted(), writes_in_place=True))
    traced = trace(model, MAP)
    small = remove(model, traced, without(traced, "branch.0.0")).train()
    small(torch.randn(4, 3, 8, 8)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in small.parameters() if p.grad is not None)
    stored = load(save(small.state_dict()))
    again = remove(model, traced, without(traced, "branch.0.0"))
    again.load_state_dict(stored)
    assert torch.equal(again.eval()(MAP), small.eval()(MAP))


def test_torch_exports_nothing_of_the_branch() -> None:
    model = lively(Residual(inverted()))
    traced = trace(model, MAP)
    program = torch.export.export(remove(model, traced, without(traced)), (MAP,))
    names = [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith("conv2d") for name in names) == 1


@pytest.mark.parametrize("layer", [
    nn.Conv2d(4, 3, 3, stride=2, padding=1, dilation=2), nn.Conv2d(4, 3, (3, 5), padding="same"),
    nn.Conv1d(4, 3, 5, padding="valid"), nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    nn.Linear(4, 3), nn.Linear(4, 3, bias=False), nn.Conv3d(4, 3, 3, bias=False),
], ids=str)  # fmt: skip
def test_a_constant_layer_writes_what_the_layer_makes_of_zeros(layer: nn.Module) -> None:
    sizes = {nn.Linear: (2, 7, 4), nn.Conv1d: (2, 4, 11), nn.Conv3d: (2, 4, 6, 7, 8)}
    x = torch.zeros(sizes.get(type(layer), (2, 4, 11, 12)))
    bias = torch.zeros(3) if layer.bias is None else layer.bias
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(ConstantLayer(layer, bias, spread=True)(x), expected)
        assert torch.equal(ConstantLayer(layer, bias, spread=False).eval()(x).expand(expected.shape), expected)


def test_a_group_that_cannot_vanish_keeps_a_channel() -> None:
    traced = trace(lively(Residual(basic())), MAP)
    with pytest.raises(BadInputError, match=r"^group 'stem': kept channels must be sorted, distinct and at least one"):
        remove(Residual(basic()), traced, {"stem": NONE})
    with pytest.raises(BadInputError, match=r"^group 'stem': n_keep = 0, must be a multiple of 1 from 1 to 8$"):
        traced.network.kept_array(PruningPolicy({"stem": 0, "branch.0.0": 0}))


def test_a_branch_of_unknown_code_runs_on_zeros() -> None:
    """A pooling that refuses no channels: a unit of zeros flows instead."""
    branch = nn.Sequential(conv(8, 6), nn.MaxPool2d(3, 1, 1), conv(6, 8))
    model = lively(Residual(branch))
    traced = trace(model, MAP)
    assert traced.vanishing["branch.0.0"].width == 1
    expected, computed = outputs(model, traced, without(traced), MAP)
    assert torch.allclose(computed, expected, atol=1e-6)
    assert replace(traced.vanishing["branch.0.0"], width=0) != traced.vanishing["branch.0.0"]
