"""The paired lower bound: by hand, against its definition, and its coverage; samples paired one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.evaluation.bounds import change_low, tango_low
from amcsearch.evaluation.paired import PairedEvaluator, sample_values
from amcsearch.graph import HeldBatches
from amcsearch.training import CLASS_IDS, Embedding, Task

Z = 1.6448536269514722  # of 95 %


def test_without_any_change_n_samples_show_no_less_than_z_squared() -> None:
    assert tango_low(0, 0, 384, 0.95) == pytest.approx(-(Z**2) / (384 + Z**2))
    assert tango_low(0, 0, 100_000, 0.95) > -0.0001


def test_many_changes_come_to_the_normal_bound() -> None:
    """l = 600, w = 400 of 10,000: -0.02 - z·sqrt(0.1 - 0.0004)/100, to a hundredth of the width."""
    expected = -0.02 - Z * math.sqrt(0.1 - 0.02**2) / 100
    assert tango_low(400, 600, 10_000, 0.95) == pytest.approx(expected, abs=1e-4)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(40, 500))
def test_the_bound_lies_below_the_estimate_and_falls_with_losses(won: int, lost: int, samples: int) -> None:
    low = tango_low(won, lost, samples, 0.95)
    assert -1.0 < low < (won - lost) / samples
    assert tango_low(won, lost + 1, samples, 0.95) < low
    assert tango_low(won, lost, samples, 0.99) < low


@pytest.mark.parametrize("won", [0.0, 0.01])
def test_it_misses_as_rarely_as_it_says(won: float) -> None:
    """The exact chance, over all outcomes of 60 samples, that the bound lies above the true difference of -5 points.

    A score interval keeps its level on average, not for every n: a percentage point above it is allowed for.
    """
    n, lost, missed = 60, won + 0.05, 0.0
    for losses in range(n + 1):
        for wins in range(n + 1 - losses if won else 1):
            same = n - losses - wins
            chance = math.comb(n, losses) * math.comb(n - losses, wins) * lost**losses * (1 - lost - won) ** same
            chance *= won**wins
            if chance > 1e-9 and tango_low(wins, losses, n, 0.95) > -0.05:
                missed += chance
    assert 0.0 < missed < 0.06


def test_sequences_are_resampled_whole() -> None:
    differences = np.tile([0.5, -0.25, 0.0, -0.25], 25)
    low = change_low(differences, 0.95)
    assert low == pytest.approx(-Z * differences.std() / 10, abs=0.01)
    assert change_low(differences, 0.95) == low
    assert change_low(np.array([1.0, 0.0, -1.0, 0.0]), 0.95) == tango_low(1, 1, 4, 0.95)


def values(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, batch_size: int, task: Task = CLASS_IDS
) -> list[float]:
    found = sample_values(model, HeldBatches.of(inputs, targets, batch_size), task)
    assert found is not None
    return found.tolist()


class Given(nn.Module):
    """Logits that are the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_accuracy_of_each_sample() -> None:
    logits = torch.eye(3)[[0, 1, 2, 0]]
    assert values(Given(), logits, torch.tensor([0, 2, 2, 0]), 3) == [1.0, 0.0, 1.0, 1.0]
    sequences = logits.reshape(2, 2, 3)
    targets = torch.tensor([[0, 2], [-100, 0]])
    assert values(Given(), sequences, targets, 1) == [0.5, 1.0]
    untold = torch.tensor([[0, 2], [-100, -100]])
    assert values(Given(), sequences, untold, 2) == [0.5]


class Pruned:
    """Stands for an evaluator: its pruned network answers the second sample otherwise."""

    task = CLASS_IDS

    def __init__(self) -> None:
        self.model = Given()
        self.search = HeldBatches.of(torch.eye(3), torch.tensor([0, 1, 0]), 2)

    def pruned(self, policy: object) -> nn.Module:
        del policy
        module = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        return module


def test_an_evaluation_is_paired_with_dense_on_its_rows() -> None:
    """Rows 0 and 1: dense has both right, the pruned network only the first."""
    paired = PairedEvaluator(Pruned(), np.array([0, 1]), 0.95)
    found = paired.evaluate(object())
    assert (paired.samples, paired.dense_metric, found.metric) == (2, 1.0, 0.5)
    assert found.change_low == tango_low(0, 1, 2, 0.95)
    assert found.change_high == -tango_low(1, 0, 2, 0.95)
    with pytest.raises(BadInputError, match="0 samples"):
        PairedEvaluator(Pruned(), np.array([], dtype=np.int64), 0.95)


def test_vectors_are_paired_by_their_cosines() -> None:
    """(3, 4) against (1, 0) has cosine 0.6, against itself 1."""
    inputs, targets = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert values(nn.Identity(), inputs, targets, 1, Embedding()) == pytest.approx([0.6, 1.0])
