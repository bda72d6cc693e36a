"""What every selector promises, on every reference network."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from amcsearch.graph import HeldBatches
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.selector import Calibration, Problem, Selector, problem_of
from amcsearch.methods.selectors import SELECTORS
from amcsearch.testing import SelectorContract
from amcsearch.training.loop import CLASS_IDS
from amcsearch.training.models import MODELS
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.plain import vgg
from amcsearch.training.models.residual import resnet20
from amcsearch.training.models.transformer import language_model, vit

# One of each kind, small: the promises do not depend on the width.
NETWORKS = {
    "resnet": lambda: resnet20(width=8, depth=8),
    "mobilenetv2": lambda: mobilenetv2(width_multiplier=0.5),
    "vgg": lambda: vgg(width=4),
    "vit": lambda: vit(depth=1, dim=32, mlp_width=32),
    "language_model": lambda: language_model(depth=1, dim=32, mlp_width=32, vocabulary=32),
}


@cache
def calibration(name: str) -> Calibration:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    generator = torch.Generator().manual_seed(1)
    if name == "language_model":
        x = torch.randint(0, 32, (10, 16), generator=generator)
        y = torch.randint(0, 32, (10, 16), generator=generator)
    else:
        x, y = torch.randn(10, 1, 32, 32, generator=generator), torch.arange(10)
    return Calibration(model, trace(model, x[:1]), HeldBatches.of(x, y, 4), CLASS_IDS)


@cache
def labelled(name: str) -> Problem:
    return problem_of(calibration(name), labels=True)


class TestSelectors(SelectorContract):
    @pytest.fixture(params=SELECTORS)
    def maker(self, request: pytest.FixtureRequest) -> Callable[[], Selector]:
        return SELECTORS[request.param]

    @pytest.fixture(params=NETWORKS)
    def problem(self, request: pytest.FixtureRequest) -> Problem:
        return labelled(request.param)


def test_every_reference_network_has_a_reader_for_every_group() -> None:
    for name in set(MODELS) - {"resnet18"}:
        model = MODELS[name]()
        x = torch.zeros(1, 8, dtype=torch.long) if name == "language_model" else torch.randn(1, 1, 32, 32)
        found = trace(model, x)
        given = Calibration(model, found, HeldBatches.of(x, torch.zeros(1, dtype=torch.long), 1), CLASS_IDS)
        readers = problem_of(given, positions=1).readers
        assert list(readers) == [group.name for group in found.network.groups]
