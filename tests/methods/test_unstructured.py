"""Single weights: exact counts in rows, tensors and networks, n of m, and what a criterion says of one weight."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.criteria.fisher import Fisher
from amcsearch.methods.criteria.movement import Movement
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.unstructured import keep_n_of_m, keep_rows, masks
from amcsearch.methods.weights import sparse_weights, weight_scores

SCORES = {"a": torch.tensor([[4.0, 1.0, 3.0, 2.0], [8.0, 8.0, 8.0, 8.0]]), "b": torch.tensor([[0.1, 0.2]])}


def test_rows_tensors_and_network_by_hand() -> None:
    assert masks(SCORES, 0.5)["a"].int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    assert masks(SCORES, 0.5, "layer")["a"].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    whole = masks(SCORES, 0.5, "network")  # 5 of 10; every tensor keeps its best
    assert whole["a"].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert whole["b"].int().tolist() == [[0, 1]]


def test_lamp_spares_a_small_layer() -> None:
    plain, lamp = (masks(SCORES, 0.4, "network", name)["b"].sum() for name in ("none", "lamp"))
    assert (int(plain), int(lamp)) == (1, 2)  # 1/3 and 1 of its own layer beat 1/42 … of the other


@given(st.integers(1, 6), st.integers(1, 12), st.floats(0.0, 0.99), st.integers(0, 3))
def test_every_row_loses_exactly_its_share_also_with_ties(rows: int, columns: int, sparsity: float, kinds: int) -> None:
    scores = torch.randint(0, kinds + 1, (rows, columns), generator=torch.Generator().manual_seed(rows)).float()
    mask = keep_rows(scores, sparsity)
    assert ((~mask).sum(1) == round(sparsity * columns)).all()
    for row, kept in zip(scores, mask, strict=True):
        assert not kept.any() or kept.all() or row[kept].min() >= row[~kept].max()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8), (4, 4)])
def test_n_of_m_holds_in_every_run(n: int, m: int) -> None:
    scores = torch.rand(3, 2, 8, generator=torch.Generator().manual_seed(0))  # rows of 16 columns
    mask = keep_n_of_m(scores, n, m)
    assert mask.shape == scores.shape
    runs, values = mask.reshape(-1, m), scores.reshape(-1, m)
    assert (runs.sum(1) == n).all()
    for kept, value in zip(runs, values, strict=True):
        assert n == m or value[kept].min() >= value[~kept].max()


def test_columns_left_over_stay_and_n_is_what_is_kept() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]])
    assert keep_n_of_m(scores, 1, 4).int().tolist() == [[0, 0, 0, 1, 1, 1]]
    with pytest.raises(BadInputError, match="n:m = 5:4: n weights are KEPT"):
        keep_n_of_m(scores, 5, 4)


def test_a_bad_sparsity_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"sparsity = 1\.0"):
        masks(SCORES, 1.0)


X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
OF_CHANNELS = {
    "taylor_per_sample", "taylor_act2017", "obd", "fisher", "true_fisher", "activation_magnitude", "wanda_channels",
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 8), nn.GELU(), nn.Linear(8, 3),
    )  # fmt: skip
    return model.double().eval()


def scored(criterion: Criterion) -> dict[str, Tensor]:
    model = network()
    found = trace(model, X[:1])
    return weight_scores(model, found, criterion, sparse_weights(model, found), X, Y, F.cross_entropy, 4)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_single_weights_or_says_that_it_cannot(name: str) -> None:
    if name in OF_CHANNELS:
        with pytest.raises(BadInputError, match="scores no single weight"):
            scored(CRITERIA[name]())
        return
    found = scored(CRITERIA[name]())
    assert {key: value.shape for key, value in found.items()} == {
        key: p.shape for key, p in sparse_weights(network(), trace(network(), X[:1])).items()
    }
    assert all(torch.isfinite(value).all() and len(value.unique()) > 1 for value in found.values())


def test_single_weights_keep_the_sign_of_movement_and_squares_of_fisher() -> None:
    assert (scored(Movement(steps=2))["6.weight"] < 0).any()
    each = scored(Fisher(per_weight=True))["8.weight"]
    model = network()
    squares = []
    for n in range(6):
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(X[n : n + 1]), Y[n : n + 1]), [model[8].weight])  # type: ignore[index]
        squares.append((gradient * model[8].weight).square())  # type: ignore[index]
    torch.testing.assert_close(each, 0.5 * torch.stack(squares).mean(0))
