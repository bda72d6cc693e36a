"""The page of fronts: a picture a cost with the devices as series, and plain words where nothing was evaluated."""

import numpy as np
import pandas as pd

from amcsearch.core import PruningPolicy
from amcsearch.reporting import front_page
from amcsearch.runs import EvaluatedPolicy, FrontDevice, FrontResult, FrontSummary, MetricRecord

NAMES = ("edge & co", "server")


def front(is_evaluated: bool) -> FrontResult:
    devices = tuple(FrontDevice(name, name, None, 1, {"macs": 100.0, "mine": 2.0}, 0.1) for name in NAMES)
    policies = [PruningPolicy({"g": n}) for n in (1, 2, 4)]
    evaluated = tuple(
        EvaluatedPolicy(name, "macs", policies[i], 2.0 - i, 0.5 + 0.2 * i, 1.0, 0.45, 0.75)
        for i, name in enumerate(NAMES)
    )
    metric = MetricRecord("accuracy", "%", higher_is_better=True)
    summary = FrontSummary(
        *("net <1>", metric, 0.9, 100, "obc", devices, evaluated if is_evaluated else (), 0.8, ("odd <b>",), {})
    )
    errors = np.array([2.0, 1.0, 0.0])
    points = pd.concat(
        [
            pd.DataFrame(
                {
                    "device": name,
                    "along": along,
                    "error": errors,
                    "expected": summary.expected(errors),
                    "macs": [10.0, 40.0, 100.0],
                    "mine": [0.5, 1.0, 2.0],
                    "policy": [policy.to_json() for policy in policies],
                }
            )
            for name in NAMES
            for along in ("macs", "mine")
        ]
    )
    return FrontResult(summary, points, {"page": "/runs/it/report.html"})


def test_a_picture_a_cost_with_every_device_in_it() -> None:
    page = front_page(front(is_evaluated=True))
    assert page.count("<figure>") == 3  # trust, and one for each cost
    assert page.count("Accuracy against MACs") == 1
    assert "Accuracy against mine" in page
    assert page.count("edge &amp; co") >= 3
    assert "Evaluated: 2 policies of the fronts, removed, recovered" in page
    assert "Rank correlation of predicted error and what was lost: 0.80" in page
    assert "odd &lt;b&gt;" in page
    assert "net &lt;1&gt;" in page
    assert "amcsearch front it --budget macs=0.4x --device 'edge &amp; co'" in page.replace("&#x27;", "'")


def test_the_table_of_budgets_says_what_is_expected_and_what_is_out_of_reach() -> None:
    cells = front_page(front(is_evaluated=True)).split("What a budget leaves")[1]
    # 0.8x to 0.4x of macs: error 1; below that the cheapest, error 2
    assert cells.count("70.0\u00a0%") == 2 * (4 + 3)
    assert cells.count("50.0\u00a0%") == 2 * (2 + 2)
    assert cells.count("<td>–</td>") == 2


def test_without_evaluations_the_page_says_so_and_shows_errors() -> None:
    page = front_page(front(is_evaluated=False))
    assert "Predicted only: no policy was evaluated" in page
    assert "Predicted error against MACs" in page
    assert page.count("<figure>") == 2
