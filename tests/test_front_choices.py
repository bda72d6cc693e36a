"""The policy that a budget picks from stored fronts, and what is said of its metric: by hand, and as properties."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amcsearch.cli.text import choice_text
from amcsearch.core import BadInputError, InfeasibleBudgetError, PruningPolicy
from amcsearch.runs import (
    EvaluatedPolicy,
    FrontDevice,
    FrontFiles,
    FrontResult,
    FrontSummary,
    MetricRecord,
    RunFolder,
    TableErrors,
    TableSummary,
)

ACCURACY = MetricRecord("accuracy", "%", higher_is_better=True)
TABLE = TableSummary("b", "net", TableErrors(mape=0.02))


def evaluated(*pairs: tuple[float, float]) -> tuple[EvaluatedPolicy, ...]:
    return tuple(
        EvaluatedPolicy("a", "macs", PruningPolicy({"g": i + 1}), error, metric, 1.0, metric - 0.01, metric + 0.01)
        for i, (error, metric) in enumerate(pairs)
    )


def summary(policies: tuple[EvaluatedPolicy, ...] = (), metric: MetricRecord = ACCURACY, dense: float = 0.9):
    devices = (
        FrontDevice("a", "a", None, 1, {"macs": 100.0, "params": 40.0}, 0.1),
        FrontDevice("b", None, TABLE, 8, {"macs": 100.0, "latency_ms": 2.0}, 0.1),
    )
    return FrontSummary("net", metric, dense, 100, "obc", devices, policies, 0.9, (), {"fronts": 0.2})


def rows(*points: tuple[str, str, float, float, float, float, int]) -> pd.DataFrame:
    columns = ["device", "along", "error", "macs", "params", "latency_ms", "kept"]
    frame = pd.DataFrame(points, columns=columns)
    frame["policy"] = [PruningPolicy({"g": kept}).to_json() for kept in frame.pop("kept")]
    return frame.assign(expected=np.nan)


POINTS = rows(
    ("a", "macs", 3.0, 20.0, 30.0, np.nan, 1),
    ("a", "macs", 1.0, 50.0, 20.0, np.nan, 2),
    ("a", "macs", 0.0, 100.0, 40.0, np.nan, 4),
    ("a", "params", 2.0, 60.0, 10.0, np.nan, 3),
    ("b", "latency_ms", 0.5, 70.0, np.nan, 0.8, 3),
)


def test_the_policy_of_least_error_within_a_share_and_within_a_number() -> None:
    front = FrontResult(summary(), POINTS, {})
    choice = front.within({"macs": "0.5x"}, "a")
    assert (dict(choice.policy), choice.error, choice.limits) == ({"g": 2}, 1.0, {"macs": 50.0})
    assert choice.of_dense == {"macs": 0.5, "params": 0.5}
    assert dict(front.within({"macs": 49.0}, "a").policy) == {"g": 1}
    assert dict(front.within({"macs": "0.9x", "params": "0.25x"}, "a").policy) == {"g": 3}  # of another front
    of_table = front.within({"latency_ms": "0.4x"}, "b")
    assert (of_table.cost, of_table.table) == ({"macs": 70.0, "latency_ms": 0.8}, TABLE)


@pytest.mark.parametrize(
    ("budget", "device", "error", "words"),
    [
        ({"macs": "0.1x"}, "a", InfeasibleBudgetError, r"budget.macs = 0.1x is 10, the smallest .* 20 \(0.2x of dense"),
        ({"macs": "0.3x", "params": "0.3x"}, "a", InfeasibleBudgetError, "budget.params = 0.3x is 12, the smallest"),
        (
            {"latency_ms": "0.5x"},
            "a",
            BadInputError,
            "nothing predicts latency_ms on device a; choose from macs",
        ),
        ({"macs": "1.5x"}, "a", BadInputError, r"budget.macs = '1.5x', must be a share of dense .*\(0, 100\]"),
        ({"macs": 101}, "a", BadInputError, r"\(0, 100\], the dense network's macs"),
        ({}, "a", BadInputError, "no limit is given"),
        ({"macs": "0.5x"}, "c", BadInputError, "device 'c' is not in this front, which has a, b"),
        ({"macs": "0.5x"}, None, BadInputError, "none is named, and the front has a, b"),
    ],
)
def test_what_cannot_be_met_or_is_not_known_says_the_bound(budget, device, error, words) -> None:
    with pytest.raises(error, match=words):
        FrontResult(summary(), POINTS, {}).within(budget, device)


def test_by_hand_a_policy_of_no_use_does_not_widen_the_interval_of_one_that_is_nearly_dense() -> None:
    """Left out, 0.3 is expected at 0.865 and measured at 0.87; 0.4 at 0.87 - 0.77 · 0.1 / 9.7 and measured at 0.85.

    Units: sqrt(0.03 + 1 / 100) = 0.2 at 0.3, sqrt(0.06) at 0.4, and sqrt(0.015) at 0.05, where 0.895 is expected.
    """
    known = summary(evaluated((0.1, 0.89), (0.2, 0.88), (0.3, 0.87), (0.4, 0.85), (10.0, 0.1)))
    largest = (0.02 - 0.77 * 0.1 / 9.7) / math.sqrt(0.06)
    assert known.within(0.05) == known.confidence(0.05).within == pytest.approx(largest * math.sqrt(0.015))
    assert known.within(0.4) == pytest.approx(0.02 - 0.77 * 0.1 / 9.7)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(1, 100), st.floats(1, 40)), min_size=1, max_size=20),
    st.lists(st.floats(0.02, 1.0), min_size=2, max_size=2),
)
def test_a_policy_meets_its_budget_and_a_looser_budget_never_predicts_more_error(points, shares) -> None:
    frame = rows(*(("a", "macs", error, macs, params, np.nan, i + 1) for i, (error, macs, params) in enumerate(points)))
    front, errors = FrontResult(summary(), frame, {}), []
    for share in sorted(shares):
        try:
            choice = front.within({"macs": f"{share}x"}, "a")
        except InfeasibleBudgetError:
            assert frame["macs"].min() > share * 100.0
            errors.append(np.inf)
        else:
            assert choice.cost["macs"] <= choice.limits["macs"] * (1 + 1e-9)
            errors.append(choice.error)
    assert errors[1] <= errors[0]


def test_the_metric_is_interpolated_and_never_rises_with_the_error() -> None:
    told = summary(evaluated((1.0, 0.8), (2.0, 0.6), (3.0, 0.7), (4.0, 0.3)))
    # 0.6 and 0.7 are pooled to 0.65
    assert told.expected(np.array([0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0])) == pytest.approx(
        [0.9, 0.85, 0.8, 0.65, 0.65, 0.65, 0.475, 0.3]
    )
    assert np.isnan(told.expected(np.array([4.01])))[0]
    # left out: 0.9 → 0.65 gives 0.775 at 1; 0.8 → 0.7 gives 0.75 at 2; 0.6 → 0.3 gives 0.45 at 3; 4 has nothing beyond
    # in units of sqrt(0.11), sqrt(0.26) and sqrt(0.26), for 0.01 is one of the 100 samples
    assert told.within(3.0) == pytest.approx(0.25)
    sure = told.confidence(0.5)
    half = 0.25 * math.sqrt(0.06 / 0.26)
    assert (sure.expected, sure.within, sure.evaluated) == (pytest.approx(0.85), pytest.approx(half), 4)
    assert "85.00 % ± 12.01 points expected before fine-tuning, from 4 evaluated policies" in sure.text
    beyond = told.confidence(9.0)
    assert beyond.expected is None
    assert "beyond the largest that was evaluated, 4" in beyond.text


def test_a_metric_that_is_better_when_lower_rises_with_the_error() -> None:
    told = summary(evaluated((1.0, 2.0), (3.0, 6.0)), MetricRecord("mse", "", higher_is_better=False), dense=1.0)
    assert told.expected(np.array([0.5, 2.0])) == pytest.approx([1.5, 4.0])
    assert told.within(1.0) is None  # two policies are too few


def test_without_evaluations_it_is_predicted_only() -> None:
    choice = FrontResult(summary(), POINTS, {}).within({"macs": "0.5x"}, "a")
    assert choice.confidence.expected is None
    assert choice.confidence.text.startswith("predicted only: no policy of this front was evaluated")
    assert choice.measured is None


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1)), min_size=1, max_size=8))
def test_an_expected_metric_falls_and_stays_among_those_measured(pairs) -> None:
    told = summary(evaluated(*pairs))
    expected = told.expected(np.linspace(0.0, 5.0, 50))
    known = expected[~np.isnan(expected)]
    assert (np.diff(known) <= 1e-9).all()
    values = [0.9, *(metric for _, metric in pairs)]
    assert (known >= min(values) - 1e-9).all()
    assert (known <= max(values) + 1e-9).all()


def stored(folder: Path) -> Path:
    folder.mkdir()
    files = FrontFiles.of(RunFolder(folder))
    told = summary(evaluated((1.0, 0.8), (3.0, 0.7)))
    RunFolder(folder).write_json(files.front, told)
    POINTS.to_csv(files.points, index=False)
    return folder


def test_a_front_is_read_as_it_was_written_and_gives_a_policy_file(tmp_path: Path) -> None:
    front = FrontResult.open(stored(tmp_path / "run"))
    assert front.summary == summary(evaluated((1.0, 0.8), (3.0, 0.7)))
    choice = front.within({"macs": "0.5x"}, "a")
    assert PruningPolicy.read(choice.save(tmp_path / "p.json")) == choice.policy
    assert json.loads(json.dumps(choice.to_json()))["confidence"]["evaluated"] == 2


def test_costs_of_a_choice_have_their_units() -> None:
    dense = {"peak_memory_bytes": 2.0**20, "latency_ms": 0.25, "macs": 4e6}
    device = FrontDevice("a", None, None, 1, dense, 0.1)
    whole = replace(summary(), devices=(device,))
    choice = replace(
        FrontResult(summary(), POINTS, {}).within({"macs": "0.5x"}, "a"),
        cost={"peak_memory_bytes": 98304.0, "latency_ms": 0.0125, "macs": 1e6},
        of_dense={"peak_memory_bytes": 0.09375, "latency_ms": 0.05, "macs": 0.25},
        limits={"peak_memory_bytes": 98304.0, "latency_ms": 0.11},
    )
    lines = choice_text(choice, whole, Path("p.json")).splitlines()[2:5]
    assert [re.split("  +", line.strip()) for line in lines] == [
        ["peak_memory_bytes", "96.0 KiB", "0.094x", "96.0 KiB"],
        ["latency_ms", "0.0125 ms", "0.050x", "0.110 ms"],
        ["macs", "1.00 M", "0.250x"],
    ]


def test_a_front_is_asked_without_anything_heavy(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run")
    code = (
        "import sys; from amcsearch.cli.main import main; "
        f"code = main(['front', {str(folder)!r}, '--budget', 'macs=0.5x', '--device', 'a']); "
        "print(code, [m for m in ('torch', 'matplotlib', 'scipy', 'optuna', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert PruningPolicy.read(folder / "policy-a-macs-0.5x.json") == PruningPolicy({"g": 2})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("front.json", "{}", "front.json is damaged .*resume the run to make it again"),
        ("front.csv", "device,along\n", "front.csv"),
        ("front.csv", POINTS.assign(error="much").to_csv(index=False), "row 1: error = 'much', expected a number"),
        ("front.json", None, "is no folder of a finished front; make one, amcsearch front"),
    ],
)
def test_a_damaged_front_is_refused(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    folder = stored(tmp_path / "run")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(BadInputError, match=words):
        FrontResult.open(folder)
