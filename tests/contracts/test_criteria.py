"""What every criterion promises, on every reference network."""

from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import nn

from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import ALIASES, CRITERIA, Criterion, unaliased
from amcsearch.testing import CriterionContract, NetworkExample
from amcsearch.training.models import MODELS


@cache
def traced(name: str) -> NetworkExample:
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
    return NetworkExample(model, trace(model, x[:1]), x, y)


class TestCriteria(CriterionContract):
    @pytest.fixture(params=[*CRITERIA, *ALIASES])
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], Criterion]:
        registered, params = unaliased(request.param, {})
        return partial(CRITERIA[registered], **params)

    @pytest.fixture(params=MODELS)
    def example(self, request: pytest.FixtureRequest) -> NetworkExample:
        return traced(request.param)
