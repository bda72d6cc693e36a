"""Optimal Brain Damage, Fisher and movement against true loss changes, second differences and loops over samples."""

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph import HeldBatches
from amcsearch.graph.masks import masked
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria.fisher import Fisher
from amcsearch.methods.criteria.movement import Movement
from amcsearch.methods.criteria.obd import OptimalBrainDamage
from amcsearch.methods.criteria.taylor import Taylor
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.curvature import diagonal
from amcsearch.methods.first_order import LossFunction
from amcsearch.methods.needs import Curvature, ShortTraining
from amcsearch.methods.ranking import UnitScores, score_units
from amcsearch.methods.short_training import accumulated, keep_share, movement_scores, top_mask
from amcsearch.methods.statistics import sliced_parameters

X = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def small() -> nn.Module:
    """conv → BN → ReLU → conv → GELU → flatten → linear, with lively batch norm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.GELU(),
        nn.Flatten(), nn.Linear(64, 3),
    ).double()  # fmt: skip
    for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
        tensor.data.uniform_(0.3, 1.5)  # type: ignore[operator, union-attr]
    return model.eval()


class Features(nn.Module):
    """x (N, I) → a copy of it, whose I channels a linear layer (O, I) reads."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.copy, self.read = nn.Linear(inputs, inputs, bias=False), nn.Linear(inputs, outputs, bias=False)
        self.copy.weight.data, self.read.weight.data = torch.eye(inputs, dtype=weight.dtype), weight.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.copy(x))


def half_squares(output: Tensor, target: Tensor) -> Tensor:
    """Minus the log-likelihood under unit normal noise, without its constant, averaged over samples."""
    return 0.5 * (output - target).square().sum() / len(target)


def regression(outputs: int = 1, n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated inputs, noisy targets, and the least-squares weight (O, I)."""
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64) @ mixing
    y = x @ torch.randn(4, outputs, generator=generator, dtype=torch.float64)
    y = y + 0.3 * torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return x, y, torch.linalg.lstsq(x, y).solution.T


def scores(
    model: nn.Module, criterion: Criterion, loss: LossFunction, x: Tensor, y: Tensor, batch: int = 1000
) -> UnitScores:
    return score_units(model, trace(model, x[:1]), {"it": criterion}, HeldBatches.of(x, y, batch), loss)["it"]


def changes(model: nn.Module, loss: LossFunction, x: Tensor, y: Tensor, group: str) -> list[float]:
    """True loss change from closing each unit of a group alone."""
    found = trace(model, x[:1])
    units, found_changes = found.units[group], []
    with torch.no_grad():
        dense = loss(model(x), y)
        for unit in units:
            with masked(model, found, {group: np.setdiff1d(np.arange(units.size), unit)}):
                found_changes.append(float(loss(model(x), y) - dense))
    return found_changes


@pytest.mark.parametrize("method", ["exact", "gates"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_at_a_minimum_the_score_is_the_true_increase(outputs: int, method: Literal["exact", "gates"]) -> None:
    x, y, weight = regression(outputs)
    model = Features(weight)
    criterion = OptimalBrainDamage(method=method, probes=20000)
    score = scores(model, criterion, half_squares, x, y)["copy"]
    hessian = x.T @ x / len(x)
    by_hand = 0.5 * hessian.diagonal() * weight.square().sum(0)
    exact = method == "exact"
    np.testing.assert_allclose(score, changes(model, half_squares, x, y, "copy"), rtol=1e-10 if exact else 0.2)
    np.testing.assert_allclose(score, by_hand, rtol=1e-10 if exact else 0.2)


def test_refitting_the_rest_never_costs_more_than_the_score() -> None:
    x, y, weight = regression()
    score = scores(Features(weight), OptimalBrainDamage(method="exact"), half_squares, x, y)["copy"]
    inverse = torch.linalg.inv(x.T @ x / len(x))
    refitted = 0.5 * weight[0].square() / inverse.diagonal()
    for i in range(4):
        rest = np.delete(np.arange(4), i)
        solution = torch.linalg.lstsq(x[:, rest], y).solution
        increase = half_squares(x[:, rest] @ solution, y) - half_squares(x @ weight.T, y)
        assert float(increase) == pytest.approx(float(refitted[i]), rel=1e-9)
        assert refitted[i] <= score[i]


def test_away_from_a_minimum_the_first_order_term_completes_it() -> None:
    x, y, weight = regression(outputs=2)
    model = Features(weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    true = changes(model, half_squares, x, y, "copy")
    criterion = OptimalBrainDamage(method="exact", first_order=True)
    np.testing.assert_allclose(scores(model, criterion, half_squares, x, y)["copy"], true, rtol=1e-10)
    without = scores(model, OptimalBrainDamage(method="exact"), half_squares, x, y)["copy"]
    assert not np.allclose(without, true, rtol=0.1)


def test_a_block_of_weights_behind_a_flatten_counts_its_cross_terms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1, bias=False)).double()
    with torch.no_grad():
        features = model[:3](X)
        y = features @ model[3].weight.T  # type: ignore[operator]
    true = changes(model, half_squares, X, y, "0")  # residual 0: g = 0
    exact = scores(model, OptimalBrainDamage(method="exact"), half_squares, X, y, batch=4)["0"]
    np.testing.assert_allclose(exact, true, rtol=1e-9)
    by_weights = scores(model, OptimalBrainDamage(method="weights", probes=2000), half_squares, X, y)["0"]
    terms = 0.5 * features.square().mean(0) * model[3].weight[0].detach().square()  # type: ignore[index, operator]
    np.testing.assert_allclose(by_weights, terms.reshape(3, 16).sum(1), rtol=0.2)
    assert not np.allclose(by_weights, true, rtol=0.3)


@pytest.mark.parametrize("group", ["0", "3"])
def test_the_exact_block_is_the_second_difference_by_a_gate(group: str) -> None:
    model = small()
    score = scores(model, OptimalBrainDamage(method="exact"), F.cross_entropy, X, Y, batch=4)[group]
    reader, width = (model[3], 1) if group == "0" else (model[6], 16)  # type: ignore[index]
    for c, found in enumerate(score):
        weight, losses = reader.weight.data.clone(), []  # type: ignore[operator, union-attr]
        for a in (1 - 1e-3, 1.0, 1 + 1e-3):
            reader.weight.data[:, c * width : (c + 1) * width] = a * weight[:, c * width : (c + 1) * width]  # type: ignore[index, operator, union-attr]
            with torch.no_grad():
                losses.append(float(F.cross_entropy(model(X), Y)))
        reader.weight.data = weight  # type: ignore[union-attr]
        second = (losses[0] - 2 * losses[1] + losses[2]) / 1e-6
        assert found == pytest.approx(0.5 * second, rel=1e-4, abs=1e-7)


def test_probes_on_gates_converge_to_the_exact_blocks() -> None:
    model = small()
    exact = scores(model, OptimalBrainDamage(method="exact"), F.cross_entropy, X, Y)
    many = scores(model, OptimalBrainDamage(method="gates", probes=2000), F.cross_entropy, X, Y)
    for group, values in exact.items():
        np.testing.assert_allclose(many[group], values, atol=0.15 * max(np.abs(v).max() for v in exact.values()))


def test_hutchinson_has_the_mean_and_the_variance_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    hessian, w = a @ a.T, torch.ones(5, dtype=torch.float64, requires_grad=True)
    gradient = hessian @ w
    draws = torch.stack([diagonal(gradient, [w], 1, generator) for _ in range(4000)])
    variance = hessian.square().sum(1) - hessian.diagonal().square()
    assert ((draws.mean(0) - hessian.diagonal()).abs() < 4 * (variance / 4000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.1, atol=0.0)
    torch.testing.assert_close(diagonal(gradient, [w], 0, generator), hessian.diagonal())


def test_a_loss_linear_in_the_gates_has_no_curvature() -> None:
    x, y, weight = regression()
    score = scores(Features(weight), OptimalBrainDamage(method="gates"), lambda out, _: out.mean(), x, y)["copy"]
    assert score.tolist() == [0.0] * 4


def test_fused_attention_is_differentiated_twice() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.head_width = 2, 3
            self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).view(len(x), -1, self.num_heads, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)

    torch.manual_seed(0)
    model, x = Head().double(), torch.randn(3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
    assert len(trace(model, x[:1]).network.groups) == 1
    (score,) = scores(model, OptimalBrainDamage(method="exact"), half_squares, x, y, batch=2).values()
    np.testing.assert_allclose(
        score, changes(model, half_squares, x, y, trace(model, x[:1]).network.groups[0].name), rtol=1e-9
    )


def test_bad_probes_are_refused() -> None:
    with pytest.raises(BadInputError, match="probes = -1"):
        Curvature(probes=-1)
    with pytest.raises(BadInputError, match="probes = 0 by weights, must be at least 1"):
        Curvature("weights", 0)


def test_samples_one_by_one_have_no_first_order_term() -> None:
    with pytest.raises(BadInputError, match="first_order = true with method = 'gauss_newton'"):
        OptimalBrainDamage(method="gauss_newton", first_order=True)


# Fisher


def test_fisher_equals_a_loop_over_single_samples_and_is_half_of_taylor() -> None:
    model = small()
    score = scores(model, Fisher(), F.cross_entropy, X, Y, batch=4)
    each = []
    for n in range(6):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(X[n : n + 1]), Y[n : n + 1]), [model[3].weight])  # type: ignore[index]
        each.append((gradient * model[3].weight).sum((0, 2, 3)).square())  # type: ignore[index]
    np.testing.assert_allclose(score["0"], 0.5 * torch.stack(each).mean(0).detach(), rtol=1e-10)
    absolute = scores(model, Taylor("act2017"), F.cross_entropy, X, Y, batch=4)
    np.testing.assert_allclose(absolute["0"], torch.stack(each).sqrt().mean(0).detach(), rtol=1e-10)
    twice = scores(model, Taylor("per_sample"), F.cross_entropy, X, Y, batch=6)
    for group in score:
        np.testing.assert_allclose(2 * score[group], twice[group], rtol=1e-10)


def test_with_unit_noise_the_true_fisher_is_the_hessian() -> None:
    x, y, weight = regression(n=4000)
    by_hand = 0.5 * x.square().mean(0) * weight[0].square()
    by_weights = OptimalBrainDamage(method="weights_gauss_newton")
    by_gates = OptimalBrainDamage(method="gauss_newton")
    for criterion in (Fisher("model"), by_gates, Fisher("model", per_weight=True, seed=1), by_weights):
        is_slow = criterion == by_weights or criterion == Fisher("model", per_weight=True, seed=1)
        rows = slice(1500) if is_slow else slice(None)  # a backward pass a sample
        score = scores(Features(weight), criterion, half_squares, x[rows], y[rows])["copy"]
        np.testing.assert_allclose(score, by_hand, rtol=0.15)


def test_drawn_labels_average_to_the_gauss_newton_block() -> None:
    model = small()
    logits = model(X)
    exact = torch.zeros(5, dtype=torch.float64)
    for n in range(6):
        for k, p in enumerate(torch.softmax(logits[n], 0).tolist()):
            (g,) = torch.autograd.grad(F.cross_entropy(model(X[n : n + 1]), torch.tensor([k])), [model[3].weight])  # type: ignore[index]
            exact += 0.5 * p * (g * model[3].weight).sum((0, 2, 3)).square().detach() / 6  # type: ignore[index]
    criteria = {str(seed): Fisher("model", seed=seed) for seed in range(300)}  # all from one forward pass
    found = score_units(model, trace(model, X[:1]), criteria, HeldBatches.of(X, Y, 6), F.cross_entropy)
    draws = np.stack([each["0"] for each in found.values()])
    error = draws.std(0) / 300**0.5
    assert (np.abs(draws.mean(0) - exact.numpy()) < 4 * error).all()
    assert (error < 0.1 * exact.numpy()).all()


@pytest.mark.parametrize("criterion", [Fisher(), Fisher(per_weight=True)])
def test_a_set_twice_over_scores_the_same_also_with_a_short_last_batch(criterion: Fisher) -> None:
    model = small()
    once = scores(model, criterion, F.cross_entropy, X, Y, batch=4)
    twice = scores(model, criterion, F.cross_entropy, X.repeat(2, 1, 1, 1), Y.repeat(2), batch=5)
    for group in once:
        np.testing.assert_allclose(twice[group], once[group], rtol=1e-10)


@pytest.mark.parametrize(
    "criterion",
    [Fisher(), Fisher("model"), Fisher(per_weight=True), OptimalBrainDamage(), OptimalBrainDamage(method="gates")],
)
def test_a_dead_channel_scores_exactly_zero(criterion: Criterion) -> None:
    model = small()
    model[1].weight.data[2] = model[1].bias.data[2] = 0.0  # type: ignore[index, operator, union-attr]
    score = scores(model, criterion, F.cross_entropy, X, Y)["0"]
    assert score[2] == 0.0
    assert np.abs(score).max() > 0.0


def test_members_that_cancel_in_every_sample_score_zero() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.write, self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 3), nn.Linear(5, 3)
            self.b.weight.data[:, :4] = -self.a.weight.data[:, :4]

        def forward(self, x: Tensor) -> Tensor:
            h = F.gelu(self.write(x))
            return self.a(h) + self.b(h)

    torch.manual_seed(0)
    model = Twins().double()
    x = torch.randn(6, 2, dtype=torch.float64)
    for criterion in (Fisher(), Fisher("model")):
        score = scores(model, criterion, F.cross_entropy, x, Y)["write"]
        np.testing.assert_allclose(score[:4], 0.0, atol=1e-30)
        assert score[4] > 1e-6
    assert scores(model, Fisher(per_weight=True), F.cross_entropy, x, Y)["write"][:4].max() > 1e-6


# Movement


def test_one_step_is_minus_rate_times_gradient_times_weight_also_where_masked() -> None:
    gradient, weight = torch.tensor([2.0, -1.0, 3.0]), torch.tensor([1.0, 4.0, -0.5])
    assert accumulated(torch.zeros(3), weight, gradient, 0.1).tolist() == pytest.approx([-0.2, 0.4, 0.15])


@pytest.mark.parametrize(("w", "rises"), [(0.5, True), (2.0, False), (-0.5, False)])
def test_the_score_rises_where_the_weight_moves_away_from_zero(w: float, rises: bool) -> None:
    target = 1.0  # L = (w - t)^2 / 2; from -0.5 towards 1 the weight first falls to zero
    score, weight = torch.zeros(()), torch.tensor(w)
    for _ in range(3):
        gradient = weight - target
        score = accumulated(score, weight, gradient)
        weight = weight - 0.1 * gradient
    assert (score > 0) == rises


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.3, 0.5, 0.7, 0.999, 1.0])
@pytest.mark.parametrize("n", [1, 7, 10, 100])
def test_the_mask_keeps_exactly_the_floor_also_with_ties(keep: float, n: int) -> None:
    for values in (torch.zeros(n), torch.arange(float(n)), torch.randn(n)):
        mask = top_mask(values, keep)
        assert int(mask.sum()) == int(keep * n + 1e-9)
        assert not mask.any() or mask.all() or values[mask == 1].min() >= values[mask == 0].max()


def test_the_kept_share_falls_from_one_to_its_end() -> None:
    shares = [keep_share(step, 9, 0.3) for step in range(9)]
    assert (shares[0], shares[-1]) == (1.0, 0.3)
    assert shares[4] == pytest.approx(0.3 + 0.7 / 8)
    assert all(a > b for a, b in pairwise(shares))
    assert keep_share(0, 1, 0.3) == 1.0


def test_short_training_is_the_loop_written_out() -> None:
    x, y, weight = regression(outputs=2, n=6)
    model = Features(weight + 0.5)
    found = movement_scores(
        model,
        sliced_parameters(model, trace(model, x[:1])),
        HeldBatches.of(x, y, 4),
        half_squares,
        ShortTraining(4, 0.05, 0.5),
    )
    copied, read = torch.eye(4, dtype=torch.float64), (weight + 0.5).clone()
    total = [torch.zeros_like(copied), torch.zeros_like(read)]
    for step, rows in enumerate([slice(0, 4), slice(4, 6), slice(0, 4), slice(4, 6)]):
        masks = [top_mask(s, keep_share(step, 4, 0.5)) for s in total]
        a, b = ((w * m).requires_grad_() for w, m in zip((copied, read), masks, strict=True))
        gradients = torch.autograd.grad(half_squares(x[rows] @ a.T @ b.T, y[rows]), [a, b])
        total = [s - g * w for s, g, w in zip(total, gradients, (copied, read), strict=True)]
        copied, read = (w - 0.05 * g * m for w, g, m in zip((copied, read), gradients, masks, strict=True))
    torch.testing.assert_close(found["copy.weight"], total[0])
    torch.testing.assert_close(found["read.weight"], total[1])
    torch.testing.assert_close(model.read.weight.data, weight + 0.5)  # the network itself has not moved


def test_a_unit_sums_the_signed_scores_of_what_reads_it() -> None:
    model = small()
    score = scores(model, Movement(steps=1), F.cross_entropy, X, Y, batch=6)["0"]
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(X), Y), [model[3].weight])  # type: ignore[index]
    np.testing.assert_allclose(score, -(gradient * model[3].weight).sum((0, 2, 3)).detach(), rtol=1e-10)  # type: ignore[index]
    assert score.min() < 0


def test_a_diverging_or_senseless_short_training_is_named() -> None:
    x, y, weight = regression()
    with pytest.raises(BadInputError, match=r"lower selection\.params\.learning_rate"):
        scores(Features(weight + 1.0), Movement(learning_rate=1e9), half_squares, x, y)
    with pytest.raises(BadInputError, match=r"keep = 0\.0 in"):
        Movement(keep=0.0)
