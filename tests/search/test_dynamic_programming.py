"""The exact allocation on priced networks, and the agent around it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.group import ChannelGroup, Coupling, Side
from amcsearch.core.layer import LayerKind, LayerSpec
from amcsearch.core.network import NetworkSpec
from amcsearch.core.policy import PolicySpace
from amcsearch.core.trial import TrialState
from amcsearch.costs.compute import Macs, Params
from amcsearch.costs.grid import CostGrid
from amcsearch.evaluation.sensitivity import Curve, Curves
from amcsearch.search.baselines import RandomSearch
from amcsearch.search.budget import Budget, FeasibleSet
from amcsearch.search.exact.allocator import Allocator
from amcsearch.search.exact.dynamic_programming import DynamicProgramming, starting_policies
from amcsearch.search.exact.factors import cost_factors
from amcsearch.search.exact.harm import errors_of, harms, removal_errors


class WithResidency(Macs):
    """MACs in "ms", and a joint cost that grows with the square of all of them: no sum over layers."""

    name = "latency_ms"
    has_joint = True

    def layer_amounts(self, layer, in_channels, out_channels):
        macs = self.layer_costs(layer, in_channels, out_channels)
        return np.stack([macs, np.zeros_like(macs)], axis=1)

    def layer_costs(self, layer, in_channels, out_channels):
        pairs = zip(in_channels.tolist(), out_channels.tolist(), strict=True)
        return np.array([self.layer_cost(layer.resized(i, o)) for i, o in pairs], dtype=float)

    def joint(self, amounts):
        return amounts[:, 0] ** 2 / 20_000.0


def residual():
    """A stem, two blocks on one stream with an inner width each, and a classifier."""
    layers = tuple(
        LayerSpec(name, LayerKind.CONV, i, o, (3, 3), padding=(1, 1), in_size=(4, 4), out_size=(4, 4))
        for name, i, o in [("stem", 1, 4), ("a1", 4, 3), ("a2", 3, 4), ("b1", 4, 5), ("b2", 5, 4), ("head", 4, 10)]
    )
    stream = [("stem", Side.OUT), ("a1", Side.IN), ("a2", Side.OUT), ("b1", Side.IN), ("b2", Side.OUT)]
    couplings = tuple(Coupling(*c) for c in [*stream, ("head", Side.IN)])
    groups = [ChannelGroup("stream", 4, couplings)]
    for block, width in (("a", 3), ("b", 5)):
        inner = (Coupling(f"{block}1", Side.OUT), Coupling(f"{block}2", Side.IN))
        groups.append(ChannelGroup(f"inner_{block}", width, inner))
    return NetworkSpec(layers, tuple(groups))


def feasible_set(limits, *models):
    network = residual()
    space, grid = PolicySpace.on_grid(network.groups), CostGrid(network, models or (Macs(), Params()))
    dense = grid.cost(network.dense)
    return FeasibleSet(space, grid, Budget({name: share * dense[name] for name, share in limits.items()}))


def quadratic(space, weights=(3.0, 1.0, 2.0)):
    return [w * (1 - c / c[-1]) ** 2 for w, c in zip(weights, space.choices, strict=True)]


def brute_force(feasible, errors):
    """Every policy within the limits, the one of least error first: (policy, error)."""
    indices = list(itertools.product(*(range(len(c)) for c in feasible.space.choices)))
    rows = np.array([[c[i] for c, i in zip(feasible.space.choices, index, strict=True)] for index in indices])
    error = np.array([sum(e[i] for e, i in zip(errors, index, strict=True)) for index in indices])
    error[~feasible.contains(rows)] = np.inf
    return rows[np.argmin(error)], float(error.min())


def error_of(feasible, errors, kept):
    return float(sum(e[np.searchsorted(c, n)] for e, c, n in zip(errors, feasible.space.choices, kept, strict=True)))


def allocator(feasible, buckets=20_000, **changes):
    return Allocator(feasible, **{"buckets": buckets, "sums": 1e9, "rounds": 12, **changes})


def test_factors_add_up_to_the_price_and_share_what_depends_on_the_same_groups():
    feasible = feasible_set({})
    factors = cost_factors(feasible.space, feasible.grid)
    assert sorted(f.scope for f in factors) == [(), (0,), (0, 1), (0, 2)]
    rows = np.array([[4, 3, 5], [1, 2, 3], [3, 1, 1]])
    prices = feasible.grid.price(rows)
    for name in ("macs", "params"):
        sums = [sum(f.costs[name][tuple(row[list(f.scope)] - 1)] for f in factors) for row in rows]
        assert sums == pytest.approx(prices[name].tolist())


@pytest.mark.parametrize("share", [0.25, 0.4, 0.55, 0.7, 0.9])
def test_a_residual_network_is_solved_as_brute_force_solves_it(share):
    feasible = feasible_set({"macs": share})
    errors = quadratic(feasible.space)
    kept = allocator(feasible).best(errors)
    assert feasible.contains(kept[None, :])[0]
    assert error_of(feasible, errors, kept) == pytest.approx(brute_force(feasible, errors)[1])


def test_a_budget_of_the_dense_cost_gives_the_dense_policy():
    feasible = feasible_set({"macs": 1.0})
    assert allocator(feasible, buckets=1).best(quadratic(feasible.space)).tolist() == [4, 3, 5]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_joint_cost_is_met_though_no_sum_holds_it(share):
    feasible = feasible_set({"latency_ms": share}, WithResidency())
    errors = quadratic(feasible.space)
    finder = allocator(feasible)
    alone = finder.policy(finder.solve(errors), -1)
    assert not feasible.contains(alone[None, :])[0]  # what the sum over layers calls within the limit is not
    kept = finder.best(errors)
    assert feasible.contains(kept[None, :])[0]
    assert error_of(feasible, errors, kept) == pytest.approx(brute_force(feasible, errors)[1])


@pytest.mark.parametrize("limits", [{"macs": 0.6, "params": 0.4}, {"macs": 0.4, "params": 0.6}])
def test_several_limits_hold_at_once_and_cost_little_more_than_the_best(limits):
    feasible = feasible_set(limits)
    errors = quadratic(feasible.space)
    kept = allocator(feasible).best(errors)
    assert feasible.contains(kept[None, :])[0]
    assert error_of(feasible, errors, kept) <= brute_force(feasible, errors)[1] * 1.1


def test_too_little_work_thins_the_choices_out_and_none_at_all_is_refused():
    feasible = feasible_set({"macs": 0.5})
    errors = quadratic(feasible.space)
    # the blocks' 4 · 3 and 4 · 5 combinations and the stream's 4 are 36; three choices for each group make 3 + 9 + 9
    thin = allocator(feasible, buckets=100, sums=4100 * 25)
    kept = thin.best(errors)
    assert thin.offered == 3
    assert feasible.contains(kept[None, :])[0]
    assert brute_force(feasible, errors)[1] < error_of(feasible, errors, kept)
    with pytest.raises(BadInputError, match=r"sums = 5 are too few .* up to 2 groups; raise"):
        allocator(feasible, sums=5.0).best(errors)


def test_errors_are_measured_rises_with_a_prior_beside_them():
    space = PolicySpace.on_grid((ChannelGroup("g", 4, ()), ChannelGroup("h", 2, ())))
    nothing = np.zeros(2)
    measured = Curves(
        {
            "g": Curve(np.array([1, 4]), np.array([1.1, 0.5]), nothing),
            "h": Curve(np.array([1, 2]), np.array([np.nan, 0.5]), nothing),
        }
    )
    g, h = errors_of(space, harms(space, measured), prior=0.5)
    # rises 0.6, 0.4, 0.2, 0; prior 0.5 · 0.6 · r² with r = 3/4, 1/2, 1/4, 0
    assert g == pytest.approx([0.6 + 0.3 * 9 / 16, 0.4 + 0.3 / 4, 0.2 + 0.3 / 16, 0.0])
    assert h == pytest.approx([10 * 0.6 + 0.3 / 4, 0.0])  # a failed probe: ten times the worst


def test_the_first_policy_after_the_probes_is_the_optimum_of_the_measured_errors(synthetic):
    study = synthetic.make_study("dynamic_programming", trials=36)
    DynamicProgramming(prior=1e-6, buckets=1000).run(study, 0)
    probes = [t for t in study.trials if sum(n < study.network.dense[g] for g, n in t.policy.items()) <= 1]
    first = study.trials[len(probes)]
    # the made-up loss is a sum over groups: squares, which the probes show at six points a group
    assert first.reward == pytest.approx(study.best.reward, abs=2e-3)
    assert study.remaining == 0


def test_beats_random_search_at_equal_evaluations(synthetic):
    best = {}
    for agent in (DynamicProgramming(points=3, buckets=1000), RandomSearch()):
        study = synthetic.make_study(type(agent).__name__, widths=(16,) * 6, trials=30, budget={"macs": "0.4x"})
        agent.run(study, 0)
        best[type(agent)] = study.best.reward
    assert best[DynamicProgramming] > best[RandomSearch] + 0.005


def test_without_probes_the_prior_is_searched(synthetic):
    study = synthetic.make_study("dynamic_programming", trials=30)
    DynamicProgramming(points=0, starts=10).run(study, 0)
    assert "the quadratic prior alone" in study.notes[0]
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)
    assert study.best.reward > study.trials[0].reward  # other coefficients than ones fit the made-up loss


def test_several_objectives_give_policies_all_along_the_front(synthetic):
    study = synthetic.make_study("dynamic_programming", trials=40, budget={}, objectives=("accuracy", "macs"))
    DynamicProgramming(points=3).run(study, 0)
    dense = study.grid.cost(study.network.dense).macs
    shares = sorted(trial.cost.macs / dense for trial in study.front)
    assert len(shares) >= 15
    assert max(np.diff([0.0, *shares, 1.0])) < 0.2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"buckets": 0}, "buckets = 0, must be at least 1"),
        ({"points": -1}, "points = -1"),
        ({"prior": 0.0}, "prior = 0.0, must be a positive number"),
        ({"resample": 1.5}, r"resample = 1.5, must be in \(0, 1\]"),
        ({"spread": 1.0}, "spread = 1.0, must be a number above 1"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(BadInputError, match=message):
        DynamicProgramming(**parameters)


def test_a_selectors_errors_are_read_at_the_units_that_every_choice_keeps():
    group = ChannelGroup("g", 6, (Coupling("a", Side.OUT), Coupling("b", Side.IN)), unit=2)
    space = PolicySpace((group,), (np.array([2, 6]),))
    (errors,) = removal_errors(space, {"g": np.array([1.0, 0.5, 0.2, 0.0])})
    assert errors.tolist() == [0.5, 0.0]
    vanishing = PolicySpace.on_grid((replace(group, can_vanish=True),), 1, 0.5, vanish=True)
    (errors,) = removal_errors(vanishing, {"g": np.array([1.0, 0.5, 0.2, 0.0])})
    assert dict(zip(vanishing.choices[0].tolist(), errors.tolist(), strict=True)) == {0: 1.0, 4: 0.2, 6: 0.0}


def test_known_errors_cost_no_evaluation_and_their_optimum_comes_first(synthetic):
    study = synthetic.make_study(trials=6, errors=True)
    best = study.network.policy(Allocator(study.feasible).best(study.errors))
    uniform = study.network.policy(study.feasible.largest_uniform())
    assert starting_policies(study) == [best, uniform]
    DynamicProgramming().run(study, 0)
    assert study.trials[0].policy == best
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)
    probing = synthetic.make_study(trials=20, errors=True)
    DynamicProgramming(probe=True).run(probing, 0)
    assert "probes" in " ".join(probing.notes)


def test_a_study_starts_with_no_more_than_it_may_evaluate_and_without_errors_with_the_uniform_policy(synthetic):
    assert len(starting_policies(synthetic.make_study(trials=1, errors=True))) == 1
    study = synthetic.make_study(trials=6)
    assert starting_policies(study) == [study.network.policy(study.feasible.largest_uniform())]


def test_several_objectives_start_along_the_front_of_each_cost(synthetic):
    objectives = ("accuracy", "macs", "params")
    study = synthetic.make_study(trials=64, errors=True, budget={}, objectives=objectives)
    starts = starting_policies(study)
    assert len(starts) == len(set(starts)) <= 2 * 4 + 1
    costs = np.array([study.grid.cost(policy)["macs"] for policy in starts])
    assert costs.min() < 0.4 * costs.max()
    study.evaluate(starts)
    DynamicProgramming().run(study, 0)
    assert study.remaining == 0


def test_a_network_that_has_no_exact_solution_starts_from_the_uniform_policy_and_says_why(synthetic, monkeypatch):
    def refuse(*_):
        raise BadInputError("too many groups")

    monkeypatch.setattr(Allocator, "best", refuse)
    study = synthetic.make_study(trials=6, errors=True)
    assert starting_policies(study) == [study.network.policy(study.feasible.largest_uniform())]
    assert "too many groups" in study.notes[0]


def test_a_sequence_begins_dense_gets_cheaper_and_is_the_optimum_at_every_level():
    feasible = feasible_set({})
    errors = quadratic(feasible.space)
    sequence = allocator(feasible, axis="macs").sequence(errors, 12)
    prices = feasible.grid.price(sequence)["macs"]
    assert sequence[0].tolist() == feasible.space.dense.tolist()
    assert (np.diff(prices) < 0).all()
    assert len(sequence) > 6
    for kept, price in zip(sequence, prices, strict=True):
        limited = FeasibleSet(feasible.space, feasible.grid, Budget({"macs": float(price)}))
        assert error_of(feasible, errors, kept) == pytest.approx(brute_force(limited, errors)[1])
