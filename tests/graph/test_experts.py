"""Mixtures of experts: those of one tensor for all experts, and those that the example sends no tokens."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.policy import PruningPolicy
from amcsearch.costs.compute import macs, params
from amcsearch.graph import masked, remove, trace
from amcsearch.graph.tracing.branches import EvenRouting
from amcsearch.runtime import OnnxModule, exported

EXPERTS, WIDTH, INNER = 3, 6, 8
SAMPLE = (1, 5, WIDTH)


class Bare(nn.Module):
    """Two parameters (experts, in, out), all experts of every token weighed by a softmax; ``code`` runs them."""

    def __init__(self, code: Callable[["Bare", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.code = code
        self.embed, self.gate, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 2)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / 2)
        self.bias = nn.Parameter(torch.randn(EXPERTS, INNER) / 2)
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) / 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.code(self, x, self.gate(x).softmax(-1))).mean(1))


def by_einsum(net: Bare, x: Tensor, share: Tensor) -> Tensor:
    inner = F.gelu(torch.einsum("btd,edh->bteh", x, net.up) + net.bias)
    return (torch.einsum("bteh,ehd->bted", inner, net.down) * share[..., None]).sum(2)


def by_one_einsum(net: Bare, x: Tensor, share: Tensor) -> Tensor:
    inner = torch.einsum("btd,edh->beth", x, net.up) + net.bias[:, None]
    return torch.einsum("beth,ehd,bte->btd", F.relu(inner), net.down, share)


def by_products(net: Bare, x: Tensor, share: Tensor) -> Tensor:
    inner = F.relu(x[:, None] @ net.up + net.bias[:, None])
    return ((inner @ net.down) * share.mT[..., None]).sum(1)


class Routed(nn.Module):
    """Experts as modules, of which each token takes ``taken``; with ``is_guarded`` those without tokens do not run."""

    def __init__(self, experts: int, taken: int, *, is_guarded: bool) -> None:
        super().__init__()
        self.taken, self.is_guarded = taken, is_guarded
        self.gate, self.head = nn.Linear(WIDTH, experts), nn.Linear(WIDTH, 2)
        inner = [nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, WIDTH)) for _ in range(experts)]
        self.experts = nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        share, expert = self.gate(tokens).softmax(-1).topk(self.taken)
        y = torch.zeros_like(tokens)
        for number, run in enumerate(self.experts):
            row, choice = torch.where(expert == number)
            if len(row) or not self.is_guarded:
                y = y.index_add(0, row, run(tokens[row]) * share[row, choice, None])
        return self.head((tokens + y).view(x.shape).mean(1))


NETWORKS = {
    "einsum": (lambda: Bare(by_einsum), ["embed", "up:2"]),
    "one einsum": (lambda: Bare(by_one_einsum), ["embed", "up:2"]),
    "products": (lambda: Bare(by_products), ["embed", "up:2"]),
    "experts that run on no tokens": (
        lambda: Routed(4, 1, is_guarded=False), [f"experts.{i}.0" for i in range(4)],
    ),
    "experts that do not run": (
        lambda: Routed(6, 2, is_guarded=True), [f"experts.{i}.0" for i in range(6)],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "groups"), NETWORKS.values(), ids=NETWORKS)
def test_every_expert_is_narrowed(build: Callable[[], nn.Module], groups: list[str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build().eval(), torch.rand(SAMPLE)
    found = trace(model, x)
    assert [group.name for group in found.network.groups] == groups, found.skipped
    kept = {name: np.arange(3 + i % 2) for i, name in enumerate(groups)}
    with torch.no_grad(), masked(model, found, kept):
        expected = model(x)
    small = remove(model, found, kept)
    torch.testing.assert_close(small(x), expected)
    predicted = found.network.with_channels(PruningPolicy({name: len(index) for name, index in kept.items()})).layers
    assert sum(map(params, predicted)) == sum(parameter.numel() for parameter in small.parameters())
    torch.testing.assert_close(OnnxModule(exported(small, x))(x), expected, atol=1e-5, rtol=1e-5)


def test_the_widths_of_bare_experts_are_priced() -> None:
    """5 tokens x 3 experts x 2 products of 6 x 8, the embedding, gate and head; then 3 of 6 and 4 of 8."""
    model = Bare(by_products).eval()
    found = trace(model, torch.rand(SAMPLE))
    dense = 5 * (3 * 2 * 6 * 8 + 6 * 6 + 6 * 3) + 6 * 2
    assert sum(map(macs, found.network.layers)) == dense
    smaller = found.network.with_channels(PruningPolicy({"embed": 3, "up:2": 4}))
    assert sum(map(macs, smaller.layers)) == 5 * (3 * 2 * 3 * 4 + 6 * 3 + 3 * 3) + 3 * 2


def test_tokens_take_experts_in_turn() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0], [5.0, 4.0, 3.0]])
    with EvenRouting(is_even=True) as routing:
        values, indices = scores.topk(2)
        assert scores.argmax(-1).tolist() == [0, 1]
        assert scores.max(0, keepdim=True)[1].tolist() == [[0, 1, 0]]
        assert scores.argmax().item() == 3  # over all: nothing is chosen for a token
    assert indices.tolist() == [[0, 1], [2, 0]]
    assert values.tolist() == [[0.0, 1.0], [3.0, 5.0]]
    assert routing.choices == 3
