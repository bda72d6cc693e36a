"""Activation magnitude and variance, Wanda and batch-norm scale: exact errors, invariances and their limits."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import HeldBatches
from amcsearch.graph.masks import masked
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria.activation import ActivationMagnitude
from amcsearch.methods.criteria.activation_variance import ActivationVariance
from amcsearch.methods.criteria.bn_scale import BnScale
from amcsearch.methods.criteria.magnitude import Magnitude
from amcsearch.methods.criteria.wanda import Wanda, WandaChannels
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.ranking import UnitScores, score_units
from amcsearch.methods.weight_choice import keep_n_of_m, keep_rows
from amcsearch.methods.weights import weight_scores

X = torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def convolutional(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), activation or nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip
    return model.double().eval()


def scores(model: nn.Module, criterion: Criterion, x: Tensor = X, batch: int = 3) -> UnitScores:
    y = Y if len(x) == len(Y) else torch.zeros(len(x), dtype=torch.long)
    return score_units(model, trace(model, x[:1]), {"it": criterion}, HeldBatches.of(x, y, batch), F.cross_entropy)[
        "it"
    ]


ACTIVATIONS = [
    ActivationMagnitude(),
    ActivationMagnitude("mean_square"),
    ActivationMagnitude("active"),
    ActivationVariance(),
    ActivationVariance(weighted=False),
    Wanda(),
    WandaChannels(),
]


@pytest.mark.parametrize("criterion", ACTIVATIONS, ids=str)
def test_the_cut_into_batches_does_not_matter(criterion: Criterion) -> None:
    model = convolutional()
    whole = scores(model, criterion, batch=7)
    for batch in (1, 2, 4):
        for group, values in scores(model, criterion, batch=batch).items():
            np.testing.assert_allclose(values, whole[group], rtol=1e-9)


@pytest.mark.parametrize(
    ("measure", "formula"),
    [
        ("mean_absolute", lambda a: a.abs()),
        ("mean_square", torch.square),
        ("active", lambda a: (a != 0).double()),
    ],
)
def test_activation_magnitude_is_a_mean_over_samples_and_positions(measure: str, formula) -> None:  # type: ignore[no-untyped-def]
    model = convolutional(nn.LeakyReLU())
    found = scores(model, ActivationMagnitude(measure))  # type: ignore[arg-type]
    with torch.no_grad():
        read, flat = model[:2](X), model[:4](X)  # type: ignore[operator]
    np.testing.assert_allclose(found["0"], formula(read).mean((0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found["2"], formula(flat).mean(0).sum((1, 2)), rtol=1e-9)  # a flatten: a sum of means


def test_the_tap_is_the_stream_and_its_readers_are_averaged() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.back = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(F.relu(x + self.back(F.relu(self.inner(x))))).mean((2, 3))

    torch.manual_seed(0)
    model = Stream().double()
    with torch.no_grad():
        first = model.stem(X)
        second = F.relu(first + model.back(F.relu(model.inner(first))))
    expected = (first.abs().mean((0, 2, 3)) + second.mean((0, 2, 3))) / 2
    np.testing.assert_allclose(scores(model, ActivationMagnitude())["stem"], expected, rtol=1e-9)


def rescaled(model: nn.Module, t: float) -> nn.Module:
    """Channel 1 of the first layer times t, its readers' columns divided by it: the same function."""
    other = copy.deepcopy(model)
    other[0].weight.data[1] *= t  # type: ignore[index, operator, union-attr]
    other[0].bias.data[1] *= t  # type: ignore[index, operator, union-attr]
    other[2].weight.data[:, 1] /= t  # type: ignore[index, operator, union-attr]
    torch.testing.assert_close(other(X), model(X))
    return other


def test_rescaling_changes_activation_magnitude_and_nothing_that_weighs_its_readers() -> None:
    model = convolutional()
    other = rescaled(model, 8.0)
    before, after = (scores(m, ActivationMagnitude())["0"] for m in (model, other))
    np.testing.assert_allclose(after, before * np.array([1, 8, 1, 1, 1]), rtol=1e-9)  # the known weakness
    for criterion in (ActivationVariance(), Wanda(), WandaChannels()):
        np.testing.assert_allclose(scores(other, criterion)["0"], scores(model, criterion)["0"], rtol=1e-9)


@pytest.mark.parametrize("criterion", ACTIVATIONS, ids=str)
def test_a_dead_channel_scores_zero(criterion: Criterion) -> None:
    model = convolutional()
    model[0].weight.data[3], model[0].bias.data[3] = 0.0, -1.0  # type: ignore[index, operator, union-attr]
    found = scores(model, criterion)["0"]
    assert found[3] == 0.0
    assert found.max() > 0.0


def test_variance_does_not_see_a_shift_and_magnitude_does() -> None:
    model = convolutional(nn.Identity())
    other = copy.deepcopy(model)
    other[0].bias.data += 5.0  # type: ignore[index, operator, union-attr]
    for criterion in (ActivationVariance(), ActivationVariance(weighted=False)):
        np.testing.assert_allclose(scores(other, criterion)["0"], scores(model, criterion)["0"], rtol=1e-7)
    assert (scores(other, ActivationMagnitude())["0"] > 2 * scores(model, ActivationMagnitude())["0"]).all()


def test_weighted_variance_is_the_error_left_after_the_fold() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    found = scores(model, ActivationVariance(), x)["0"]
    with torch.no_grad():
        read, weight = model[:2](x), model[2].weight  # type: ignore[operator]
        error = ((read - read.mean(0))[:, None] * weight).square().sum(1).mean(0)  # type: ignore[operator]
    np.testing.assert_allclose(found, error, rtol=1e-9)


# Wanda


def linear_scores(weight: Tensor, x: Tensor, criterion: Criterion) -> Tensor:
    """Scores of single weights of a linear layer (O, I) that reads x (N, I)."""
    model = nn.Sequential(nn.Linear(len(weight[0]), len(weight[0]), bias=False), nn.Linear(*weight.T.shape))
    model = model.to(x.dtype)
    model[0].weight.data, model[1].weight.data = torch.eye(len(weight[0]), dtype=x.dtype), weight.clone()  # type: ignore[union-attr]
    target = torch.zeros(len(x), dtype=torch.long)
    names = {"1.weight": model[1].weight}
    return weight_scores(model, trace(model, x[:1]), criterion, names, HeldBatches.of(x, target, 4), F.cross_entropy)[
        "1.weight"
    ]  # type: ignore[arg-type]


WEIGHT = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TOKENS = torch.randn(30, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * torch.arange(1.0, 9.0)


def test_the_squared_score_is_the_error_of_zeroing_that_one_weight() -> None:
    found = linear_scores(WEIGHT, TOKENS, Wanda())
    for i, j in ((0, 0), (2, 5), (3, 7)):
        without = WEIGHT.clone()
        without[i, j] = 0.0
        error = (TOKENS @ (WEIGHT - without).T).square().sum() / len(TOKENS)
        assert float(found[i, j]) ** 2 == pytest.approx(float(error), rel=1e-9)


def test_with_equal_input_norms_it_is_magnitude_within_rows() -> None:
    x = torch.nn.functional.normalize(TOKENS, dim=0)
    for sparsity in (0.25, 0.5, 0.6):
        ours = keep_rows(linear_scores(WEIGHT, x, Wanda()), sparsity)
        assert torch.equal(ours, keep_rows(WEIGHT.abs(), sparsity))


@given(st.integers(0, 7), st.sampled_from([0.01, 0.1, 10.0, 100.0]))
def test_scaling_an_input_against_its_column_leaves_the_masks(column: int, t: float) -> None:
    x, weight = TOKENS.clone(), WEIGHT.clone()
    x[:, column] *= t
    weight[:, column] /= t
    for choose in (lambda s: keep_rows(s, 0.5), lambda s: keep_n_of_m(s, 2, 4)):
        scaled, plain = (choose(linear_scores(*both, Wanda())) for both in ((weight, x), (WEIGHT, TOKENS)))
        assert torch.equal(scaled, plain)


def test_magnitude_fails_the_same_scaling() -> None:
    weight = WEIGHT.clone()
    weight[:, 0] /= 100.0
    plain, scaled = (keep_rows(linear_scores(w, TOKENS, Magnitude()), 0.5) for w in (WEIGHT, weight))
    assert not torch.equal(plain, scaled)


def test_it_is_the_norm_and_not_its_square() -> None:
    weight, x = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # norms 2 and 1
    assert keep_rows(linear_scores(weight, x, Wanda()), 0.5).tolist() == [[False, True]]  # 1*2 < 3*1
    assert keep_rows(weight.abs() * x.square().sum(0), 0.5).tolist() == [[True, False]]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.62, 0.9])
def test_every_row_has_exactly_its_zeros_and_two_of_four_holds(sparsity: float) -> None:
    found = linear_scores(WEIGHT, TOKENS, Wanda())
    assert ((~keep_rows(found, sparsity)).sum(1) == round(sparsity * 8)).all()
    assert (keep_n_of_m(found, 2, 4).view(4, 2, 4).sum(2) == 2).all()


def test_for_channels_the_square_is_the_exact_output_error_also_with_overlapping_patches() -> None:
    model = convolutional()
    found = trace(model, X[:1])
    exact, blind = scores(model, WandaChannels()), scores(model, Wanda())
    for group, layer, positions in (("0", 2, 16), ("2", 5, 1)):
        read = (model[:3], model[:6])[layer == 5]  # type: ignore[index]
        channels = next(g for g in found.network.groups if g.name == group).channels
        with torch.no_grad():
            dense = read(X)
            for c in range(channels):
                with masked(model, found, {group: np.delete(np.arange(channels), c)}):
                    error = float((read(X) - dense).square().sum()) / (len(X) * positions)
                if layer == 2:
                    assert exact[group][c] ** 2 == pytest.approx(error, rel=1e-9)
    assert not np.allclose(exact["0"], blind["0"], rtol=0.01)  # single weights do not see the overlap
    weight, flat = model[5].weight.detach(), model[:5](X).detach()  # type: ignore[index, operator]
    by_column = (weight.square().sum(0) * flat.square().mean(0)).reshape(4, 16).sum(1).sqrt()  # type: ignore[operator]
    np.testing.assert_allclose(exact["2"], by_column, rtol=1e-9)


def test_in_a_linear_layer_a_channel_is_the_product_of_two_norms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    read = model[:2](x).detach()  # type: ignore[operator]
    expected = model[2].weight.detach().norm(dim=0) * read.norm(dim=0) / 20**0.5  # type: ignore[index, operator, union-attr]
    for criterion in (Wanda(), WandaChannels()):
        np.testing.assert_allclose(scores(model, criterion, x)["0"], expected, rtol=1e-9)


# batch-norm scale


def normed() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.Flatten(), nn.Linear(48, 3)
    )
    for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
        tensor.data.uniform_(0.3, 1.5)  # type: ignore[operator, union-attr]
    return model.double().eval()


def test_the_score_is_the_size_of_gamma_and_without_a_norm_the_size_of_what_writes() -> None:
    model = normed()
    model[1].weight.data[2] *= -1.0  # type: ignore[index, operator, union-attr]
    found = scores(model, BnScale())
    np.testing.assert_allclose(found["0"], model[1].weight.detach().abs())  # type: ignore[arg-type, index, operator, union-attr]
    np.testing.assert_allclose(found["3"], model[3].weight.detach().abs().sum((1, 2, 3)), rtol=1e-9)  # type: ignore[index, operator, union-attr]


def test_channels_of_scale_and_shift_zero_leave_without_a_trace() -> None:
    model = normed()
    model[1].weight.data[[1, 4]] = model[1].bias.data[[1, 4]] = 0.0  # type: ignore[index, operator, union-attr]
    found = trace(model, X[:1])
    kept = np.sort(np.argsort(-scores(model, BnScale())["0"])[:3])
    assert kept.tolist() == [0, 2, 3]
    with torch.no_grad(), masked(model, found, {"0": kept}):
        closed = model(X)
    torch.testing.assert_close(closed, model(X).detach())


def test_norms_of_a_residual_group_are_averaged_or_summed() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn1 = nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)
            self.inner, self.bn2 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.stem(x))
            return self.head(F.relu(x + self.bn2(self.inner(x)))).mean((2, 3))

    model = Stream().double().eval()
    model.bn1.weight.data = torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64)
    model.bn2.weight.data = torch.tensor([1.0, -1.0, 1.0, 0.0], dtype=torch.float64)
    assert scores(model, BnScale())["stem"].tolist() == [1.0, 1.5, 2.0, 2.0]
    assert scores(model, BnScale(combine="sum"))["stem"].tolist() == [2.0, 3.0, 4.0, 4.0]
