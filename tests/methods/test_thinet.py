"""ThiNet's greedy choices by hand, by exhaustion, and against the form with sampled rows."""

from itertools import combinations
from types import ModuleType

import numpy as np
import pytest
import torch

from amcsearch.methods.least_squares import REFITS, output_error, refit_scales
from amcsearch.methods.selector import Problem, contributions
from amcsearch.methods.selectors.thinet import ThiNet, greedy_discard, greedy_keep


def gram_of(readers: ModuleType, seed: int, channels: int = 6) -> np.ndarray:
    return contributions((readers.random_reader(seed, channels)[0],))


def discard_error(m: np.ndarray, gone: list[int]) -> float:
    return float(m[np.ix_(gone, gone)].sum())


def scaled_error(m: np.ndarray, kept: list[int]) -> float:
    scales = np.linalg.solve(m[np.ix_(kept, kept)], m.sum(1)[kept])
    return float(m.sum() - m.sum(1)[kept] @ scales)


def test_by_hand_two_channels_that_cancel_leave_together() -> None:
    # Contributions a = (1, 0), b = (-0.9, 0), c = (0, 0.95): b alone is the smallest, then the pair ab costs only 0.01.
    x = np.array([[1.0, 0.0], [-0.9, 0.0], [0.0, 0.95]])
    assert greedy_discard(x @ x.T).tolist() == [2, 0, 1]


def test_by_hand_the_kept_set_grows_by_what_the_residual_lacks() -> None:
    # y = a + b + c = (3, 2.5) with a = (2, 0), b = (1, 1), c = (0, 1.5): along b lies more of y than along a or c.
    x = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 1.5]])
    assert greedy_keep(x @ x.T).tolist()[0] == 1  # (3 + 2.5)^2 / 2 = 15.1 > 9 > 6.25
    assert greedy_keep(np.diag([4.0, 0.0, 9.0, 1.0])).tolist() == [2, 0, 3, 1]  # orthogonal: by energy; nothing last


@pytest.mark.parametrize("seed", range(30))
def test_the_first_discarded_channel_is_the_smallest_alone(readers: ModuleType, seed: int) -> None:
    m = gram_of(readers, seed)
    assert greedy_discard(m)[-1] == np.argmin(m.diagonal())


@pytest.mark.parametrize("seed", range(60))
def test_greedy_is_no_worse_than_the_mean_subset_and_near_the_best(readers: ModuleType, seed: int) -> None:
    m = gram_of(readers, seed, 7)
    order = greedy_discard(m)
    for n_gone in (2, 3, 5):
        every = [discard_error(m, list(gone)) for gone in combinations(range(7), n_gone)]
        found = discard_error(m, order[7 - n_gone :].tolist())
        assert min(every) - 1e-12 <= found <= np.mean(every)
    best = [scaled_error(m, list(kept)) for kept in combinations(range(7), 3)]
    assert min(best) - 1e-12 <= scaled_error(m, greedy_keep(m)[:3].tolist()) <= np.mean(best)


def test_greedy_is_mostly_close_to_the_best_subset(readers: ModuleType) -> None:
    ratios = []
    for seed in range(100):
        m = gram_of(readers, seed, 7)
        best = min(discard_error(m, list(gone)) for gone in combinations(range(7), 3))
        ratios.append(discard_error(m, greedy_discard(m)[4:].tolist()) / best)
    assert np.median(ratios) <= 1.1
    assert np.quantile(ratios, 0.9) <= 2.0


@pytest.mark.parametrize("seed", range(20))
def test_scaling_lowers_the_error_and_least_squares_lowers_it_further(readers: ModuleType, seed: int) -> None:
    it, _ = readers.random_reader(seed)
    order = ThiNet().orders(Problem({"g": (it,)}, None))["g"]
    for n_keep in range(1, 6):
        removed = torch.ones(6, dtype=torch.bool)
        removed[order[:n_keep]] = False
        error = {
            name: output_error(it.weight, refit(it.weight, it.inputs.gram, removed, 1, 0.0), it.inputs.gram)
            for name, refit in REFITS.items()
        }
        assert error["least_squares"] <= error["scales"] * (1 + 1e-9) <= error["none"] * (1 + 2e-9)
        m = contributions((it,)) * it.energy
        assert error["none"] == pytest.approx(discard_error(m, order[n_keep:].tolist()))
        assert error["scales"] == pytest.approx(scaled_error(m, order[:n_keep].tolist()))


@pytest.mark.parametrize("grow", ["discard", "keep"])
def test_the_gram_form_equals_the_form_with_all_sampled_rows(readers: ModuleType, grow: str) -> None:
    it, rows = readers.random_reader(5, channels=5, width=2)
    each = np.stack([(rows[:, c] @ it.weight[0][:, c].T).numpy().ravel() for c in it.columns])  # (U, entries)
    chosen: list[int] = []
    for _ in range(5):
        left = [j for j in range(5) if j not in chosen]
        if grow == "discard":
            chosen.append(min(left, key=lambda j: np.square(each[[*chosen, j]].sum(0)).sum()))
        else:
            y = each.sum(0)
            fit = np.linalg.lstsq(each[chosen].T, y, rcond=None)[0] @ each[chosen] if chosen else 0.0
            chosen.append(max(left, key=lambda j: (each[j] @ (y - fit)) ** 2 / (each[j] @ each[j])))
    expected = chosen[::-1] if grow == "discard" else chosen
    assert ThiNet(grow).orders(Problem({"g": (it,)}, None))["g"].tolist() == expected

    kept = sorted(chosen[:2])
    removed = torch.ones(5, dtype=torch.bool)
    removed[kept] = False
    scales = np.linalg.lstsq(each[kept].T, each.sum(0), rcond=None)[0]
    found = refit_scales(it.weight, it.inputs.gram, removed, 2, 0.0) / it.weight
    np.testing.assert_allclose(found[0, 0, ::2].numpy()[kept], scales, rtol=1e-8)


def test_readers_of_a_stream_count_by_their_share_of_their_own_output(readers: ModuleType) -> None:
    x = torch.eye(2).double()  # orthogonal inputs: M is the diagonal of squared column norms
    strong = readers.reader(torch.tensor([[30.0, 40.0]]).double(), x)  # shares 0.36, 0.64
    weak = readers.reader(torch.tensor([[0.3, 0.1]]).double(), x)  # shares 0.9, 0.1
    np.testing.assert_allclose(contributions((strong, weak)), np.diag([1.26, 0.74]))
    assert ThiNet().orders(Problem({"g": (strong, weak)}, None))["g"].tolist() == [0, 1]
    assert ThiNet().orders(Problem({"g": (strong,)}, None))["g"].tolist() == [1, 0]
