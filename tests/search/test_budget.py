"""Budgets: limits by hand, then no dead end and no overshoot on random networks with staircase costs."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError, InfeasibleBudgetError
from amcsearch.core.group import ChannelGroup
from amcsearch.core.policy import PolicySpace
from amcsearch.search.budget import Budget, FeasibleSet, cheapest_policies, overshoot, resolve_budget

Prices = Mapping[str, NDArray[np.float64]]


class FunctionGrid:
    """Prices policies by one function of the kept counts (P, G) for each cost."""

    def __init__(self, functions: Mapping[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]]) -> None:
        self.functions = functions
        self.names = tuple(functions)

    def only(self, names: Collection[str]) -> "FunctionGrid":
        return FunctionGrid({name: function for name, function in self.functions.items() if name in names})

    def price(self, kept: NDArray[np.int64]) -> Prices:
        return {name: np.asarray(function(kept), dtype=np.float64) for name, function in self.functions.items()}


def space_of(*channels: int, multiple: int = 1) -> PolicySpace:
    groups = [ChannelGroup(f"g{i}", n, ()) for i, n in enumerate(channels)]
    return PolicySpace.on_grid(groups, multiple)


def total(kept: NDArray[np.int64]) -> NDArray[np.float64]:
    return kept.sum(axis=1).astype(np.float64)


DENSE = Cost(macs=200.0, params=50.0)


def test_share_and_number_and_text_of_a_number():
    budget = resolve_budget({"macs": "0.5x", "params": 20}, DENSE)
    assert budget.limits == {"macs": 100.0, "params": 20.0}
    assert resolve_budget({"macs": "1e2"}, DENSE).limits == {"macs": 100.0}
    assert resolve_budget({"macs": "1x"}, DENSE).limits == {"macs": 200.0}
    assert resolve_budget({}, DENSE).limits == {}


LOWER, WRITE = "lower the limit or drop it", "write 0.5x, or the number of MACs alone"


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        *(("1.5x", LOWER), (201.0, LOWER)),
        *((value, WRITE) for value in ("0x", "-0.5x", "halfx", "", "nanx", "x", 0, -3, float("nan"), True)),
    ],
)
def test_budget_out_of_range_names_value_bound_and_cure(value, cure):
    with pytest.raises(BadInputError, match=rf"budget\.macs = .*must be a share.*200.*; {cure}") as error:
        resolve_budget({"macs": value}, DENSE)
    assert repr(value) in str(error.value)


def test_unknown_cost_and_cost_without_a_model():
    with pytest.raises(BadInputError, match="unknown cost 'flops'; choose from macs"):
        resolve_budget({"flops": "0.5x"}, DENSE)
    with pytest.raises(BadInputError, match=r"budget\.latency_ms = 0\.5x.*latency table"):
        resolve_budget({"latency_ms": "0.5x"}, DENSE)
    grid = FunctionGrid({"macs": total, "params": total})
    with pytest.raises(
        BadInputError, match=r"^budget\.energy_mj: nothing here predicts energy_mj; choose from macs, params$"
    ):
        FeasibleSet(space_of(4), grid, Budget({"energy_mj": 1.0}))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan"), "0.5x"])
def test_a_budget_holds_positive_numbers(limit: float | str):
    with pytest.raises(
        BadInputError, match=r"^budget\.macs = .*, must be a positive number; resolve_budget reads shares"
    ):
        Budget({"macs": limit})


def test_overshoot_is_the_worst_share_of_a_limit():
    prices = {"macs": np.array([2.0, 6.0]), "params": np.array([5.0, 1.0])}
    assert overshoot(prices, {"macs": 8.0, "params": 10.0}).tolist() == [0.5, 0.75]
    free = FeasibleSet(space_of(4), FunctionGrid({"macs": total}), Budget({}))
    assert free.overshoot(np.array([[1], [4], [2]])).tolist() == [0.0, 0.0, 0.0]


def test_starts_and_descent_ask_for_a_few_dozen_widths():
    asked: set[int] = set()

    def price(kept):
        asked.update(kept[:, 0].tolist())
        return {"macs": total(kept)}

    assert cheapest_policies(space_of(200), price, {"macs": 1.0}).tolist() == [[1]]
    # sixteenths of 200 (halves round up), the first multiples of 2 to 32, the 16 smallest, and the multiples of 8,
    # the finest grid of at most 48 widths
    uniform = {200, 188, 175, 163, 150, 138, 125, 113, 100, 88, 75, 63, 50, 38, 25, 13}
    assert asked == uniform | {2, 4, 8, 16, 32} | set(range(1, 17)) | set(range(8, 201, 8))
    asked.clear()
    cheapest_policies(space_of(48), price, {"macs": 1.0})
    assert asked == set(range(1, 49))


def test_a_start_off_the_coarse_grid_is_left_only_for_what_is_cheaper():
    grid = FunctionGrid({"macs": lambda kept: np.where(kept[:, 0] == 25, 3.0, 5.0)})  # an eighth of 200
    assert cheapest_policies(space_of(200), grid.price, {"macs": 1.0}).tolist() == [[1], [25]]


def test_cheapest_policies_by_hand():
    def stairs(kept):  # off the grid of 4 costs 10 more
        return total(kept) + 10.0 * (kept % 4 != 0).sum(axis=1)

    prices = {"macs": total, "latency_ms": stairs, "params": lambda kept: 20.0 - total(kept)}
    grid = FunctionGrid(prices)

    def cheapest(*names: str) -> list[list[int]]:
        return cheapest_policies(space_of(8, 8), grid.price, dict.fromkeys(names, 10.0)).tolist()

    assert cheapest("macs") == [[1, 1]]
    assert cheapest("latency_ms") == [[1, 1], [4, 4]]
    assert cheapest("params") == [[1, 1], [8, 8]]


def test_a_valley_in_two_groups_at_once_is_a_start():
    def stairs(kept):  # off the grid of 4 in either group costs 10 more
        return total(kept) + 10.0 * (kept % 4 != 0).any(axis=1)

    # no single group leads from (1, 1) to (4, 4), and no policy of one ratio has both on the grid
    found = cheapest_policies(space_of(10, 13), FunctionGrid({"latency_ms": stairs}).price, {"latency_ms": 10.0})
    assert found.tolist() == [[1, 1], [4, 4]]
    feasible = FeasibleSet(space_of(10, 13), FunctionGrid({"latency_ms": stairs}), Budget({"latency_ms": 9.0}))
    assert feasible.completion(np.array([4])).tolist() == [4, 4]
    assert feasible.largest_uniform().tolist() == [4, 4]  # no single ratio is within the budget


def test_cheapest_policies_of_one_width_and_of_a_plateau():
    assert cheapest_policies(space_of(1), FunctionGrid({"macs": total}).price, {"macs": 1.0}).tolist() == [[1]]
    # params are the worst whatever is kept; then fewer MACs decide
    flat = FunctionGrid({"macs": total, "params": lambda kept: np.full(len(kept), 10.0)})
    assert cheapest_policies(space_of(8, 8), flat.price, {"macs": 100.0, "params": 10.0}).tolist() == [[1, 1]]


def test_on_a_plateau_of_the_worst_cost_the_mean_share_decides():
    grid = FunctionGrid(
        {
            "macs": lambda kept: kept[:, 0] ** 2.0,
            "params": lambda kept: (8.0 - kept[:, 0]) ** 2,
            "energy_mj": lambda kept: np.full(len(kept), 5.0),
        }
    )
    # narrowest for macs, widest for params; k²/100 + (8 - k)²/400 is least at 2
    found = cheapest_policies(space_of(8), grid.price, {"macs": 100.0, "params": 400.0, "energy_mj": 5.0})
    assert found.tolist() == [[1], [8], [2]]


def test_descent_sweeps_until_nothing_changes():
    table = np.array([[5.0, 4.0, 9.0], [6.0, 3.0, 9.0], [9.0, 9.0, 9.0]])  # by the widths less one
    grid = FunctionGrid({"macs": lambda kept: table[kept[:, 0] - 1, kept[:, 1] - 1]})
    # from (1, 1) the second group goes to 2, and only then the first
    assert cheapest_policies(space_of(3, 3), grid.price, {"macs": 1.0}).tolist() == [[1, 1], [2, 2]]


def test_repair_goes_on_one_step_or_in_proportion_upwards_or_downwards():
    odd = FeasibleSet(space_of(100, 100), FunctionGrid({"macs": total}), Budget({"macs": 103.0}))
    assert odd.repair(np.array([100, 100])).tolist() == [52, 51]  # 52 and 52 are too many
    uneven = FeasibleSet(space_of(16, 8), FunctionGrid({"macs": total}), Budget({"macs": 7.0}))
    assert uneven.repair(np.array([8, 8])).tolist() == [3, 4]  # 5 of 8 choices are further to go than 5 of 16
    down = FeasibleSet(
        space_of(8, 8), FunctionGrid({"params": lambda kept: 20.0 - total(kept)}), Budget({"params": 9.0})
    )
    assert down.repair(np.array([1, 1])).tolist() == [5, 6]  # at least 11 must be kept

    def dear(kept):
        return 100.0 * (kept[:, 0] - 1) + kept[:, 1] + kept[:, 2]

    # the first group cannot grow; the others have 4 and 19 to go, and room for 2 and 9
    blocked = FeasibleSet(space_of(10, 10, 20), FunctionGrid({"macs": dear}), Budget({"macs": 13.0}))
    assert blocked.repair(np.array([10, 5, 20])).tolist() == [1, 3, 10]


def test_repair_goes_on_from_the_nearest_of_several_cheap_policies():
    narrow_or_all = np.array([0.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 2.0])  # ms at widths 0 to 8
    grid = FunctionGrid(
        {"latency_ms": lambda kept: narrow_or_all[kept[:, 0]], "params": lambda kept: 20.0 - total(kept)}
    )
    feasible = FeasibleSet(space_of(8), grid, Budget({"latency_ms": 5.0, "params": 19.0}))
    assert feasible.repair(np.array([6])).tolist() == [8]
    assert feasible.repair(np.array([2])).tolist() == [1]

    def needles(at, beside):
        return lambda kept: np.where((kept == at).all(axis=1), 0.0, np.where((kept == beside).all(axis=1), 1.0, 9.0))

    grid = FunctionGrid({"macs": needles([1, 72], [2, 75]), "params": needles([2, 75], [1, 72])})
    feasible = FeasibleSet(space_of(2, 100), grid, Budget({"macs": 5.0, "params": 5.0}))
    assert feasible.repair(np.array([2, 72])).tolist() == [2, 75]  # 3 choices of 100 are less than 1 of 2


def test_allowed_by_hand():
    feasible = FeasibleSet(space_of(4, 4, 4), FunctionGrid({"macs": total}), Budget({"macs": 6.0}))
    no_groups = np.zeros(0, dtype=np.int64)
    assert feasible.allowed(no_groups).tolist() == [True, True, True, True]  # 4 + 1 + 1 = 6
    assert feasible.allowed(np.array([3])).tolist() == [True, True, False, False]  # 3 + 2 + 1 = 6
    assert feasible.allowed(np.array([3, 2])).tolist() == [True, False, False, False]
    assert feasible.completion(np.array([3])).tolist() == [3, 1, 1]
    assert feasible.nearest_allowed(no_groups, 0.5) == 2
    assert feasible.nearest_allowed(np.array([3]), 0.0) == 2


def test_a_valley_of_the_staircase_is_reached_and_a_wider_choice_may_be_the_only_one():
    def stairs(kept):  # off the grid of 4 costs 10 more
        return total(kept) + 10.0 * (kept % 4 != 0).sum(axis=1)

    feasible = FeasibleSet(space_of(8, 8), FunctionGrid({"latency_ms": stairs}), Budget({"latency_ms": 12.0}))
    assert np.flatnonzero(feasible.allowed(np.zeros(0, dtype=np.int64))).tolist() == [3, 7]
    assert np.flatnonzero(feasible.allowed(np.array([8]))).tolist() == [3]
    assert feasible.repair(np.array([1, 1])).tolist() == [4, 4]  # the smallest policy itself is over budget


def test_infeasible_budget_states_the_smallest_value_of_each_cost():
    def stairs(kept):
        return total(kept) + 10.0 * (kept % 4 != 0).sum(axis=1)

    grid = FunctionGrid({"latency_ms": stairs, "macs": total})
    with pytest.raises(
        InfeasibleBudgetError,
        match=r"latency_ms ≤ 7: smallest found 8, closest to all limits \d+; macs ≤ 1: smallest found 2, closest",
    ):
        FeasibleSet(space_of(8, 8), grid, Budget({"latency_ms": 7.0, "macs": 1.0}))


def test_limits_that_hold_alone_but_not_together():
    grid = FunctionGrid({"macs": total, "params": lambda kept: 20.0 - total(kept)})
    with pytest.raises(InfeasibleBudgetError, match=r"macs ≤ 9: smallest found 2, closest to all limits 10"):
        FeasibleSet(space_of(8, 8), grid, Budget({"macs": 9.0, "params": 9.0}))
    both = FeasibleSet(space_of(8, 8), grid, Budget({"macs": 11.0, "params": 9.0}))
    assert both.contains(np.array([[5, 6], [2, 2], [8, 8]])).tolist() == [True, False, False]
    costs = [Cost(macs=kept, params=20.0 - kept) for kept in (11.0, 4.0, 16.0)]
    assert [both.admits(cost) for cost in costs] == [True, False, False]


def test_repair_keeps_what_is_feasible_and_shrinks_in_proportion():
    feasible = FeasibleSet(space_of(100, 100), FunctionGrid({"macs": total}), Budget({"macs": 102.0}))
    assert feasible.repair(np.array([30, 70])).tolist() == [30, 70]
    assert feasible.repair(np.array([100, 100])).tolist() == [51, 51]
    assert feasible.repair(np.array([100, 50])).tolist() in ([68, 34], [69, 33])


def test_repair_rounds_nothing():
    feasible = FeasibleSet(space_of(16, 16, multiple=4), FunctionGrid({"macs": total}), Budget({"macs": 24.0}))
    with pytest.raises(BadInputError, match="'g1': n_keep = 9 is off the channel grid, its nearest choice is 8"):
        feasible.repair(np.array([8, 9]))


def test_repair_does_not_prune_a_group_that_costs_nothing():
    feasible = FeasibleSet(
        space_of(10, 10), FunctionGrid({"macs": lambda kept: kept[:, 0].astype(np.float64)}), Budget({"macs": 4.0})
    )
    assert feasible.repair(np.array([10, 10])).tolist() == [4, 10]


def test_largest_uniform_by_hand():
    feasible = FeasibleSet(space_of(4, 8), FunctionGrid({"macs": total}), Budget({"macs": 7.0}))
    assert feasible.largest_uniform().tolist() == [2, 5]  # pruning ratio 0.376; at 0.375 the tie keeps [3, 5]
    fine = FeasibleSet(space_of(10_000), FunctionGrid({"macs": total}), Budget({"macs": 4990.0}))
    assert fine.largest_uniform().tolist() == [4990]  # 0.501 is a number of thousandths
    free = FeasibleSet(space_of(4, 8), FunctionGrid({"macs": total}), Budget({}))
    assert free.largest_uniform().tolist() == [4, 8]
    assert free.allowed(np.array([1])).all()


def test_a_network_without_groups():
    grid = FunctionGrid({"macs": lambda kept: np.full(len(kept), 5.0)})
    empty = PolicySpace((), ())
    feasible = FeasibleSet(empty, grid, Budget({"macs": 5.0}))
    assert feasible.repair(empty.floor).shape == (0,)
    with pytest.raises(
        InfeasibleBudgetError,
        match=r"^no policy within the budget was found \(macs ≤ 4: smallest found 5\); smallest as a share of dense: "
        "macs 1x; raise",
    ):
        FeasibleSet(empty, grid, Budget({"macs": 4.0}))


def staircase(rng: np.random.Generator, space: PolicySpace) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """A chain of layers (in, out) whose cost is a product of widths with random penalties off random grids."""
    weights = rng.uniform(0.1, 2.0, len(space.groups) + 1)
    penalty = rng.uniform(0.0, 3.0, len(space.groups) + 1)
    grid = int(rng.choice([1, 2, 4, 8]))

    def cost(kept: NDArray[np.int64]) -> NDArray[np.float64]:
        padded = np.pad(kept, ((0, 0), (1, 1)), constant_values=3)
        into, out = padded[:, :-1], padded[:, 1:]
        off = (into % grid != 0).astype(float) + (out % grid != 0)
        return (weights * into * out * (1.0 + penalty * off)).sum(axis=1)

    return cost


@st.composite
def searches(draw):
    """(FeasibleSet, generator): 1–6 groups, one to three staircase costs, limits drawn near what is reachable."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = draw(st.lists(st.integers(2, 24), min_size=1, max_size=6))
    space = space_of(*channels, multiple=draw(st.sampled_from([1, 2, 4])))
    grid = FunctionGrid(
        {name: staircase(rng, space) for name in ("macs", "latency_ms", "energy_mj")[: rng.integers(1, 4)]}
    )
    reference = np.array([rng.choice(choices) for choices in space.choices])[None, :]
    slack = draw(st.sampled_from([1.0, 1.05, 1.5]))
    limits = {name: float(price[0]) * slack for name, price in grid.price(reference).items()}
    try:
        feasible = FeasibleSet(space, grid, Budget(limits))
    except InfeasibleBudgetError:  # the heuristic may miss a needle; a looser budget must do
        limits = {name: float(price.max()) for name, price in grid.price(np.stack([space.floor, space.dense])).items()}
        feasible = FeasibleSet(space, grid, Budget(limits))
    return feasible, rng


@settings(max_examples=150, deadline=None)
@given(searches())
def test_no_random_walk_over_allowed_choices_ends_over_budget(search):
    feasible, rng = search
    for _ in range(10):
        kept: list[int] = []
        for choices in feasible.space.choices:
            allowed = feasible.allowed(np.array(kept, dtype=np.int64))
            assert allowed.any()
            kept.append(int(rng.choice(choices[allowed])))
        assert feasible.contains(np.array([kept]))[0]


@settings(max_examples=150, deadline=None)
@given(searches())
def test_repair_is_feasible_deterministic_idempotent_and_wastes_no_step(search):
    feasible, rng = search
    for _ in range(5):
        proposal = np.array([rng.choice(choices) for choices in feasible.space.choices])
        kept = feasible.repair(proposal)
        assert feasible.contains(kept[None, :])[0]
        assert all(n in choices for n, choices in zip(kept, feasible.space.choices, strict=True))
        assert np.array_equal(feasible.repair(kept), kept)
        assert np.array_equal(feasible.repair(proposal), kept)
        for g, choices in enumerate(feasible.space.choices):
            here, there = np.searchsorted(choices, kept[g]), np.searchsorted(choices, proposal[g])
            if here != there:
                step = kept.copy()
                step[g] = choices[here + np.sign(there - here)]
                assert not feasible.contains(step[None, :])[0]


@settings(max_examples=50, deadline=None)
@given(searches())
def test_largest_uniform_is_feasible(search):
    feasible, _ = search
    assert feasible.contains(feasible.largest_uniform()[None, :])[0]


def test_an_infeasible_budget_gives_the_share_of_dense_that_can_be_reached():
    with pytest.raises(InfeasibleBudgetError, match=r"smallest as a share of dense: macs 0\.125x; raise the limits"):
        FeasibleSet(space_of(8, 8), FunctionGrid({"macs": total}), Budget({"macs": 1.0}))
