"""The evaluator puts the means of removed channels where they are wanted."""

import torch
from torch import nn
from torch.nn import functional as F

from amcsearch.core.policy import PolicySpace
from amcsearch.evaluation.evaluator import Evaluator
from amcsearch.graph import HeldBatches
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria.activation_variance import ActivationVariance
from amcsearch.methods.ranking import rank_units
from amcsearch.recovery.bias import means_for

X = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def test_an_evaluator_folds_where_the_criterion_wants_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).double().eval()
    found = trace(model, X[:1])
    criterion = ActivationVariance()
    ranking = rank_units(model, found, criterion, HeldBatches.of(X, Y, 6), F.cross_entropy)
    means = means_for(criterion, model, found, HeldBatches.of(X, Y, 6), F.cross_entropy)
    space = PolicySpace.on_grid(found.network.groups)
    policy = found.network.policy(space.nearest([0.5]))
    batches = HeldBatches.of(X, Y, 6)
    plain = Evaluator(model, found, ranking, batches, batches).pruned(policy)
    better = Evaluator(model, found, ranking, batches, batches, means=means).pruned(policy)
    torch.testing.assert_close(plain[0].weight, better[0].weight)  # type: ignore[index]
    assert not torch.allclose(plain[3].bias, better[3].bias)  # type: ignore[index, arg-type]
    with torch.no_grad():
        errors = [float((m(X) - model(X)).square().mean()) for m in (plain, better)]
    assert errors[1] < errors[0]
