"""Dynamic programming over factors against brute force, by hand and on random graphs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.errors import InfeasibleBudgetError
from amcsearch.search.exact import min_sum
from amcsearch.search.exact.elimination import elimination_steps, largest_table, work
from amcsearch.search.exact.factors import Factor
from amcsearch.search.exact.min_sum import BudgetedSum

SHAPES = {
    "alone": [(0,), (1,), (2,), (3,)],
    "chain": [(0,), (0, 1), (1, 2), (2, 3), (3,)],
    "residual": [(0,), (0, 1), (1, 0), (0, 2), (2, 0), (0, 3), (3,)],  # one stage, a width inside each block
    "stages": [(0,), (0, 1), (1, 2), (0, 2), (2, 3), (3, 2)],  # a block that widens, with its shortcut
    "ring": [(0, 1), (1, 2), (2, 3), (3, 0)],
    "concatenation": [(0, 1, 2), (2, 3)],
    "apart": [(0, 1), (2,), ()],
}


def factors(shape, sizes, rng, unit=1):
    """Random whole costs up to 9 units; not monotone: latency is a staircase."""
    return [
        Factor(scope, {"t": rng.integers(0, 10, [sizes[g] for g in scope]).astype(float) * unit})
        for scope in SHAPES[shape]
    ]


def total(terms, choice, name="t"):
    return sum(float(f.costs[name][tuple(choice[g] for g in f.scope)]) for f in terms)


def brute_force(sizes, terms, errors, limit):
    """The least error within the limit; inf where nothing fits."""
    return min(
        (
            sum(e[i] for e, i in zip(errors, choice, strict=True))
            for choice in itertools.product(*map(range, sizes))
            if total(terms, choice) <= limit
        ),
        default=np.inf,
    )


def in_units(sizes, terms, limit):
    """The problem with buckets of one unit of cost: whole costs lose nothing to rounding."""
    base = BudgetedSum(sizes, terms, "t", limit, 1).base
    return BudgetedSum(sizes, terms, "t", limit, max(1, round(limit - base)))


def error_of(errors, choice):
    return sum(e[i] for e, i in zip(errors, choice, strict=True))


problems = st.tuples(
    st.sampled_from(list(SHAPES)), st.lists(st.integers(1, 3), min_size=4, max_size=4), st.integers(0, 2**32 - 1)
)


def drawn(problem, unit=1):
    """Sizes, terms and errors of a problem."""
    shape, sizes, seed = problem
    rng = np.random.default_rng(seed)
    return sizes, factors(shape, sizes, rng, unit), [rng.random(n) for n in sizes]


@settings(max_examples=150, deadline=None)
@given(problems, st.integers(1, 50))
def test_equals_brute_force_where_buckets_lose_nothing(problem, limit):
    sizes, terms, errors = drawn(problem)
    solution = in_units(sizes, terms, limit).solve(errors)
    best = brute_force(sizes, terms, errors, limit)
    assert solution.least[-1] == pytest.approx(best, rel=1e-5)
    if np.isfinite(best):
        choice = solution.choice(-1)
        assert total(terms, choice) <= limit
        assert error_of(errors, choice) == pytest.approx(best, rel=1e-5)
    else:
        with pytest.raises(InfeasibleBudgetError, match=r"within t ≤ .* was found.*raise the limit"):
            solution.choice(-1)


@settings(max_examples=100, deadline=None)
@given(problems, st.integers(1, 50), st.integers(1, 40))
def test_rounding_up_never_exceeds_the_budget_and_loses_at_most_a_bucket_a_group(problem, limit, buckets):
    sizes, terms, errors = drawn(problem, unit=0.37)
    problem = BudgetedSum(sizes, terms, "t", limit, buckets)
    solution = problem.solve(errors)
    assert solution.least[-1] <= brute_force(sizes, terms, errors, limit - len(sizes) * problem.bucket) + 1e-5
    for bucket in solution.front:
        choice = solution.choice(bucket)
        assert total(terms, choice) <= problem.base + bucket * problem.bucket + 1e-9
        assert error_of(errors, choice) == pytest.approx(solution.least[bucket], rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(problems, st.integers(1, 50))
def test_the_front_falls_and_a_dominated_choice_changes_nothing(problem, limit):
    sizes, terms, errors = drawn(problem)
    before = in_units(sizes, terms, limit).solve(errors)
    assert (np.diff(before.least[np.isfinite(before.least)]) <= 0).all()
    assert (np.diff(before.least[before.front]) < 0).all()
    # group 0 gets a copy of its first choice that costs and harms more
    longer = [np.append(errors[0], errors[0][0] + 1.0), *errors[1:]]
    after = in_units([sizes[0] + 1, *sizes[1:]], [with_worse_copy(f) for f in terms], limit).solve(longer)
    assert after.least[-1] == pytest.approx(before.least[-1], rel=1e-5)


def with_worse_copy(factor):
    if 0 not in factor.scope:
        return factor
    axis, costs = factor.scope.index(0), factor.costs["t"]
    return Factor(factor.scope, {"t": np.append(costs, costs.take([0], axis=axis) + 1, axis=axis)})


@settings(max_examples=30, deadline=None)
@given(problems, st.integers(1, 50))
def test_a_step_of_many_rows_is_computed_in_blocks(problem, limit):
    sizes, terms, errors = drawn(problem)
    whole = in_units(sizes, terms, limit).solve(errors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(min_sum, "_CELLS", 1)
        assert np.array_equal(in_units(sizes, terms, limit).solve(errors).least, whole.least)


def test_by_hand():
    # two groups; costs 4·i·j of kept (1, 2) channels each; errors 3 and 1 for the narrow choices
    cost = np.outer([1, 2], [1, 2]) * 4.0
    problem = BudgetedSum([2, 2], [Factor((), {"t": np.float64(1.0)}), Factor((0, 1), {"t": cost})], "t", 9.0, 4)
    assert problem.base == 1.0 + 4.0
    assert problem.bucket == 1.0
    solution = problem.solve([np.array([3.0, 0.0]), np.array([1.0, 0.0])])
    assert solution.least.tolist() == [4.0, 4.0, 4.0, 4.0, 1.0]  # both narrow, until 4 more ms let group 0 be whole
    assert solution.front.tolist() == [0, 4]
    assert [solution.choice(b).tolist() for b in (3, 4)] == [[0, 0], [1, 0]]


def test_another_cost_weighs_as_error():
    costs = {"t": np.array([1.0, 2.0]), "m": np.array([0.0, 10.0])}
    problem = BudgetedSum([2], [Factor((0,), costs)], "t", 2.0, 10)
    errors = [np.array([1.0, 0.0])]
    assert problem.solve(errors, {"m": 0.05}).choice(-1).tolist() == [1]  # 0.5 < 1
    assert problem.solve(errors, {"m": 0.2}).choice(-1).tolist() == [0]  # 2 > 1


def test_nothing_fits_says_the_limit():
    problem = BudgetedSum([2], [Factor((0,), {"t": np.array([3.0, 4.0])})], "t", 2.0, 10)
    with pytest.raises(InfeasibleBudgetError, match=r"within t ≤ 2 .*less than 3 together"):
        problem.solve([np.zeros(2)]).choice(-1)


@pytest.mark.parametrize(
    ("shape", "most"),
    [("alone", 1), ("chain", 2), ("residual", 2), ("stages", 3), ("ring", 3), ("concatenation", 3), ("apart", 2)],
)
def test_the_order_lets_few_groups_meet(shape, most):
    steps = elimination_steps([5] * 4, SHAPES[shape])
    assert max(len(step.joint) for step in steps) == most
    assert sorted(step.group for step in steps) == [0, 1, 2, 3]
    assert steps[-1].after == ()


def test_a_long_residual_stage_costs_a_little_more_for_each_block():
    # stage width 0; block b has inner widths 2b+1, 2b+2: 0 → 2b+1 → 2b+2 → 0
    sizes = [8] + [4] * 40
    scopes = [s for b in range(20) for s in ((0, 2 * b + 1), (2 * b + 1, 2 * b + 2), (0, 2 * b + 2))]
    steps = elimination_steps(sizes, scopes)
    assert work(steps, sizes) <= 20 * (8 * 4 * 4 + 8 * 4) + 8
    assert largest_table(steps, sizes) <= 20 * (8 * 4 + 8) + 1


def test_variables_that_nothing_ties_together_are_ordered_apart():
    steps = elimination_steps([3] * 6, [(0, 4), (4, 2), (1,), (3, 5)])
    assert [step.group for step in steps] in ([0, 4, 2, 1, 3, 5], [2, 4, 0, 1, 3, 5])
    assert [step.after == () for step in steps] == [False, False, True, True, False, True]
    assert elimination_steps([], []) == ()


@pytest.mark.parametrize("scopes", [[(i, i + 1) for i in range(299)], [(0, i) for i in range(1, 300)]])
def test_many_variables_in_a_chain_or_around_a_hub_meet_in_pairs(scopes):
    steps = elimination_steps([4] * 300, scopes)
    assert sorted(step.group for step in steps) == list(range(300))
    assert work(steps, [4] * 300) == 4 + 299 * 16


@settings(max_examples=50, deadline=None)
@given(problems, st.integers(1, 50))
def test_choices_of_many_budgets_reach_the_least_errors(problem, limit):
    sizes, terms, errors = drawn(problem)
    solution = in_units(sizes, terms, limit).solve(errors)
    buckets = np.flatnonzero(np.isfinite(solution.least))
    chosen = solution.choices(buckets)
    assert chosen.tolist() == [solution.choice(b).tolist() for b in buckets]
    assert [error_of(errors, choice) for choice in chosen] == pytest.approx(solution.least[buckets].tolist(), rel=1e-5)
    if len(buckets) and buckets[0] > 0:
        with pytest.raises(InfeasibleBudgetError):
            solution.choices(np.array([buckets[-1], 0]))
