"""The LASSO over channels: by hand, by its optimality conditions, and against scikit-learn."""

from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as SklearnLasso

from amcsearch.core import BadInputError
from amcsearch.methods.least_squares import REFITS, output_error
from amcsearch.methods.selector import Problem, contributions
from amcsearch.methods.selectors.lasso import Lasso, lasso, lasso_order, lasso_path


def gram_of(readers: ModuleType, seed: int) -> np.ndarray:
    return contributions((readers.random_reader(seed, channels=8)[0],))


def test_by_hand_orthogonal_channels_are_shrunk_each_by_itself() -> None:
    np.testing.assert_allclose(lasso(np.diag([4.0, 1.0, 0.5]), 1.0), [0.75, 0.0, 0.0])
    np.testing.assert_allclose(lasso(np.diag([4.0, 1.0, 0.0]), 0.1), [0.975, 0.9, 0.0])
    assert lasso_order(np.diag([1.0, 0.5, 4.0, 0.0])).tolist() == [2, 0, 1, 3]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.5, 0.05, 0.005])
def test_optimality_conditions(readers: ModuleType, seed: int, share: float) -> None:
    m = gram_of(readers, seed)
    strength = share * np.abs(m.sum(1)).max()
    found = lasso(m, strength)
    gradient = m.sum(1) - m @ found
    on = found != 0
    slack = 1e-6 * strength
    assert (np.abs(gradient[~on]) <= strength + slack).all()
    np.testing.assert_allclose(gradient[on], strength * np.sign(found[on]), atol=slack)


@pytest.mark.parametrize("seed", range(10))
def test_the_ends_of_the_path(readers: ModuleType, seed: int) -> None:
    m = gram_of(readers, seed)
    largest = np.abs(m.sum(1)).max()
    assert not lasso(m, largest * (1 + 1e-9)).any()
    assert lasso(m, largest * (1 - 1e-6)).any()
    np.testing.assert_allclose(lasso(m, 1e-9 * largest, tolerance=1e-14), 1.0, atol=1e-3)


def test_the_number_kept_hardly_ever_falls_along_the_path(readers: ModuleType) -> None:
    steps = falls = 0
    for seed in range(40):
        counts = [np.count_nonzero(b) for _, b in lasso_path(gram_of(readers, seed))]
        steps += len(counts) - 1
        falls += sum(after < before for before, after in pairwise(counts))
    assert falls <= 0.02 * steps


def test_the_order_is_the_support_at_almost_every_lambda(readers: ModuleType) -> None:
    same = every = 0
    for seed in range(40):
        m = gram_of(readers, seed)
        order = lasso_order(m)
        for _, coefficients in lasso_path(m):
            support = set(np.flatnonzero(coefficients).tolist())
            same += set(order[: len(support)].tolist()) == support
            every += 1
    assert same >= 0.9 * every


@pytest.mark.parametrize("seed", range(10))
def test_coordinate_descent_on_the_gram_matrix_is_scikit_learns(readers: ModuleType, seed: int) -> None:
    it, rows = readers.random_reader(seed, channels=8)
    each = torch.stack([rows[:, c] @ it.weight[0][:, c].T for c in it.columns]).flatten(1).T.numpy()  # (entries, U)
    m = each.T @ each / len(each)  # scikit-learn's 1 / (2 n) over entries
    strength = 0.1 * np.abs(m.sum(1)).max()
    theirs = SklearnLasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(each, each.sum(1)).coef_
    np.testing.assert_allclose(lasso(m, strength, tolerance=1e-12), theirs, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_afterwards_is_no_worse_than_the_shrunk_coefficients(readers: ModuleType, seed: int) -> None:
    it, _ = readers.random_reader(seed, channels=8)
    m = contributions((it,))
    for strength, coefficients in lasso_path(m)[5::8]:
        removed = torch.from_numpy(coefficients == 0)
        step1 = float((1 - coefficients) @ m @ (1 - coefficients)) * it.energy
        new = REFITS[Lasso().refit](it.weight, it.inputs.gram, removed, 1, 0.0)
        assert output_error(it.weight, new, it.inputs.gram) <= step1 * (1 + 1e-9), strength


def test_a_starting_point_changes_nothing(readers: ModuleType) -> None:
    m = gram_of(readers, 0)
    strength = 0.05 * np.abs(m.sum(1)).max()
    np.testing.assert_allclose(lasso(m, strength, np.full(8, 3.0)), lasso(m, strength), atol=1e-6)


def test_orders_and_bad_parameters(readers: ModuleType) -> None:
    order = Lasso().orders(Problem({"g": (readers.random_reader(0)[0],)}, None))["g"]
    assert sorted(order.tolist()) == list(range(6))
    with pytest.raises(BadInputError, match="points = 1"):
        Lasso(points=1)
