"""The calibration pass: exact gradients, and a model left as it was found."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import HeldBatches
from amcsearch.graph.modes import modes_kept
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.needs import Curvature, Draw, Need, SampleGates, ShortTraining, SquaredGradients, Statistic
from amcsearch.methods.statistics import Statistics, gather

GATES = SampleGates()
ALL: frozenset[Need] = frozenset(
    {*Statistic, GATES, SquaredGradients("model"), Curvature(probes=1), ShortTraining(steps=2)}
)


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
    found = list(gather(model, trace(model, x[:1]), HeldBatches.of(x, y, 3), F.cross_entropy, ALL))
    minibatch, sample = Draw.MINIBATCH, Draw.SAMPLE
    expected = [(minibatch, 3), (sample, 3), (minibatch, 2), (sample, 2), (Draw.SET, 5)]
    assert [(s.draw, s.samples) for s in found] == expected
    for statistics, rows in zip((found[0], found[2], found[4]), (slice(3), slice(3, 5), slice(5)), strict=True):
        torch.testing.assert_close(statistics.gradients["0.weight"], reference(model, x[rows], y[rows]))


def test_gates_of_single_samples_equal_a_loop_over_them_also_in_a_shorter_batch() -> None:
    model, (x, y) = network(), data()
    traced = trace(model, x[:1])
    draws = [
        s for s in gather(model, traced, HeldBatches.of(x, y, 3), F.cross_entropy, {GATES}) if s.draw is Draw.SAMPLE
    ]
    together = torch.cat([s.by_need[GATES]["5.weight"] for s in draws])  # (5, 1, 64), spread over 3 rows
    for n in range(5):
        model.eval()
        (gradient,) = torch.autograd.grad(
            F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]),
            [model[5].weight],  # type: ignore[index]
        )
        by_gate = (gradient * model[5].weight).sum(0)  # type: ignore[index]
        torch.testing.assert_close(3 * together[n, 0], by_gate)


def test_squared_gradients_equal_a_loop_over_samples() -> None:
    model, (x, y) = network(), data()
    (only,) = gather(model, trace(model, x[:1]), HeldBatches.of(x, y, 2), F.cross_entropy, {SquaredGradients()})
    expected = torch.stack([reference(model, x[n : n + 1], y[n : n + 1]) for n in range(5)]).square().mean(0)
    torch.testing.assert_close(only.by_need[SquaredGradients()]["0.weight"], expected)


def inputs_of(n: int, batch: int) -> Statistics:
    model, (x, y) = network(), data(n)
    needs = {Statistic.INPUT_MOMENTS, Statistic.PATCH_PRODUCTS}
    (only,) = gather(model, trace(model, x[:1]), HeldBatches.of(x, y, batch), F.cross_entropy, needs)
    return only


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_moments_do_not_depend_on_the_cut_into_batches(batch: int) -> None:
    whole, cut = inputs_of(7, 7), inputs_of(7, batch)
    for name, moments in whole.inputs.items():
        for field in ("mean", "variance", "absolute", "active", "mean_square"):
            torch.testing.assert_close(getattr(cut.inputs[name], field), getattr(moments, field))
        torch.testing.assert_close(cut.patches[name].products, whole.patches[name].products)


def test_tokens_without_a_target_are_no_part_of_the_moments() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 9)).double()
    tokens = torch.randint(0, 9, (3, 5))
    target = torch.randint(0, 9, (3, 5))
    target[:, 3:] = -100

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), y.flatten())

    found = trace(model, tokens[:1])
    padded, short = (
        list(gather(model, found, HeldBatches.of(t, y, 2), loss, {Statistic.INPUT_MOMENTS}))[-1].inputs["3.weight"]
        for t, y in ((tokens, target), (tokens[:, :3], target[:, :3]))
    )
    assert padded.count == short.count == 9
    torch.testing.assert_close(padded.mean, short.mean)


def test_the_model_is_left_bit_identical_in_its_modes_with_no_gradients() -> None:
    model, (x, y) = network(), data()
    found = trace(model, x[:1])
    model.train()
    model[1].eval()  # type: ignore[index]
    model[5].weight.requires_grad_(False)  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    stream = gather(model, found, HeldBatches.of(x, y, 2), F.cross_entropy, ALL)
    assert "5.weight" in next(stream).gradients  # a frozen weight is scored like any other
    assert [m.training for m in model.modules()] == modes  # also between draws
    list(stream)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False, True]


def test_without_needs_there_is_one_draw_and_no_forward_pass() -> None:
    model, (x, y) = network(), data()
    found = trace(model, x[:1])
    model.forward = None  # type: ignore[assignment]
    (only,) = gather(model, found, HeldBatches.of(x, y, 2), F.cross_entropy, frozenset())
    assert only.draw is Draw.SET
    assert set(only.weights) == {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight"}
    assert not only.gradients


def test_a_weight_the_loss_does_not_reach_has_gradient_zero() -> None:
    model, (x, y) = network(), data()
    found = trace(model, x[:1])
    unrelated = torch.ones((), requires_grad=True)
    (only,) = gather(model, found, HeldBatches.of(x, y, 9), lambda *_: 2 * unrelated, {Statistic.SET_GRADIENT})
    assert not only.gradients["0.weight"].any()


def test_modes_come_back_after_an_error() -> None:
    model = network().train()
    with pytest.raises(RuntimeError, match="boom"), modes_kept(model):
        _fail(model.eval())
    assert all(m.training for m in model.modules())


def _fail(_: nn.Module) -> None:
    raise RuntimeError("boom")
