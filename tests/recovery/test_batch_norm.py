"""Recalibration of batch norms: by hand, then METHODS' promises."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PolicySpace
from amcsearch.graph import HeldBatches
from amcsearch.graph.removal import remove
from amcsearch.graph.tracing.trace import trace
from amcsearch.methods.criteria import CRITERIA
from amcsearch.methods.ranking import keep, rank_units
from amcsearch.recovery.batch_norm import recalibrate_batch_norm
from amcsearch.training.loop import CLASS_IDS, evaluate


def test_statistics_are_the_sample_weighted_mean_over_batches_by_hand() -> None:
    norm = nn.BatchNorm1d(1, momentum=0.3)
    norm.running_mean.fill_(99.0)  # type: ignore[union-attr]
    recalibrate_batch_norm(norm, HeldBatches.of(torch.tensor([[0.0], [2.0], [1.0], [5.0], [9.0]]), None, 3))
    # batches (0, 2, 1) and (5, 9): means 1 and 7, unbiased variances 1 and 8
    assert norm.running_mean.item() == pytest.approx((3 * 1 + 2 * 7) / 5)  # type: ignore[union-attr]
    assert norm.running_var.item() == pytest.approx((3 * 1 + 2 * 8) / 5)  # type: ignore[union-attr]


def test_a_last_batch_of_one_value_of_each_channel_is_left_out() -> None:
    norm = nn.BatchNorm1d(1)
    recalibrate_batch_norm(norm, HeldBatches.of(torch.tensor([[0.0], [2.0], [4.0], [8.0], [99.0]]), None, 2))
    # batches (0, 2), (4, 8) and (99): means 1 and 6, unbiased variances 2 and 8
    assert norm.running_mean.item() == pytest.approx(3.5)  # type: ignore[union-attr]
    assert norm.running_var.item() == pytest.approx(5.0)  # type: ignore[union-attr]


def test_a_single_sample_of_a_map_counts() -> None:
    x = torch.randn(5, 3, 4, 4)
    norm = nn.BatchNorm2d(3)
    recalibrate_batch_norm(norm, HeldBatches.of(x, None, 4))
    expected = (4 * x[:4].mean((0, 2, 3)) + x[4].mean((1, 2))) / 5
    torch.testing.assert_close(norm.running_mean, expected)


def test_single_samples_alone_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.2)).eval()
    with pytest.raises(BadInputError, match=r"batch norm 1 reads one value .* evaluation.batch_size .* 2 samples"):
        recalibrate_batch_norm(model, HeldBatches.of(torch.randn(3, 3), None, 1))
    assert not any(m.training for m in model.modules())
    assert not model[1]._forward_pre_hooks


def test_equal_batches_give_what_torch_calls_cumulative_average() -> None:
    x = torch.randn(12, 3, 4, 4)
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None)
    recalibrate_batch_norm(ours, HeldBatches.of(x, None, 4))
    for batch in x.split(4):
        theirs(batch)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


class Watched(nn.Dropout):
    """A dropout that remembers in which mode it ran."""

    ran_in_training = False

    def forward(self, x: Tensor) -> Tensor:
        self.ran_in_training |= self.training
        return super().forward(x)


def test_only_batch_norms_train_and_modes_and_momenta_come_back() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), Watched(0.9), nn.BatchNorm1d(4, momentum=0.2)
    )
    model.train()
    model[1].eval()
    weights = [p.clone() for p in model.parameters()]
    recalibrate_batch_norm(model, HeldBatches.of(torch.randn(10, 3), None, 4))
    assert not model[2].ran_in_training
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert (model[1].momentum, model[3].momentum) == (None, 0.2)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_the_state_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.2)).eval()
    with pytest.raises((RuntimeError, ValueError)):
        recalibrate_batch_norm(model, HeldBatches.of(torch.randn(4, 5), None, 2))
    assert not any(m.training for m in model.modules())
    assert model[0].momentum == 0.2


@pytest.mark.parametrize("norm", [nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False)])
def test_without_running_statistics_nothing_runs(norm: nn.Module) -> None:
    norm.forward = None  # type: ignore[assignment]
    recalibrate_batch_norm(norm, HeldBatches.of(torch.randn(4, 3), None, 2))


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network fitted to stripes of three directions, on noisy pictures."""
    torch.manual_seed(0)
    y = torch.arange(240) % 3
    row, column = torch.arange(8.0)[:, None].expand(8, 8), torch.arange(8.0).expand(8, 8)
    stripes = torch.stack([torch.sin(row), torch.sin(column), torch.sin(row + column)])
    x = (stripes[y] + 0.7 * torch.randn(240, 8, 8)).unsqueeze(1)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for epoch in range(6):
        for rows in torch.randperm(240, generator=torch.Generator().manual_seed(epoch)).split(40):
            optimizer.zero_grad()
            CLASS_IDS(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval(), x, y


def test_an_unpruned_network_keeps_its_statistics_within_sampling_error() -> None:
    model, x, _ = trained()
    recalibrate_batch_norm(model, HeldBatches.of(x, None, 120))
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    order = torch.randperm(240, generator=torch.Generator().manual_seed(5))
    recalibrate_batch_norm(model, HeldBatches.of(x[order], None, 120))
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            scale = before[name.replace("mean", "var")].sqrt()
            assert ((value - before[name]).abs() / scale).max() < 0.05
        elif name.endswith("running_var"):
            assert (value / before[name] - 1).abs().max() < 0.1


def test_recalibration_lowers_the_loss_of_nine_random_policies_in_ten() -> None:
    model, x, y = trained()
    found = trace(model, x[:1])
    ranking = rank_units(model, found, CRITERIA["magnitude"](), HeldBatches.of(x, y, 60), CLASS_IDS)
    space = PolicySpace.on_grid(found.network.groups, max_pruning_ratio=0.8)
    rng = np.random.default_rng(0)
    better = 0
    for _ in range(40):
        counts = np.array([rng.choice(choices[:-1]) for choices in space.choices])
        small = remove(model, found, keep(found, ranking, found.network.policy(counts))).eval()
        before, _ = evaluate(small, HeldBatches.of(x, y, 120))
        recalibrate_batch_norm(small, HeldBatches.of(x, None, 120))
        after, _ = evaluate(small, HeldBatches.of(x, y, 120))
        better += after <= before
    assert better >= 36
