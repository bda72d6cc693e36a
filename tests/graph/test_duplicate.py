"""Fast copies equal deep copies."""

import copy

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
