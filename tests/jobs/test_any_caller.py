"""Networks as callers hand them over, in whatever modes torch is at that moment: it works, or one line says why not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import amcsearch
from amcsearch.core import BadInputError

QUICK = {"device.rounds": 5, "recovery.finetune": None, "device.channel_multiple": 1}


class Tiny(nn.Module):
    """A convolution, a ReLU and a classifier of four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> object:
        return self.head(self.body(x).relu().mean((2, 3)))


def data() -> dict[str, TensorDataset]:
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(120, 1, 4, 4, generator=generator, device="cpu")
    return {"train": TensorDataset(x, torch.arange(120, device="cpu") % 4)}


def pruned(model: nn.Module, folder: Path, **more: object) -> "amcsearch.SearchResult":
    return amcsearch.prune(model, data(), target={"macs": "0.6x"}, settings=QUICK, folder=folder, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("usual") / "run"
    torch.manual_seed(0)
    pruned(Tiny(), folder)
    return folder


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["inference", "no_grad", "autocast", "device"],
)
def test_the_modes_of_the_caller_change_nothing_and_come_back(
    mode: Callable[[], AbstractContextManager[object]], run: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, usual = Tiny(), amcsearch.load(run, model=Tiny())
    with mode():
        before = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_device()
        result = pruned(model, tmp_path / "run")
        smaller = result.model
        loaded = amcsearch.load(run, model=model).model
        assert before == (
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_device(),
        )
    assert result.policy == usual.policy
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(smaller(x), usual.model(x))
    torch.testing.assert_close(loaded(x), usual.model(x), rtol=0.0, atol=0.0)


def test_a_network_that_casts_itself_sees_weights_that_change_inside_the_callers_autocast() -> None:
    """Within a context of the caller's, torch keeps cast weights until that is left: here 2 would stay 1."""
    from amcsearch.graph import usual_modes

    layer, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1)

    def cast() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float(layer(x))

    values = []
    with torch.autocast("cpu", torch.bfloat16), usual_modes():
        for value in (1.0, 2.0):
            layer.weight.data.fill_(value)
            values.append(cast())
    assert values == [1.0, 2.0]


def test_the_dense_network_may_be_of_any_floating_point_type_to_load(run: Path) -> None:
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(amcsearch.load(run, model=Tiny().double()).model(x), amcsearch.load(run).model(x))


def test_what_is_no_network_is_not_loaded(run: Path) -> None:
    with pytest.raises(BadInputError, match=r"model is a str, expected a torch\.nn\.Module"):
        _ = amcsearch.load(run, model="net.py:build").model  # type: ignore[arg-type]  # what is tested


class Lazy(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(4)


class AddsParameter(Tiny):
    def forward(self, x: Tensor) -> object:
        if not hasattr(self, "late"):
            self.late = nn.Linear(4, 4)
        return self.late(super().forward(x))


class ReplacesParameter(Tiny):
    def forward(self, x: Tensor) -> object:
        self.head.weight = nn.Parameter(self.head.weight * 1.0)
        return super().forward(x)


class Casts(Tiny):
    def forward(self, x: Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            y = super().forward(x)
        assert isinstance(y, Tensor)
        return y.float()


class Complex(Tiny):
    def forward(self, x: Tensor) -> object:
        y = super().forward(x)
        assert isinstance(y, Tensor)
        return y, torch.complex(y, y)


class LossFirst(Tiny):
    def forward(self, x: Tensor) -> object:
        y = super().forward(x)
        assert isinstance(y, Tensor)
        return {"loss": y.mean(), "logits": y}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Lazy, r"head\.weight of Lazy is lazy; run it on a sample first"),
        (AddsParameter, r"AddsParameter adds the parameter late\.weight when it runs.*make all parameters in __init__"),
        (ReplacesParameter, r"ReplacesParameter replaces the parameter head\.weight when it runs"),
        (Casts, r"Casts: its layer body computes in torch\.bfloat16, expected torch\.float32.*take torch\.autocast"),
        (Complex, r"Complex gives the complex output '1', expected real numbers; return torch\.view_as_real"),
        (LossFirst, r"'logits' alone fits the targets; write task: {name: classification, params: {output: 'logits'}}"),
    ],
)
def test_what_cannot_be_delivered_is_refused_before_any_work(kind: type[nn.Module], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=words):
        pruned(kind(), tmp_path / "run")
    assert not (tmp_path / "run" / "policy.json").exists()
