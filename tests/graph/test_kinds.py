"""Small networks of every kind that is to be pruned: what is found by hand, and one contract for all of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.compute import params
from amcsearch.graph import Batch, masked, remove, tensors_of_tree, trace
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.recorder import observe
from amcsearch.runtime import OnnxModule, exported

IMAGE, SEQUENCE = (1, 3, 8, 8), (1, 5, 6)


class Code(nn.Module):
    """Modules by name, and the code that runs them."""

    def __init__(self, forward: Callable[..., object], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.code = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> object:
        return self.code(self, *inputs)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


class FrozenNorm(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(n) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class Stated(nn.Module):
    """Reshapes by a number that it keeps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden_dim = width
        self.a, self.b, self.head = conv(3, width), nn.Linear(width, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.a(x).reshape(len(x), self.hidden_dim, -1).mT)).mean(1))


def conv(i: int, o: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **options)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def shuffle(x: Tensor, g: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, g, c // g, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def c2f(net: Code, x: Tensor) -> Tensor:
    y = list(net.first(x).chunk(2, 1))
    y.append(y[-1] + net.inner(F.relu(y[-1])))
    return net.head(pooled(net.last(torch.cat(y, 1))))


def grouped_query(net: Code, x: Tensor) -> Tensor:
    x = net.embed(x)
    q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (net.q, net.k, net.v))
    k, v = (t.repeat_interleave(2, 1) for t in (k, v))
    y = (q @ k.mT / 2).softmax(-1) @ v
    return net.head((x + net.out(y.transpose(1, 2).flatten(2))).mean(1))


def fused(net: Code, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = net.qkv(x).reshape(n, t, 3, -1, 4).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=net.bias[None])
    return net.head(net.out(y.transpose(1, 2).reshape(n, t, -1)).mean(1))


def rotated(net: Code, x: Tensor) -> Tensor:
    t = x.shape[1]
    angles = torch.arange(t)[:, None] * torch.tensor([1.0, 0.3])[None]
    cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()

    def turned(y: Tensor) -> Tensor:
        y = y.unflatten(-1, (-1, 4)).transpose(1, 2)
        return y * cos + torch.cat([-y[..., 2:], y[..., :2]], -1) * sin

    y = F.scaled_dot_product_attention(
        turned(net.q(x)), turned(net.k(x)), net.v(x).unflatten(-1, (-1, 4)).transpose(1, 2)
    )
    return net.head(net.out(y.transpose(1, 2).flatten(2)).mean(1))


def windows(net: Code, x: Tensor) -> Tensor:
    n, y = len(x), net.stem(x).permute(0, 2, 3, 1)
    y = torch.roll(y, (-1, -1), (1, 2)).view(n, 2, 4, 2, 4, -1).transpose(2, 3).reshape(4 * n, 16, y.shape[-1])
    y = net.down(F.gelu(net.up(y))).view(n, 2, 2, 4, 4, -1).transpose(2, 3).reshape(n, 8, 8, -1)
    return net.head(y.mean((1, 2)))


def experts(net: Code, x: Tensor) -> Tensor:
    x = net.embed(x)[0]
    share, chosen = net.router(x).softmax(-1).topk(1, -1)
    y = torch.zeros_like(x)
    for i, expert in enumerate((net.one, net.two)):
        rows = (chosen[:, 0] == i).nonzero()[:, 0]
        y.index_add_(0, rows, expert(x[rows]) * share[rows])
    return net.head((x + y).mean(0, keepdim=True))


def two_heads(net: Code, x: Tensor) -> dict[str, object]:
    x = F.relu(net.stem(x))
    return {"classes": net.a(pooled(x)), "boxes": [net.b(F.relu(net.c(x)))]}


class HeadsOfInput(nn.Module):
    """Attention that takes the width of its input for that of all heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT * self.scale).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(n, t, c))


class FewerKeys(nn.Module):
    """Keys and values from a map that a convolution made smaller; checks its input, and caches the biases of heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.key_width, self.channels, self.all_values = heads, 2, width, 4 * heads
        self.reduction, self.norm = nn.Conv2d(width, width, 2, 2), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, 2 * heads), nn.Linear(width, 6 * heads)
        self.out, self.bias = nn.Linear(4 * heads, width), nn.Parameter(torch.randn(heads, 16))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "FewerKeys":
        self.cache = {}
        return super().train(mode)

    def biases(self) -> Tensor:
        if self.training or not self.cache:
            self.cache["biases"] = self.bias[:, None]
        return self.cache["biases"]

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if c != self.channels:
            raise ValueError(f"{c} channels, must be {self.channels}")
        y = self.norm(self.reduction(x).reshape(n, c, -1).mT)
        q = self.q(x.flatten(2).mT).unflatten(-1, (self.heads, self.key_width)).transpose(1, 2)
        k, v = self.kv(y).view(n, y.shape[1], self.heads, -1).split([self.key_width, 2 * self.key_width], 3)
        y = (q @ k.permute(0, 2, 3, 1) + self.biases()).softmax(-1) @ v.transpose(1, 2)
        y = self.out(y.transpose(1, 2).reshape(n, h * w, self.all_values))
        return x + y.mT.reshape(n, c, h, w)


class OneHead(nn.Module):
    """Attention of one head, whose width plain code reckons."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.inside, self.heads = inside, 1
        self.q, self.k, self.v = (nn.Linear(width, inside) for _ in range(3))
        self.out = nn.Linear(inside, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(*x.shape[:2], self.heads, self.inside // self.heads) for p in (self.q, self.k, self.v))
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / 2
        y = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).contiguous()
        return x + self.out(y.view(*x.shape[:2], self.heads * (self.inside // self.heads)))


def modulation(net: Code, x: Tensor) -> Tensor:
    x = net.stem(x)
    q, context, gates = net.both(x).split([x.shape[1], x.shape[1], 2], 1)
    context = net.near(context) * gates[:, :1] + context.mean((2, 3), keepdim=True) * gates[:, 1:]
    return net.head(pooled(x + net.out(q * context)))


def registers(net: Code, x: Tensor) -> Tensor:
    x = torch.cat([net.first.expand(len(x), -1, -1), net.embed(x)], 1) + net.positions
    x = torch.cat([x[:, :1], net.registers.expand(len(x), -1, -1), x[:, 1:]], 1)
    return net.head(net.inside(net.norm(x))[:, 0])


def probed(net: Code, x: Tensor) -> Tensor:
    x = net.embed(x)
    return net.head(net.attention(net.probe.expand(len(x), -1, -1), x, x)[0][:, 0])


def mlp(i: int, h: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(i, h), nn.ReLU(), nn.Linear(h, o))


def tensor(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


def plain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


FLAT = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
Expected = list[tuple[str, int, int]]
# name → (builder, shape of one sample, groups as (name, channels, unit))
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Expected]] = {
    "layer norm over dimension 1": (
        lambda: plain(conv(3, 8), LayerNorm2d(8), nn.GELU(), *FLAT, nn.Linear(8, 2)), IMAGE, [("0", 8, 1)],
    ),
    "frozen batch norm": (
        lambda: plain(conv(3, 8), FrozenNorm(8), nn.ReLU(), *FLAT, nn.Linear(8, 2)), IMAGE, [("0", 8, 1)],
    ),
    "channel shuffle": (
        lambda: Code(
            lambda net, x: net.head(pooled(net.b(shuffle(F.relu(net.a(x)), 2)))),
            a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 2),
        ), IMAGE, [("a", 8, 2), ("b", 6, 1)],
    ),
    "pixel shuffle": (
        lambda: plain(conv(3, 24), nn.PixelShuffle(2), nn.ReLU(), conv(6, 2)), IMAGE, [("0", 6, 1)],
    ),
    "batch norm behind a pixel shuffle": (
        lambda: plain(conv(3, 24), nn.PixelShuffle(2), nn.BatchNorm2d(6), nn.PReLU(6), conv(6, 2)), IMAGE,
        [("0", 6, 1)],
    ),
    "space to depth": (
        lambda: plain(conv(3, 4), nn.PixelUnshuffle(2), conv(16, 6), *FLAT, nn.Linear(6, 2)), IMAGE,
        [("0", 4, 1), ("2", 6, 1)],
    ),
    "chunk and concatenate (C2f)": (
        lambda: Code(c2f, first=conv(3, 8), inner=conv(4, 4), last=conv(12, 6), head=nn.Linear(6, 2)), IMAGE,
        [("first", 4, 1), ("last", 6, 1)],
    ),
    "gated linear unit": (
        lambda: plain(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 3)), SEQUENCE, [("0", 8, 1)],
    ),
    "gated MLP": (
        lambda: Code(
            lambda net, x: net.down(F.silu(net.gate(x)) * net.up(x)),
            gate=nn.Linear(6, 10), up=nn.Linear(6, 10), down=nn.Linear(10, 3),
        ), SEQUENCE, [("gate", 10, 1)],
    ),
    "fused gate and up": (
        lambda: Code(
            lambda net, x: (lambda g, u: net.down(F.silu(g) * u))(*net.both(x).chunk(2, -1)),
            both=nn.Linear(6, 20), down=nn.Linear(10, 3),
        ), SEQUENCE, [("both", 10, 1)],
    ),
    "grouped query attention": (
        lambda: Code(
            grouped_query, embed=nn.Linear(6, 16), q=nn.Linear(16, 16), k=nn.Linear(16, 8), v=nn.Linear(16, 8),
            out=nn.Linear(16, 16), head=nn.Linear(16, 2),
        ), SEQUENCE, [("embed", 16, 1), ("q", 8, 4)],
    ),
    "fused qkv with a table of heads": (
        lambda: Code(
            fused, qkv=nn.Linear(6, 48), bias=tensor(4, 5, 5), out=nn.Linear(16, 7), head=nn.Linear(7, 2)
        ), SEQUENCE, [("qkv", 16, 4), ("out", 7, 1)],
    ),
    "rotary positions": (
        lambda: Code(
            rotated, q=nn.Linear(6, 12), k=nn.Linear(6, 12), v=nn.Linear(6, 12), out=nn.Linear(12, 7),
            head=nn.Linear(7, 2),
        ), SEQUENCE, [("q", 12, 4), ("out", 7, 1)],
    ),
    "packed attention": (
        lambda: Code(
            lambda net, x: net.head(net.attention(x, x, x, need_weights=True)[0].mean(1)),
            attention=nn.MultiheadAttention(6, 3, batch_first=True), head=mlp(6, 5, 2),
        ), SEQUENCE, [("attention.in_proj", 6, 2), ("attention.out_proj", 6, 1), ("head.0", 5, 1)],
    ),
    "torch's encoder": (
        lambda: plain(
            nn.Linear(6, 8),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1, None, False),
            nn.Linear(8, 2),
        ), SEQUENCE, [("0", 8, 1), ("1.layers.0.self_attn.in_proj", 8, 4), ("1.layers.0.linear1", 12, 1)],
    ),
    "shifted windows": (
        lambda: Code(windows, stem=conv(3, 8), up=nn.Linear(8, 12), down=nn.Linear(12, 6), head=nn.Linear(6, 2)), IMAGE,
        [("stem", 8, 1), ("up", 12, 1), ("down", 6, 1)],
    ),
    "LSTM": (
        lambda: Code(
            lambda net, x: net.head(net.rnn(net.a(x))[0][:, -1]),
            a=nn.Linear(6, 5), rnn=nn.LSTM(5, 7, 2, batch_first=True, bidirectional=True), head=nn.Linear(14, 2),
        ), SEQUENCE, [("a", 5, 1), ("rnn.weight_ih_l0", 7, 1)],
    ),
    "LSTM with a projection": (
        lambda: Code(
            lambda net, x: net.head(net.rnn(x)[0][:, -1]),
            rnn=nn.LSTM(6, 7, proj_size=3, batch_first=True), head=nn.Linear(3, 2),
        ), SEQUENCE, [("rnn.weight_ih_l0", 7, 1), ("rnn.weight_hh_l0", 3, 1)],
    ),
    "GRU": (
        lambda: Code(
            lambda net, x: net.head(net.rnn(x)[1][-1]), rnn=nn.GRU(6, 7, batch_first=True), head=nn.Linear(7, 2)
        ), SEQUENCE, [("rnn.weight_ih_l0", 7, 1)],
    ),
    "one dimension": (
        lambda: plain(nn.Conv1d(5, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1), nn.Flatten(), nn.Linear(16, 2)),
        SEQUENCE, [("0", 8, 1), ("2", 4, 1)],
    ),
    "three dimensions": (
        lambda: plain(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 4, 1), nn.Flatten(), nn.Linear(32, 2)),
        (1, 1, 4, 4, 4), [("0", 8, 1), ("2", 4, 1)],
    ),
    "transposed convolution": (
        lambda: plain(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), conv(6, 2)), IMAGE,
        [("0", 8, 1), ("2", 6, 1)],
    ),
    "position map and scale": (
        lambda: Code(
            lambda net, x: net.head(pooled(net.a(x) * net.scale + net.map)),
            a=conv(3, 8), scale=tensor(8, 1, 1), map=tensor(1, 8, 8, 8), head=nn.Linear(8, 2),
        ), IMAGE, [("a", 8, 1)],
    ),
    "bare parameters": (
        lambda: Code(
            lambda net, x: net.head(pooled(F.relu(F.conv2d(F.relu(F.conv2d(x, net.k, padding=1)), net.w)))),
            k=tensor(8, 3, 3, 3), w=tensor(6, 8, 1, 1), head=nn.Linear(6, 2),
        ), IMAGE, [("k", 8, 1), ("w", 6, 1)],
    ),
    "slices of one parameter": (
        lambda: Code(
            lambda net, x: net.head(F.linear(F.relu(F.linear(x, net.w[:7])), net.v) + F.linear(x, net.w[7:])),
            w=tensor(15, 6), v=tensor(8, 7), head=nn.Linear(8, 2),
        ), SEQUENCE, [("v", 8, 1)],
    ),
    "a width in plain code": (
        lambda: Stated(8), IMAGE, [("a", 8, 1), ("b", 6, 1)],
    ),
    "called twice": (
        lambda: Code(
            lambda net, x: net.head(F.relu(net.b(F.relu(net.b(net.a(x)))))),
            a=nn.Linear(6, 8), b=nn.Linear(8, 8), head=nn.Linear(8, 2),
        ), SEQUENCE, [("a", 8, 1)],
    ),
    "mixture of experts": (
        lambda: Code(
            experts, embed=nn.Linear(6, 8), router=nn.Linear(8, 2), one=mlp(8, 10, 8), two=mlp(8, 10, 8),
            head=nn.Linear(8, 2),
        ), SEQUENCE, [("embed", 8, 1), ("one.0", 10, 1), ("two.0", 10, 1)],
    ),
    "two outputs in a tree": (
        lambda: Code(two_heads, stem=conv(3, 8), a=nn.Linear(8, 2), c=conv(8, 6), b=conv(6, 4)), IMAGE,
        [("stem", 8, 1), ("c", 6, 1)],
    ),
    "a mean of half precision": (
        lambda: plain(conv(3, 8), nn.ReLU(), *FLAT, nn.Linear(8, 2)).bfloat16(), IMAGE, [("0", 8, 1)],
    ),
    "heads as wide as the input": (
        lambda: plain(nn.Linear(6, 12), HeadsOfInput(12, 3), mlp(12, 10, 12), HeadsOfInput(12, 3), nn.Linear(12, 2)),
        SEQUENCE, [("0", 12, 1), ("1.qkv", 12, 4), ("2.0", 10, 1), ("2.2", 12, 1), ("3.qkv", 12, 4)],
    ),
    "parts as wide as the input": (
        lambda: Code(
            modulation, stem=conv(3, 8), both=conv(8, 18), near=conv(8, 8, groups=8), out=conv(8, 8),
            head=nn.Linear(8, 2),
        ), IMAGE, [("stem", 8, 1)],
    ),
    "keys from a smaller map, narrower than values": (
        lambda: plain(conv(3, 8), FewerKeys(8, 3), *FLAT, nn.Linear(8, 2)), IMAGE,
        [("0", 8, 1), ("1.reduction", 8, 1), ("1.q", 6, 2)],
    ),
    "one head": (
        lambda: plain(nn.Linear(6, 5), OneHead(5, 8), nn.Linear(5, 2)), SEQUENCE, [("0", 5, 1), ("1.q", 8, 1)],
    ),
    "registers among the tokens": (
        lambda: Code(
            registers, embed=nn.Linear(6, 8), first=tensor(1, 1, 8), positions=tensor(1, 6, 8),
            registers=tensor(1, 2, 8), norm=nn.LayerNorm(8), inside=mlp(8, 7, 8), head=nn.Linear(8, 2),
        ), SEQUENCE, [("first", 8, 1), ("inside.0", 7, 1), ("inside.2", 8, 1)],
    ),
    "a learnt query": (
        lambda: Code(
            probed, embed=nn.Linear(6, 8), probe=tensor(1, 1, 8),
            attention=nn.MultiheadAttention(8, 4, batch_first=True), head=nn.Linear(8, 2),
        ), SEQUENCE, [("embed", 8, 1), ("attention.in_proj_bias", 8, 2), ("attention.out_proj", 8, 1)],
    ),
    "double precision": (
        lambda: plain(conv(3, 8), nn.BatchNorm2d(8), *FLAT, nn.Linear(8, 2)).double(), IMAGE, [("0", 8, 1)],
    ),
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Subject:
    model: nn.Module
    batch: Batch
    trace: Trace

    def kept(self, seed: int) -> dict[str, np.ndarray]:
        """A random choice of at least one unit of every group."""
        rng, kept = np.random.default_rng(seed), {}
        for name, units in self.trace.units.items():
            chosen = rng.permutation(len(units))[: rng.integers(1, len(units) + 1)]
            kept[name] = np.sort(units[chosen].ravel())
        return kept


_CACHE: dict[str, Subject] = {}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def subject(kind: str) -> Subject:
    if kind not in _CACHE:
        build, shape, _ = KINDS[kind]
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model = build().eval()
            x = torch.randn(shape).to(next(model.parameters()).dtype)
        _CACHE[kind] = Subject(model, Batch.of(x), trace(model, x))
    return _CACHE[kind]


def test_groups_by_hand(kind: str, subject: Subject) -> None:
    found = [(group.name, group.channels, group.unit) for group in subject.trace.network.groups]
    assert found == KINDS[kind][2], subject.trace.skipped


@pytest.mark.parametrize("seed", [1, 2])
def test_removal_computes_what_masking_does_in_the_shapes_predicted(subject: Subject, seed: int) -> None:
    kept = subject.kept(seed)
    with torch.no_grad(), masked(subject.model, subject.trace, kept):
        expected = dict(tensors_of_tree(subject.batch.through(subject.model)))
    small = remove(subject.model, subject.trace, kept)
    observation = observe(small, subject.batch)
    tolerance = 0.05 if next(small.parameters()).dtype == torch.bfloat16 else 1e-5
    for name, tensor_ in tensors_of_tree(observation.output):
        assert torch.allclose(tensor_, expected.pop(name), atol=tolerance, rtol=tolerance)
    assert not expected
    policy = PruningPolicy({name: len(index) for name, index in kept.items()})
    widths = [(layer.in_channels, layer.out_channels) for layer in observation.layers]
    predicted = subject.trace.network.with_channels(policy).layers
    assert widths == [(layer.in_channels, layer.out_channels) for layer in predicted]
    assert sum(map(params, predicted)) == numbers_of(small)


def numbers_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_onnx_computes_what_torch_does(subject: Subject) -> None:
    small = remove(subject.model, subject.trace, subject.kept(4)).float()
    batch = subject.batch.map(lambda x: x.float())
    with torch.no_grad():
        expected = dict(tensors_of_tree(batch.through(small)))
        given = dict(tensors_of_tree(batch.through(OnnxModule(exported(small, batch)))))
    assert len(given) == len(expected)
    for a, b in zip(given.values(), expected.values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_the_smaller_network_trains(subject: Subject) -> None:
    small = remove(subject.model, subject.trace, subject.kept(3)).train()
    pair = subject.batch.map(lambda x: torch.cat([x, x]))
    if isinstance(small, Code) and small.code is experts:
        pair = subject.batch  # routes the tokens of one sample
    sum(t.float().square().sum() for _, t in tensors_of_tree(pair.through(small))).backward()
    gradients = [p.grad for p in small.parameters()]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert sum(g is not None for g in gradients) >= len(gradients) - 2


@pytest.mark.parametrize("channels", [10, 12])
def test_a_norm_over_positions_leaves_channels_free(channels: int) -> None:
    """LayerNorm(10) of 10 positions, behind a Conv1d of as many channels and of others."""
    parts = {"a": nn.Conv1d(6, channels, 1), "norm": nn.LayerNorm(10), "b": nn.Conv1d(channels, 4, 1)}
    model = Code(lambda m, x: m.b(m.norm(m.a(x))), **parts).eval()
    found = trace(model, torch.rand(1, 6, 10))
    assert [group.name for group in found.network.groups] == ["a"]
    assert sum(map(params, found.network.layers)) == numbers_of(model)
    small = remove(model, found, {"a": np.arange(5)})
    assert small.norm.weight.shape == (10,)
    assert small(torch.rand(2, 6, 10)).shape == (2, 4, 10)


@pytest.mark.parametrize("sizes", [(10,), (4, 5)], ids=["of a signal", "of a map"])
def test_a_norm_over_channels_and_positions_is_narrowed(sizes: tuple[int, ...]) -> None:
    """Statistics are over kept channels, as those of a layer norm over channels alone."""
    layer = nn.Conv1d if len(sizes) == 1 else nn.Conv2d
    parts = {"a": layer(6, 8, 1), "norm": nn.LayerNorm((8, *sizes)), "b": layer(8, 4, 1)}
    model, x = Code(lambda m, x: m.b(m.norm(m.a(x))), **parts).eval(), torch.rand(2, 6, *sizes)
    nn.init.normal_(parts["norm"].weight)
    found = trace(model, x[:1])
    assert [group.name for group in found.network.groups] == ["a"]
    small = remove(model, found, {"a": np.array([0, 3, 4])})
    assert (small.norm.normalized_shape, small.norm.weight.shape) == ((3, *sizes), (3, *sizes))
    assert sum(map(params, found.network.with_channels(PruningPolicy({"a": 3})).layers)) == numbers_of(small)
    with masked(model, found, {"a": np.array([0, 3, 4])}), torch.no_grad():
        torch.testing.assert_close(small(x), model(x))


class Compiled(nn.Module):
    """Layers that torch.compile runs: a module, and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.compile(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6))), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.compile(F.relu)(self.body(x)).mean((2, 3)))


def test_compiled_layers_are_followed() -> None:
    found = trace(Compiled().eval(), torch.rand(IMAGE))
    assert len(found.network.groups) == 2
