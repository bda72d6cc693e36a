"""Each contract class fails what breaks its promise."""

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.metric import Metric
from amcsearch.methods.criteria.random_order import RandomOrder
from amcsearch.search.budget import Budget
from amcsearch.search.reward import RewardContext
from amcsearch.testing import (
    AgentContract,
    CostContract,
    CriterionContract,
    RewardContract,
    TaskContract,
    TaskExample,
    network_example,
)
from amcsearch.training.tasks.regression import Regression


class Idle:
    def run(self, study, seed):
        study.evaluate([study.network.policy(study.feasible.largest_uniform())])


class Unseeded:
    count = 0

    def run(self, study, seed):
        Unseeded.count += 1
        study.evaluate([study.network.policy(study.feasible.repair(study.space.dense // Unseeded.count))])


class ByName:
    name, constant = "by_name", 0.0

    def layer_cost(self, layer):
        return float(len(layer.name))


class Negative(ByName):
    def layer_cost(self, layer):
        return -1.0


@dataclass(frozen=True)
class Unrepeatable(RandomOrder):
    def saliency(self, statistics):
        return {name: torch.rand(weight.shape) for name, weight in statistics.weights.items()}


class Writing(RandomOrder):
    def saliency(self, statistics):
        for weight in statistics.weights.values():
            weight += 1.0
        return super().saliency(statistics)


def test_agents_that_leave_evaluations_or_ignore_the_seed():
    with pytest.raises(AssertionError):
        AgentContract().test_spends_every_evaluation_on_new_feasible_policies(Idle)
    with pytest.raises(AssertionError):
        AgentContract().test_is_a_function_of_the_seed(Unseeded)


def test_costs_that_are_negative_or_look_at_names():
    with pytest.raises(AssertionError):
        CostContract().test_it_prices_every_layer_of_a_network(Negative)
    with pytest.raises(AssertionError):
        CostContract().test_a_price_depends_on_shapes_alone(ByName)


def test_rewards_that_are_infinite_or_blind_to_accuracy():
    context = RewardContext(Cost(macs=10.0), 0.9, Budget({"macs": 5.0}))
    with pytest.raises(AssertionError):
        RewardContract().test_it_is_a_finite_number_within_and_beyond_the_budget(
            lambda: lambda evaluation, cost, context: math.inf, context
        )
    with pytest.raises(AssertionError):
        RewardContract().test_more_accuracy_is_never_worth_less_within_the_budget(
            lambda: lambda evaluation, cost, context: 1.0, context
        )


@pytest.mark.parametrize(("criterion", "refused"), [(Unrepeatable, AssertionError), (Writing, BadInputError)])
def test_criteria_that_do_not_repeat_or_change_the_network(criterion, refused):
    with pytest.raises(refused):
        CriterionContract().test_it_ranks_every_unit_and_leaves_the_model_alone(
            criterion, network_example("resnet20", 5)
        )


class Detached(Regression):
    def loss(self, output, targets):
        return super().loss(output, targets).detach()


class Summed(Regression):
    def loss(self, output, targets):
        return super().loss(output, targets) * len(output)


class OfTheLastBatch(Regression):
    def meter(self):
        meter = super().meter()
        update = meter.update

        def forget(output, targets):
            meter.total, meter.known = 0.0, 0
            update(output, targets)

        meter.update = forget
        return meter


class OfOtherSamples(Regression):
    def sample_values(self, output, targets):
        return super().sample_values(output, targets) + 1.0


class Unsown(Regression):
    def draw(self, output, targets, generator):
        return targets + torch.randn(targets.shape)


def reversed_direction():
    return Regression(Metric("mse"))


class WithoutTeacher(Regression):
    def distillation(self, student, teacher, targets, temperature, alpha):
        return self.loss(student, targets) * 0.0


@pytest.mark.parametrize(
    ("task", "promise"),
    [
        (Detached, "test_its_loss_is_one_finite_number_with_a_gradient"),
        (Summed, "test_its_loss_is_a_mean_over_what_it_counts"),
        (OfTheLastBatch, "test_its_meter_gives_the_same_in_one_batch_and_in_parts"),
        (OfOtherSamples, "test_its_values_of_samples_have_the_metric_as_their_mean"),
        (Unsown, "test_it_draws_targets_by_a_seed_or_refuses"),
        (reversed_direction, "test_perfect_outputs_are_judged_better"),
        (WithoutTeacher, "test_it_trains_on_the_targets_and_towards_a_teacher"),
    ],
)
def test_tasks_that_break_one_promise_each(task, promise):
    output, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [4.0], [2.0]])
    example = TaskExample(output, targets, targets, 3)
    getattr(TaskContract(), promise)(Regression, example)
    with pytest.raises(AssertionError):
        getattr(TaskContract(), promise)(task, example)


def test_the_package_itself_imports_no_pytest():
    code = "import amcsearch, amcsearch.search, sys; assert 'pytest' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
