"""Refitting to the inputs a pruned network really has: what it equals, and what it makes up for."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amcsearch.core.errors import BadInputError
from amcsearch.graph import HeldBatches
from amcsearch.graph.removal import remove
from amcsearch.graph.slices import Kept, Trace
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.layer_inputs import gather_inputs
from amcsearch.recovery import sequential
from amcsearch.recovery.batch_norm import recalibrate_batch_norm
from amcsearch.recovery.refit import Reconstruction
from amcsearch.recovery.sequential import SequentialReconstruction
from amcsearch.training.models.inverted_residual import mobilenetv2
from amcsearch.training.models.residual import resnet20
from amcsearch.training.models.transformer import language_model, vit


class Deep(nn.Module):
    """Three convolutions, one of two conv groups, two with batch norms, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.c, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))
        return self.head(F.relu(self.c(x)).mean((2, 3)))


def deep() -> tuple[Deep, Tensor, Trace]:
    torch.manual_seed(0)
    model = Deep().double().eval()
    x = torch.randn(9, 2, 6, 6, dtype=torch.float64)
    recalibrate_batch_norm(model, HeldBatches.of(x, None, 9))
    return model, x, trace(model, x[:1])


def halves(found: Trace, seed: int = 0) -> Kept:
    rng, kept = np.random.default_rng(seed), {}
    for name, units in found.units.items():
        kept[name] = np.sort(units[rng.permutation(len(units))[: max(1, len(units) // 2)]].ravel())
    return kept


def both(model: nn.Module, x: Tensor, found: Trace, kept: Kept, damping: float) -> tuple[nn.Module, nn.Module]:
    """The pruned network refitted from the dense network's inputs, and from its own."""
    inputs = gather_inputs(model, found, HeldBatches.of(x, None, 4), positions=None)
    smaller = remove(model, found, kept), remove(model, found, kept)
    Reconstruction(model, found, inputs.values(), "least_squares", damping).apply(smaller[0], kept)
    SequentialReconstruction(model, found, inputs, HeldBatches.of(x, None, 4), damping=damping, positions=None).apply(
        smaller[1], kept
    )
    return smaller


@torch.no_grad()
def test_where_nothing_has_drifted_it_is_the_fit_from_the_dense_inputs() -> None:
    model, x, found = deep()
    group = found.network.groups[0].name
    one, two = both(model, x, found, {group: halves(found)[group]}, 0.0)
    assert torch.allclose(one.b.weight, two.b.weight, atol=1e-5)  # targets are kept in single precision
    torch.testing.assert_close(one.norm_b.running_mean, two.norm_b.running_mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.norm_b.running_var, two.norm_b.running_var, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_the_last_layer_is_the_least_squares_fit_to_what_reaches_it(seed: int) -> None:
    model, x, found = deep()
    one, two = both(model, x, found, halves(found, seed), 1e-12)
    seen: dict[str, Tensor] = {}
    two.head.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    output, dense = two(x), model(x)
    rows = torch.cat([seen["x"], torch.ones(9, 1).double()], 1)
    best = rows @ torch.linalg.lstsq(rows, dense, driver="gelsd").solution
    torch.testing.assert_close(output, best, rtol=1e-4, atol=1e-4)
    assert float((output - dense).square().sum()) <= float((one(x) - dense).square().sum())


@torch.no_grad()
def test_the_dense_network_stays_as_it_is() -> None:
    model, x, found = deep()
    dense = {group.name: np.arange(group.channels) for group in found.network.groups}
    torch.testing.assert_close(both(model, x, found, dense, 0.01)[1](x), model(x))


NETWORKS = {
    "resnet": lambda: resnet20(width=4, depth=8),
    "mobilenetv2": lambda: mobilenetv2(width_multiplier=0.25),
    "vit": lambda: vit(depth=1, dim=32, mlp_width=32),
    "language_model": lambda: language_model(depth=1, dim=32, mlp_width=32, vocabulary=32),
}


@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_every_network_is_refitted_the_same_each_time(network: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    x = torch.randint(0, 32, (8, 12)) if network == "language_model" else torch.randn(8, 1, 32, 32)
    found = trace(model, x[:1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    it = SequentialReconstruction(
        model, found, gather_inputs(model, found, HeldBatches.of(x, None, 4)), HeldBatches.of(x, None, 4), positions=16
    )
    outputs = []
    for reconstruction in (it, it, pickle.loads(pickle.dumps(it))):
        smaller = remove(model, found, halves(found)).train()
        reconstruction.apply(smaller, halves(found))
        assert smaller.training
        outputs.append(smaller.eval()(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.isfinite(outputs[0]).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bad_values_are_named() -> None:
    model, x, found = deep()
    inputs = gather_inputs(model, found, HeldBatches.of(x, None, 4))
    with pytest.raises(BadInputError, match="damping = -1"):
        SequentialReconstruction(model, found, inputs, HeldBatches.of(x, None, 4), damping=-1.0)


def test_dense_outputs_are_counted_at_the_positions_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # 9 samples; of the 36 positions of b (8 channels) and c (6) 5 are drawn, the head (3) has a row a sample:
    # 9 * (5 * 8 + 5 * 6 + 3) = 657 numbers of 4 bytes; moments of b and c, gathered at all positions, have 324 rows
    model, x, found = deep()
    batches = HeldBatches.of(x, None, 4)
    inputs = gather_inputs(model, found, batches, positions=None)
    assert [layer_inputs.rows for layer_inputs in inputs.values()] == [324, 324, 9]
    monkeypatch.setattr(sequential, "MEMORY_BYTES", 2628)
    made = SequentialReconstruction(model, found, inputs, batches, positions=5)
    assert sum(targets.nbytes for targets in made._targets.values()) == 2628
    monkeypatch.setattr(sequential, "MEMORY_BYTES", 2627)
    with pytest.raises(BadInputError, match="fewer calibration samples"):
        SequentialReconstruction(model, found, inputs, batches, positions=5)
