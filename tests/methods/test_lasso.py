"""The LASSO over channels: by hand, by its optimality conditions, and against scikit-learn."""

from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as SklearnLasso

from amcsearch.methods.least_squares import REFITS, output_error
from amcsearch.methods.selector import Problem, contributions
from amcsearch.methods.selectors.lasso import Lasso, lasso_order, lasso_path


def gram_of(readers: ModuleType, seed: int, channels: int = 8) -> np.ndarray:
    return contributions((readers.random_reader(seed, channels)[0],))


def at(path: list[tuple[float, np.ndarray]], strength: float) -> np.ndarray:
    """Coefficients at one lambda: linear between changes of the support."""
    strengths = np.array([s for s, _ in path])[::-1]
    return np.array([np.interp(strength, strengths, b[::-1]) for b in np.stack([b for _, b in path]).T])


def test_by_hand_orthogonal_channels_are_shrunk_each_by_itself() -> None:
    path = lasso_path(np.diag([4.0, 1.0, 0.5]))
    assert [s for s, _ in path[:3]] == pytest.approx([4.0, 1.0, 0.5])
    np.testing.assert_allclose(at(path, 1.0), [0.75, 0.0, 0.0], atol=1e-8)
    np.testing.assert_allclose(at(path, 0.5), [0.875, 0.5, 0.0], atol=1e-8)
    assert lasso_order(np.diag([1.0, 0.5, 4.0, 0.0])).tolist() == [2, 0, 1, 3]


def test_by_hand_of_two_that_cancel_the_larger_enters_alone() -> None:
    # Contributions 2 and -1: M1 = (2, -1), y = 1 = 0.5 * 2. The second is a copy of the first and never needed.
    path = lasso_path(np.array([[4.0, -2.0], [-2.0, 1.0]]))
    np.testing.assert_allclose(at(path, 1.0), [0.25, 0.0], atol=1e-6)
    assert lasso_order(np.array([[4.0, -2.0], [-2.0, 1.0]])).tolist() == [0, 1]


def test_nothing_to_choose_from() -> None:
    assert lasso_order(np.zeros((3, 3))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_optimality_conditions_all_along_the_path(readers: ModuleType, seed: int) -> None:
    m = gram_of(readers, seed)
    path = lasso_path(m)
    assert len(path) > 8
    for (high, _), (low, _) in pairwise(path):
        for strength in (low, 0.5 * (low + high)):
            found = at(path, strength)
            gradient = m.sum(1) - m @ found
            on = np.abs(found) > 1e-9
            slack = 1e-6 * path[0][0]
            assert (np.abs(gradient) <= strength + slack).all()
            np.testing.assert_allclose(gradient[on], strength * np.sign(found[on]), atol=slack)


@pytest.mark.parametrize("seed", range(10))
def test_the_ends_of_the_path(readers: ModuleType, seed: int) -> None:
    m = gram_of(readers, seed)
    path = lasso_path(m)
    assert path[0][0] == pytest.approx(np.abs(m.sum(1)).max())
    assert not path[0][1].any()
    assert path[1][1].any()
    np.testing.assert_allclose(path[-1][1], 1.0, atol=1e-3)


def test_the_number_kept_hardly_ever_falls_along_the_path(readers: ModuleType) -> None:
    steps = falls = 0
    for seed in range(40):
        counts = [np.count_nonzero(b) for _, b in lasso_path(gram_of(readers, seed))]
        steps += len(counts) - 1
        falls += sum(after < before for before, after in pairwise(counts))
    assert falls <= 0.02 * steps


def test_the_order_is_the_support_nearly_everywhere(readers: ModuleType) -> None:
    same = every = 0
    for seed in range(40):
        m = gram_of(readers, seed)
        order = lasso_order(m)
        for _, coefficients in lasso_path(m):
            support = set(np.flatnonzero(coefficients).tolist())
            same += set(order[: len(support)].tolist()) == support
            every += 1
    assert same >= 0.95 * every


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_the_path_on_the_gram_matrix_is_scikit_learns(readers: ModuleType, seed: int, share: float) -> None:
    it, rows = readers.random_reader(seed, channels=8)
    each = torch.stack([rows[:, c] @ it.weight[0][:, c].T for c in it.columns]).flatten(1).T.numpy()  # (entries, U)
    m = each.T @ each / len(each)  # scikit-learn's 1 / (2 n) over entries
    strength = share * np.abs(m.sum(1)).max()
    theirs = SklearnLasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(each, each.sum(1)).coef_
    np.testing.assert_allclose(at(lasso_path(m), strength), theirs, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_afterwards_is_no_worse_than_the_shrunk_coefficients(readers: ModuleType, seed: int) -> None:
    it, _ = readers.random_reader(seed, channels=8)
    m = contributions((it,))
    for _, coefficients in lasso_path(m)[1:-1]:
        removed = torch.from_numpy(coefficients == 0)
        step1 = float((1 - coefficients) @ m @ (1 - coefficients)) * it.energy
        new = REFITS[Lasso().refit](it.weight, it.inputs.gram, removed, 1, 0.0)
        assert output_error(it.weight, new, it.inputs.gram) <= step1 * (1 + 1e-9)


def test_more_channels_than_rows_still_have_an_order(readers: ModuleType) -> None:
    it, _ = readers.random_reader(0, channels=40, outputs=2, n=9)
    order = Lasso().orders(Problem({"g": (it,)}, None))["g"]
    assert sorted(order.tolist()) == list(range(40))
