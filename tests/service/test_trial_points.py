"""Trials as points: the front, the cells of many, the agents of a job, and what is drawn of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core import Cost, Evaluation, LayerKind, LayerSpec, Metric, PruningPolicy, Trial, TrialState
from amcsearch.reporting import LayerCurve
from amcsearch.search.pareto import non_dominated
from amcsearch.service.drawings import Scale, Tick, front_drawing, layer_drawing
from amcsearch.service.records import BestSoFar
from amcsearch.service.trial_points import MOST_POINTS, AgentPoints, TrialPoints

ACCURACY, LOSS = Metric("accuracy", "%", True), Metric("error", "K", False)


def trial(
    cost: float, metric: float, state: str = "complete", agent: str = "ddpg", seed: int = 0, of=ACCURACY
) -> Trial:
    evaluation = Evaluation(metric, 0.1, 0.0)
    return Trial(0, agent, seed, TrialState(state), PruningPolicy({"a": 1}), evaluation, Cost(macs=cost), 0.0, of)


def written(folder: Path, *trials: Trial, limit: float = 50.0) -> tuple[AgentPoints, ...]:
    points = TrialPoints()
    points.network(Cost(macs=100.0, params=3.0), {"macs": limit})
    for each in trials:
        points.add(each)
    points.write(folder)
    return TrialPoints.read(folder)


def test_points_are_feasible_or_over_the_budget_and_failures_only_count(tmp_path: Path) -> None:
    (points,) = written(
        tmp_path,
        *(trial(30, 0.7), trial(20, 0.5), trial(40, 0.6), trial(60, 0.9, "probe"), trial(10, 0.1, "failed")),
        *(trial(20, 0.4), trial(45, 0.8)),
    )
    assert points.feasible == ((30, 0.7), (20, 0.5), (40, 0.6), (20, 0.4), (45, 0.8))
    assert points.over == ((60, 0.9),)
    assert points.front == ((20, 0.5), (30, 0.7), (45, 0.8))
    assert (points.cost, points.limit, points.dense, points.count) == ("macs", 50.0, 100.0, 7)


def test_the_first_agent_and_the_one_that_runs_are_kept(tmp_path: Path) -> None:
    agents = written(tmp_path, trial(1, 0.1), trial(2, 0.2, agent="a"), trial(3, 0.3, agent="a", seed=1))
    assert [(each.agent, each.seed, each.count) for each in agents] == [("ddpg", 0, 1), ("a", 1, 1)]


@pytest.mark.parametrize("text", ["", "{}", '[{"agent": "a"}]', "[1]", "\\udc80"])
def test_a_file_that_cannot_be_read_is_no_points(tmp_path: Path, text: str) -> None:
    assert TrialPoints.read(tmp_path) == ()
    (tmp_path / "points.json").write_text(text)
    assert TrialPoints.read(tmp_path) == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=30), st.booleans())
def test_the_front_is_what_nothing_dominates(values: list[tuple[int, int]], is_higher_better: bool) -> None:
    points = TrialPoints()
    for cost, metric in values:
        points.add(trial(cost, metric, of=ACCURACY if is_higher_better else LOSS))
    assert points._first is not None
    document = points._first.document({}, {})
    array = np.array([(cost, -metric if is_higher_better else metric) for cost, metric in values], dtype=float)
    expected = {values[i] for i in np.flatnonzero(non_dominated(array))}
    assert list(document.front) == sorted(expected)


@pytest.mark.parametrize("is_flat", [False, True])
def test_many_trials_take_the_space_of_few_and_keep_their_front(tmp_path: Path, is_flat: bool) -> None:
    chance = np.random.default_rng(0)
    costs = (
        np.concatenate([np.full(1500, 7.0), chance.uniform(1, 1e6, 4500)]) if is_flat else chance.uniform(1, 9, 6000)
    )
    trials = [trial(c, m, "complete" if m < 0.9 else "probe") for c, m in zip(costs, chance.random(6000), strict=True)]
    (points,) = written(tmp_path, *trials)
    assert points.count == 6000
    assert 100 < len(points.feasible) + len(points.over) <= MOST_POINTS
    exact = {(t.cost["macs"], t.evaluation.metric) for t in trials}
    assert set(points.front) <= exact
    assert (tmp_path / "points.json").stat().st_size < 100_000
    shown = np.array(points.feasible + points.over)
    assert np.ptp(shown[:, 0]) == pytest.approx(np.ptp(costs), rel=0.1)


def test_a_scale_has_round_ticks() -> None:
    scale = Scale(0.0, 10.0, 100.0, 200.0)
    assert scale.ticks(lambda value: f"{value:g}") == tuple(Tick(100.0 + 20 * i, f"{2 * i}") for i in range(6))
    assert [tick.text for tick in scale.ticks(lambda value: f"{value / 100:.1f}")] == ["0.0", "0.1"]
    one = Scale.around([5.0, 5.0], 0.0, 1.0)
    assert (one.low, one.high) == (4.8, 5.2)


def test_a_drawing_marks_the_best_the_front_and_the_budget(tmp_path: Path) -> None:
    (points,) = written(tmp_path, trial(20, 0.5), trial(40, 0.7), trial(30, 0.4), trial(100, 0.9, "probe"), limit=60.0)
    record = json.loads((tmp_path / "points.json").read_text())[0]["judged_by"]
    best = BestSoFar.from_json(
        {"trial": 1, "metric": 0.7, "judged_by": record, "costs": {"macs": 40}, "policy": {}}, ""
    )
    drawing = front_drawing(points, best)
    # 20 to 100 with 4 % around: 16.8 to 103.2 on 64 to 628; 0.4 to 0.9 as 0.38 to 0.92 on 276 to 14
    assert drawing.knees == ((84.9, 217.8), (215.4, 120.7))
    assert drawing.front == "M 84.9 217.8 L 215.4 217.8 L 215.4 120.7"
    assert drawing.best == (215.4, 120.7)
    assert drawing.limit == 346.0
    assert drawing.over == "M605.1 23.7h4"
    assert drawing.rows == (("20", "50.00 %"), ("40", "70.00 %"))
    assert (
        drawing.description
        == "4 trials of ddpg, accuracy against MACs; the front goes from 50.00 % at 20 to 70.00 % at 40"
    )
    assert front_drawing(points, None).best is None


def test_a_layer_marks_its_cliffs_and_names_what_is_better() -> None:
    layer = LayerSpec("a", LayerKind.LINEAR, 4, 4)
    curve = LayerCurve(layer, np.arange(1, 5), np.array([1.0, 3.0, 2.0, 2.5]), np.array([1, 3]))
    drawing = layer_drawing(curve, 2)
    # 4 channels on 58 to 310; 3 ms and 5 % more as 152 to 10
    assert drawing.curve == "M184.0 16.8L310.0 39.3"
    assert drawing.measured == "M184.0 152v5M310.0 152v5"
    assert drawing.cliffs == "M184.0 16.8h0"
    assert drawing.rows == (("2", "3", "3", "2", "50%"),)
    assert drawing.description == "linear 4→ on 1x1: 3 ms at the most, 1 of 4 widths are cliffs"
    assert drawing.others.count("h0") == 4
