"""Each reward against a number worked by hand, and the ways a configuration can get one wrong."""

import inspect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.config import check_priced, from_mapping
from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.trial import Evaluation
from amcsearch.search.budget import Budget
from amcsearch.search.reward import REWARDS, RewardContext, bind, hard_constraint

DENSE = Cost(macs=1000.0, params=200.0, latency_ms=4.0, energy_mj=2.0)
CONTEXT = RewardContext(DENSE, 0.95, Budget({"latency_ms": 2.0, "macs": 400.0}))
PRUNED = Cost(macs=200.0, params=100.0, latency_ms=1.0, energy_mj=0.5)
OVER = Cost(macs=800.0, params=100.0, latency_ms=1.0, energy_mj=0.5)
MEASURED = Evaluation(metric=0.9, loss=0.3, seconds=1.0)


def worth(name, cost, **parameters):
    return bind(name, parameters, CONTEXT)(MEASURED, cost)


def test_accuracy_is_minus_the_error():
    assert worth("accuracy", PRUNED) == pytest.approx(-0.1)


def test_accuracy_guaranteed_is_minus_error_times_log_macs():
    assert worth("accuracy_guaranteed", PRUNED) == pytest.approx(-0.1 * math.log(200))
    assert worth("accuracy_guaranteed", PRUNED, cost_name="params") == pytest.approx(-0.1 * math.log(100))


def test_accuracy_guaranteed_refuses_costs_that_can_be_below_one():
    with pytest.raises(BadInputError, match="latency_ms"):
        bind("accuracy_guaranteed", {"cost_name": "latency_ms"}, CONTEXT)


def test_mnasnet_multiplies_over_the_budgeted_costs():
    assert worth("mnasnet", PRUNED) == pytest.approx(0.9 * 0.5**-0.07 * 0.5**-0.07)


def test_mnasnet_exponents_inside_and_outside():
    # macs 800 of 400 are outside, latency 1 of 2 ms inside
    assert worth("mnasnet", OVER, inside=-1.0, outside=-2.0) == pytest.approx(0.9 * 2.0**-2 * 0.5**-1)


def test_mnasnet_hard_gives_no_credit_inside_and_divides_outside():
    assert worth("mnasnet_hard", PRUNED) == pytest.approx(0.9)
    assert worth("mnasnet_hard", OVER) == pytest.approx(0.9 / 2)


def test_hard_constraint_inside_and_outside():
    assert worth("hard_constraint", PRUNED) == pytest.approx(0.9)
    assert worth("hard_constraint", OVER) == pytest.approx(-10.0 * (1 + 1.0))
    assert worth("hard_constraint", OVER, penalty=3.0) == pytest.approx(-6.0)


@given(st.floats(1.0 + 1e-6, 100.0), st.floats(1.0 + 1e-6, 100.0), st.floats(0, 1), st.floats(0, 1))
def test_hard_constraint_orders_overshoot_and_stays_below_every_feasible_policy(a, b, acc_in, acc_out):
    def at(share, accuracy):
        cost = Cost(macs=400.0 * share, latency_ms=1.0)
        return hard_constraint(Evaluation(accuracy, 0.0, 0.0), cost, CONTEXT)

    assert at(a, acc_out) < at(1.0, acc_in)
    assert (at(a, acc_out) < at(b, acc_in)) == (a > b) or math.isclose(a, b)


def test_weighted_sum_is_relative_to_the_dense_model():
    expected = 0.9 - 0.2 * (1.0 / 4.0) - 0.3 * (0.5 / 2.0) - 0.4 * (200 / 1000) - 0.5 * (100 / 200)
    weights = {"latency_ms": 0.2, "energy_mj": 0.3, "macs": 0.4, "params": 0.5}
    assert worth("weighted_sum", PRUNED, **weights) == pytest.approx(expected)


def test_weighted_sum_names_the_cost_nothing_prices():
    context = RewardContext(Cost(macs=10.0), 0.9, Budget({}))
    with pytest.raises(BadInputError, match=r"weight latency_ms = 0.1 but nothing prices latency_ms"):
        bind("weighted_sum", {}, context)
    only_macs = bind("weighted_sum", {"latency_ms": 0, "energy_mj": 0}, context)
    assert only_macs(MEASURED, Cost(macs=5.0)) == pytest.approx(0.9 - 0.1 * 0.5)


def test_a_cost_that_weighted_sum_weighs_by_default_is_asked_of_the_device():
    here = {"model": {"factory": None}, "data": {"factory": None}, "search": {"reward": {"name": "weighted_sum"}}}
    with pytest.raises(BadInputError, match=r"energy_mj = 0.1 \(0 leaves it out\) needs device.profile"):
        check_priced(from_mapping(here, ""), (), reward=True)
    check_priced(from_mapping(here, ""), (), reward=True, profile=True)
    check_priced(from_mapping(here, "", {"search.reward.params": {"energy_mj": 0}}), (), reward=True)
    for name in ("latency_ms", "energy_mj"):  # the default that the configuration knows is that of the function
        assert inspect.signature(REWARDS["weighted_sum"]).parameters[name].default == 0.1


def test_unknown_reward_lists_what_exists():
    with pytest.raises(BadInputError, match=r"'acuracy' does not exist; choose one of accuracy, .*weighted_sum"):
        bind("acuracy", {}, CONTEXT)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("accuracy", {"w": 1.0}, "no parameter 'w'; it has none"),
        ("mnasnet", {"w": 1.0}, "no parameter 'w'; it has inside, outside"),
        ("mnasnet", {"inside": "steep"}, "inside = 'steep'"),
        ("mnasnet", {"inside": math.nan}, "inside = nan"),
        ("mnasnet", {"inside": True}, "inside = True"),
        ("accuracy_guaranteed", {"cost_name": 3.0}, "cost_name = 3.0"),
        ("hard_constraint", {"penalty": -1.0}, "penalty = -1.0, must be above 0"),
    ],
)
def test_bad_parameters_are_named(name, parameters, message):
    with pytest.raises(BadInputError, match=message):
        bind(name, parameters, CONTEXT)


@pytest.mark.parametrize("name", REWARDS)
@given(low=st.floats(0.01, 1), high=st.floats(0.01, 1))
def test_every_reward_prefers_accuracy_at_equal_cost(name, low, high):
    reward = bind(name, {}, CONTEXT)
    low, high = sorted((low, high))
    assert reward(Evaluation(low, 0.0, 0.0), PRUNED) <= reward(Evaluation(high, 0.0, 0.0), PRUNED)


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_is_finite_on_the_dense_model(name):
    assert math.isfinite(bind(name, {}, CONTEXT)(Evaluation(0.95, 0.1, 1.0), DENSE))
