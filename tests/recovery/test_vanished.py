"""Recovery of branches that have vanished: their constant is the mean of what the branch wrote."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.graph import HeldBatches
from amcsearch.graph.removal import remove
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.layer_inputs import gather_inputs
from amcsearch.recovery import (
    Reconstruction,
    SequentialReconstruction,
    fold_means,
    recalibrate_batch_norm,
)
from amcsearch.recovery.bias import input_means

GONE = {"branch.0": np.zeros(0, dtype=np.int64)}


class Residual(nn.Module):
    """Convolutions with a shortcut; the second has a bias, or a batch norm, or neither."""

    def __init__(self, end: str, size: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        last = nn.Conv2d(6, 4, size, padding=size // 2, bias=end == "bias")
        norm = nn.BatchNorm2d(4) if end == "norm" else nn.Identity()
        self.branch = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), last, norm)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.branch(x)))


def case(end: str, size: int = 3) -> tuple[Residual, HeldBatches, Tensor]:
    """A network, its calibration data, and the mean of what its branch writes there."""
    torch.manual_seed(0)
    model, images = Residual(end, size), torch.randn(32, 2, 6, 6)
    model.train()(images)
    model.eval()
    with torch.no_grad():
        mean = model.branch(F.relu(model.stem(images))).mean((0, 2, 3))
    return model, HeldBatches.of(images, torch.zeros(32, dtype=torch.int64), 32), mean


def constant(smaller: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        values = smaller.branch(F.relu(smaller.stem(images))).expand(len(images), -1, 6, 6)
    assert float(values.std((0, 2, 3)).max()) < 1e-5
    return values.mean((0, 2, 3))


@pytest.mark.parametrize("end", ["bias", "norm"])
@pytest.mark.parametrize("how", ["least_squares", "scales", "bias", "sequential", "fold_means"])
def test_the_constant_is_the_mean_of_the_branch(end: str, how: str) -> None:
    model, batches, mean = case(end, 1 if how == "fold_means" else 3)  # whose means know nothing of zero padding
    traced = trace(model, batches.whole.args[0][:1])
    smaller = remove(model, traced, GONE)
    if how == "fold_means":
        fold_means(smaller, traced, GONE, input_means(model, traced, batches, F.cross_entropy))
    else:
        inputs = gather_inputs(model, traced, batches, positions=None)
        made = (
            SequentialReconstruction(model, traced, inputs, batches, positions=None)
            if how == "sequential"
            else Reconstruction(model, traced, inputs.values(), how)
        )
        made.apply(smaller, GONE)
    assert torch.allclose(constant(smaller, batches.whole.args[0]), mean, atol=1e-4)


@pytest.mark.parametrize("end", ["bias", "norm", "neither"])
def test_batch_norms_are_measured_around_a_constant(end: str) -> None:
    model, batches, _ = case(end)
    traced = trace(model, batches.whole.args[0][:1])
    smaller = remove(model, traced, GONE)
    recalibrate_batch_norm(smaller, batches)
    assert not smaller.training
    assert not any(module.training for module in smaller.modules())
    if end == "norm":
        beta = smaller.branch[3].bias
        assert torch.allclose(constant(smaller, batches.whole.args[0]), beta, atol=1e-5)
