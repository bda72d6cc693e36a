"""Networks that multiply maps with maps: attention without a softmax, between two sequences, bilinear and outer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, FEATURES = 9, 12
EXAMPLE = torch.zeros(1, TOKENS, FEATURES)


class Attention(nn.Module):
    """Heads of ``width`` channels; ``how`` is what takes the place of the softmax."""

    def __init__(self, how: str, heads: int = 4, width: int = 8, dim: int = 32, values: int = 8) -> None:
        super().__init__()
        self.how, self.width, self.values = how, width, values
        self.q, self.k = nn.Linear(dim, heads * width), nn.Linear(dim, heads * width)
        self.v, self.o = nn.Linear(dim, heads * values), nn.Linear(heads * values, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k = (f(z).unflatten(-1, (-1, self.width)).transpose(1, 2) for f, z in ((self.q, x), (self.k, y)))
        v = self.v(y).unflatten(-1, (-1, self.values)).transpose(1, 2)  # (N, heads, tokens, values)
        return x + self.o(_ATTEND[self.how](q, k, v).transpose(1, 2).flatten(2))


def _linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.relu() @ (k.relu().mT @ v) / TOKENS


def _normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.elu(q) + 1.0, F.elu(k) + 1.0
    return (q @ (k.mT @ v)) / (q @ k.sum(2, keepdim=True).mT)


def _relu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / TOKENS).relu() @ v


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhnd,bhde->bhne", q.relu(), torch.einsum("bhmd,bhme->bhde", k.relu(), v))


_ATTEND = {"linear": _linear, "normalised": _normalised, "relu": _relu, "einsum": _einsum}


class Attentive(nn.Module):
    """An attention of tokens to themselves, or of the first ``split`` of them to the others."""

    def __init__(self, attention: Attention, split: int = 0, dim: int = 32) -> None:
        super().__init__()
        self.embed, self.attend, self.split = nn.Linear(FEATURES, dim), attention, split
        self.mlp = nn.Sequential(nn.Linear(dim, 48), nn.ReLU(), nn.Linear(48, dim))
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.attend(x[:, : self.split], x[:, self.split :]) if self.split else self.attend(x, x)
        return self.head((x + self.mlp(x)).mean(1))


class Covariance(nn.Module):
    """Channels attend to channels of their head, without a softmax."""

    def __init__(self, heads: int = 4, dim: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.head = nn.Linear(FEATURES, dim), nn.Linear(dim, 4)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = (f(x).unflatten(-1, (-1, 8)).permute(0, 2, 3, 1) for f in (self.q, self.k, self.v))
        y = (q @ k.mT).relu() @ v  # (N, heads, width, tokens)
        return self.head((x + self.o(y.permute(0, 3, 1, 2).flatten(2))).mean(1))


class Bilinear(nn.Module):
    """Scores x W yᵀ of two maps of the tokens."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.a, self.b, self.w = nn.Linear(FEATURES, dim), nn.Linear(FEATURES, dim), nn.Linear(dim, dim)
        self.head = nn.Linear(TOKENS, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x).relu() @ self.w(self.b(x).relu()).mT).mean(1))


class Outer(nn.Module):
    """Every product of a feature of one vector with one of another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Linear(FEATURES, 32), nn.Linear(32, 16), nn.Linear(32, 12)
        self.head = nn.Linear(16 * 12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu().mean(1)
        return self.head((self.a(x)[:, :, None] @ self.b(x)[:, None, :]).flatten(1))


NETWORKS = {
    "linear": lambda: Attentive(Attention("linear")),
    "linear, 16 heads": lambda: Attentive(Attention("linear", heads=16)),
    "linear, other values": lambda: Attentive(Attention("linear", values=12)),
    "normalised": lambda: Attentive(Attention("normalised")),
    "einsum": lambda: Attentive(Attention("einsum")),
    "relu": lambda: Attentive(Attention("relu")),
    "relu, 16 heads": lambda: Attentive(Attention("relu", heads=16)),
    "relu, widths as tokens": lambda: Attentive(Attention("relu", width=9, values=9)),
    "linear, two sequences": lambda: Attentive(Attention("linear"), split=5),
    "relu, two sequences": lambda: Attentive(Attention("relu"), split=5),
    "covariance": Covariance,
    "bilinear": Bilinear,
    "outer": Outer,
}
