"""Single weights: what every criterion says of them, or that it says nothing."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph import HeldBatches
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import ALIASES, CRITERIA, unaliased
from amcsearch.methods.criteria.fisher import Fisher
from amcsearch.methods.criteria.movement import Movement
from amcsearch.methods.criterion import Criterion
from amcsearch.methods.weights import sparse_weights, weight_scores

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
OF_CHANNELS = {
    "taylor_per_sample", "taylor_act2017", "fisher", "true_fisher", "activation_magnitude", "wanda_channels",
}  # fmt: skip


def made(name: str) -> Criterion:
    registered, params = unaliased(name, {})
    return CRITERIA[registered](**params)


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
    return weight_scores(
        model, found, criterion, sparse_weights(model, found), HeldBatches.of(X, Y, 4), F.cross_entropy
    )


@pytest.mark.parametrize("name", [*CRITERIA, *ALIASES])
def test_every_criterion_scores_single_weights_or_says_that_it_cannot(name: str) -> None:
    if name in OF_CHANNELS:
        with pytest.raises(BadInputError, match="scores no single weight"):
            scored(made(name))
        return
    found = scored(made(name))
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
