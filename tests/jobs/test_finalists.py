"""Choosing by measurement, with measurements made up by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from amcsearch.config import Config, FinetuneConfig
from amcsearch.core.cost import Cost
from amcsearch.core.errors import BadInputError
from amcsearch.core.limit import Limit
from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation, Trial, TrialState
from amcsearch.jobs import delivered_files, delivery, finalist_training
from amcsearch.jobs.delivery import (
    Exports,
    Finalist,
    choose,
    latency_overshoot,
    measure_finalists,
)
from amcsearch.jobs.finalist_training import train_finalists, training_rounds
from amcsearch.jobs.workload import CONFIGURED
from amcsearch.runtime.paired_latency import PairedLatency
from amcsearch.training import StateFile, StateStore

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


def test_where_no_finalist_has_a_metric_the_first_finalist_is_chosen() -> None:
    without = [Finalist(trial(i, 0.9 - i / 10, 1.0), latency(1.0), 0.9, None, -math.inf) for i in range(2)]
    assert choose(without).trial.number == 0


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
    rounds = training_rounds(config, CONFIGURED, 3)
    assert [each.training.epochs for each in rounds] == ([] if short is None else [short])
    assert all(each.training.learning_rate == 0.03 for each in rounds)


def test_a_training_of_the_users_own_is_not_made_shorter() -> None:
    config = Config.model_validate(
        {
            "model": {"factory": "somewhere:network"},
            "data": {"factory": "somewhere:data"},
            "recovery": {"finetune": {"factory": "json:dumps"}},
        }
    )
    assert training_rounds(config, CONFIGURED, 8) == []


def trainable(epochs: int, finalist_epochs: int | None = 1) -> Config:
    return Config.model_validate(
        {
            "model": {"factory": "somewhere:network"},
            "data": {"factory": "somewhere:data"},
            "recovery": {"finetune": {"epochs": epochs}},
            "search": {"finalist_epochs": finalist_epochs},
        }
    )


@pytest.mark.parametrize(
    ("finalists", "epochs", "rounds"),
    [
        (8, 20, [(8, 1), (4, 2), (2, 4)]),
        (5, 20, [(5, 1), (3, 2)]),
        (8, 3, [(8, 1), (4, 2)]),  # four epochs would be more than the whole fine-tuning
        (3, 20, [(3, 1)]),
        (1, 20, []),
    ],
)
def test_the_better_half_of_four_or_more_goes_on_twice_as_long(
    finalists: int, epochs: int, rounds: list[tuple[int, int]]
) -> None:
    made = training_rounds(trainable(epochs), CONFIGURED, finalists)
    assert [(each.finalists, each.training.epochs) for each in made] == rounds
    assert sum(each.epochs for each in made) == sum(count * length for count, length in rounds)


def test_a_finalist_that_did_not_go_on_is_not_chosen_by_what_fewer_epochs_gave() -> None:
    def trained(number: int, worth: float, epochs: int) -> Finalist:
        evaluation = Evaluation(worth, 0.1, 0.0) if worth > -math.inf else None
        return Finalist(trial(number, 0.5, 1.0), latency(1.0), 0.9, evaluation, worth, epochs)

    early, late = trained(0, 0.99, 1), trained(1, 0.98, 2)
    assert choose([early, late]) is late
    assert choose([early, trained(1, -math.inf, 2)]) is early


class Trainings:
    """Stands in for fine-tuning: the metric of a policy after so many epochs, by hand; dies at the ``dies_at``-th."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, metrics: dict[tuple[int, int], float], dies_at: int = 0
    ) -> None:
        self.metrics, self.dies_at, self.asked = metrics, dies_at, list[tuple[int, int]]()
        monkeypatch.setattr(finalist_training, "fine_tune", self.fine_tune)
        monkeypatch.setattr(finalist_training, "judged_batches", lambda *_: None)
        monkeypatch.setattr(finalist_training, "evaluate", lambda model, *_: (0.1, model.weight.item()))

    def fine_tune(self, config: Config, training: FinetuneConfig, workload: object, model: nn.Linear, observer: object,
                  *, store: StateStore, given: object) -> None:  # fmt: skip
        number = round(model.weight.item())
        began = store.load() or {"epoch": 0}
        self.asked.append((number, training.epochs - began["epoch"]))
        if len(self.asked) == self.dies_at:
            store.save({"epoch": 1})
            raise KeyboardInterrupt
        value = self.metrics[number, training.epochs]
        model.weight.data.fill_(value)


class InFloat32:
    """Exports of a job that delivers what torch computes."""

    def pruned(self, policy: PruningPolicy) -> nn.Linear:
        model = nn.Linear(1, 1)
        model.weight.data.fill_(float(policy["g"] - 1))
        return model

    def as_delivered(self, model: nn.Module) -> nn.Module:
        return model


class Quantised(InFloat32):
    """Exports of a job whose delivered files turn the order round: their metric is 1 minus torch's."""

    def as_delivered(self, model: nn.Module) -> nn.Module:
        delivered = nn.Linear(1, 1)
        delivered.weight.data = 1.0 - model.weight.data
        return delivered


def trained_in(folder: Path, told: list[str], exports: InFloat32 | None = None) -> list[Finalist]:
    finalists = [Finalist(trial(n, 0.9 - n / 100, 1.0), None, 0.9) for n in range(4)]
    finalists.append(Finalist(trial(4, 0.99, 1.0), None, 1.2))  # over the limit
    job = SimpleNamespace(config=trainable(20), given=CONFIGURED, workload=SimpleNamespace(task=None))
    observer = SimpleNamespace(warn=told.append)
    reward = lambda evaluation, _: evaluation.metric - 1.0  # noqa: E731
    return train_finalists(
        job,  # type: ignore[arg-type]
        finalists,
        exports or InFloat32(),  # type: ignore[arg-type]
        reward,
        observer,  # type: ignore[arg-type]
        StateFile(folder / "state.pt"),
    )


METRICS = {(0, 1): 0.5, (1, 1): 0.8, (2, 1): math.nan, (3, 1): 0.75, (1, 2): 0.8125, (3, 2): 0.875}


def test_rounds_of_short_trainings_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainings, told = Trainings(monkeypatch, METRICS), list[str]()
    finalists = trained_in(tmp_path, told)
    assert trainings.asked == [(0, 1), (1, 1), (2, 1), (3, 1), (1, 2), (3, 2)]
    assert [each.trained_epochs for each in finalists] == [1, 2, 1, 2, None]
    assert [each.trained_reward for each in finalists] == [-0.5, 0.8125 - 1.0, -math.inf, -0.125, None]
    assert choose(finalists).trial.number == 3
    assert told == []


def test_finalists_are_judged_as_they_would_be_delivered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metrics = {(0, 1): 0.5, (1, 1): 0.75, (2, 1): 0.25, (3, 1): 0.875, (2, 2): 0.25, (0, 2): 0.125}
    Trainings(monkeypatch, metrics)
    finalists = trained_in(tmp_path, [], Quantised())
    assert [each.trained_reward for each in finalists] == [-0.125, -0.75, -0.25, -0.875, None]
    assert choose(finalists).trial.number == 0  # the best of those that went on: 1 - 0.125


def test_without_a_training_quantised_finalists_are_judged_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    section = {"recovery": {"finetune": None}, "device": {"dtype": "int8"}}
    config = Config.model_validate({**trainable(1).model_dump(), **section})
    (each,) = training_rounds(config, CONFIGURED, 3)
    assert (each.finalists, each.training, each.epochs) == (3, None, 0)
    in_float32 = Config.model_validate({**trainable(1).model_dump(), "recovery": {"finetune": None}})
    assert training_rounds(in_float32, CONFIGURED, 3) == []


class Writes:
    """Stands in for a runtime: counts the networks that it wrote."""

    def __init__(self) -> None:
        self.written: list[nn.Module] = []

    def exported(self, model: nn.Module, *_: object) -> bytes:
        self.written.append(model)
        return b"float32"

    def load(self, file: bytes) -> bytes:
        return file


def test_a_quantised_finalist_that_is_not_trained_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config, policy = SimpleNamespace(device=SimpleNamespace(dtype="int8")), PruningPolicy({"g": 1})
    splits = SimpleNamespace(calibration=[(torch.zeros(1), 0)])
    workload = SimpleNamespace(example=torch.zeros(1, 1), splits=splits)
    evaluator = SimpleNamespace(pruned=lambda _: nn.Linear(1, 1))
    exports = Exports(SimpleNamespace(config=config, workload=workload, evaluator=evaluator))  # type: ignore[arg-type]
    runtime, read = Writes(), list[bytes]()
    exports.runtime = runtime  # type: ignore[assignment]
    monkeypatch.setattr(delivered_files, "onnx_settings", lambda _: None)
    monkeypatch.setattr(delivered_files, "converted", lambda *_: b"int8")
    monkeypatch.setattr(delivery, "FileModule", lambda file, _: read.append(file))
    assert exports.delivered(policy) == b"int8"
    exports.as_delivered(exports.pruned(policy))
    assert runtime.written == [exports.pruned(policy)]
    assert read == [b"int8"]
    exports.as_delivered(nn.Linear(1, 1))  # a trained copy is another network
    assert len(runtime.written) == 2


@pytest.mark.parametrize("dies_at", [1, 4, 5, 6])
def test_a_killed_training_of_finalists_goes_on_where_it_was(
    dies_at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unbroken = [(0, 1), (1, 1), (2, 1), (3, 1), (1, 2), (3, 2)]
    Trainings(monkeypatch, METRICS)
    (tmp_path / "whole").mkdir()
    whole = trained_in(tmp_path / "whole", [])
    broken = Trainings(monkeypatch, METRICS, dies_at)
    with pytest.raises(KeyboardInterrupt):
        trained_in(tmp_path, [])
    assert broken.asked == unbroken[:dies_at]
    resumed = Trainings(monkeypatch, METRICS)
    finalists = trained_in(tmp_path, [])
    number, epochs = unbroken[dies_at - 1]
    assert resumed.asked == [(number, epochs - 1), *unbroken[dies_at:]]
    assert [replace(each, trained=None) for each in finalists] == [replace(each, trained=None) for each in whole]
