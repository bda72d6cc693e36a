"""Attention as networks of language and speech write it: groups by hand, removal beside masking, layers predicted."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from amcsearch.core import LayerKind, LayerSpec, PruningPolicy
from amcsearch.costs.compute import macs
from amcsearch.graph import Batch, Trace, masked, remove, renumbered, trace
from amcsearch.runtime import OnnxModule, exported

TOKENS, WIDTH, HEADS, EACH = 6, 6, 4, 3


def split(x: Tensor, width: int = EACH) -> Tensor:
    """(N, T, heads * width) → (N, heads, T, width)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Net(nn.Module):
    """A stream, something that attends, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out, self.head = nn.Linear(WIDTH, 8), nn.Linear(HEADS * EACH, 8), nn.Linear(8, 2)

    def attended(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.out(self.attended(x))).mean(1))


class NormedHeads(Net):
    """A norm inside each head of queries and keys; two query heads share a key and a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 6), nn.Linear(8, 6)
        self.q_norm, self.k_norm = nn.RMSNorm(EACH), nn.RMSNorm(EACH)

    def attended(self, x: Tensor) -> Tensor:
        k, v = (t.repeat_interleave(2, 1) for t in (self.k_norm(split(self.k(x))), split(self.v(x))))
        return joined(F.scaled_dot_product_attention(self.q_norm(split(self.q(x))), k, v))


class SharedKeys(Net):
    """All heads share one key head and one value head, turned by angles."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(8, 12), nn.Linear(8, 2 * EACH)
        self.register_buffer("angles", torch.tensor([1.0, 0.3, 0.1]))

    def attended(self, x: Tensor) -> Tensor:
        turn = torch.cos(torch.arange(x.shape[1])[:, None] * self.angles)
        k, v = (split(t) for t in self.kv(x).chunk(2, -1))
        scores = (split(self.q(x)) * turn) @ (k * turn).mT / math.sqrt(EACH)
        return joined(scores.softmax(-1) @ v)


class FusedSharedKeys(Net):
    """As above, with queries, the key and the value in one layer, as rows of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv = HEADS, nn.Linear(8, (HEADS + 2) * EACH)

    def attended(self, x: Tensor) -> Tensor:
        rows = self.qkv(x).view(*x.shape[:2], self.num_heads + 2, EACH)
        q, k, v = rows[..., :-2, :], rows[..., [-2], :], rows[..., [-1], :]
        return joined(F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), enable_gqa=False))


class RepeatedKeys(Net):
    """All heads share one key head and one value head, repeated as often as an attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_key_value_heads=1)
        self.q, self.kv, self.num_key_value_groups = nn.Linear(8, 12), nn.Linear(8, 2 * EACH), HEADS

    def attended(self, x: Tensor) -> Tensor:
        k, v = (split(t).expand(-1, self.num_key_value_groups, -1, -1) for t in self.kv(x).chunk(2, -1))
        return joined(F.scaled_dot_product_attention(split(self.q(x)), k, v))


class Configured(Net):
    """Counts its heads by a configuration that others share, under a name of its own."""

    def __init__(self, name: str = "num_attention_heads") -> None:
        super().__init__()
        self.config, self.name = SimpleNamespace(**{name: HEADS}), name
        self.qkv = nn.Linear(8, 3 * HEADS * EACH)

    def attended(self, x: Tensor) -> Tensor:
        width = getattr(self.config, self.name) * EACH
        qkv = self.qkv(x)
        q, k, v = (split(t) for t in (qkv[..., :width], qkv[..., width : 2 * width], qkv[..., 2 * width :]))
        return joined(F.scaled_dot_product_attention(q, k, v))


class Disentangled(Net):
    """Content to content, content to position and position to content, as sums of products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.positions = nn.Parameter(torch.randn(2 * TOKENS - 1, 8))

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        places = self.positions[None]
        order = torch.arange(TOKENS)
        distance = (order[:, None] - order[None] + TOKENS - 1).expand(1, q.shape[1], -1, -1)
        scores = q @ k.mT + (q @ split(self.k(places)).mT).gather(-1, distance)
        scores = scores + (k @ split(self.q(places)).mT).gather(-1, distance).mT
        return joined(scores.softmax(-1) @ v)


class HeadTensors(Net):
    """Weights (width, heads, width of a head) in einsum, biases of heads, and segments."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(8, HEADS, EACH)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(8, HEADS, EACH))
        self.q_bias = nn.Parameter(torch.randn(HEADS, EACH))
        self.segments = nn.Parameter(torch.randn(2, HEADS, EACH))
        self.out = nn.Identity()

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("ntc,chd->nthd", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("nihd,njhd->nhij", q + self.q_bias, k)
        kinds = torch.einsum("nihd,shd->nhis", q, self.segments)
        same = torch.ones(1, TOKENS, TOKENS, dtype=torch.bool).tril()[:, None].expand(-1, q.shape[2], -1, -1)
        scores = scores + torch.where(same, kinds[..., :1].expand(same.shape), kinds[..., 1:].expand(same.shape))
        y = torch.einsum("nhij,njhd->nihd", scores.softmax(-1), v)
        return torch.einsum("nthd,chd->ntc", y, self.o)


class PooledTokens(Net):
    """Queries from tokens pooled in pairs, as maps of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, HEADS * EACH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.embed(x)[:, None], (2, 1), ceil_mode=True)[:, 0]
        return self.head((x + self.out(F.relu(self.inside(x)))).mean(1))


class LengthOfOneChannel(Net):
    """Picks one channel for its shape alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.places = nn.Linear(8, HEADS * EACH), nn.Embedding(TOKENS, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.places(torch.arange(x[:, :, -1].shape[1]))
        return self.head((x + self.out(F.relu(self.inside(x)))).mean(1))


class NormOfChannels(nn.Module):
    """A convolution with a norm of every channel, as many groups as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(WIDTH, 8, 3, padding=1), nn.GroupNorm(8, 8)
        self.b, self.head = nn.Conv1d(8, 6, 3, padding=1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.b(F.gelu(self.norm(self.a(x.mT))))).mean(2))


class ResponseGRN(nn.Module):
    """Global response normalisation, whose vectors are of the rank of its input."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
        self.dim = shape.index(max(shape))

    def forward(self, x: Tensor) -> Tensor:
        energy = x.norm(dim=3 - self.dim, keepdim=True)
        return x + self.gamma * x * energy / (energy.mean(self.dim, keepdim=True) + 1e-6) + self.beta


class ResponseNorms(Net):
    """Hidden channels normalised by their mean energy, as the last dimension and as the middle one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm = nn.Linear(8, HEADS * EACH), ResponseGRN((1, 1, HEADS * EACH))
        self.conv, self.between, self.back = nn.Conv1d(8, 10, 1), ResponseGRN((1, 10, 1)), nn.Conv1d(10, 8, 1)

    def attended(self, x: Tensor) -> Tensor:
        x = x + self.back(self.between(self.conv(x.mT))).mT
        return self.norm(F.gelu(self.inside(x)))


class ChannelsLN(nn.Module):
    """A norm by torch's function that states its width, with a bias that is a buffer (lucidrains' x-transformers)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.gamma = dim, nn.Parameter(torch.randn(dim))
        self.register_buffer("beta", torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.gamma, self.beta)


class LayerNormChannel(nn.Module):
    """The norm of dimension 1 of PoolFormer, whose name does not end in Norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
        return self.weight[:, None] * (x - mean) / (variance + 1e-5).sqrt() + self.bias[:, None]


class NormsByHand(Net):
    """Hidden channels normalised by the norms above, as the last dimension and as the middle one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm = nn.Linear(8, HEADS * EACH), ChannelsLN(HEADS * EACH)
        self.conv, self.between, self.back = nn.Conv1d(8, 10, 1), LayerNormChannel(10), nn.Conv1d(10, 8, 1)

    def attended(self, x: Tensor) -> Tensor:
        x = x + self.back(self.between(self.conv(x.mT))).mT
        return self.norm(F.gelu(self.inside(x)))


class TorchsFunction(Net):
    """Attention by torch's function with the weights of layers, which asserts that its heads are as wide as the stream.

    ``is_apart``: a weight each for queries, keys and values, and a bias of each head; else one for all, and no weights
    of attention are asked for.
    """

    def __init__(self, is_apart: bool) -> None:
        super().__init__()
        self.num_heads, self.is_apart = HEADS, is_apart
        self.q, self.k, self.v, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.packed, self.bias = nn.Parameter(torch.randn(24, 8)), nn.Parameter(torch.randn(HEADS, 1, TOKENS))
        self.out = nn.Linear(8, 8)

    def attended(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        weights = {f"{name}_proj_weight": getattr(self, name).weight for name in "qkv"} if self.is_apart else {}
        biases = torch.cat([self.q.bias, self.k.bias, self.v.bias]) if self.is_apart else None
        mask = self.bias.expand(-1, TOKENS, -1) if self.is_apart else None
        y, _ = F.multi_head_attention_forward(
            x, x, x, x.shape[-1], self.num_heads, None if self.is_apart else self.packed, biases, None, None, False,
            0.0, self.proj.weight, self.proj.bias, self.training, attn_mask=mask, need_weights=self.is_apart,
            use_separate_proj_weight=self.is_apart, **weights,
        )  # fmt: skip
        return y.transpose(0, 1)


class ScaledByLargest(Net):
    """Scores of all heads by their largest sum, which is 1 of a head of zeros; each head's values are convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, HEADS * EACH) for _ in range(3))
        self.conv = nn.Conv2d(HEADS, HEADS, (3, 1), padding=(1, 0), groups=HEADS, bias=False)

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = (split(t(x)) for t in (self.q, self.k, self.v))
        shares = (q @ k.mT).softmax(-1)
        return joined((shares / shares.sum(-2).max()) @ v + self.conv(v))


class Sloped(nn.Module):
    """Attention that is given a tensor of all heads, computed from their number, beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.num_heads, self.out = nn.Linear(8, 3 * HEADS * EACH), HEADS, nn.Linear(HEADS * EACH, 8)

    def forward(self, x: Tensor, slopes: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x).unflatten(-1, (self.num_heads, 3, EACH)).unbind(-2))
        scores = (slopes + q.flatten(0, 1) @ k.flatten(0, 1).mT).softmax(-1)
        return self.out(joined((scores @ v.flatten(0, 1)).unflatten(0, (len(x), -1))))


class Slopes(nn.Module):
    """Slopes of positions (N x heads, 1, T), which are others where there are fewer heads (ALiBi)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last, self.head = nn.Linear(WIDTH, 8), Sloped(), Sloped(), nn.Linear(8, 2)
        self.num_heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        slopes = 2.0 ** -torch.arange(1, self.num_heads + 1) * 4 / self.num_heads
        slopes = (slopes[:, None, None] * torch.arange(TOKENS)).repeat(len(x), 1, 1)
        x = self.embed(x)
        x = x + self.first(x, slopes)
        return self.head((x + self.last(x, slopes=slopes)).mean(1))


class GroupedExperts(nn.Module):
    """Rows of tokens, sorted by expert, by one product of all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router = nn.Linear(WIDTH, 8), nn.Linear(8, 2)
        self.up, self.down = nn.Parameter(torch.randn(2, 24, 8)), nn.Parameter(torch.randn(2, 8, 12))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)[0]
        share, chosen = self.router(x).softmax(-1).max(-1)
        order = chosen.argsort(stable=True)
        ends = torch.stack([(chosen == 0).sum(), torch.tensor(len(x))]).int()
        gate, up = torch._grouped_mm(x[order], self.up.mT, offs=ends).chunk(2, -1)
        y = torch._grouped_mm(F.silu(gate) * up, self.down.mT, offs=ends)
        y = torch.zeros_like(x).index_add(0, order, y * share[order, None])
        return self.head((x + y).mean(0, keepdim=True))


class VectorAtAMask(Net):
    """A learnt vector instead of some tokens of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.inside = nn.Parameter(torch.randn(8)), nn.Linear(8, HEADS * EACH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x[(torch.arange(TOKENS) % 3 == 1).expand(len(x), -1)] = self.hidden
        return self.head((x + self.out(F.relu(self.inside(x)))).mean(1))


class WrittenByToken(Net):
    """A state that runs through the tokens, each of which is written into a tensor of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v, self.decay = nn.Linear(8, 12), nn.Linear(8, 12), nn.Parameter(torch.randn(12))

    def attended(self, x: Tensor) -> Tensor:
        k, v = self.k(x), self.v(x)
        state, y = torch.zeros_like(k[:, 0]), torch.zeros_like(k)
        for token in range(TOKENS):
            state = state * torch.sigmoid(self.decay) + k[:, token]
            y[:, token] = state * v[:, token]
        return y


class KeysOfGroups(Net):
    """Values and gates of heads and keys of groups of heads, cut from one layer; a number equals that of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.n_groups, self.chunk_size = HEADS, 2, HEADS
        self.every = nn.Linear(8, HEADS * EACH + 2 * EACH + HEADS)

    def attended(self, x: Tensor) -> Tensor:
        sizes = [self.num_heads * EACH, self.n_groups * EACH, self.num_heads]
        values, keys, gates = self.every(x).split(sizes, -1)
        keys = split(keys).repeat_interleave(self.num_heads // self.n_groups, 1)
        y = (keys @ keys.mT).softmax(-1) @ split(values) * gates.mT[..., None]
        return joined(y) / self.chunk_size


class LatentAsWideAsAHead(Net):
    """Values from a narrow latent that is cut from a layer, and as wide as a head."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_rank, self.v_head_dim = EACH, EACH
        self.latent, self.q, self.k = nn.Linear(8, EACH + 2), nn.Linear(8, HEADS * EACH), nn.Linear(8, HEADS * EACH)
        self.up, self.turn = nn.Linear(EACH, HEADS * EACH), nn.Linear(2, HEADS * EACH)

    def attended(self, x: Tensor) -> Tensor:
        latent, turn = self.latent(x).split([self.latent_rank, 2], -1)
        q, k, v = (split(t, self.v_head_dim) for t in (self.q(x), self.k(x) + self.turn(turn), self.up(latent)))
        return joined(F.scaled_dot_product_attention(q, k, v))


class RoutedToFew(Net):
    """An expert for every token of which some have none, and layers that read the stream behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.inside = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, HEADS * EACH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)[0]
        y = torch.zeros_like(x)
        y.index_add_(0, torch.tensor([0, 2]), self.one(x[[0, 2]]))
        y.index_add_(0, torch.tensor([2, 5]), self.two(x[[2, 5]]))
        x = x + y
        return self.head((x + self.out(F.relu(self.inside(x)))).mean(0, keepdim=True))


class SharedBiases(Net):
    """Two attentions that add one table of zeros, with a row for each head."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.num_heads = fused, HEADS
        self.first, self.second = nn.Linear(8, 3 * HEADS * EACH), nn.Linear(8, 3 * HEADS * EACH)
        self.between = nn.Linear(HEADS * EACH, 8)

    def attention(self, qkv: Tensor, biases: Tensor) -> Tensor:
        q, k, v = (split(t) for t in qkv.chunk(3, -1))
        if self.fused:
            return joined(F.scaled_dot_product_attention(q, k, v, biases))
        return joined((q @ k.mT / math.sqrt(EACH) + biases).softmax(-1) @ v)

    def attended(self, x: Tensor) -> Tensor:
        biases = torch.zeros(1, self.num_heads, TOKENS, TOKENS)
        x = x + self.between(self.attention(self.first(x), biases))
        return self.attention(self.second(x), biases)


class TokensOfChannels(Net):
    """Each token becomes two, of half of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.inside = nn.Linear(8, 14), nn.Linear(7, HEADS * EACH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(F.relu(self.embed(x)))
        x = x.reshape(len(x), 2 * TOKENS, -1)
        return self.head(self.out(F.relu(self.inside(x))).mean(1))


Groups = list[tuple[str, int, int]]
STREAM = ("embed", 8, 1)
KINDS: dict[str, tuple[Callable[[], nn.Module], Groups]] = {
    "norms inside heads": (NormedHeads, [STREAM, ("k", 6, 3)]),
    "a key head for all": (SharedKeys, [STREAM, ("q", 12, 3)]),
    "a key head for all, fused": (FusedSharedKeys, [STREAM, ("qkv", 12, 3)]),
    "a key head for all, repeated": (RepeatedKeys, [STREAM, ("q", 12, 3)]),
    "heads counted by a configuration": (Configured, [STREAM, ("qkv", 12, 3)]),
    "heads of a decoder, counted": (lambda: Configured("decoder_attention_heads"), [STREAM, ("qkv", 12, 3)]),
    "disentangled attention": (Disentangled, [STREAM, ("q", 12, 3)]),
    "weights with an axis of heads": (HeadTensors, [STREAM, ("q", 4, 1)]),
    "tokens pooled as a map": (PooledTokens, [STREAM, ("inside", 12, 1)]),
    "a channel picked for its length": (LengthOfOneChannel, [STREAM, ("inside", 12, 1)]),
    "a norm of every channel": (NormOfChannels, [("a", 8, 1), ("b", 6, 1)]),
    "a norm by the mean over channels": (ResponseNorms, [STREAM, ("conv", 10, 1), ("inside", 12, 1)]),
    "norms by hand": (NormsByHand, [STREAM, ("conv", 10, 1), ("inside", 12, 1)]),
    "torch's function with a weight each": (
        lambda: TorchsFunction(True),
        [STREAM, ("q.weight", 8, 2), ("proj.weight", 8, 1)],
    ),
    "torch's function with one weight": (
        lambda: TorchsFunction(False),
        [STREAM, ("packed.0", 8, 2), ("proj.weight", 8, 1)],
    ),
    "scores by the largest of all heads": (ScaledByLargest, [STREAM, ("q", 12, 3)]),
    "slopes computed from the number of heads": (Slopes, [STREAM, ("first.qkv", 12, 3)]),
    "grouped rows of experts": (GroupedExperts, [("embed", 8, 4), ("up", 12, 4)]),
    "a vector at a mask": (VectorAtAMask, [STREAM, ("inside", 12, 1)]),
    "tokens written one by one": (WrittenByToken, [STREAM, ("k", 12, 1)]),
    "keys of groups of heads": (KeysOfGroups, [STREAM, ("every", 2, 1)]),
    "a latent as wide as a head": (LatentAsWideAsAHead, [STREAM, ("latent", 3, 1), ("q", 12, 3)]),
    "tokens without an expert": (RoutedToFew, [STREAM, ("inside", 12, 1)]),
    "biases shared by two attentions": (lambda: SharedBiases(False), [STREAM, ("first", 12, 3)]),
    "biases shared by two fused attentions": (lambda: SharedBiases(True), [STREAM, ("first", 12, 3)]),
    "tokens made of channels": (TokensOfChannels, [STREAM, ("up", 7, 1), ("inside", 12, 1), ("out", 8, 1)]),
}
NO_ONNX = {"grouped rows of experts", "a vector at a mask"}  # of the dense network, too

_CACHE: dict[str, tuple[nn.Module, Batch, Trace]] = {}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def subject(kind: str) -> tuple[nn.Module, Batch, Trace]:
    if kind not in _CACHE:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            model, x = KINDS[kind][0]().eval(), torch.randn(1, TOKENS, WIDTH)
        _CACHE[kind] = model, Batch.of(x), trace(model, x)
    return _CACHE[kind]


def chosen(found: Trace, seed: int) -> dict[str, np.ndarray]:
    """A random choice of units, two or more where there are as many."""
    rng, kept = np.random.default_rng(seed), {}
    for name, units in found.units.items():
        count = int(rng.integers(min(2, len(units) - 1), len(units)))
        kept[name] = np.sort(units[rng.permutation(len(units))[:count]].ravel())
    return kept


def test_groups_by_hand(kind: str, subject: tuple[nn.Module, Batch, Trace]) -> None:
    found = [(group.name, group.channels, group.unit) for group in subject[2].network.groups]
    assert found == KINDS[kind][1], subject[2].skipped


@pytest.mark.parametrize("seed", [1, 2])
def test_removal_computes_what_masking_does_and_macs_are_predicted(
    subject: tuple[nn.Module, Batch, Trace], seed: int
) -> None:
    model, batch, found = subject
    kept = chosen(found, seed)
    with torch.no_grad(), masked(model, found, kept):
        expected = batch.through(model)
    small = remove(model, found, kept)
    with torch.no_grad():
        assert torch.allclose(batch.through(small), expected, atol=1e-5, rtol=1e-5)
    policy = PruningPolicy({name: len(index) for name, index in kept.items()})
    predicted = sum(map(macs, found.network.with_channels(policy).layers))
    assert predicted == sum(map(macs, trace(small, batch, verify=False).network.layers))


def test_macs_are_those_of_torchs_counter(subject: tuple[nn.Module, Batch, Trace], kind: str) -> None:
    model, batch, found = subject
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        batch.through(model)
    grouped = TOKENS * (8 * 24 + 12 * 8) if kind == "grouped rows of experts" else 0  # has no formula of its own
    assert sum(map(macs, found.network.layers)) == counter.get_total_flops() // 2 + grouped


def test_onnx_computes_what_torch_does(kind: str, subject: tuple[nn.Module, Batch, Trace]) -> None:
    if kind in NO_ONNX:
        return
    model, batch, found = subject
    small = remove(model, found, chosen(found, 4))
    with torch.no_grad():
        expected = batch.through(small)
    assert torch.allclose(batch.through(OnnxModule(exported(small, batch))), expected, atol=1e-4, rtol=1e-4)


def test_a_configuration_keeps_its_count_where_another_module_reads_it() -> None:
    model = Configured().eval()
    found = trace(model, torch.randn(1, TOKENS, WIDTH))
    small = remove(model, found, {"qkv": np.arange(6)})
    assert (small.config.num_attention_heads, model.config.num_attention_heads) == (2, HEADS)


def test_a_tensor_of_all_heads_is_cut_for_each_sample_and_again_in_a_smaller_network() -> None:
    """Heads 0, 2 and 3 of four, then the first and last of those; two samples lie behind one another in a dimension."""
    model = Slopes().eval()
    found = trace(model, torch.randn(1, TOKENS, WIDTH))
    three, two = np.r_[0:3, 6:12], np.r_[0:3, 6:9]
    once, smaller = remove(model, found, {"first.qkv": three}), renumbered(found, {"first.qkv": three})
    again, x = remove(once, smaller, {"first.qkv": two}), torch.randn(2, TOKENS, WIDTH)
    with torch.no_grad(), masked(model, found, {"first.qkv": three[two]}):
        torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize(
    ("widths", "groups", "products"),
    [((24, 16), 4, 24 * 16 // 4), ((12, 8), 2, 12 * 8 // 2), ((12, 16), 4, 12 * 16 // 4), ((6, 8), 2, 6 * 8 // 2)],
)
def test_products_lose_whole_groups_as_far_as_both_sides_shrink(
    widths: tuple[int, int], groups: int, products: int
) -> None:
    layer = LayerSpec("product", LayerKind.CONV, 24, 16, conv_groups=4, has_weight=False)
    resized = layer.resized(*widths)
    assert (resized.conv_groups, macs(resized)) == (groups, products)
    every = layer.groups_at(np.array([widths[0]]), np.array([widths[1]]))
    assert every.tolist() == [groups]


def test_a_norm_of_every_channel_loses_groups_and_a_convolution_keeps_them() -> None:
    norm = LayerSpec("norm", LayerKind.GROUP_NORM, 8, 8, conv_groups=8)
    convolution = LayerSpec("conv", LayerKind.CONV, 8, 8, (3, 3), conv_groups=2)
    assert (norm.resized(5, 5).conv_groups, convolution.resized(4, 4).conv_groups) == (5, 2)
