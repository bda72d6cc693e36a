"""Groups that are checked together, joined where code keeps them equally wide, and contained where they fail."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core import ChannelGroup, Coupling, LayerKind, LayerSpec, NetworkSpec, Side
from amcsearch.graph import masked, remove, trace
from amcsearch.graph.slices import Skipped, TensorSlice, Trace, joined
from amcsearch.graph.tracing import assemble


def linear(name: str, i: int, o: int) -> LayerSpec:
    return LayerSpec(name, LayerKind.LINEAR, i, o)


def two_groups(units: tuple[list[list[int]], list[list[int]]]) -> Trace:
    """``a`` writes 4 channels that ``b`` reads; ``b`` writes 4 x 2, of which each unit of its group has 2 a channel."""
    layers = linear("a", 3, 4), linear("b", 4, 8), linear("c", 8, 2)
    groups = (
        ChannelGroup("a", 4, (Coupling("a", Side.OUT), Coupling("b", Side.IN)), len(units[0][0])),
        ChannelGroup("b", 4, (Coupling("b", Side.OUT, 2), Coupling("c", Side.IN, 2)), len(units[1][0])),
    )
    four, eight = np.arange(4)[:, None], np.arange(8).reshape(4, 2)
    slices = {
        "a": (TensorSlice("a.weight", 0, four, Side.OUT, "a"), TensorSlice("b.weight", 1, four, Side.IN, "b")),
        "b": (TensorSlice("b.weight", 0, eight, Side.OUT, "b"), TensorSlice("c.weight", 1, eight, Side.IN, "c")),
    }
    return Trace(NetworkSpec(layers, groups), slices, {n: np.array(u) for n, u in zip("ab", units, strict=True)})


def test_a_joint_group_loses_in_every_place_what_its_parts_lose() -> None:
    whole = joined(two_groups(([[0], [1], [2], [3]], [[0, 1], [2, 3]])), ["b", "a"])
    assert whole is not None
    (group,) = whole.network.groups
    assert (group.name, group.channels, group.unit) == ("a", 4, 2)
    assert [(c.layer, c.side, c.factor, c.removed) for c in group.couplings] == [
        ("a", Side.OUT, 1, 1), ("b", Side.IN, 1, 1), ("b", Side.OUT, 2, 1), ("c", Side.IN, 2, 1),
    ]  # fmt: skip
    assert whole.units["a"].tolist() == [[0, 1], [2, 3]]
    assert [(s.tensor, s.dim, s.positions.shape) for s in whole.slices["a"]] == [
        ("a.weight", 0, (4, 1)), ("b.weight", 1, (4, 1)), ("b.weight", 0, (4, 2)), ("c.weight", 1, (4, 2)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "units", [([[0, 1], [2, 3]], [[0, 2], [1, 3]]), ([[0], [1], [2], [3]], [[0, 1, 2, 3]])], ids=["crossed", "all"]
)
def test_groups_whose_units_leave_all_together_are_not_joined(units: tuple[list[list[int]], list[list[int]]]) -> None:
    assert joined(two_groups(units), ["a", "b"]) is None


class Halves(nn.Module):
    """Runs only while both layers are equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if a.shape != b.shape:
            raise ValueError("of unequal widths")
        return self.head(torch.cat([a, b], 1))


def test_groups_that_run_only_while_equally_wide_are_not_offered_one_by_one() -> None:
    traced = trace(Halves().eval(), torch.randn(1, 6))
    assert not traced.network.groups
    assert {x.name: x.reason for x in traced.skipped if x.name in "ab"} == dict.fromkeys(
        "ab", "the smaller network does not run: of unequal widths"
    )


def test_a_failure_of_one_group_costs_that_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def couplings(self: assemble.Assembler, group: object) -> list[Coupling]:
        made = list(original(self, group))
        if made[0].layer == "2":
            raise KeyError("no such place")
        return made

    original = assemble.Assembler._couplings
    monkeypatch.setattr(assemble.Assembler, "_couplings", couplings)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 2))
    traced = trace(model, torch.randn(1, 6))
    assert [group.name for group in traced.network.groups] == ["0"]
    assert [(x.name, x.layers) for x in traced.skipped if "KeyError" in x.reason] == [("2", ("2", "4"))]


def test_a_failure_of_all_groups_leaves_a_trace_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Trace:
        raise ValueError("min() arg is an empty sequence")

    monkeypatch.setattr(assemble.Assembler, "trace", failing)
    traced = trace(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), torch.randn(1, 6))
    assert (len(traced.network.layers), traced.network.groups) == (2, ())
    assert traced.skipped[-1].name == "Sequential"
    assert "cannot be put in groups (ValueError: min() arg is an empty sequence" in traced.skipped[-1].reason


def test_the_reason_of_a_layer_is_its_own_or_that_of_its_group_or_of_the_module_around_it() -> None:
    layers = tuple(linear(name, 4, 4) for name in ("x", "y.z", "q", "r.s", "t"))
    skipped = (
        Skipped("g", "a group", ("q", "x")),
        Skipped("x", "its own"),
        Skipped("y", "around"),
        Skipped("r.s:2", "s"),
    )
    traced = Trace(NetworkSpec(layers, ()), {}, {}, skipped)
    reasons = [traced.reason(layer.name) for layer in layers]
    assert reasons == [
        "its own",
        "around",
        "a group",
        "s",
        "none of the channels that it reads and writes can be pruned",
    ]


class Combined(nn.Module):
    """A convolution whose filters are a sum of experts, weighted by its input: out x in are factors of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.router, self.b = nn.Conv2d(3, 12, 3), nn.Linear(12, 3), nn.Conv2d(16, 2, 1)
        self.experts = nn.Parameter(torch.randn(3, 16, 12, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        weight = torch.einsum("ne,eoihw->noihw", self.router(x.mean((2, 3))).sigmoid(), self.experts)
        return self.b(F.relu(F.conv2d(x, weight[0]))).mean((2, 3))


def test_factors_of_one_width_are_named_as_such() -> None:
    traced = trace(Combined().eval(), torch.randn(1, 3, 8, 8))
    reasons = " ".join(skipped.reason for skipped in traced.skipped)
    assert "are factors of one width, that of experts" in reasons
    assert "must be at least" not in reasons


class WidthOfTheStream(nn.Module):
    """Heads as wide as the stream divided by their number: right as long as both keep the same share."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.embed, self.qkv = 4, nn.Linear(5, 32), nn.Linear(32, 96)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, c = x.shape
        q, k, v = (y.view(n, t, self.heads, c // self.heads).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.head((x + self.out(y.transpose(1, 2).reshape(n, t, -1))).mean(1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("means", ["_set_apart", "_failure_apart"])
def test_groups_that_must_keep_one_share_are_found_whatever_is_drawn(
    means: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either one group of both widths, or two of which each can leave by itself: here half of one alone.

    Each of two means is enough by itself: other shares in the draw for groups that read each other, and further runs.
    """
    monkeypatch.setattr("amcsearch.graph.tracing.check.SEED", seed)
    other = {"_set_apart": "_Check._failure_apart", "_failure_apart": "_set_apart"}[means]
    monkeypatch.setattr(f"amcsearch.graph.tracing.check.{other}", lambda *_: None)
    torch.manual_seed(0)
    model, x = WidthOfTheStream().eval(), torch.randn(2, 3, 5)
    traced = trace(model, x[:1])
    assert traced.network.groups
    for name, units in traced.units.items():
        kept = {name: np.sort(units[: len(units) // 2].ravel())}
        with torch.no_grad(), masked(model, traced, kept):
            expected = model(x)
        torch.testing.assert_close(remove(model, traced, kept)(x), expected)
