"""Taylor scores against derivatives and true loss changes, in double precision."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import HeldBatches
from amcsearch.graph.masks import masked
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.criteria.taylor import Taylor
from amcsearch.methods.first_order import LossFunction
from amcsearch.methods.needs import Statistic
from amcsearch.methods.ranking import UnitScores, score_units
from amcsearch.methods.statistics import gather


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def residual(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """conv → BN → activation → two residual blocks → pool → linear, with lively batch norms."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), activation(), Block(4), Block(4),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 3),
    ).double()  # fmt: skip
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.data.uniform_(0.3, 1.5)
    return model.eval()


X = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def scores(
    model: nn.Module, found: Trace, criterion: Taylor, loss: LossFunction = F.cross_entropy, batch: int = 6
) -> UnitScores:
    return score_units(model, found, {"it": criterion}, HeldBatches.of(X, Y, batch), loss)["it"]


def gate_derivative(model: nn.Module, gated: nn.Module, rows: slice, samples: slice = slice(None)) -> float:
    """Numerical dL/da of a multiplier a on channels ``rows`` of what ``gated`` gives out."""
    values = []
    for a in (1 + 1e-5, 1 - 1e-5):
        handle = gated.register_forward_hook(lambda _m, _i, y, a=a: _scaled(y, rows, a))
        with torch.no_grad():
            values.append(float(F.cross_entropy(model(X[samples]), Y[samples])))
        handle.remove()
    return (values[0] - values[1]) / 2e-5


def _scaled(y: Tensor, rows: slice, a: float) -> Tensor:
    factor = torch.ones(y.shape[1], dtype=y.dtype)
    factor[rows] = a
    return y * factor[:, None, None]


def inner_group(found: Trace) -> str:
    return next(
        name for name, parts in found.slices.items() if any(p.tensor == "3.conv1.weight" and p.dim == 0 for p in parts)
    )


def stream_group(found: Trace) -> str:
    return next(name for name, parts in found.slices.items() if any(p.tensor == "0.weight" for p in parts))


@pytest.mark.parametrize("criterion", [Taylor(), Taylor("bn")])
def test_gate_equals_the_squared_derivative_by_a_channel_multiplier(criterion: Taylor) -> None:
    model = residual()
    found = trace(model, X[:1])
    score = scores(model, found, criterion)[inner_group(found)]
    numeric = [gate_derivative(model, model[3].bn1, slice(c, c + 1)) ** 2 for c in range(5)]  # type: ignore[index]
    np.testing.assert_allclose(score, numeric, rtol=1e-5)


def test_minibatch_squares_are_averaged_by_samples() -> None:
    model = residual()
    found = trace(model, X[:1])
    score = scores(model, found, Taylor(), batch=4)[inner_group(found)]
    gated = model[3].bn1  # type: ignore[index]
    halves = [(gate_derivative(model, gated, slice(0, 1), part), n) for part, n in ((slice(4), 4), (slice(4, 6), 2))]
    assert score[0] == pytest.approx(sum(d**2 * n for d, n in halves) / 6, rel=1e-5)


def test_producers_and_consumers_agree_on_every_group_of_a_residual_network() -> None:
    model = residual()
    found = trace(model, X[:1])
    consumers, producers = scores(model, found, Taylor()), scores(model, found, Taylor("bn"))
    assert len(consumers) == 3
    for group in consumers:
        np.testing.assert_allclose(consumers[group], producers[group], rtol=1e-6)


def test_through_gelu_the_two_sides_differ() -> None:
    model = residual(nn.GELU)
    found = trace(model, X[:1])
    group = stream_group(found)
    consumers, producers = scores(model, found, Taylor())[group], scores(model, found, Taylor("bn"))[group]
    assert np.abs(consumers / producers - 1).max() > 1e-3


def test_the_joint_score_of_a_convolution_vanishes_under_train_mode_batch_norm_only() -> None:
    model = residual()
    found = trace(model, X[:1])
    weight = model[3].conv1.weight  # type: ignore[index]
    model.train()
    # Exactly 0 but for batch norm's epsilon, which breaks the scale invariance a little.
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-14
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(X), Y), [weight])
    terms = (weight * gradient).flatten(1)
    assert terms.sum(1).abs().sum() < 1e-6 * terms.abs().sum()
    (statistics,) = gather(
        model, found, HeldBatches.of(X, Y, 6), F.cross_entropy, {Statistic.SET_GRADIENT}
    )  # model is in train mode
    terms = (weight * statistics.gradients["3.conv1.weight"]).flatten(1)
    assert terms.sum(1).abs().sum() > 0.01 * terms.abs().sum()


def test_on_a_loss_linear_in_the_gate_the_score_is_the_true_loss_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().eval()
    found = trace(model, X[:1])

    def linear_loss(output: Tensor, target: Tensor) -> Tensor:
        return (output * F.one_hot(target, 3)).sum(1).mean()

    (group,) = found.network.groups
    score = scores(model, found, Taylor("joint"), linear_loss)[group.name]
    with torch.no_grad():
        dense = linear_loss(model(X), Y)
        for c in range(4):
            with masked(model, found, {group.name: np.delete(np.arange(4), c)}) as without:
                change = linear_loss(without(X), Y) - dense
            assert score[c] == pytest.approx(float(change.abs()), rel=1e-9)


def test_joint_never_exceeds_parameterwise() -> None:
    model = residual()
    found = trace(model, X[:1])
    joint, parameterwise = scores(model, found, Taylor("joint")), scores(model, found, Taylor("parameterwise"))
    assert all((joint[group] <= parameterwise[group]).all() for group in joint)
    assert any((joint[group] < 0.9 * parameterwise[group]).any() for group in joint)


def test_per_sample_is_the_gate_score_of_minibatches_of_one() -> None:
    model = residual()
    found = trace(model, X[:1])
    one = scores(model, found, Taylor(), batch=1)
    for batch in (4, 6):
        each = scores(model, found, Taylor("per_sample"), batch=batch)
        for group in one:
            np.testing.assert_allclose(each[group], one[group], rtol=1e-12)


def test_a_dead_channel_scores_zero() -> None:
    model = residual()
    found = trace(model, X[:1])
    norm = model[3].bn1  # type: ignore[index]
    norm.weight.data[2] = norm.bias.data[2] = 0.0
    for criterion in (Taylor(), Taylor("bn"), Taylor("joint"), Taylor("parameterwise"), Taylor("per_sample")):
        score = scores(model, found, criterion)[inner_group(found)]
        assert score[2] == 0.0
        assert score.max() > 0.0


def test_several_criteria_from_one_pass_score_as_each_alone() -> None:
    model = residual()
    found = trace(model, X[:1])
    together = score_units(
        model, found, {k: make() for k, make in CRITERIA.items()}, HeldBatches.of(X, Y, 4), F.cross_entropy
    )
    for name, make in CRITERIA.items():
        alone = score_units(model, found, {name: make()}, HeldBatches.of(X, Y, 4), F.cross_entropy)[name]
        assert all((alone[group] == together[name][group]).all() for group in alone)
