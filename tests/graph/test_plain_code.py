"""Code that counts its heads under any name or as a number of its own: sizes by hand, removal beside masking."""

import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import Batch, masked, remove, renumbered, trace
from amcsearch.graph.plain_code import GridAxis, ask_for, lower
from amcsearch.runtime import OnnxModule, exported

TOKENS, IN, STREAM, HEADS, EACH = 5, 7, 8, 4, 3
WIDTH = HEADS * EACH


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, T, heads, width) three times → (N, T, heads * width)."""
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
    return y.transpose(1, 2).flatten(2)


class Net(nn.Module):
    """A stream, fused queries, keys and values, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(IN, STREAM), nn.Linear(STREAM, 3 * WIDTH)
        self.out, self.head = nn.Linear(WIDTH, STREAM), nn.Linear(STREAM, 2)

    def heads(self) -> int:
        raise NotImplementedError

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads(), -1).unbind(2)
        return attended(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.out(self.attention(x))).mean(1))


class OneLetter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.n, self.number_of_layers = HEADS, 1

    def heads(self) -> int:
        return self.n


class AsWideAsMany(Net):
    """Another integer equals the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.every, self.n = HEADS, HEADS

    def heads(self) -> int:
        return self.n

    def attention(self, x: Tensor) -> Tensor:
        return super().attention(x)[:, :: self.every].repeat_interleave(4, 1)[:, :TOKENS]


class Private(Net):
    def __init__(self) -> None:
        super().__init__()
        self._h = HEADS

    def heads(self) -> int:
        return self._h


class OfTheClass(Net):
    H = HEADS

    def heads(self) -> int:
        return self.H


@dataclass(frozen=True)
class Sizes:
    h: int = HEADS


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = Sizes()

    def heads(self) -> int:
        return self.sizes.h


class InADictionary(Net):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"h": HEADS}

    def heads(self) -> int:
        return self.sizes["h"]


class OfTheFile(Net):
    def heads(self) -> int:
        return HEADS


class InTheLine(Net):
    """Three linear layers, shapes without a -1, and parts of a fixed length."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = nn.Linear(STREAM, 2 * WIDTH)
        self.qkv = nn.Linear(STREAM, WIDTH)

    def attention(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        k, v = self.kv(x).split(12, dim=-1)
        q, k, v = (y.view(n, t, 4, 3) for y in (self.qkv(x), k, v))
        return attended(q, k, v).reshape(n, t, 12)


class SharedKeys(Net):
    """Two query heads of one key head, all counted by names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.kv, self.qkv = SimpleNamespace(nh=4, kvh=2, hd=3), nn.Linear(STREAM, 12), nn.Linear(STREAM, WIDTH)

    def attention(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, (k, v) = self.qkv(x).view(n, t, self.a.nh, self.a.hd), self.kv(x).chunk(2, -1)
        k, v = (y.view(n, t, self.a.kvh, self.a.hd).repeat_interleave(self.a.nh // self.a.kvh, 2) for y in (k, v))
        return attended(q, k, v)


class WidthOfTheStream(Net):
    """Heads are as wide as the stream allows; the scale of the scores does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.qkv, self.out = HEADS, nn.Linear(STREAM, 3 * STREAM), nn.Linear(STREAM, STREAM)

    def attention(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (
            y.reshape(n, t, self.n, c // self.n).transpose(1, 2).reshape(n * self.n, t, c // self.n)
            for y in self.qkv(x).chunk(3, -1)
        )
        y = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).view(n, self.n, t, c // self.n)
        return y.transpose(1, 2).reshape(n, t, c)


class ScaledByTheStream(Net):
    """As above, and the scores are scaled by the width: stream and heads lose as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.qkv, self.out = HEADS, nn.Linear(STREAM, 3 * STREAM), nn.Linear(STREAM, STREAM)

    def attention(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (y.reshape(n, t, self.n, c // self.n).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = (q @ k.mT / (c // self.n) ** 0.5).softmax(-1) @ v
        return y.transpose(1, 2).reshape(n, t, c)


EMBED = ("embed", STREAM, 1)
KINDS = {
    **{
        kind: [EMBED, ("qkv", WIDTH, EACH)]
        for kind in (OneLetter, AsWideAsMany, Private, OfTheClass, Frozen, InADictionary, OfTheFile)
    },
    InTheLine: [EMBED, ("kv", WIDTH, EACH)],
    SharedKeys: [EMBED, ("qkv", 6, EACH)],
    WidthOfTheStream: [EMBED, ("qkv", STREAM, 2)],
    ScaledByTheStream: [("embed", STREAM, 2)],
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_heads_of_any_name_leave_and_leave_again(kind: type[Net]) -> None:
    """Groups by hand; removal beside masking, of all groups and of each, then of the smaller network; ONNX, a copy."""
    torch.manual_seed(3)
    model, x = kind().eval(), torch.randn(1, TOKENS, IN)
    traced, more = trace(model, x), torch.randn(2, TOKENS, IN)
    sizes = [(group.name, group.channels, group.unit) for group in traced.network.groups]
    assert sizes == KINDS[kind], traced.skipped
    kept = {name: np.sort(units[1:].ravel()) for name, units in traced.units.items()}
    for part in (kept, *({name: index} for name, index in kept.items())):
        with torch.no_grad(), masked(model, traced, part):
            expected = model(more)
        small = remove(model, traced, part)
        torch.testing.assert_close(small(more), expected)
    small, smaller = remove(model, traced, kept), renumbered(traced, kept)
    again = {name: np.sort(units[:1].ravel()) for name, units in smaller.units.items()}
    with torch.no_grad(), masked(small, smaller, again):
        expected = small(more)
    smallest = pickle.loads(pickle.dumps(remove(small, smaller, again)))
    torch.testing.assert_close(smallest(more), expected)
    batch = Batch.of(x)
    with torch.no_grad():
        torch.testing.assert_close(OnnxModule(exported(smallest, batch))(x), smallest(x), atol=1e-5, rtol=1e-4)


class Asks(nn.Module):
    """Calls a method of its input."""

    def __init__(self, method: str, *args: object) -> None:
        super().__init__()
        self.method, self.args = method, args

    def forward(self, x: Tensor) -> list[tuple[int, ...]]:
        y = getattr(x, self.method)(*self.args)
        return [tuple(part.shape) for part in (y if isinstance(y, tuple) else (y,))]


LINE = "forward:1"
HEADS_OF_FOUR: GridAxis = (LINE, 4, ((2, 4), (3, 6))), 0


@pytest.mark.parametrize(
    ("module", "place", "size", "given", "shape"),
    [
        (Asks("view", 1, 5, 4, 6), HEADS_OF_FOUR, 2, (1, 5, 12), (1, 5, 2, 6)),
        (Asks("reshape", (1, 5, 4, -1)), HEADS_OF_FOUR, 2, (1, 5, 12), (1, 5, 2, 6)),
        (Asks("view", 1, 5, 4, 3), HEADS_OF_FOUR, 2, (1, 5, 12), (1, 5, 2, 6)),  # of a width that happens to fit
        (Asks("view", 1, 5, 2, 8), HEADS_OF_FOUR, 2, (1, 5, 12), (1, 5, 2, 6)),  # of another tensor's width
        (Asks("view", 4, 6), HEADS_OF_FOUR, 2, (1, 24), (4, 6)),  # another rank
        (Asks("view", 1, 5, 4, 3), (("f:9", *HEADS_OF_FOUR[0][1:]), 0), 2, (1, 5, 12), (1, 5, 4, 3)),  # another line
        (Asks("view", 8, 5, 1), ((LINE, 3, ((0, 4), (2, 2))), 1), 2, (2, 4, 5, 2), (8, 5, 2)),  # heads of two samples
        (Asks("unflatten", -1, (4, 6)), HEADS_OF_FOUR, 2, (1, 5, 12), (1, 5, 2, 6)),
        (Asks("split", 6, -1), ((LINE, 0, ((-1, 6),)), 0), 3, (1, 9), (1, 3)),
        (Asks("split", [6, 2], -1), ((LINE, 0, ((-1, 6),)), 0), 3, (1, 5), (1, 3)),
    ],
)
def test_code_asks_for_what_is_left(
    module: Asks, place: GridAxis, size: int, given: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    ask_for(module, place, size)
    assert module(torch.zeros(given))[0] == shape


def test_the_grid_that_changes_least_is_taken_and_a_later_size_replaces_an_earlier_one() -> None:
    module = Asks("reshape", 1, 6, 16)
    ask_for(module, ((LINE, 3, ((0, 4), (2, 6))), 0), 4)
    ask_for(module, ((LINE, 3, ((2, 24),)), 0), 20)
    ask_for(module, ((LINE, 3, ((2, 24),)), 0), 24)
    assert module(torch.zeros(4, 6, 6)) == [(1, 6, 24)]
    assert module(torch.zeros(1, 96)) == [(1, 6, 16)]
    assert len(module._forward_pre_hooks) == 1


def test_a_failing_module_leaves_torch_as_it_was() -> None:
    module = Asks("view", 7, 7)
    ask_for(module, ((LINE, 2, ((0, 7),)), 0), 3)
    with pytest.raises(RuntimeError):
        module(torch.zeros(5))
    assert torch.zeros(49).view(7, 7).shape == (7, 7)


def test_a_frozen_configuration_falls_in_a_copy() -> None:
    holder = nn.Module()
    holder.sizes = shared = Sizes()
    lower(holder, "sizes.h", 3)
    assert (holder.sizes.h, shared.h) == (HEADS - 3, HEADS)
