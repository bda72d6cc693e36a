"""Choosing by measurement, with measurements made up by hand."""

import math
from collections.abc import Sequence

import pytest

from amcsearch.config import Config
from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.limit import Limit
from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation, Trial, TrialState
from amcsearch.jobs.delivery import (
    Finalist,
    choose,
    latency_overshoot,
    measure_finalists,
    short_training,
)
from amcsearch.jobs.workload import CONFIGURED
from amcsearch.runtime.paired_latency import PairedLatency

HALF = Limit("latency_ms", 0.5, True, "budget.latency_ms")


def trial(number: int, reward: float, latency_ms: float, state: TrialState = TrialState.COMPLETE) -> Trial:
    policy = PruningPolicy({"g": number + 1})
    return Trial(number, "agent", 0, state, policy, Evaluation(reward, 0.1, 0.0), Cost(latency_ms=latency_ms), reward)


def latency(pruned_ms: float, dense_ms: float = 2.0) -> PairedLatency:
    ratio = pruned_ms / dense_ms
    return PairedLatency(dense_ms, dense_ms, dense_ms, pruned_ms, pruned_ms, pruned_ms, ratio, ratio, ratio, rounds=9)


class Measured:
    """Measures a policy as ``factor`` times what was predicted, and remembers the rounds."""

    def __init__(self, trials: Sequence[Trial], factor: float) -> None:
        self.predicted = {t.policy: t.cost["latency_ms"] for t in trials}
        self.factor = factor
        self.rounds: list[list[int]] = []

    def __call__(self, policies: Sequence[PruningPolicy]) -> list[PairedLatency]:
        self.rounds.append([policy["g"] - 1 for policy in policies])
        return [latency(self.predicted[policy] * self.factor) for policy in policies]


def test_the_best_within_the_measured_limit_wins() -> None:
    trials = [trial(0, 0.9, 1.0), trial(1, 0.95, 0.99), trial(2, 0.8, 0.5)]
    measure = Measured(trials, 1.0)
    finalists = measure_finalists(trials, 2, HALF, 1.0, measure)
    assert measure.rounds == [[1, 0]]
    assert choose(finalists).trial.number == 1


def test_a_predictor_that_flatters_costs_one_more_round() -> None:
    trials = [trial(0, 0.9, 1.0), trial(1, 0.95, 0.99), trial(2, 0.8, 0.85), trial(3, 0.7, 0.4)]
    measure = Measured(trials, 1.15)
    finalists = measure_finalists(trials, 2, HALF, 1.0, measure)
    assert measure.rounds == [[1, 0], [2, 3]]
    assert choose(finalists).trial.number == 2


def test_where_none_is_within_the_closest_is_chosen() -> None:
    trials = [trial(0, 0.9, 1.0), trial(1, 0.95, 0.99)]
    finalists = measure_finalists(trials, 3, HALF, 1.0, Measured(trials, 2.0))
    assert choose(finalists).trial.number == 1
    assert choose(finalists).overshoot == pytest.approx(1.98)


def test_no_latency_limit_means_one_round_and_the_best_reward() -> None:
    trials = [trial(0, 0.9, 1.0), trial(1, 0.95, 5.0)]
    measure = Measured(trials, 3.0)
    assert choose(measure_finalists(trials, 1, None, None, measure)).trial.number == 1
    assert measure.rounds == [[1]]


def test_overshoot_by_hand() -> None:
    assert latency_overshoot(HALF, latency(1.0, dense_ms=2.0)) == pytest.approx(1.0)
    assert latency_overshoot(Limit("latency_ms", 0.8, False, "budget.latency_ms"), latency(1.0)) == pytest.approx(1.25)
    assert latency_overshoot(None, latency(1.0)) == 0.0


def test_failed_and_probed_trials_are_never_finalists() -> None:
    failed = trial(0, 0.99, 0.1, TrialState.FAILED)
    probed = trial(1, 0.99, 0.1, TrialState.PROBE)
    trials = [failed, probed, trial(2, 0.5, 0.1)]
    finalists = measure_finalists(trials, 3, None, None, Measured(trials, 1.0))
    assert [finalist.trial.number for finalist in finalists] == [2]
    with pytest.raises(BadInputError, match=r"no policy was evaluated with a finite loss"):
        measure_finalists([failed, probed], 3, None, None, Measured([failed, probed], 1.0))


def test_ties_prefer_the_smaller_measured_overshoot_only_when_none_is_within() -> None:
    inside = Finalist(trial(0, 0.9, 1.0), latency(1.0), 0.5)
    better = Finalist(trial(1, 0.95, 1.0), latency(1.0), 0.99)
    outside = Finalist(trial(2, 0.99, 1.0), latency(1.0), 1.01)
    assert choose([inside, better, outside]) is better


def test_a_measurement_that_decides_nothing_leaves_the_prediction() -> None:
    trials = [trial(0, 0.9, 1.0), trial(1, 0.95, 0.99), trial(2, 0.8, 0.5)]
    busy = PairedLatency(2.0, 1.0, 4.0, 2.5, 1.7, 4.0, 1.244, 0.870, 2.026, rounds=300)
    rounds: list[int] = []

    def measure(policies: Sequence[PruningPolicy]) -> list[PairedLatency]:
        rounds.append(len(policies))
        return [busy] * len(policies)

    finalists = measure_finalists(trials, 2, HALF, 1.0, measure)
    assert rounds == [2]  # nothing was learnt that would call for cheaper policies
    assert [finalist.overshoot for finalist in finalists] == [0.99, 1.0]
    assert choose(finalists).trial.number == 1


def test_what_a_short_training_is_worth_decides_among_those_within_the_limit() -> None:
    trials = [trial(0, 0.9, 1.0), trial(1, 0.95, 0.99), trial(2, 0.8, 0.5)]
    better, worse, over = (
        Finalist(t, latency(1.0), overshoot, Evaluation(0.0, 0.0, 0.0), worth)
        for t, overshoot, worth in zip(trials, (0.9, 0.99, 1.2), (0.97, 0.96, 0.99), strict=True)
    )
    assert choose([worse, better, over]) is better
    assert choose([Finalist(trials[1], latency(1.0), 0.9), Finalist(trials[0], latency(1.0), 0.9)]).trial.number == 1


def test_where_every_short_training_diverged_the_first_finalist_is_chosen() -> None:
    diverged = [Finalist(trial(i, 0.9 - i / 10, 1.0), latency(1.0), 0.9, None, -math.inf) for i in range(2)]
    assert choose(diverged).trial.number == 0


@pytest.mark.parametrize(
    ("epochs", "asked", "short"), [(20, None, 4), (3, None, 1), (20, 7, 7), (5, 9, 5), (20, 0, None), (0, None, None)]
)
def test_a_short_training_is_a_fifth_of_the_whole_or_what_was_asked(
    epochs: int, asked: int | None, short: int | None
) -> None:
    config = Config.model_validate(
        {
            "model": {"factory": "somewhere:network"},
            "data": {"factory": "somewhere:data"},
            "recovery": {"finetune": {"epochs": epochs, "learning_rate": 0.03}},
            "search": {"finalist_epochs": asked},
        }
    )
    training = short_training(config, CONFIGURED)
    assert (None if training is None else training.epochs) == short
    assert training is None or training.learning_rate == 0.03


def test_a_training_of_the_users_own_is_not_made_shorter() -> None:
    config = Config.model_validate(
        {
            "model": {"factory": "somewhere:network"},
            "data": {"factory": "somewhere:data"},
            "recovery": {"finetune": {"factory": "json:dumps"}},
        }
    )
    assert short_training(config, CONFIGURED) is None
