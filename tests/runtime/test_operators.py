"""Operators that we write for torch's exporter, in ONNX Runtime beside torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amcsearch.graph import Batch
from amcsearch.runtime import OnnxModule, OnnxSettings, exported


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


class Projected(nn.Module):
    """An LSTM whose state is narrower than its hidden units, begun from states of its own or from zeros."""

    def __init__(self, *, is_begun: bool, **options: bool | int) -> None:
        super().__init__()
        self.lstm, self.is_begun = nn.LSTM(4, 6, proj_size=3, **options), is_begun  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        samples = x.shape[0 if self.lstm.batch_first else 1]
        cells = self.lstm.num_layers * (2 if self.lstm.bidirectional else 1)
        begin = (torch.full((cells, samples, 3), 0.5), torch.full((cells, samples, 6), -0.5))
        y, (state, cell) = self.lstm(x, begin if self.is_begun else None)
        return y, state.transpose(0, 1), cell.transpose(0, 1)


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "is_begun": True}],
    ids=lambda options: " ".join(options) or "plain",
)
def test_an_lstm_with_a_projection_computes_what_torch_does(options: dict[str, bool | int], opset: int) -> None:
    settings = {"is_begun": False, "batch_first": True, **options}
    model = Projected(**settings).eval()  # type: ignore[arg-type]
    content = exported(model, torch.rand(1, 5, 4), OnnxSettings(opset, {"batch": 0, "time": 1}))
    x = torch.rand(2, 7, 4)
    for given, expected in zip(OnnxModule(content)(x), model(x), strict=True):
        torch.testing.assert_close(given, expected)


def test_an_lstm_with_a_projection_takes_time_first() -> None:
    model, x = Projected(is_begun=False).eval(), torch.rand(5, 1, 4)
    given = OnnxModule(exported(model, Batch((x,), size=1)))(x)
    torch.testing.assert_close(given[0], model(x)[0])
