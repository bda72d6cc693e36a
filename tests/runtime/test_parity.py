import pytest
import torch

from amcsearch.runtime.export import exported, max_abs_difference
from amcsearch.training.models import MODELS


@pytest.mark.parametrize("name", list(MODELS))
def test_the_exported_reference_network_computes_the_same(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.randint(0, 256, (2, 64)) if name == "language_model" else torch.randn(2, 1, 32, 32)
    assert max_abs_difference(model, exported(model, x), x) <= 1e-4
