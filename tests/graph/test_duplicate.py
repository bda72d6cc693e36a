"""Fast copies equal deep copies."""

import copy

import pytest
import torch
from torch import Tensor, nn

from amcsearch.graph.removal import duplicate


class Odd(nn.Module):
    """State of every sort: shared parameters, lists, a registered hook, its own ``__setstate__``."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.sizes = [1, [2, 3]]
        self.table = {"x": torch.ones(2)}
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.lstm = nn.LSTM(2, 3)

    def __setstate__(self, state):
        super().__setstate__(state)
        self.restored = True


def test_containers_tensors_and_shared_parameters_are_copied_once():
    model = Odd()
    small = duplicate(model, {})
    assert small.a.weight is small.b.weight
    assert small.a.weight is not model.a.weight
    assert small.sizes == [1, [2, 3]]
    assert small.sizes[1] is not model.sizes[1]
    assert small.table["x"] is not model.table["x"]
    assert "scratch" in small._non_persistent_buffers_set
    assert small.restored  # the class's own way of copying was used
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), model.state_dict().values(), strict=True))
    x = torch.randn(4, 1, 2)
    assert torch.equal(small.lstm(x)[0], model.lstm(x)[0])


def test_memo_replaces_a_parameter_wherever_it_is_held():
    model = Odd()
    new = nn.Parameter(torch.zeros(2, 2))
    small = duplicate(model, {id(model.a.weight): new})
    assert small.a.weight is new
    assert small.b.weight is new


def test_copies_attributes_of_every_module_as_deepcopy_does(traced):
    ours, theirs = duplicate(traced.model, {}), copy.deepcopy(traced.model)
    for (name, one), (_, other) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        assert list(vars(one)) == list(vars(other)), name
        assert {k: type(v) for k, v in vars(one).items()} == {k: type(v) for k, v in vars(other).items()}, name


class Keeping(nn.Module):
    """Keeps what it computed last, bare and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.last: object = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.last = {"bare": y, "list": [y, 1], "tuple": (y, "a")}
        return y


def test_tensors_that_a_module_keeps_are_copied_without_their_graph() -> None:
    module = Keeping()
    y = module(torch.ones(1, 2))
    copied = duplicate(module).last
    for tensor in (copied["bare"], copied["list"][0], copied["tuple"][0]):  # type: ignore[index]
        assert tensor.grad_fn is None
        assert tensor is not y
        assert torch.equal(tensor, y)
    assert (copied["list"][1], copied["tuple"][1]) == (1, "a")  # type: ignore[index]


class Closing(nn.Module):
    """Runs its layer through functions that were made in ``__init__``."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, table = nn.Linear(2, 2), {"bias": nn.Parameter(torch.ones(2))}
        self.bias = table["bias"]
        self.run = {
            "lambda": lambda x: self.layer(x) + self.bias,
            "list of methods": [self.inside],
            "compiled method": torch.compile(self.inside, backend="eager"),
            "function of a method": lambda x, inside=None: (lambda y: self.inside(y))(x),
            "function of a table": lambda x: self.layer(x) + table["bias"],
        }[how]

    def inside(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        return (self.run[0] if isinstance(self.run, list) else self.run)(x)


@pytest.mark.parametrize(
    "how", ["lambda", "list of methods", "compiled method", "function of a method", "function of a table"]
)
def test_functions_that_close_over_the_module_run_the_copy(how: str) -> None:
    model = Closing(how)
    copied, x = duplicate(model), torch.ones(1, 2)
    expected = model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(x), expected)
    assert not model(x).any()


def test_a_compiled_forward_is_copied_as_it_was_written() -> None:
    model = nn.Linear(2, 2)
    model.forward = torch.compile(model.forward, backend="eager")
    copied, x = duplicate(model), torch.ones(1, 2)
    expected = model(x)
    nn.init.zeros_(model.weight)
    assert torch.equal(copied(x), expected)
