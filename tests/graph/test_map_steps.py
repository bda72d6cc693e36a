"""Which operations without weights follow which layer, and how many positions a channel they read and write."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.layer import MapOp, MapStep
from amcsearch.graph.tracing.trace import trace

ADD, ACTIVATION, POOL, OTHER = MapOp.ADD, MapOp.ACTIVATION, MapOp.POOL, MapOp.OTHER


def steps_of(model: nn.Module, example: Tensor) -> dict[str, tuple[MapStep, ...]]:
    layers = trace(model, example, verify=False).network.layers
    return {layer.name: layer.steps for layer in layers if layer.steps}


class Residual(nn.Module):
    """A shortcut, then two kinds of pooling: 6x6 positions, 3x3, one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.pool, self.head = nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.pool((x + self.norm(self.b(x))).relu_())
        return self.head(x.mean((2, 3)))


def test_an_addition_belongs_to_the_convolution_that_ran_last_and_a_norm_passes_it_on() -> None:
    assert steps_of(Residual(), torch.randn(1, 2, 6, 6)) == {
        "a": (MapStep(ACTIVATION, (36,), 36),),
        "b": (
            MapStep(ADD, (36, 36), 36),
            MapStep(ACTIVATION, (36,), 36),
            MapStep(POOL, (36,), 9),
            MapStep(POOL, (9,), 1),
        ),
    }


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 6, 1, stride=2), nn.Linear(4 * 16 + 6 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.head(F.gelu(torch.cat([a.flatten(1), self.b(a).flatten(1)], 1)))


def test_on_a_concatenation_each_layer_has_its_share() -> None:
    assert steps_of(Concatenation(), torch.randn(1, 2, 4, 4)) == {
        "a": (MapStep(OTHER, (16,), 16), MapStep(OTHER, (16,), 16)),
        "b": (MapStep(OTHER, (4,), 4), MapStep(OTHER, (4,), 4)),
    }


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


def test_a_gate_of_one_position_reads_the_map_that_it_scales() -> None:
    assert steps_of(Gate(), torch.randn(1, 2, 4, 4)) == {
        "a": (MapStep(POOL, (16,), 1),),
        "gate": (MapStep(ACTIVATION, (1,), 1), MapStep(OTHER, (1, 16), 16)),
    }


def test_attention_keeps_its_softmax_and_reshapes_move_nothing(traced_network) -> None:
    layers = {layer.name: layer for layer in traced_network("fused_attention").trace.network.layers}
    assert {name: layer.steps for name, layer in layers.items() if layer.steps} == {
        # five tokens: the block's input added, then their mean
        "out": (MapStep(ADD, (5, 5), 5), MapStep(POOL, (5,), 1)),
    }


def test_torchs_packed_attention_is_followed_through(traced_network) -> None:
    steps = {layer.name: layer.steps for layer in traced_network("packed_attention").trace.network.layers}
    assert steps["block.self_attn.out_proj"] == (MapStep(ADD, (5, 5), 5),)
    assert steps["block.linear1"] == (MapStep(ACTIVATION, (5,), 5),)


class SlicedAndJoined(nn.Module):
    """Channels up to ``cut`` through one activation, those beyond it, which may be none, through another."""

    def __init__(self, cut: int) -> None:
        super().__init__()
        self.a, self.b, self.cut = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1), cut

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(F.relu(torch.cat([y[:, : self.cut].tanh(), F.relu(y[:, self.cut :])], 1)))


def test_slices_of_a_layer_count_by_their_share_and_come_together_again() -> None:
    # 4x4 positions: three quarters and one quarter of the channels, then all
    steps = steps_of(SlicedAndJoined(3), torch.randn(1, 1, 4, 4))["a"]
    apart = [MapStep(ACTIVATION, (12,), 12), MapStep(ACTIVATION, (4,), 4)]
    joined = [MapStep(OTHER, (12,), 12), MapStep(OTHER, (4,), 4), MapStep(ACTIVATION, (16,), 16)]
    assert steps == (*apart, *joined)


def test_an_empty_slice_does_nothing() -> None:
    steps = steps_of(SlicedAndJoined(4), torch.randn(1, 1, 4, 4))["a"]
    assert steps == (MapStep(ACTIVATION, (16,), 16), MapStep(OTHER, (16,), 16), MapStep(ACTIVATION, (16,), 16))
