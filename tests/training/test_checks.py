import pytest
import torch

from amcsearch.core.errors import BadInputError
from amcsearch.training.surveys import check_samples


def check(x, y, **bounds):
    check_samples(x, y, **{"name": "search", "input_shape": None, "num_classes": None, **bounds})


@pytest.mark.parametrize(
    ("x", "y", "bounds", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), {}, "no samples"),
        (torch.zeros(3, 8), torch.tensor([0, 1, 2]), {"input_shape": (1, 8)}, r"shape \(8,\), expected \(1, 8\)"),
        (torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 0]), {}, "first in sample 1"),
        (torch.zeros(2, 1), torch.tensor([0, 5]), {"num_classes": 5}, "from 0 to 5, expected 0 to 4"),
        (torch.zeros(2, 1), torch.tensor([-1, 0]), {"num_classes": 5}, "from -1 to 0, expected 0 to 4"),
        (torch.zeros(2, 1), torch.zeros(2), {}, "expected class ids"),
        (torch.zeros(2, 1), torch.zeros(2, 3, 3, dtype=torch.int64), {}, "expected class ids"),
        (torch.zeros(2, 1), torch.zeros(2, 3), {"num_classes": 4}, "vectors of 3 numbers to match"),
        (torch.zeros(2, 1), torch.tensor([[0.0], [torch.inf]]), {"num_classes": 1}, "targets with NaN or infinity"),
    ],
)
def test_unusable_samples_are_named(x, y, bounds, message):
    with pytest.raises(BadInputError, match=message):
        check(x, y, **bounds)


def test_usable_samples_pass():
    check(torch.zeros(2, 1), torch.tensor([0, 4]), input_shape=(1,), num_classes=5)
    check(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0, -100, 2]]), num_classes=3)
    check(torch.zeros(2, 1), torch.randn(2, 3), num_classes=3)
