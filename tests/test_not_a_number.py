"""NaN is never equal, never within and never best: one test for each comparison of the package that could be fooled."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.limit import Limit
from amcsearch.core.metric import ACCURACY
from amcsearch.core.order import at_worst
from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation, Trial, TrialState
from amcsearch.costs.grid import CostGrid
from amcsearch.graph import HeldBatches
from amcsearch.graph.tracing.trace import trace
from amcsearch.jobs.delivery import Finalist, choose, latency_overshoot, measure_finalists
from amcsearch.jobs.network_check import chance_warning
from amcsearch.jobs.prune.kept_accuracy import _keeps
from amcsearch.measure.build.calibration import Calibration, NodeCalibration, _error
from amcsearch.measure.build.maintenance import accuracy
from amcsearch.methods.layer_inputs import gather_inputs
from amcsearch.methods.needs import ShortTraining
from amcsearch.methods.short_training import movement_scores
from amcsearch.reporting.figures import _best_so_far
from amcsearch.reporting.layer_charts import write_additivity, write_curves
from amcsearch.runtime.comparison import compare
from amcsearch.runtime.paired_latency import PairedLatency, paired_latency
from amcsearch.search.budget import Budget
from amcsearch.search.netadapt import _worth
from amcsearch.search.pareto import non_dominated
from amcsearch.search.reward import REWARDS, RewardContext
from amcsearch.training import CLASS_IDS, Embedding
from amcsearch.training.splits import DataSplits

BAD = [math.nan, math.inf]
LATENCY = Limit("latency_ms", 0.5, True, "budget.latency_ms")


def trial(number: int, reward: float, accuracy: float = 0.9, loss: float = 0.1, latency_ms: float = 1.0) -> Trial:
    policy = PruningPolicy({"g": number + 1})
    evaluation = Evaluation(accuracy, loss, 0.0)
    return Trial(number, "agent", 0, TrialState.COMPLETE, policy, evaluation, Cost(latency_ms=latency_ms), reward)


def latency(ratio: float) -> PairedLatency:
    return PairedLatency(2.0, 2.0, 2.0, 2.0 * ratio, 2.0 * ratio, 2.0 * ratio, ratio, ratio, ratio, rounds=9)


def test_the_worst_by_hand() -> None:
    assert sorted([2.0, math.nan, 1.0, math.inf], key=at_worst)[:2] == [1.0, 2.0]
    assert max([math.nan, 1.0, -math.inf], key=lambda value: at_worst(value, -math.inf)) == 1.0
    assert at_worst(-math.inf) == -math.inf


@pytest.mark.parametrize("bad", BAD)
def test_what_a_layer_reads_is_finite_or_the_layer_is_named(bad: float) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.ones(6, 2)
    traced = trace(model, inputs[:1])
    inputs[4, 1] = bad
    with pytest.raises(BadInputError, match="what layer '2' reads is not finite on the calibration data"):
        gather_inputs(model, traced, HeldBatches.of(inputs, None, 3))


@pytest.mark.parametrize("bad", BAD)
def test_a_calibration_that_predicts_no_number_is_never_the_best(bad: float) -> None:
    nodes = NodeCalibration(1.0, 0.0)
    worst, best = Calibration(nodes, residuals=(0.0, bad)), Calibration(nodes, residuals=(0.5, 0.5))
    assert min([worst, best], key=_error) is min([best, worst], key=_error) is best


@pytest.mark.parametrize("bad", BAD)
def test_a_finalist_without_a_latency_is_never_chosen(bad: float) -> None:
    good = Finalist(trial(1, 0.5), latency(0.9), 1.8)
    unmeasured = Finalist(trial(0, 0.9), latency(bad), latency_overshoot(LATENCY, latency(bad)))
    for order in ([unmeasured, good], [good, unmeasured]):
        assert choose(order) is good
    within = [Finalist(trial(2, math.nan), latency(0.4), 0.8), Finalist(trial(3, 0.1), latency(0.4), 0.8)]
    assert choose(within).trial.number == choose(within[::-1]).trial.number == 3


def test_a_trial_without_a_reward_is_measured_last() -> None:
    trials = [trial(0, math.nan), trial(1, 0.2), trial(2, math.nan), trial(3, 0.4)]
    finalists = measure_finalists(trials, 2, None, None, lambda policies: [latency(0.4) for _ in policies])
    assert [finalist.trial.number for finalist in finalists] == [3, 1]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["hard_constraint", "mnasnet", "mnasnet_hard"])
def test_a_cost_that_is_not_a_number_is_never_within_the_budget(name: str, bad: float) -> None:
    context = RewardContext(Cost(macs=100.0), 0.9, Budget({"macs": 50.0}))
    evaluation = Evaluation(0.9, 0.1, 0.0)
    within = REWARDS[name](evaluation, Cost(macs=50.0), context)
    assert not REWARDS[name](evaluation, Cost(macs=bad), context) >= within


@pytest.mark.parametrize("bad", BAD)
def test_accuracy_or_loss_that_is_not_a_number_is_worth_least(bad: float) -> None:
    poor = trial(0, 0.0, accuracy=0.01, loss=9.0)
    for broken in (trial(1, 0.0, accuracy=bad), trial(2, 0.0, loss=bad)):
        assert _worth(broken, ACCURACY) < _worth(poor, ACCURACY)
        worths = [_worth(each, ACCURACY) for each in (broken, poor)]
        assert max(worths) == max(reversed(worths)) == worths[1]


class Priced:
    """A cost of the user's own."""

    name, constant = "own", 0.0

    def __init__(self, value: float) -> None:
        self.value = value

    def layer_cost(self, layer: object) -> float:
        del layer
        return self.value


@pytest.mark.parametrize("bad", [*BAD, -math.inf])
def test_a_price_that_is_not_a_number_is_refused_by_name(resnet20_network, bad: float) -> None:
    grid = CostGrid(resnet20_network, [Priced(bad)])
    with pytest.raises(BadInputError, match=r"cost own: the model prices a policy at .*, must be finite"):
        grid.cost(resnet20_network.dense)
    with pytest.raises(BadInputError, match="cost own"):
        grid.price_layers(resnet20_network.kept_array(resnet20_network.dense)[None, :])


@pytest.mark.parametrize("bad", BAD)
def test_limits_and_budgets_refuse_it(bad: float) -> None:
    refusals: list[Callable[[], object]] = [
        lambda: Limit("macs", bad, False, "budget.macs"),
        lambda: Limit("macs", bad, True, "budget.macs"),
        lambda: Limit.parse("macs", str(bad), "budget.macs"),
        lambda: Budget({"macs": bad}),
    ]
    for refused in refusals:
        with pytest.raises(BadInputError):
            refused()
    with pytest.raises(BadInputError):
        Limit("macs", 5.0, False, "budget.macs").resolve(math.nan)


def test_pareto_fronts_refuse_nan_and_know_infinity() -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated(np.array([[math.nan, 1.0], [1.0, 1.0]]))
    assert non_dominated(np.array([[math.inf, 1.0], [1.0, 1.0]])).tolist() == [False, True]


@pytest.mark.parametrize("bad", BAD)
def test_measured_rounds_refuse_it(bad: float) -> None:
    samples = np.array([1.0, bad, 1.0])
    for pair in ((samples, np.ones(3)), (np.ones(3), samples)):
        with pytest.raises(BadInputError, match="finite milliseconds"):
            paired_latency(*pair, np.random.default_rng(0))


def test_accuracy_counts_a_nan_as_wrong() -> None:
    logits = torch.tensor([[math.nan, 0.0], [1.0, math.nan], [2.0, 1.0], [math.inf, 0.0]])
    right, known = CLASS_IDS.right(logits, torch.zeros(4, dtype=torch.long))
    assert right.ravel().tolist() == [0.0, 0.0, 1.0, 1.0]
    assert known.all()
    cosines = Embedding().sample_values(logits[:1], torch.ones(1, 2))
    assert cosines is not None
    assert cosines.isnan().all()


@pytest.mark.parametrize("change_low", [math.nan, None, -math.inf])
def test_accuracy_is_not_kept_by_a_bound_that_is_no_number(change_low: float | None) -> None:
    assert not _keeps(Evaluation(0.9, 0.1, 0.0, change_low), 0.5)


@pytest.mark.parametrize("accuracy", [math.nan, 0.26])
def test_a_network_whose_accuracy_is_no_number_guesses(accuracy: float) -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(100, 2), torch.zeros(100, dtype=torch.long))
    splits = DataSplits(data, data, data, data)
    assert chance_warning(nn.Linear(2, 4), splits, Evaluation(accuracy, 1.0, 0.0), CLASS_IDS) is not None
    assert chance_warning(nn.Linear(2, 4), splits, Evaluation(0.5, 1.0, 0.0), CLASS_IDS) is None


@pytest.mark.parametrize("bad", BAD)
def test_parity_is_never_nan(bad: float) -> None:
    model = nn.Linear(2, 2)
    broken = nn.Linear(2, 2)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.bias[0] = bad
    assert compare(model, broken, torch.ones(3, 2)).max_abs == math.inf


@pytest.mark.parametrize("bad", [*BAD, -math.inf])
def test_errors_of_a_table_are_never_within_a_bound_where_a_prediction_is_no_number(bad: float) -> None:
    errors = accuracy(np.array([1.0, bad, 3.0]), [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)])
    assert errors.within_5 == errors.within_10 == pytest.approx(2 / 3)
    assert errors.mape is errors.worst is errors.bias is None  # not known


class Root(nn.Module):
    """Its loss is finite; the gradient of a root is not at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (0.0 * self.layer(x)).sqrt()


def test_a_short_training_gives_no_scores_that_are_no_numbers() -> None:
    targets = torch.zeros(4, dtype=torch.long)
    for model, inputs, words in (
        (nn.Linear(2, 3), torch.full((4, 2), math.nan), "the loss is nan in step 0"),
        (nn.Linear(2, 3), torch.full((4, 2), math.inf), "the loss is nan in step 0"),
        (Root(), torch.ones(4, 2), "the gradients of layer.weight"),
    ):
        parameters = dict(model.named_parameters())
        with pytest.raises(BadInputError, match=words):
            movement_scores(model, parameters, HeldBatches.of(inputs, targets, 4), CLASS_IDS, ShortTraining(steps=1))


@pytest.mark.parametrize("bad", [*BAD, -math.inf])
def test_the_best_reward_so_far_leaves_out_what_is_no_number(bad: float) -> None:
    rows = pd.DataFrame({"state": "complete", "reward": [bad, 0.1, bad, 0.2, bad]})
    np.testing.assert_array_equal(_best_so_far(rows), [math.nan, 0.1, 0.1, 0.2, 0.2])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [*BAD, -math.inf])
def test_pictures_of_layers_are_drawn_whatever_is_no_number(tmp_path: Path, bad: float) -> None:
    rows = [("conv1", 8, bad, bad, "recovered"), ("conv1", 16, 0.1, 0.98, "recovered"), ("conv2", 8, bad, bad, "bare")]
    joint = [(bad, 1.0, PruningPolicy({"a": 1})), (1.0, bad, PruningPolicy({"a": 2}))]
    files = {**write_curves(rows, tmp_path), **write_additivity(joint, bad, tmp_path)}
    for name in ("svg", "additivity_svg"):
        text = " ".join(ElementTree.parse(files[name]).getroot().itertext())
        assert not re.search(r"\b(nan|inf)\b", text)
