"""Operators that we write for torch's exporter, in ONNX Runtime beside torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amcsearch.graph import Batch
from amcsearch.runtime import OnnxModule, exported


class Function(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


MATRICES = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))  # (E, K, N)
OFFSETS = torch.tensor([2, 2, 5], dtype=torch.int32)  # the second has no row


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (lambda x: x.permute(0, -1, 1), torch.arange(6.0).reshape(1, 2, 3)),
        (lambda x: torch.diff(x, dim=1), torch.tensor([[1.0, 3.0, 7.0]])),
        (lambda x: torch.diff(x, n=2, dim=0, prepend=x[:1], append=x[:1]), torch.tensor([[1.0], [4.0], [9.0]])),
        (lambda x: (x > 2).cumsum(1), torch.tensor([[1.0, 3.0, 7.0]])),
        (lambda x: torch.cumsum(x, 1, dtype=torch.int64), torch.tensor([[1.5, 3.5, 7.0]])),
        (lambda x: torch.histc(x, bins=4, min=0, max=4), torch.tensor([-1.0, 0.0, 0.5, 1.0, 3.9, 4.0, 4.1])),
        (lambda x: torch._grouped_mm(x, MATRICES, offs=OFFSETS), torch.arange(20.0).reshape(5, 4)),
    ],
    ids=[
        "permute",
        "diff",
        "diff_twice_between_others",
        "cumsum_of_booleans",
        "cumsum_as_integers",
        "histc",
        "grouped_mm",
    ],
)
def test_onnx_runtime_gives_what_torch_does(function: Callable[[Tensor], Tensor], values: Tensor) -> None:
    module = Function(function)
    given = OnnxModule(exported(module, Batch((values,))))(values)
    assert given.dtype == module(values).dtype
    torch.testing.assert_close(given, module(values))
