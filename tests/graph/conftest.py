"""Networks to trace: the references, ``transformers`` models with random weights, and toys that are hard to follow."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.training.models import MODELS

IMAGE, SEQUENCE, TOKENS = (1, 3, 8, 8), (1, 5, 6), (1, 7)


class DenseBlock(nn.Module):
    """Concatenation feeding convolutions and the head: offsets, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.norm, self.c, self.head = nn.BatchNorm2d(14), nn.Conv2d(14, 4, 3, padding=1), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        both = torch.cat([a, self.b(a)], 1)
        return self.head(torch.cat([both, self.c(F.relu(self.norm(both)))], 1).mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolution, group norm of another grouping, depthwise with two filters a channel, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.grouped = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 48, 3, padding=1, groups=4)
        self.norm, self.depthwise = nn.GroupNorm(6, 48), nn.Conv2d(48, 96, 3, padding=1, groups=48)
        self.act, self.hidden, self.head = nn.PReLU(96), nn.Linear(96 * 64, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.norm(self.grouped(F.relu(self.a(x))))))
        return self.head(F.relu(self.hidden(x.flatten(1))))


class UNet(nn.Module):
    """Transposed convolutions (plain and grouped) and a skip by concatenation."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 10, 2, stride=2)
        self.mix, self.head = nn.ConvTranspose2d(18, 12, 3, padding=1, groups=groups), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        return self.head(F.relu(self.mix(torch.cat([self.up(F.relu(self.b(a))), a], 1))))


class SqueezeExcite(nn.Module):
    """A sigmoid gate: zero in is not zero out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.c, self.head = nn.Conv2d(16, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(self.c(x * gate).mean((2, 3)))


class CalledTwice(nn.Module):
    """One layer run twice and known under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.again, self.norm, self.head = (
            nn.Linear(6, 10),
            nn.Linear(10, 10),
            nn.LayerNorm(10),
            nn.Linear(10, 3),
        )
        self.alias = self.again

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        for _ in range(2):
            x = self.norm(F.relu(self.again(x)))
        return self.head(x)


class Tied(nn.Module):
    """The output projection is the embedding: as a module's parameter, or in plain code."""

    def __init__(self, plain_code: bool = False) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = None if plain_code else nn.Linear(8, 20, bias=False)
        if self.head is not None:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(F.gelu(self.up(x)))
        return F.linear(x, self.embed.weight) if self.head is None else self.head(x)


class PackedAttention(nn.Module):
    """torch's own encoder layer around nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.block = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class PlainCode(nn.Module):
    """A parameter multiplied by plain code between ordinary layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.scale = nn.Linear(6, 8), nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.rand(8))
        self.b, self.c, self.head = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(self.b(F.linear(F.relu(self.a(x)), self.w) * self.scale))))


class FusedAttention(nn.Module):
    """Query, key and value from one linear layer, attention written out, RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 4
        self.embed, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm, self.head = nn.RMSNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        shape = (*x.shape[:2], 3, self.num_heads, self.head_dim)
        q, k, v = self.qkv(self.norm(x)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


class OneDimensional(nn.Module):
    """Conv1d, BatchNorm1d, depthwise, InstanceNorm1d, and an LSTM that is not followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = (
            nn.Conv1d(5, 8, 5, padding=2),
            nn.BatchNorm1d(8),
            nn.Conv1d(8, 8, 3, groups=8, padding="same"),
        )
        self.scale, self.c = nn.InstanceNorm1d(8, affine=True), nn.Conv1d(8, 4, 1)
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.scale(self.b(F.relu(self.norm(self.a(x))))))
        return self.head(self.lstm(x.transpose(1, 2))[0][:, -1])


class Bare(nn.Module):
    """Norms without weights, and a mapping as output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm, self.groups = nn.LayerNorm(8, elementwise_affine=False), nn.GroupNorm(2, 8, affine=False)

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"steps": 3, "logits": self.head(self.groups(self.norm(self.a(x)).transpose(1, 2)).mean(2))}


def _vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=32,
            patch_size=8,
        )
    )


def _bert(implementation: str) -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=16, attn_implementation=implementation,
        )
    )  # fmt: skip


def _llama(key_value_heads: int) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
            num_key_value_heads=key_value_heads,
        )
    )  # fmt: skip


def _resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[32, 48], depths=[1, 2])
    return transformers.ResNetForImageClassification(config)


def _mobilenet() -> nn.Module:
    return transformers.MobileNetV2ForImageClassification(
        transformers.MobileNetV2Config(depth_multiplier=0.35, image_size=32)
    )


def _convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1])
    return transformers.ConvNextForImageClassification(config)


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4))


# name → (builder, shape of one sample, vocabulary or 0 for float inputs)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    **{name: (build, (1, 1, 32, 32), 0) for name, build in MODELS.items() if name != "language_model"},
    "language_model": (MODELS["language_model"], (1, 12), 60),
    "dense_block": (DenseBlock, IMAGE, 0),
    "grouped": (Grouped, IMAGE, 0),
    "unet": (UNet, IMAGE, 0),
    "unet_grouped": (lambda: UNet(2), IMAGE, 0),
    "squeeze_excite": (SqueezeExcite, IMAGE, 0),
    "called_twice": (CalledTwice, SEQUENCE, 0),
    "tied": (Tied, TOKENS, 20),
    "tied_plain_code": (lambda: Tied(plain_code=True), TOKENS, 20),
    "packed_attention": (PackedAttention, SEQUENCE, 0),
    "plain_code": (PlainCode, SEQUENCE, 0),
    "fused_attention": (FusedAttention, SEQUENCE, 0),
    "one_dimensional": (OneDimensional, SEQUENCE, 0),
    "bare": (Bare, SEQUENCE, 0),
    "hf_resnet": (_resnet, (1, 3, 32, 32), 0),
    "hf_mobilenet": (_mobilenet, (1, 3, 32, 32), 0),
    "hf_convnext": (_convnext, (1, 3, 64, 64), 0),
    "hf_vit": (_vit, (1, 3, 32, 32), 0),
    "hf_bert": (lambda: _bert("sdpa"), (1, 9), 99),
    "hf_bert_eager": (lambda: _bert("eager"), (1, 9), 99),
    "hf_llama": (lambda: _llama(4), (1, 9), 99),
    "hf_llama_grouped": (lambda: _llama(2), (1, 9), 99),
    "hf_gpt2": (_gpt2, (1, 9), 60),
}


@dataclass(frozen=True, repr=False)
class Traced:
    name: str
    model: nn.Module
    example: Tensor
    trace: Trace

    @property
    def reasons(self) -> dict[str, str]:
        return {skipped.name: skipped.reason for skipped in self.trace.skipped}

    @property
    def group_names(self) -> list[str]:
        return [group.name for group in self.trace.network.groups]


_CACHE: dict[str, Traced] = {}


def build(name: str) -> Traced:
    """Build and trace a network once; its vectors are random, so that no channel is zero by initialisation."""
    if name not in _CACHE:
        make, shape, vocabulary = NETWORKS[name]
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = make().eval()
            example = torch.randint(0, vocabulary, shape) if vocabulary else torch.randn(shape)
            with torch.no_grad():
                for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
                    if tensor.is_floating_point() and tensor.ndim == 1 and "inv_freq" not in key:
                        centred = key.endswith(("bias", "running_mean"))
                        tensor.uniform_(-0.5, 0.5) if centred else tensor.uniform_(0.5, 1.5)
        _CACHE[name] = Traced(name, model, example, trace(model, example))
    return _CACHE[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "traced" in metafunc.fixturenames:
        metafunc.parametrize("traced", list(NETWORKS), indirect=True)


@pytest.fixture
def traced(request: pytest.FixtureRequest) -> Traced:
    return build(request.param)


@pytest.fixture
def traced_network() -> Callable[[str], Traced]:
    return build
