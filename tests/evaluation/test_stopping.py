"""Evaluations that stop early: bounds worked by hand, how often they are wrong, and what is recorded."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.metric import ACCURACY, METRICS
from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation, Incumbent
from amcsearch.evaluation.stopping import Judge, attainable
from amcsearch.graph import Batches, HeldBatches
from amcsearch.training import CLASS_IDS, Task, evaluate
from amcsearch.training.tasks.class_ids import LanguageModelling, language_modelling
from amcsearch.training.tasks.regression import regression

BEST, OTHER = PruningPolicy({"g": 4}), PruningPolicy({"g": 2})
SAMPLES, SIZE = 512, 64
LABELS = torch.arange(SAMPLES) % 4


def classifier(right: np.ndarray) -> nn.Module:
    """A network that is right on the samples of that mask (N,): sample numbers to logits."""
    shifted = torch.where(torch.as_tensor(right), LABELS, (LABELS + 1) % 4)
    return nn.Sequential(nn.Embedding.from_pretrained(4.0 * nn.functional.one_hot(shifted, 4).float()))


def judge_of(model: nn.Module, task: Task = CLASS_IDS, targets: torch.Tensor = LABELS) -> tuple[Judge, Batches]:
    search = HeldBatches.of(torch.arange(SAMPLES), targets, SIZE)
    return Judge(model, search, task, 0.95), search


def mask(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(SAMPLES) < share


def test_an_interval_of_squared_errors_by_hand() -> None:
    # gains are -1 and -3: mean -2, deviation √2 over √2 samples; half of the four are left, the root of which counts
    estimate, best = attainable(np.array([2.0, 4.0]), np.ones(4), 0.95, METRICS["mse"])
    assert estimate == 3.0
    assert best == pytest.approx(3.0 - NormalDist().inv_cdf(0.95) / math.sqrt(2.0))


def test_what_is_left_of_a_share_is_certain() -> None:
    # all four wrong where the incumbent was right: the other four may still be right, whatever Tango says
    estimate, best = attainable(np.zeros(4), np.ones(8), 0.999, ACCURACY)
    assert (estimate, best) == (0.0, 0.5)
    # the incumbent is wrong everywhere else: 0.5 - 1 is no accuracy
    assert attainable(np.zeros(4), np.repeat([1.0, 0.0], 4), 0.95, ACCURACY)[0] == 0.0


def test_no_sample_left_leaves_no_doubt() -> None:
    values, reference = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
    assert attainable(values, reference, 0.95, ACCURACY) == (0.75, 0.75)


@pytest.mark.parametrize("outcomes", [True, False])
def test_a_better_policy_stops_as_rarely_as_the_confidence_says(outcomes: bool) -> None:
    """Policies better than the incumbent by one part in a hundred: at most 5 % fall below it at any look."""
    rng, wrong, metric = np.random.default_rng(1), 0, ACCURACY if outcomes else METRICS["mse"]
    for _ in range(400):
        if outcomes:
            reference, values = (rng.random(256) < share for share in (0.80, 0.80))
            reference, values = reference.astype(float), values.astype(float)
        else:
            reference, values = rng.chisquare(2, 256), rng.chisquare(2, 256)
        sign = metric.gain(1.0, 0.0)
        if sign * values.mean() <= sign * reference.mean():
            reference, values = values, reference
        to_beat = float(reference.mean())
        looks = (attainable(values[:n], reference, 1.0 - 0.05 / 7, metric)[1] for n in range(32, 256, 32))
        wrong += any(metric.gain(best, to_beat) <= 0.0 for best in looks) and values.mean() != reference.mean()
    assert wrong <= 0.05 * 400


def test_one_that_cannot_win_stops_with_its_samples_and_bound() -> None:
    best, worse = mask(0.95), mask(0.5, 1)
    judge, search = judge_of(classifier(best))
    models = {BEST: classifier(best), OTHER: classifier(worse)}
    whole = judge.evaluate(BEST, None, models.__getitem__)
    assert whole.stopped_after is None
    assert whole.metric == evaluate(models[BEST], search)[1] == best.mean()
    stopped = judge.evaluate(OTHER, Incumbent(BEST, whole.metric), models.__getitem__)
    assert stopped.stopped_after == SIZE
    first = np.random.default_rng(0).permutation(SAMPLES)[:SIZE]
    assert stopped.metric == pytest.approx(best.mean() + worse[first].mean() - best[first].mean())
    assert stopped.metric_bound is not None
    assert stopped.metric < stopped.metric_bound <= whole.metric
    assert stopped.loss == pytest.approx(evaluate(models[OTHER], search.chosen(first.tolist()))[0], rel=1e-6)


def test_another_process_that_has_not_evaluated_the_incumbent_judges_alike() -> None:
    models = {BEST: classifier(mask(0.95)), OTHER: classifier(mask(0.5, 1))}
    here, _ = judge_of(models[BEST])
    incumbent = Incumbent(BEST, here.evaluate(BEST, None, models.__getitem__).metric)
    there, _ = judge_of(models[BEST])
    first, second = (str(judge.evaluate(OTHER, incumbent, models.__getitem__)) for judge in (here, there))
    assert first == second


@pytest.mark.parametrize(("share", "to_beat"), [(0.97, 0.95), (0.95, 0.5)])
def test_one_that_can_win_goes_to_the_end(share: float, to_beat: float) -> None:
    models = {BEST: classifier(mask(0.95)), OTHER: classifier(mask(share))}
    judge, search = judge_of(models[BEST])
    evaluation = judge.evaluate(OTHER, Incumbent(BEST, to_beat), models.__getitem__)
    assert evaluation.stopped_after is None
    assert (evaluation.loss, evaluation.metric) == pytest.approx(evaluate(models[OTHER], search), rel=1e-6)


def test_a_squared_error_stops_upwards() -> None:
    targets = torch.randn(SAMPLES, 1, generator=torch.Generator().manual_seed(0))
    near, far = (nn.Embedding.from_pretrained(targets + error) for error in (0.1, 1.0))
    judge, _ = judge_of(near, regression(), targets)
    models = {BEST: near, OTHER: far}
    stopped = judge.evaluate(OTHER, Incumbent(BEST, 0.01), models.__getitem__)
    assert stopped.stopped_after == SIZE
    assert stopped.metric == pytest.approx(1.0, rel=1e-5)
    assert judge.evaluate(BEST, Incumbent(OTHER, 1.0), models.__getitem__).stopped_after is None


class Unsplit(LanguageModelling):
    """Next tokens, without a value for each sample."""

    def sample_values(self, output: object, targets: object) -> None:
        return None


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Unsplit(), "accuracy is no mean over samples"),
        (language_modelling(), r"accuracy is 0\.\d+ and its mean over samples 0\.\d+, as where"),
    ],
)
def test_a_metric_that_is_no_plain_mean_over_samples_is_refused(task: Task, message: str) -> None:
    ids = torch.arange(24).reshape(6, 4) % 5
    model = nn.Embedding.from_pretrained(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))
    uneven = ids.clone()
    uneven[0, 1:] = -100
    with pytest.raises(BadInputError, match=message):
        Judge(model, HeldBatches.of(ids, uneven, 2), task, 0.95)


def test_a_network_of_broken_numbers_never_stops() -> None:
    targets = torch.zeros(SAMPLES, 1)
    broken = nn.Embedding.from_pretrained(torch.full((SAMPLES, 1), math.nan))
    judge, _ = judge_of(nn.Embedding.from_pretrained(targets), regression(), targets)
    models = {BEST: nn.Embedding.from_pretrained(targets + 1.0), OTHER: broken}
    evaluation = judge.evaluate(OTHER, Incumbent(BEST, 1.0), models.__getitem__)
    assert isinstance(evaluation, Evaluation)
    assert math.isnan(evaluation.loss)
