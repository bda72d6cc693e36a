"""The calibration pass: exact gradients, and a model left as it was found."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core import BadInputError
from amcsearch.graph.modes import modes_kept
from amcsearch.graph.trace import trace
from amcsearch.methods.statistics import Draw, Statistic, gather

ALL = frozenset(Statistic)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def data(n: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def reference(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.eval()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), [model[0].weight])  # type: ignore[index]
    return gradient


def test_draws_come_in_order_with_their_samples_and_exact_gradients() -> None:
    model, (x, y) = network(), data()
    found = list(gather(model, trace(model, x[:1]), x, y, F.cross_entropy, ALL, batch_size=3))
    minibatch, sample = Draw.MINIBATCH, Draw.SAMPLE
    expected = [(minibatch, 3), *[(sample, 1)] * 3, (minibatch, 2), *[(sample, 1)] * 2, (Draw.SET, 5)]
    assert [(s.draw, s.samples) for s in found] == expected
    for statistics, rows in zip(found, [slice(3), 0, 1, 2, slice(3, 5), 3, 4, slice(5)], strict=True):
        rows = rows if isinstance(rows, slice) else slice(rows, rows + 1)
        torch.testing.assert_close(statistics.gradients["0.weight"], reference(model, x[rows], y[rows]))


def test_the_model_is_left_bit_identical_in_its_modes_with_no_gradients() -> None:
    model, (x, y) = network(), data()
    found = trace(model, x[:1])
    model.train()
    model[1].eval()  # type: ignore[index]
    model[5].weight.requires_grad_(False)  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    stream = gather(model, found, x, y, F.cross_entropy, ALL, batch_size=2)
    next(stream)
    assert [m.training for m in model.modules()] == modes  # also between draws
    assert "5.weight" in next(stream).gradients  # a frozen weight is scored like any other
    list(stream)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False, True]


def test_without_needs_there_is_one_draw_and_no_forward_pass() -> None:
    model, (x, y) = network(), data()
    found = trace(model, x[:1])
    model.forward = None  # type: ignore[assignment]
    (only,) = gather(model, found, x, y, F.cross_entropy, frozenset(), batch_size=2)
    assert only.draw is Draw.SET
    assert set(only.weights) == {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight"}
    assert not only.gradients


def test_a_weight_the_loss_does_not_reach_has_gradient_zero() -> None:
    model, (x, y) = network(), data()
    found = trace(model, x[:1])
    unrelated = torch.ones((), requires_grad=True)
    (only,) = gather(model, found, x, y, lambda *_: 2 * unrelated, {Statistic.SET_GRADIENT}, 9)
    assert not only.gradients["0.weight"].any()


@pytest.mark.parametrize(("n", "m", "batch"), [(0, 0, 2), (3, 2, 2), (3, 3, 0)])
def test_bad_calibration_data_is_named(n: int, m: int, batch: int) -> None:
    model, (x, y) = network(), data()
    found = trace(model, x[:1])
    with pytest.raises(BadInputError, match="calibration"):
        list(gather(model, found, x[:n], y[:m], F.cross_entropy, ALL, batch))


def test_modes_come_back_after_an_error() -> None:
    model = network().train()
    with pytest.raises(RuntimeError, match="boom"), modes_kept(model):
        _fail(model.eval())
    assert all(m.training for m in model.modules())


def _fail(_: nn.Module) -> None:
    raise RuntimeError("boom")
