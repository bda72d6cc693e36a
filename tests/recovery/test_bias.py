"""Means of removed channels in the readers' biases."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import HeldBatches
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Kept, Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria.activation_variance import ActivationVariance
from amcsearch.methods.criteria.bn_scale import BnScale
from amcsearch.methods.criteria.magnitude import Magnitude
from amcsearch.recovery.bias import fold_means, input_means, means_for

X = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def constant(model: nn.Module, producer: int, channels: list[int]) -> tuple[nn.Module, Trace, Kept]:
    """Make some output channels of a producer constant, and keep the others."""
    model = model.double().eval()
    model[producer].weight.data[channels] = 0.0  # type: ignore[index, union-attr, operator]
    model[producer].bias.data[channels] = torch.linspace(0.5, 2.0, len(channels), dtype=torch.float64)  # type: ignore[index, union-attr, operator]
    found = trace(model, X[:1])
    group = next(g for g, parts in found.slices.items() if any(p.tensor == f"{producer}.weight" for p in parts))
    n = next(g for g in found.network.groups if g.name == group).channels
    return model, found, {group: np.delete(np.arange(n), channels)}


def folded(model: nn.Module, found: Trace, kept: Kept) -> nn.Module:
    smaller = remove(model, found, kept).eval()
    fold_means(smaller, found, kept, input_means(model, found, HeldBatches.of(X, Y, 4), F.cross_entropy))
    return smaller


def gap(model: nn.Module, smaller: nn.Module, inside: bool = False) -> float:
    with torch.no_grad():
        difference = (model(X) - smaller(X)).abs()
    return float((difference[..., 1:-1, 1:-1] if inside else difference).max())


HEAD = nn.Flatten(), nn.Linear(3 * 36, 3)
READERS = {
    "1x1": (nn.Conv2d(5, 3, 1), *HEAD),
    "1x1 without bias": (nn.Conv2d(5, 3, 1, bias=False), *HEAD),
    "batch norm next": (nn.Conv2d(5, 3, 1, bias=False), nn.BatchNorm2d(3), *HEAD),
    "unpadded 3x3": (nn.Conv2d(5, 3, 3), nn.Flatten(), nn.Linear(48, 3)),
    "linear behind a flatten": (nn.Flatten(), nn.Linear(180, 3)),
    "depthwise between": (nn.Conv2d(5, 5, 1, groups=5), nn.ReLU(), nn.Conv2d(5, 3, 1), *HEAD),
}


@pytest.mark.parametrize("readers", READERS.values(), ids=READERS)
def test_a_constant_channel_leaves_without_a_trace(readers: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), *copy.deepcopy(readers))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight, 0.1, 1.0)  # no activation between dies, whatever was drawn at import
            if module.bias is not None:
                nn.init.uniform_(module.bias, 0.0, 0.1)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    model, found, kept = constant(model, 0, [1, 3])
    assert gap(model, remove(model, found, kept)) > 1e-3
    assert gap(model, folded(model, found, kept)) < 1e-12


def test_a_batch_norm_takes_the_mean_and_no_bias_appears() -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), *copy.deepcopy(READERS["batch norm next"]))
    model, found, kept = constant(model, 0, [0])
    smaller = folded(model, found, kept)
    assert smaller[2].bias is None  # type: ignore[index]
    assert (smaller[3].running_mean != model[3].running_mean).all()  # type: ignore[index, union-attr]


def test_a_norm_on_the_stream_behind_an_add_does_not_take_it() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 5, 1)
            self.out, self.norm = nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4)
            self.head = nn.Linear(144, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = x + self.out(F.relu(self.inner(x)))
            return self.head((F.relu(self.norm(y)) + y).flatten(1))

    torch.manual_seed(0)
    model = PreActivation().double().eval()
    model.inner.weight.data[2], model.inner.bias.data[2] = 0.0, 1.0  # type: ignore[index]
    found = trace(model, X[:1])
    kept = {"inner": np.array([0, 1, 3, 4])}
    smaller = folded(model, found, kept)
    assert smaller.out.bias is not None
    assert gap(model, smaller) < 1e-12


def test_with_zero_padding_the_fold_is_exact_in_the_interior_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1))
    model, found, kept = constant(model, 0, [2])
    smaller = remove(model, found, kept).eval()
    means = input_means(model, found, HeldBatches.of(X, torch.zeros(6), 4), lambda out, _: out.mean())
    fold_means(smaller, found, kept, means)
    assert gap(model, smaller, inside=True) < 1e-12
    assert gap(model, smaller) > 1e-3


def test_both_sides_of_a_grouped_convolution_may_shrink_at_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 3, 1), *HEAD
    ).double().eval()  # fmt: skip
    found = trace(model, X[:1])
    first, second, _ = found.network.groups
    assert (first.unit, second.unit) == (2, 2)
    gone = found.units[first.name][1]
    model[0].weight.data[gone], model[0].bias.data[gone] = 0.0, 0.7  # type: ignore[index]
    kept = {first.name: np.delete(np.arange(8), gone), second.name: np.sort(found.units[second.name][[0, 2]].ravel())}
    rest = remove(model, found, {second.name: kept[second.name]}).eval()
    means = input_means(model, found, HeldBatches.of(X, Y, 6), F.cross_entropy)
    fold_means(rest, found, {second.name: kept[second.name]}, means)
    both = folded(model, found, kept)
    assert gap(rest, both) < 1e-12


def test_the_folded_output_keeps_its_mean_where_inputs_vary() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.GELU(), nn.Conv2d(5, 3, 1)).double().eval()
    found = trace(model, X[:1])
    kept = {found.network.groups[0].name: np.array([0, 4])}
    smaller = remove(model, found, kept).eval()
    fold_means(
        smaller, found, kept, input_means(model, found, HeldBatches.of(X, torch.zeros(6), 4), lambda out, _: out.mean())
    )
    with torch.no_grad():
        torch.testing.assert_close(smaller(X).mean((0, 2, 3)), model(X).mean((0, 2, 3)))


def test_only_a_criterion_that_wants_it_has_means() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).double().eval()
    found = trace(model, X[:1])
    wanted = [
        means_for(criterion, model, found, HeldBatches.of(X, Y, 6), F.cross_entropy) is not None
        for criterion in (Magnitude(), ActivationVariance(fold_means=False), ActivationVariance(), BnScale())
    ]
    assert wanted == [False, False, True, True]
