"""Operations of plain code that channels go through: groups by hand, and removal beside masking."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import masked, remove, trace

WIDTH, SIZE = 6, 4


class Net(nn.Module):
    """A stem, ``function`` of its map (N, 6, 4, 4), a convolution and a classifier."""

    def __init__(self, function: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.stem, self.tail, self.head = nn.Conv2d(1, WIDTH, 3, 1, 1), nn.Conv2d(WIDTH, 5, 1), nn.Linear(5, 2)
        self.weight, self.vector = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(4))
        self.slope = nn.Parameter(torch.randn(3, 4))
        self.empty = nn.Linear(0, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self, self.stem(x).relu())
        return self.head(self.tail(y).relu().mean((2, 3)))


def two_slices(_: Net, y: Tensor) -> Tensor:
    """The map above and below a row; the part above is empty."""
    return torch.cat([y[:, :, :0].tanh(), y[:, :, 0:]], 2)


def windows_and_back(_: Net, y: Tensor) -> Tensor:
    """The map cut into 2x2 windows, (N, C * 4, 4), and put together again."""
    return F.fold(F.unfold(y, 2, stride=2) * 2.0, (SIZE, SIZE), 2, stride=2)


def matrix_and_vector(net: Net, y: Tensor) -> Tensor:
    """The map times the sum of a matrix (3, 4) times a vector (4,)."""
    return y * torch.mv(net.slope, net.vector).sum()


def summed(net: Net, y: Tensor) -> Tensor:
    """A product over channels by einsum: position (h, w) of channel d is the sum of w_cd y_c."""
    return torch.einsum("nchw,cd->ndhw", y, net.weight)


def nothing_added(net: Net, y: Tensor) -> Tensor:
    """A layer of no inputs gives its bias; here its mean scales the map."""
    return y * net.empty(y.new_zeros(len(y), 0)).mean(1)[:, None, None, None]


class Scaled(nn.Module):
    """Divides every position by its deviation over channels, under a name that tells nothing; scales and adds."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "function":
            return F.layer_norm(x.movedim(1, -1), (x.shape[1],), self.a, self.b).movedim(-1, 1)
        if self.how == "pooled":  # a weighted mean, which is no norm: its channels stay
            return (x * self.a[:, None, None]).mean(1, keepdim=True).expand(-1, WIDTH, -1, -1)[:, :3]
        centred = x - x.mean(1, keepdim=True)
        y = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return self.a[:, None, None] * y + self.b[:, None, None]


@pytest.mark.parametrize(("how", "groups"), [("by hand", ["0", "2"]), ("function", ["0", "2"]), ("pooled", ["2"])])
def test_a_norm_without_a_name_is_found_by_what_it_computes(how: str, groups: list[str]) -> None:
    """By hand: of the 6 channels of layer 0 the first leaves; statistics are then of the 5 that are left."""
    torch.manual_seed(0)
    width = 3 if how == "pooled" else WIDTH
    model = nn.Sequential(nn.Conv2d(1, WIDTH, 1), Scaled(how), nn.Conv2d(width, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    x = torch.randn(2, 1, SIZE, SIZE)
    traced = trace(model.eval(), x[:1])
    assert [group.name for group in traced.network.groups] == groups
    if "0" not in groups:
        return
    kept = {"0": np.arange(1, WIDTH)}
    y = model[0](x)[:, 1:]
    wanted = (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    wanted = model[1].a[1:, None, None] * wanted + model[1].b[1:, None, None]
    expected = model[4](F.conv2d(wanted, model[2].weight[:, 1:], model[2].bias).relu())
    small = remove(model, traced, kept)
    torch.testing.assert_close(small(x), expected)
    with torch.no_grad(), masked(model, traced, kept):
        torch.testing.assert_close(model(x), expected)
    again = trace(small, x[:1])
    assert [group.channels for group in again.network.groups] == [WIDTH - 1, 5]


BOTH = [("stem", WIDTH, 1), ("tail", 5, 1)]
GROUPS = {
    two_slices: BOTH,
    windows_and_back: BOTH,
    matrix_and_vector: BOTH,
    summed: [("stem", WIDTH, 1), ("weight", WIDTH, 1), ("tail", 5, 1)],
    nothing_added: BOTH,
}


@pytest.mark.parametrize("function", GROUPS, ids=lambda function: function.__name__)
def test_channels_go_through(function: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Net(function).eval(), torch.randn(2, 1, SIZE, SIZE)
    traced = trace(model, x[:1])
    assert [(group.name, group.channels, group.unit) for group in traced.network.groups] == GROUPS[function]
    kept = {name: np.sort(units[1:].ravel()) for name, units in traced.units.items()}
    with torch.no_grad(), masked(model, traced, kept):
        expected = model(x)
    torch.testing.assert_close(remove(model, traced, kept)(x), expected)
