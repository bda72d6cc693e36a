"""Branches that forward takes by numbers it reads: layers on a side that the example does not take are cut alike."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import Trace, as_batch, branch_lines, masked, remove, trace
from amcsearch.graph.tracing.branches import Decisions, OtherSide

FEW, MANY = 0.5, 1e4  # the factor that an input is multiplied by: no branch is taken, or all are


class Net(nn.Module):
    """Three convolutions, a further one that only the other side of a branch runs, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.other = (nn.Conv2d(1, 8, 1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(8, 12, 1))
        self.again, self.d, self.head = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.a(x))
        return self.head(F.relu(self.d(self.middle(x, features))).mean((2, 3)))

    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        raise NotImplementedError


class OwnLayer(Net):
    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        if x.mean() > 100.0:
            return self.other(features)
        return self.b(features)


class SharedLayers(Net):
    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        y = self.b(features)
        if bool((x > 100.0).any()):
            y = y + self.other(self.d(y))
        return y


class Compared(Net):
    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        return self.other(features) if x.mean().item() > 100.0 else self.b(features)


class Counted(Net):
    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        y = self.b(features)
        for _ in range(min(int(x.amax() / 100.0), 2)):
            y = F.relu(self.again(y))
        return y


class While(Net):
    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        y, level = self.b(features), x.amax()
        while level > 100.0:
            y, level = F.relu(self.again(y)), level / 1000.0
        return y


class Nested(Net):
    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        y = self.b(features)
        if x.amax() > 100.0:
            y = y + 1.0
            if x.amin() > -1.0:
                y = self.again(y)
        return y


class Experts(Net):
    """A layer of each pass of a loop, of which only the first runs for small inputs."""

    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        y = self.b(features)
        for level, layer in ((-1.0, self.b), (100.0, self.other)):
            if x.amax() > level:
                y = y + layer(features)
        return y


class Checked(Net):
    """The other side of its branch raises: a check, which computes nothing."""

    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        if x.isnan().any():
            raise ValueError("NaN")
        assert not x.isinf().any()
        return self.b(features)


class Refusing(Net):
    """The other side of its branch cannot run on the example."""

    def middle(self, x: Tensor, features: Tensor) -> Tensor:
        return self.b(features) if x.mean() < 100.0 else self.other(features[:, :3])


def traced(kind: type[Net]) -> tuple[Net, Trace]:
    torch.manual_seed(0)
    model = kind().eval()
    return model, trace(model, torch.rand(1, 1, 4, 4))


def half(found: Trace) -> dict[str, Any]:
    return {name: np.sort(units[: (len(units) + 1) // 2].ravel()) for name, units in found.units.items()}


@pytest.mark.parametrize("kind", [OwnLayer, SharedLayers, Compared, Counted, While, Nested, Experts])
def test_both_sides_compute_what_masking_computes(kind: type[Net]) -> None:
    model, found = traced(kind)
    assert {group.name for group in found.network.groups} == {"a", "b", "d"}
    small = remove(model, found, half(found))
    with masked(model, found, half(found)), torch.no_grad():
        for factor in (FEW, MANY):
            x = factor * torch.rand(2, 1, 4, 4)
            torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_branch_is_named_and_its_layer_is_cut() -> None:
    model, found = traced(OwnLayer)
    (reason,) = {skipped.reason for skipped in found.skipped if skipped.name.startswith("other.")}
    line = OwnLayer.middle.__code__.co_firstlineno + 1
    assert reason.startswith(
        f"runs on the other side of the branch at test_branches.py:{line} only: cut where it reads"
    )
    assert branch_lines(model, as_batch(torch.rand(1, 1, 4, 4))) == (f"test_branches.py:{line}",)
    assert remove(model, found, half(found)).other.weight.shape == (6, 4, 1, 1)


def test_a_check_is_no_branch_and_a_side_that_does_not_run_is_named() -> None:
    assert not [skipped for skipped in traced(Checked)[1].skipped if "branch" in skipped.reason]
    _, found = traced(Refusing)
    (skipped,) = [skipped for skipped in found.skipped if "does not run on the example" in skipped.reason]
    assert "the other side of the branch at test_branches.py:" in skipped.reason


def test_numbers_read_by_hand() -> None:
    x = torch.tensor(2.0)
    with Decisions() as decisions:
        read = (bool(x > 1.0), float(x), int(x))
    assert read == (True, 2.0, 2)
    values = [other.value for other in decisions.others()]
    assert values == [False, 1e9, -1e9, 3]
    with Decisions() as decisions:
        assert is_large(x)
    (other,) = decisions.others()
    assert other == OtherSide(f"test_branches.py:{is_large.__code__.co_firstlineno + 1}", "__bool__", value=False)
    with Decisions(other):
        assert [is_large(x), is_large(x), bool(x > 1.0)] == [False, True, True], "the first time at this line alone"


def is_large(x: Tensor) -> bool:
    return bool(x > 1.0)
