"""What progress says of the best trial so far."""

import pytest

from amcsearch.core import Cost, Evaluation, PruningPolicy, Trial, TrialState
from amcsearch.reporting import ProgressBar


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        ({"macs": 2e6, "latency_ms": 0.01237}, "best 0.0124 ms accuracy 0.9000"),  # 0.012 for all, to three decimals
        ({"macs": 2e6, "latency_ms": 12.345}, "best 12.3 ms accuracy 0.9000"),
        ({"macs": 2e6}, "best 2e+06 MACs accuracy 0.9000"),
    ],
)
def test_the_best_trial_has_three_digits_of_latency(
    cost: dict[str, float], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(
        0, "uniform", 0, TrialState.COMPLETE, PruningPolicy({"g": 1}), Evaluation(0.9, 0.1, 0.0), Cost(cost), 0.9
    )
    ProgressBar().trial(trial, trial, 1, 1)
    assert words in capsys.readouterr().err
