"""What every criterion promises, on every reference network."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amcsearch.core.policy import PolicySpace
from amcsearch.graph.slices import Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.ranking import keep, rank, rank_units, score_units
from amcsearch.methods.reduction import REDUCTIONS
from amcsearch.training.losses import task_loss
from amcsearch.training.models import MODELS


@cache
def traced(name: str) -> tuple[nn.Module, Trace, Tensor, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name](width=8) if name == "resnet18" else MODELS[name]()
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data = 0.5 + torch.rand(norm.weight.shape, generator=generator)  # as after training, not all 1
    if name == "language_model":
        x = torch.randint(0, 64, (5, 16), generator=generator)
        y = torch.randint(0, 64, (5, 16), generator=generator)
    else:
        x, y = torch.randn(5, 1, 32, 32, generator=generator), torch.arange(5)
    return model, trace(model, x[:1]), x, y


@pytest.mark.parametrize("criterion_name", CRITERIA)
@pytest.mark.parametrize("network", MODELS)
def test_a_criterion_ranks_every_unit_and_leaves_the_model_alone(network: str, criterion_name: str) -> None:
    model, found, x, y = traced(network)
    model.train()
    criterion = CRITERIA[criterion_name]()
    assert criterion.reduction in REDUCTIONS
    before = {name: value.clone() for name, value in model.state_dict().items()}

    scores = score_units(model, found, {"it": criterion}, x, y, task_loss, 4)["it"]
    assert set(scores) == {group.name for group in found.network.groups}
    ranking = rank(scores)
    for group in found.network.groups:
        assert np.isfinite(scores[group.name]).all()
        assert len(np.unique(scores[group.name])) > 1
        assert sorted(ranking[group.name]) == list(range(group.channels // group.unit))
    again = rank_units(model, found, criterion, x, y, task_loss, 4)
    assert all((ranking[name] == again[name]).all() for name in ranking)

    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    space = PolicySpace.on_grid(found.network.groups)
    few, more = (keep(found, ranking, found.network.policy(space.nearest([r] * len(ranking)))) for r in (0.7, 0.3))
    assert all(set(few[name]) < set(more[name]) for name in ranking)
