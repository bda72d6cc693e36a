import pytest
import torch

from amcsearch.runtime.comparison import OUTPUTS, compare
from amcsearch.runtime.export import exported
from amcsearch.runtime.session import OnnxModule
from amcsearch.training.models import MODELS


@pytest.mark.parametrize("name", list(MODELS))
def test_the_exported_reference_network_computes_the_same(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.randint(0, 256, (2, 64)) if name == "language_model" else torch.randn(2, 1, 32, 32)
    agreement = compare(model, OnnxModule(exported(model, x)), x)
    assert agreement.max_abs <= 1e-4
    assert agreement.relative <= OUTPUTS / 100  # the bound has a wide margin
    assert agreement.problem is None
