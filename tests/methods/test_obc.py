"""The trace of removals: exact errors and weights of every kept count from one pass."""

from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch

from amcsearch.core.errors import BadInputError
from amcsearch.methods.least_squares import damped, output_error, refit_least_squares
from amcsearch.methods.selector import Problem, select
from amcsearch.methods.selectors import obc
from amcsearch.methods.selectors.amc import Amc
from amcsearch.methods.selectors.obc import Obc, trace_removals


def test_by_hand_on_orthogonal_inputs_the_smallest_contribution_leaves_and_nothing_is_refitted(
    readers: ModuleType,
) -> None:
    rows = torch.diag(torch.tensor([2.0, 1.0, 3.0])).double()  # G = diag(4, 1, 9) / 3
    it = readers.reader(torch.tensor([[1.0, 3.0, 0.5]]).double(), rows)  # energies 4, 9, 2.25, each / 3
    steps = [(s.unit, s.errors[0], s.weights[0].flatten().tolist()) for s in trace_removals([it], 0.0)]
    expected = [
        (2, 2.25 / 3, [1.0, 3.0, 0.0]),
        (0, 6.25 / 3, [0.0, 3.0, 0.0]),
        (1, 15.25 / 3, [0.0, 0.0, 0.0]),
    ]
    for (unit, error, weights), (e_unit, e_error, e_weights) in zip(steps, expected, strict=True):
        assert unit == e_unit
        assert error == pytest.approx(e_error)
        assert weights == pytest.approx(e_weights)


def test_by_hand_errors_of_every_count_are_shares_summed_over_the_readers(readers: ModuleType) -> None:
    x = torch.eye(2).double()
    one = readers.reader(torch.tensor([[1.0, 3.0]]).double(), x)  # of its energy, 10: 0.1 and 0.9
    two = readers.reader(torch.tensor([[1.0, 1.0]]).double(), x)  # 0.5 and 0.5
    problem = Problem({"a": (one,), "b": (one, two)}, None)
    orders, errors = Obc(0.0).orders_and_errors(problem)
    assert errors["a"].tolist() == pytest.approx([1.0, 0.1, 0.0])
    assert errors["b"].tolist() == pytest.approx([2.0, 0.6, 0.0])
    assert {group: order.tolist() for group, order in orders.items()} == {"a": [1, 0], "b": [1, 0]}
    assert {group: order.tolist() for group, order in Obc(0.0).orders(problem).items()} == {"a": [1, 0], "b": [1, 0]}


def test_the_errors_of_a_selector_that_breaks_its_promise_are_refused(readers: ModuleType) -> None:
    it = readers.reader(torch.tensor([[1.0, 3.0]]).double(), torch.eye(2).double())

    class Rising(Obc):
        def orders_and_errors(self, problem: Problem):
            orders, errors = super().orders_and_errors(problem)
            return orders, {group: e[::-1].copy() for group, e in errors.items()}

    with pytest.raises(ValueError, match="Rising gives no falling errors for every count of group 'g'"):
        select(Problem({"g": (it,)}, None), Rising())


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(15))
def test_scores_add_up_to_the_exact_error_of_the_exact_refit(
    readers: ModuleType, seed: int, width: int, damping: float
) -> None:
    it, _ = readers.random_reader(seed, width=width)
    matrix = damped(it.inputs.gram, damping)
    removed = torch.zeros(6, dtype=torch.bool)
    for step in trace_removals([it], damping):
        removed[step.unit] = True
        if removed.all():
            assert step.errors[0] == pytest.approx(output_error(it.weight, torch.zeros_like(it.weight), matrix))
            assert not step.weights[0].any()
        else:
            exact = refit_least_squares(it.weight, it.inputs.gram, removed, width, damping)
            torch.testing.assert_close(step.weights[0], exact, rtol=1e-7, atol=1e-9)
            assert step.errors[0] == pytest.approx(output_error(it.weight, exact, matrix), rel=1e-7)


@pytest.mark.parametrize("seed", range(15))
def test_each_step_removes_what_costs_least_and_errors_only_grow(readers: ModuleType, seed: int) -> None:
    it, _ = readers.random_reader(seed, width=2)
    removed, errors = torch.zeros(6, dtype=torch.bool), []
    for step in trace_removals([it], 0.0):
        errors.append(step.errors[0])
        if len(errors) < 6:
            every = []
            for unit in torch.nonzero(~removed)[:, 0].tolist():
                more = removed.clone()
                more[unit] = True
                new = refit_least_squares(it.weight, it.inputs.gram, more, 2, 0.0)
                every.append(output_error(it.weight, new, it.inputs.gram))
            assert step.errors[0] == pytest.approx(min(every))
        removed[step.unit] = True
    assert all(a <= b for a, b in pairwise(errors))


@pytest.mark.parametrize("fold", [1, 2, 5, 32])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_taking_updates_into_the_inverse_changes_no_order_error_or_weight(
    readers: ModuleType, monkeypatch: pytest.MonkeyPatch, seed: int, width: int, fold: int
) -> None:
    """Two readers, the second with columns of no unit; ``fold`` below the columns drops some in the middle."""
    first = readers.random_reader(seed, channels=8, width=width)[0]
    wide = readers.random_reader(seed + 50, channels=10, width=width, outputs=3)[0]
    second = replace(wide, columns=wide.columns[1:9])
    taps = torch.arange(10 * width).reshape(10, width)
    monkeypatch.setattr(obc, "FOLD", fold)
    removed = [torch.zeros(8, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)]
    for count, step in enumerate(trace_removals([first, second]), 1):
        removed[0][step.unit] = removed[1][1 + step.unit] = True
        for it, gone, error, weight in zip((first, second), removed, step.errors, step.weights, strict=True):
            exact = torch.zeros_like(it.weight)
            if not gone.all():
                exact = refit_least_squares(it.weight, it.inputs.gram, gone, width, 0.01)
            torch.testing.assert_close(weight, exact, rtol=1e-7, atol=1e-9)
            assert not weight[:, :, taps[: len(gone)][gone].flatten()].any()
            assert error == pytest.approx(output_error(it.weight, exact, damped(it.inputs.gram, 0.01)), rel=1e-7)
        assert int(removed[0].sum()) == count
    assert count == 8


@pytest.mark.parametrize("seed", range(10))
def test_several_readers_and_conv_groups_are_traced_together(readers: ModuleType, seed: int) -> None:
    one, two = readers.random_reader(seed)[0], readers.random_reader(seed + 50, outputs=3)[0]
    removed = torch.zeros(6, dtype=torch.bool)
    for step in list(trace_removals([one, two]))[:1]:
        removed[step.unit] = True
        for it, error, weight in zip((one, two), step.errors, step.weights, strict=True):
            assert error > 0
            assert not weight[:, :, step.unit].any()
            assert weight.shape == it.weight.shape
    singles = [
        [s.errors[0] / it.energy for s in trace_removals([it])][-1] for it in (one, two)
    ]  # dropping everything is 1, and a little for damping
    assert singles == pytest.approx([1.0, 1.0], rel=0.05)


def test_at_every_count_its_error_is_near_or_below_that_of_large_norms(readers: ModuleType) -> None:
    better, total = 0, 0
    for seed in range(30):
        it, _ = readers.random_reader(seed, channels=8)
        problem = Problem({"g": (it,)}, None)
        orders = [selector.orders(problem)["g"] for selector in (Obc(0.0), Amc())]
        for n_keep in range(1, 8):
            errors = []
            for order in orders:
                removed = torch.ones(8, dtype=torch.bool)
                removed[order[:n_keep]] = False
                new = refit_least_squares(it.weight, it.inputs.gram, removed, 1, 0.0)
                errors.append(output_error(it.weight, new, it.inputs.gram))
            better += errors[0] <= errors[1] * (1 + 1e-9)
            total += 1
    assert better >= 0.9 * total


def test_the_norms_of_several_readers_are_shares(readers: ModuleType) -> None:
    x = torch.eye(3).double()
    strong = readers.reader(torch.tensor([[50.0, -30.0, 20.0]]).double(), x)
    weak = readers.reader(torch.tensor([[0.1, -0.8, 0.1], [0.1, 0.8, 0.1]]).double(), x)
    assert Amc().orders(Problem({"g": (strong,)}, None))["g"].tolist() == [0, 1, 2]
    both = Amc().orders(Problem({"g": (strong, weak)}, None))["g"]
    np.testing.assert_array_equal(both, [1, 0, 2])  # 0.3 + 0.8, 0.5 + 0.1, 0.2 + 0.1


def test_a_channel_that_never_varies_leaves_first_however_large_its_weight(readers: ModuleType) -> None:
    rows = torch.tensor([[0.01, 5.0, 0.02], [-0.01, 5.0, 0.01], [0.0, 5.0, -0.03]]).double()
    it = readers.reader(torch.tensor([[1.0, 3.0, 2.0]]).double(), rows, centred=True)
    orders, errors = Obc().orders_and_errors(Problem({"g": (it,)}, None))
    assert orders["g"][-1] == 1
    assert errors["g"][2] == pytest.approx(0.01 * float(it.inputs.gram[0].diagonal().mean()) * 9.0 / it.energy)


def test_bad_damping_is_named() -> None:
    with pytest.raises(BadInputError, match=r"damping = -0\.1"):
        Obc(-0.1)


def test_the_largest_group_has_most_units_times_entries_of_its_gram_matrices(readers: ModuleType) -> None:
    narrow, wide = (readers.random_reader(0, channels)[0] for channels in (4, 6))
    problem = Problem({"a": (narrow, narrow, narrow), "b": (wide,)}, None)  # 4 * 3 * 16 = 192 and 6 * 36 = 216
    largest, share = problem.largest()
    assert list(largest.readers) == ["b"]
    assert share == 216 / 408
