"""Every sum of products is counted, whatever code runs it: by hand, and as torch's own counter counts them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.costs.compute import macs, params
from amcsearch.graph.folding import fold_weights
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace


def counted_by_torch(model: nn.Module, example: Tensor) -> int:
    """MACs by torch's counter, with gradients, plain attention and plain recurrence: fused ones are invisible to it."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        model(example)
    return counter.get_total_flops() // 2


def traced(model: nn.Module, example: Tensor) -> Trace:
    found = trace(model.eval(), example)
    assert sum(params(x) for x in found.network.layers) == sum(p.numel() for p in model.parameters())
    return found


def layer(found: Trace, name: str) -> LayerSpec:
    return found.network.layers[found.network.layer_index[name]]


class Plain(nn.Module):
    """A stem, whatever ``function(x, weights…)`` does with its output (1, 6, 8) and parameters, and a head."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.stem, self.function = nn.Linear(5, 8), function
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.relu(self.stem(x)), *self.weights)


SEQUENCE = torch.randn(1, 6, 5)


@pytest.mark.parametrize(
    ("function", "shapes", "name", "kind", "widths", "positions", "n_params"),
    [
        (lambda x, w: x @ w, [(8, 7)], "weights.0", LayerKind.LINEAR, (8, 7), 6, 56),
        (lambda x, w: w @ x.mT, [(7, 8)], "weights.0", LayerKind.LINEAR, (8, 7), 6, 56),
        (lambda x, w, b: F.linear(x, w, b), [(7, 8), (7,)], "weights.0", LayerKind.LINEAR, (8, 7), 6, 63),
        (lambda x, w: torch.einsum("btc,co->bot", x, w), [(8, 7)], "weights.0", LayerKind.LINEAR, (8, 7), 6, 56),
        (lambda x, w: F.linear(x.reshape(3, 2, 8), w), [(7, 8)], "weights.0", LayerKind.LINEAR, (8, 7), 6, 56),
        # the rows of one expert of three: its numbers are counted with the parameter
        (lambda x, w: F.linear(x, w[1]), [(3, 7, 8)], "weights.0.1", LayerKind.LINEAR, (8, 7), 6, 0),
        # a block-diagonal weight: two blocks of 4 → 3; its numbers are counted with the parameter
        (
            lambda x, w: torch.bmm(x.reshape(6, 2, 4).transpose(0, 1), w),
            [(2, 4, 3)], "weights.0#2", LayerKind.CONV, (8, 6), 6, 0,
        ),
        (
            lambda x, w, b: F.conv1d(x.mT, w, b, padding=1),
            [(7, 8, 3), (7,)], "weights.0", LayerKind.CONV, (8, 7), 6 * 3, 7 * 8 * 3 + 7,
        ),
        (lambda x, w: F.conv1d(x.mT, w, groups=2), [(6, 4, 1)], "weights.0", LayerKind.CONV, (8, 6), 6, 24),
        # a weight that is computed from two parameters belongs to neither
        (lambda x, v, g: x @ (v * g), [(8, 7), (7,)], "product", LayerKind.LINEAR, (8, 7), 6, 0),
    ],
)  # fmt: skip
def test_parameters_used_by_plain_code_are_layers(function, shapes, name, kind, widths, positions, n_params):
    found = layer(traced(Plain(function, *shapes), SEQUENCE), name)
    assert (found.kind, found.in_channels, found.out_channels) == (kind, *widths)
    assert macs(found) == positions * widths[0] * widths[1] // found.conv_groups
    assert params(found) == n_params


@pytest.mark.parametrize(
    ("function", "n_macs"),
    [
        (lambda x: x.mT @ x, 8 * 6 * 8),  # a Gram matrix
        (lambda x: torch.einsum("btc,bsc->bts", x, x.sigmoid()), 6 * 6 * 8),
        (lambda x: (x @ x.mT).sigmoid() @ x, 2 * 6 * 6 * 8),  # no softmax, no attention
        # six filters of the sample's own, one a channel
        (lambda x: F.conv1d(x, x.mean(1).reshape(1, 1, 8)[..., :3].repeat(6, 1, 1), groups=6), 6 * 6 * 3),
    ],
)
def test_products_of_two_maps_are_layers_without_weights(function, n_macs):
    found = traced(Plain(function), SEQUENCE)
    rest = [x for x in found.network.layers if x.name != "stem"]
    assert sum(map(macs, rest)) == n_macs
    assert not any(x.has_weight for x in rest)


def test_equal_products_of_a_module_are_one_layer_where_the_first_ran():
    def scan(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack([x[:, t, None] @ x[:, t, :, None] for t in range(6)], 1)[..., 0] * (x @ w)

    names = {x.name: macs(x) for x in traced(Plain(scan, (8, 8)), SEQUENCE).network.layers}
    assert list(names.items()) == [("stem", 240), ("product", 6 * 8), ("weights.0", 6 * 64)]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q @ k.mT, -1) @ v


@pytest.mark.parametrize(
    ("function", "in_channels", "out_channels", "heads", "keys", "queries"),
    [
        # two heads of key width 3 and value width 1
        (
            lambda x: _attend(*(x.unflatten(-1, (2, 4)).transpose(1, 2).split([3, 1], -1)[i] for i in (0, 0, 1))),
            6, 2, 2, 6, 6,
        ),
        # queries are the first two positions, keys all six
        (lambda x: _attend(x[:, None, :2], x[:, None], x[:, None]), 8, 8, 1, 6, 2),
        # grouped queries: four heads of width 2 read two
        (
            lambda x: F.scaled_dot_product_attention(
                x.unflatten(-1, (4, 2)).transpose(1, 2), *([x[..., :4].unflatten(-1, (2, 2)).transpose(1, 2)] * 2),
                enable_gqa=True,
            ),
            8, 8, 4, 6, 6,
        ),
        # three windows of two positions, two heads each: every query meets the two keys of its window
        (
            lambda x: F.scaled_dot_product_attention(*([x.reshape(3, 2, 2, 4).transpose(1, 2)] * 3)),
            8, 8, 2, 2, 6,
        ),
        # written with einsum
        (
            lambda x: torch.einsum(
                "bhts,bshd->bthd",
                torch.einsum("bthd,bshd->bhts", *([x.unflatten(-1, (2, 4))] * 2)).softmax(-1), x.unflatten(-1, (2, 4)),
            ),
            8, 8, 2, 6, 6,
        ),
    ],
)  # fmt: skip
def test_attention_by_hand(function, in_channels, out_channels, heads, keys, queries):
    found = layer(traced(Plain(function), SEQUENCE), "attention")
    assert (found.kind, found.in_channels, found.out_channels) == (LayerKind.ATTENTION, in_channels, out_channels)
    assert (found.conv_groups, found.in_size[0], found.out_size[0]) == (heads, keys, queries)
    assert macs(found) == queries * keys * (in_channels + out_channels)


class Attends(nn.Module):
    """nn.MultiheadAttention over five tokens of 8, with three others of ``kdim`` and ``vdim`` as keys and values."""

    def __init__(self, cross: bool = False, **options: object) -> None:
        super().__init__()
        self.cross, self.attend = cross, nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.to_k, self.to_v = nn.Linear(8, self.attend.kdim), nn.Linear(8, self.attend.vdim)

    def forward(self, x: Tensor) -> Tensor:
        others = x[:, :3] if self.cross else x
        return self.attend(x, self.to_k(others), self.to_v(others))[0]


@pytest.mark.parametrize(
    ("options", "n_macs"),
    [
        # q of 5 tokens, k and v of 3; scores and values; output
        ({"cross": True}, 5 * 64 + 2 * 3 * 64 + 2 * 5 * 3 * 8 + 5 * 64),
        ({"cross": True, "kdim": 4, "vdim": 6}, 5 * 64 + 3 * 32 + 3 * 48 + 2 * 5 * 3 * 8 + 5 * 64),
        ({"add_bias_kv": True}, 3 * 5 * 64 + 2 * 5 * 6 * 8 + 5 * 64),
    ],
)
def test_packed_attention_with_other_keys_and_values(options, n_macs):
    found = traced(Attends(**options), torch.randn(1, 5, 8))
    inside = [x for x in found.network.layers if x.name.startswith("attend")]
    assert sum(map(macs, inside)) == n_macs
    core = layer(found, "attend.attention")
    assert (core.conv_groups, core.out_size[0]) == (2, 5)


class FirstOutput(nn.Module):
    """The first of what a module returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


@pytest.mark.parametrize(
    ("inner", "n_macs"),
    [
        (nn.LSTM(5, 3, batch_first=True), 6 * (4 * 3 * 5 + 4 * 3 * 3)),
        (nn.GRU(5, 3, bidirectional=True, batch_first=True), 2 * 6 * (3 * 3 * 5 + 3 * 3 * 3)),
        (nn.RNN(5, 3, num_layers=2, bias=False, batch_first=True), 6 * (3 * 5 + 3 * 3 + 3 * 3 + 3 * 3)),
        (nn.LSTM(5, 4, proj_size=2, batch_first=True), 6 * (16 * 5 + 16 * 2 + 4 * 2)),
    ],
)
def test_recurrent_modules_by_hand(inner, n_macs):
    found = traced(FirstOutput(inner), SEQUENCE)
    assert sum(map(macs, found.network.layers)) == n_macs
    assert {x.kind for x in found.network.layers} == {LayerKind.LINEAR}


@pytest.mark.parametrize(
    ("module", "shape", "n_macs"),
    [
        (nn.Conv3d(2, 4, (3, 1, 2), padding=(1, 0, 0)), (1, 2, 4, 5, 6), 4 * 2 * 6 * (4 * 5 * 5)),
        (nn.Conv3d(4, 4, 3, stride=2, groups=4), (1, 4, 7, 7, 7), 4 * 27 * 27),
        (nn.ConvTranspose3d(2, 4, 2, stride=2), (1, 2, 3, 3, 3), 4 * 2 * 8 * 27),
        (nn.ConvTranspose3d(2, 4, 3, stride=2, padding=1, output_padding=1), (1, 2, 3, 3, 3), 4 * 2 * 27 * 27),
        (nn.ConvTranspose3d(2, 4, 4, stride=2, padding=1), (1, 2, 3, 3, 3), 4 * 2 * 64 * 27),
        (nn.ConvTranspose1d(2, 4, 4, stride=2, padding=1), (1, 2, 9), 4 * 2 * 4 * 9),
        (nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2), (1, 4, 5, 5), 4 * 2 * 9 * 25),
        (nn.Conv1d(2, 4, 3), (1, 2, 9), 4 * 2 * 3 * 7),
    ],
)
def test_convolutions_of_every_kind_by_hand(module, shape, n_macs):
    assert macs(traced(nn.Sequential(module), torch.randn(shape)).network.layers[0]) == n_macs


class Folds(nn.Module):
    """A module run on seven pieces of one sample at once."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.reshape(7, *self.shape)).flatten().unsqueeze(0)


@pytest.mark.parametrize(
    ("module", "shape", "n_macs"),
    [
        (nn.Conv2d(2, 4, 3, padding=1), (2, 4, 4), 7 * 4 * 2 * 9 * 16),
        (nn.ConvTranspose2d(2, 4, 3, stride=2), (2, 4, 4), 7 * 4 * 2 * 9 * 16),
        (nn.ConvTranspose2d(2, 4, 2, stride=2), (2, 4, 4), 7 * 4 * 2 * 4 * 16),
        (nn.Linear(4, 3), (2, 4), 7 * 2 * 4 * 3),
    ],
)
def test_pieces_folded_into_the_batch_are_all_counted(module, shape, n_macs):
    sizes = torch.Size(shape).numel()
    assert macs(traced(Folds(module, shape), torch.randn(1, 7 * sizes)).network.layers[0]) == n_macs


class Experts(nn.Module):
    """A router, and a loop over the experts that hold a token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(5, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 7, 5)), nn.Parameter(torch.randn(3, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        tokens, chosen = x[0], torch.arange(len(x[0])) % 3
        result = torch.zeros_like(tokens)
        for expert in range(3):
            rows = torch.where(chosen == expert)[0]
            hidden = F.silu(F.linear(tokens[rows], self.up[expert]))
            result.index_add_(0, rows, F.linear(hidden, self.down[expert]))
        return (result * self.router(tokens).softmax(-1)[:, :1]).unsqueeze(0)


def test_every_expert_is_a_layer_of_the_tokens_it_gets():
    found = traced(Experts(), torch.randn(1, 6, 5)).network.layers
    experts = {x.name: (macs(x), x.out_size[0]) for x in found if x.kind is LayerKind.LINEAR}
    names = [f"{key}.{expert}" for expert in range(3) for key in ("up", "down")]
    assert experts == {"router": (6 * 15, 6), **dict.fromkeys(names, (2 * 35, 2))}


class LowRank(nn.Linear):
    """A linear layer with a low-rank update beside it, run in the same forward."""

    def __init__(self) -> None:
        super().__init__(5, 8)
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.a), self.b)


def test_products_beside_a_known_layers_own_are_counted():
    counts = {x.name: macs(x) for x in traced(nn.Sequential(LowRank(), nn.Linear(8, 3)), SEQUENCE).network.layers}
    assert counts == {"0": 240, "0.a": 6 * 10, "0.b": 6 * 16, "1": 6 * 24}


@pytest.mark.parametrize(
    ("function", "shapes", "words"),
    [
        (lambda x, w: F.bilinear(x, x, w), [(3, 8, 8)], ("bilinear", f"{6 * 3 * 64 + 6 * 3 * 8:,}")),
        (lambda x, w: torch.cdist(x, w), [(1, 4, 8)], ("cdist", f"{6 * 4 * 8:,}")),
    ],
)
def test_what_fits_no_layer_is_named_with_its_macs(function, shapes, words):
    reasons = [x.reason for x in traced(Plain(function, *shapes), SEQUENCE).skipped if "not counted" in x.reason]
    assert len(reasons) == 1
    assert all(word in reasons[0] for word in words)


class Mixed(nn.Module):
    """Steps drawn at random, each keeps (N, T, 8)."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.w, self.bank = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(4, 8, 8))
        self.linear, self.lstm = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True)
        self.conv, self.up = nn.Conv1d(8, 8, 3, padding=1), nn.ConvTranspose1d(8, 8, 2, stride=2)
        self.attend, self.cell = nn.MultiheadAttention(8, 2, batch_first=True), nn.GRUCell(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = getattr(self, f"_{step}")(x)
        return x

    def _matmul(self, x: Tensor) -> Tensor:
        return x @ self.w

    def _left(self, x: Tensor) -> Tensor:
        return (self.w.T @ x.mT).mT

    def _einsum(self, x: Tensor) -> Tensor:
        return torch.einsum("ntc,kcd->ntd", x, self.bank)

    def _expert(self, x: Tensor) -> Tensor:
        return F.linear(x, self.bank[2])

    def _conv2d(self, x: Tensor) -> Tensor:
        return F.conv2d(x.mT[..., None], self.w[:, :, None, None])[..., 0].mT

    def _dynamic(self, x: Tensor) -> Tensor:
        maps, filters = x.mT.reshape(1, -1, x.shape[1]), x[:, 0, :, None, None].flatten(0, 1)
        return F.conv1d(maps, filters, groups=8 * len(x)).reshape(len(x), 8, -1).mT

    def _windows(self, x: Tensor) -> Tensor:
        w = x.reshape(-1, 2, 8)
        return self.attend(w, w, w)[0].reshape(x.shape)

    def _cross(self, x: Tensor) -> Tensor:
        return self.attend(x, x[:, :2], x[:, :2])[0]

    def _sdpa(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 2)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q[:, :, :2], q[:, :, :2]).transpose(1, 2).flatten(2)

    def _gram(self, x: Tensor) -> Tensor:
        return x @ (x.mT @ x)

    def _module(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.conv(x.mT).mT + self.up(x.mT).mT[:, ::2] + self.normed(x)

    def _recurrent(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0] + self.cell(x[0])[None]


STEPS = [name[1:] for name in vars(Mixed) if name.startswith("_") and not name.startswith("__")]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), half=st.integers(1, 4))
def test_macs_and_parameters_are_those_of_torchs_counter(steps: list[str], half: int) -> None:
    torch.manual_seed(0)
    model, example = Mixed(steps).eval(), torch.randn(1, 2 * half, 8)
    found = trace(model, example, verify=False)
    assert sum(map(macs, found.network.layers)) == counted_by_torch(model, example)
    fold_weights(model, example)  # the network that is traced, without the norm's own parameters
    assert sum(map(params, found.network.layers)) == sum(p.numel() for p in model.parameters())
    assert not any("not counted" in x.reason for x in found.skipped)
