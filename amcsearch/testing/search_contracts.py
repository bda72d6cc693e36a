"""What every agent, reward and cost promises, on a made-up problem that is searched in milliseconds."""

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from amcsearch.core import BadInputError, Cost, Evaluation, NetworkSpec, PruningPolicy, TrialState
from amcsearch.costs import CostGrid, CostModel, layer_costs
from amcsearch.runs import trial_rows
from amcsearch.search import Agent, Budget, Reward, RewardContext, Study, starting_policies
from amcsearch.testing.made_up import TIGHT, MadeUpEvaluator, chain, make_study

__all__ = ["AgentContract", "CostContract", "RewardContract"]


def _comparable(study: Study) -> dict[Any, Any]:
    return trial_rows(study.trials).drop(columns="seconds").fillna("unknown").to_dict("list")


def _check_trials(study: Study) -> None:
    """Every trial is distinct, on the channel grid, and within the budget unless it is a probe."""
    policies = [trial.policy for trial in study.trials]
    assert len(set(policies)) == len(policies)
    kept = np.array([study.network.kept_array(policy) for policy in policies])
    assert all(set(column) <= set(choices) for column, choices in zip(kept.T, study.space.choices, strict=True))
    within = study.feasible.contains(kept)
    assert all(trial.state is TrialState.PROBE or inside for trial, inside in zip(study.trials, within, strict=True))


class AgentContract:
    """What every ``search.Agent`` promises; ``make`` gives a new agent at every call.

    ``several_objectives`` is false for an agent that refuses a study of more than one objective.
    """

    several_objectives: ClassVar[bool] = True

    def make(self) -> Agent:
        """Return the agent that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], Agent]:
        """Give the tests ``make``."""
        return self.make

    def test_spends_every_evaluation_on_new_feasible_policies(self, maker: Callable[[], Agent]) -> None:
        """All evaluations are used, each on another policy within the budget."""
        evaluators: list[MadeUpEvaluator] = []

        def evaluator(network: NetworkSpec) -> MadeUpEvaluator:
            evaluators.append(MadeUpEvaluator(network))
            return evaluators[-1]

        study = make_study(trials=12, budget=TIGHT, evaluator=evaluator)
        maker().run(study, 0)
        assert study.remaining == 0
        assert len(evaluators[0].calls) == 12
        _check_trials(study)
        assert study.best is not None
        assert study.best.reward == max(t.reward for t in study.trials if t.state is TrialState.COMPLETE)

    def test_stays_on_a_coarse_grid_and_within_the_budget(self, maker: Callable[[], Agent]) -> None:
        """Multiples of 8, or all channels of a group."""
        study = make_study(widths=(24, 20, 32), multiple=8, budget=TIGHT, trials=8)
        maker().run(study, 1)
        assert study.trials
        _check_trials(study)

    def test_goes_on_when_the_study_is_extended(self, maker: Callable[[], Agent]) -> None:
        """Run again with further evaluations it keeps what it had and spends them on new policies."""
        study = make_study(trials=7)
        maker().run(study, 3)
        first = list(study.trials)
        study.extend(5)
        maker().run(study, 4)
        assert study.trials[:7] == first
        assert study.remaining == 0
        _check_trials(study)

    def test_is_a_function_of_the_seed(self, maker: Callable[[], Agent]) -> None:
        """One seed gives one search."""
        studies = [make_study(trials=12) for _ in range(2)]
        for study in studies:
            maker().run(study, 3)
        assert _comparable(studies[0]) == _comparable(studies[1])

    def test_replay_from_storage_evaluates_nothing_again(self, maker: Callable[[], Agent], tmp_path: Path) -> None:
        """A search that is run again is served what is stored."""
        storage = f"sqlite:///{tmp_path}/study.db"
        first = make_study(trials=12, storage=storage)
        maker().run(first, 0)
        evaluator = MadeUpEvaluator(first.network)
        again = make_study(trials=12, storage=storage, evaluator=lambda _: evaluator)
        maker().run(again, 0)
        assert evaluator.calls == []
        assert again.trials == first.trials
        assert again.best == first.best
        assert again.notes == first.notes

    def test_goes_on_from_what_was_evaluated_before(self, maker: Callable[[], Agent], tmp_path: Path) -> None:
        """Policies that the study holds already are neither evaluated again nor lost."""
        storage = f"sqlite:///{tmp_path}/study.db"
        ends = []
        for _ in range(2):  # the second is served what the first stored
            study = make_study(trials=12, budget=TIGHT, storage=storage, errors=True)
            starts = starting_policies(study)
            study.evaluate(starts)
            maker().run(study, 0)
            assert study.remaining == 0
            assert [trial.policy for trial in study.trials[: len(starts)]] == starts
            _check_trials(study)
            ends.append(_comparable(study))
        assert ends[0] == ends[1]

    def test_takes_no_channels_for_a_choice_like_others(self, maker: Callable[[], Agent]) -> None:
        """Groups that can vanish: every policy is on the grid and within a budget that most widths exceed."""
        budget = {"macs": "0.15x"}
        study = make_study(budget=budget, max_pruning_ratio=0.8, trials=12, vanish=True)
        assert study.space.floor.tolist() == [2, 0, 4, 0]
        maker().run(study, 0)
        assert study.remaining == 0
        _check_trials(study)
        small = make_study(widths=(2, 2), budget={}, max_pruning_ratio=0.5, trials=9, vanish=True)
        maker().run(small, 0)
        assert {tuple(trial.policy.values()) for trial in small.trials} == set(product((1, 2), (0, 1, 2)))

    def test_returns_when_a_space_of_one_group_is_exhausted(self, maker: Callable[[], Agent]) -> None:
        """Six policies and nine evaluations: each policy once, and an end."""
        study = make_study(widths=(6,), budget={}, trials=9)
        maker().run(study, 0)
        assert sorted(trial.policy["g0"] for trial in study.trials) == [1, 2, 3, 4, 5, 6]

    def test_a_group_that_cannot_be_pruned_stays_whole(self, maker: Callable[[], Agent]) -> None:
        """A group of one choice."""
        study = make_study(widths=(8, 4, 16), multiple=4, trials=5)
        maker().run(study, 0)
        assert len(study.space.choices[1]) == 1
        _check_trials(study)
        assert study.trials
        assert all(trial.policy["g1"] == 4 for trial in study.trials)

    def test_nothing_to_choose_gives_the_one_policy(self, maker: Callable[[], Agent]) -> None:
        """A space of one policy."""
        study = make_study(widths=(4, 4), multiple=4, budget={}, trials=5)
        maker().run(study, 0)
        assert [dict(trial.policy) for trial in study.trials] == [{"g0": 4, "g1": 4}]

    def test_no_limits_at_all(self, maker: Callable[[], Agent]) -> None:
        """An empty budget."""
        study = make_study(budget={}, trials=10)
        maker().run(study, 0)
        assert study.remaining == 0
        _check_trials(study)

    def test_a_single_evaluation(self, maker: Callable[[], Agent]) -> None:
        """One evaluation is enough to run."""
        study = make_study(trials=1)
        maker().run(study, 0)
        assert len(study.trials) == 1
        _check_trials(study)

    def test_goes_on_after_evaluations_without_a_finite_loss(self, maker: Callable[[], Agent]) -> None:
        """Four evaluations fail."""
        failing = frozenset({1, 2, 6, 11})
        study = make_study(trials=12, evaluator=lambda network: MadeUpEvaluator(network, failing))
        maker().run(study, 0)
        assert study.remaining == 0
        assert sum(trial.state is TrialState.FAILED for trial in study.trials) == 4
        assert study.best is not None
        assert study.best.state is TrialState.COMPLETE

    def test_learns_from_evaluations_that_stopped(self, maker: Callable[[], Agent]) -> None:
        """Whatever does not beat the best policy stops; its estimate, which is exact here, teaches as much."""
        study = make_study(trials=12, stops=True)
        maker().run(study, 0)
        assert study.remaining == 0
        _check_trials(study)
        assert study.best is not None
        assert study.best.state is TrialState.COMPLETE
        assert study.best.reward == max(trial.reward for trial in study.trials if trial.is_informative)

    def test_batches_for_several_workers(self, maker: Callable[[], Agent]) -> None:
        """A batch that does not divide the evaluations."""
        study = make_study(trials=13, batch=4)
        maker().run(study, 0)
        assert study.remaining == 0
        _check_trials(study)

    def test_several_objectives_or_one_clear_line(self, maker: Callable[[], Agent]) -> None:
        """Several objectives are searched, or refused before anything is evaluated."""
        study = make_study(trials=12, objectives=("accuracy", "macs"))
        if not self.several_objectives:
            with pytest.raises(BadInputError, match=r"accuracy, macs") as refused:
                maker().run(study, 0)
            assert "\n" not in str(refused.value)
            assert not study.trials
            return
        maker().run(study, 0)
        assert study.remaining == 0
        assert set(map(id, study.front)) <= set(map(id, study.trials))
        _check_trials(study)


class RewardContract:
    """What every ``search.Reward`` promises: finite, repeatable, and never less for more accuracy within the budget."""

    def make(self) -> Reward:
        """Return the reward that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], Reward]:
        """Give the tests ``make``."""
        return self.make

    @pytest.fixture
    def context(self) -> RewardContext:
        """Give a dense network priced in every built-in cost, with half its MACs and latency as the budget."""
        dense = Cost(macs=1000.0, params=200.0, latency_ms=4.0, energy_mj=2.0)
        return RewardContext(dense, 0.95, Budget({"macs": 500.0, "latency_ms": 2.0}))

    def test_it_is_a_finite_number_within_and_beyond_the_budget(
        self, maker: Callable[[], Reward], context: RewardContext
    ) -> None:
        """Also for the dense network and for accuracies of 0 and 1."""
        for share in (0.1, 0.5, 0.8, 1.0):
            cost = Cost({name: share * value for name, value in context.dense.items()})
            for accuracy in (0.0, 0.5, 1.0):
                assert math.isfinite(maker()(Evaluation(accuracy, 1.0, 0.0), cost, context))

    def test_equal_inputs_give_equal_rewards(self, maker: Callable[[], Reward], context: RewardContext) -> None:
        """A reward remembers nothing and takes no account of seconds."""
        cost, reward = Cost({name: 0.4 * value for name, value in context.dense.items()}), maker()
        values = [reward(Evaluation(0.8, 0.5, seconds), cost, context) for seconds in (0.0, 1.0, 0.0)]
        assert values[0] == values[1] == values[2]

    def test_more_accuracy_is_never_worth_less_within_the_budget(
        self, maker: Callable[[], Reward], context: RewardContext
    ) -> None:
        """At one cost, over a grid of accuracies; and something is worth more."""
        cost, reward = Cost({name: 0.4 * value for name, value in context.dense.items()}), maker()
        values = [reward(Evaluation(accuracy, 0.5, 0.0), cost, context) for accuracy in np.linspace(0.0, 1.0, 11)]
        assert all(before <= after for before, after in pairwise(values))
        assert values[0] < values[-1]


class CostContract:
    """What every ``costs.CostModel`` promises: a pure function of a layer's shapes, finite and not negative."""

    def make(self) -> CostModel:
        """Return the cost model that is tested."""
        raise NotImplementedError

    @pytest.fixture
    def maker(self) -> Callable[[], CostModel]:
        """Give the tests ``make``."""
        return self.make

    def test_it_prices_every_layer_of_a_network(self, maker: Callable[[], CostModel]) -> None:
        """The name is an identifier, and no price is negative or infinite."""
        model = maker()
        assert model.name.isidentifier()
        prices = [model.constant, *map(model.layer_cost, chain((8, 16)).layers)]
        assert all(math.isfinite(price) and price >= 0.0 for price in prices)
        assert sum(prices) > 0.0

    def test_a_price_depends_on_shapes_alone(self, maker: Callable[[], CostModel]) -> None:
        """Neither a layer's name nor what was asked before changes it."""
        model, (layer, *_, other) = maker(), chain((8, 16)).layers
        first = model.layer_cost(layer)
        model.layer_cost(other)
        assert model.layer_cost(replace(layer, name="another")) == first == maker().layer_cost(layer)

    def test_the_grid_sums_the_layers(self, maker: Callable[[], CostModel]) -> None:
        """A pruned policy costs the constant, its narrower layers, and what they add jointly."""
        network, model = chain((8, 16)), maker()
        policy = PruningPolicy({"g0": 3, "g1": 10})
        layers = network.with_channels(policy).layers
        grid = CostGrid(network, [model])
        assert grid.price_layers(np.array([[3, 10]]))[model.name][0] == pytest.approx(
            [model.layer_cost(layer) for layer in layers]
        )
        assert grid.cost(policy)[model.name] >= model.constant

    def test_many_widths_at_once_are_those_one_after_another(self, maker: Callable[[], CostModel]) -> None:
        """As ``layer_cost`` says, where the model prices in batches."""
        model, layer = maker(), chain((8, 16)).layers[1]
        widths_in, widths_out = np.array([1, 3, 8]), np.array([16, 5, 2])
        pairs = zip(widths_in.tolist(), widths_out.tolist(), strict=True)
        expected = [model.layer_cost(layer.resized(i, o)) for i, o in pairs]
        assert layer_costs(model, layer, widths_in, widths_out) == pytest.approx(expected)

    def test_it_can_be_sent_to_another_process(self, maker: Callable[[], CostModel]) -> None:
        """Pickled, it prices the same."""
        layer = chain((8, 16)).layers[1]
        assert pickle.loads(pickle.dumps(maker())).layer_cost(layer) == maker().layer_cost(layer)
