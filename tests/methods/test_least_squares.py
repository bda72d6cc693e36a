"""Refitting rules against torch's own least squares, and against each other."""

from types import ModuleType

import pytest
import torch

from amcsearch.core.errors import BadInputError
from amcsearch.methods.least_squares import (
    REFITS,
    channel_gram,
    damped,
    output_error,
    refit_drifted,
    refit_least_squares,
    solve,
)
from amcsearch.methods.selector import refitted

SEEDS = range(20)


def some_removed(channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    removed = torch.zeros(channels, dtype=torch.bool)
    removed[torch.randperm(channels, generator=generator)[: 1 + seed % (channels - 1)]] = True
    return removed


def test_by_hand_a_copy_takes_over_the_weight_of_the_channel_that_leaves(readers: ModuleType) -> None:
    # x1 = 2 x0 always; y = 3 x0 + 5 x1 = 13 x0: with x1 gone the weight of x0 is 3 + 5 * 2.
    it = readers.reader(torch.tensor([[3.0, 5.0]]).double(), torch.tensor([[1.0, 2.0], [-3.0, -6.0]]).double())
    new = refit_least_squares(it.weight, it.inputs.gram, torch.tensor([False, True]), 1, 0.0)
    assert new.flatten().tolist() == pytest.approx([13.0, 0.0])


def test_by_hand_the_constant_takes_over_the_mean_of_what_leaves(readers: ModuleType) -> None:
    # x1 is 4 always: y = 3 x0 + 5 * 4.
    it = readers.reader(
        torch.tensor([[3.0, 5.0]]).double(), torch.tensor([[1.0, 4.0], [-1.0, 4.0]]).double(), centred=True
    )
    for refit in ("bias", "scales", "least_squares"):
        result = refitted(it.inputs, it.weight, torch.tensor([False, True]), refit)
        assert result.weight.tolist() == [[[3.0, 0.0]]]
        assert result.shift.tolist() == [20.0]
    assert refitted(it.inputs, it.weight, torch.tensor([False, True]), "none").shift.tolist() == [0.0]


@pytest.mark.parametrize("seed", SEEDS)
def test_least_squares_is_torchs_and_equals_the_form_of_the_removed_part(readers: ModuleType, seed: int) -> None:
    it, rows = readers.random_reader(seed, channels=5, width=2)
    removed = some_removed(5, seed)
    gone = removed.repeat_interleave(2)
    found = refit_least_squares(it.weight, it.inputs.gram, removed, 2, 0.0)[0]
    expected = torch.linalg.lstsq(rows[:, ~gone], rows @ it.weight[0].T).solution.T
    torch.testing.assert_close(found[:, ~gone], expected, rtol=1e-9, atol=1e-9)
    assert not found[:, gone].any()

    inverse = torch.linalg.inv(it.inputs.gram[0])
    w_r = it.weight[0][:, gone]
    change = w_r @ torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, ~gone])
    torch.testing.assert_close(found[:, ~gone], it.weight[0][:, ~gone] - change)
    error = float((w_r @ torch.linalg.inv(inverse[gone][:, gone]) @ w_r.T).trace())
    assert output_error(it.weight, found[None], it.inputs.gram) == pytest.approx(error)
    assert error == pytest.approx(float((rows @ (it.weight[0] - found).T).square().sum() / len(rows)))


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("seed", SEEDS)
def test_more_freedom_means_less_error(readers: ModuleType, seed: int, damping: float) -> None:
    it, _ = readers.random_reader(seed, channels=5, width=3)
    removed = some_removed(5, seed)
    errors = {
        name: output_error(it.weight, refit(it.weight, it.inputs.gram, removed, 3, damping), it.inputs.gram)
        for name, refit in REFITS.items()
    }
    assert errors["least_squares"] <= errors["scales"] * (1 + damping) <= errors["bias"] * (1 + 2 * damping)


@pytest.mark.parametrize("seed", SEEDS)
def test_conv_groups_are_refitted_each_by_itself_but_scaled_together(readers: ModuleType, seed: int) -> None:
    one, two = readers.random_reader(seed, width=2)[0], readers.random_reader(seed + 100, width=2)[0]
    weight, gram = torch.cat([one.weight, two.weight]), torch.cat([one.inputs.gram, two.inputs.gram])
    removed = some_removed(6, seed)
    both = refit_least_squares(weight, gram, removed, 2, 0.01)
    for i, it in enumerate((one, two)):
        torch.testing.assert_close(both[i], refit_least_squares(it.weight, it.inputs.gram, removed, 2, 0.01)[0])
    m = channel_gram(weight, gram, one.columns)
    torch.testing.assert_close(m, sum(channel_gram(it.weight, it.inputs.gram, it.columns) for it in (one, two)))
    ratio = REFITS["scales"](weight, gram, removed, 2, 0.0) / weight
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_channel_gram_is_that_of_contributions(readers: ModuleType, seed: int) -> None:
    it, rows = readers.random_reader(seed, width=2)
    each = torch.stack([rows[:, c] @ it.weight[0][:, c].T for c in it.columns])  # (U, n, O)
    torch.testing.assert_close(
        channel_gram(it.weight, it.inputs.gram, it.columns), torch.einsum("uno,vno->uv", each, each) / len(rows)
    )


def test_drifted_inputs(readers: ModuleType) -> None:
    it, rows = readers.random_reader(3)
    targets = rows @ it.weight[0].T
    drifted = rows + 0.3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram, cross = drifted.T @ drifted / len(rows), drifted.T @ targets / len(rows)
    found = refit_drifted(it.weight[0], gram, cross, 0.0)
    torch.testing.assert_close(found, torch.linalg.lstsq(drifted, targets).solution.T, rtol=1e-9, atol=1e-9)
    energy = targets.square().sum() / len(rows)
    error = (targets - drifted @ found.T).square().sum() / len(rows)
    torch.testing.assert_close(error, energy - torch.trace(cross.T @ torch.linalg.inv(gram) @ cross))
    other = it.weight[0]
    direct = (targets - drifted @ other.T).square().sum() / len(rows)
    torch.testing.assert_close(direct, energy - 2 * torch.trace(other @ cross) + torch.trace(other @ gram @ other.T))
    assert error < direct
    same = refit_drifted(it.weight[0], it.inputs.gram[0], it.inputs.gram[0] @ it.weight[0].T, 0.01)
    torch.testing.assert_close(same, it.weight[0])  # nothing drifted: damping changes nothing


def test_damping_draws_the_change_of_the_weights_to_zero(readers: ModuleType) -> None:
    it, _ = readers.random_reader(0)
    removed = some_removed(6, 2)
    plain = REFITS["none"](it.weight, it.inputs.gram, removed, 1, 0.0)
    distances = [
        float((refit_least_squares(it.weight, it.inputs.gram, removed, 1, d) - plain).norm())
        for d in (0.0, 0.1, 10, 1e9)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-6


def test_inputs_that_never_vary_are_no_obstacle_and_singular_ones_are_named(readers: ModuleType) -> None:
    it = readers.reader(torch.ones(1, 3).double(), torch.tensor([[1.0, 0.0, 2.0], [2.0, 0.0, -1.0]]).double())
    removed = torch.tensor([False, False, True])
    new = refit_least_squares(it.weight, it.inputs.gram, removed, 1, 0.0)
    assert torch.isfinite(new).all()
    assert damped(torch.zeros(1, 2, 2), 0.01).tolist() == [[[1.0, 0.0], [0.0, 1.0]]]
    with pytest.raises(BadInputError, match="raise damping above 0"):
        solve(torch.ones(1, 2, 2).double(), torch.ones(1, 2, 1).double())
    assert torch.isfinite(solve(damped(torch.ones(1, 2, 2).double(), 0.01), torch.ones(1, 2, 1).double())).all()
