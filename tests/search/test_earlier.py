"""Earlier studies in the same storage: what they evaluated teaches later ones of other budgets, and costs nothing."""

from pathlib import Path

import numpy as np
import pytest

from amcsearch.core import PruningPolicy
from amcsearch.search import AGENTS
from amcsearch.search.study import Study
from amcsearch.testing import MadeUpEvaluator, make_study


def study(storage: Path, agent: str, budget: str, evaluates: str = "same", trials: int = 8) -> Study:
    made = make_study(budget={"macs": budget})
    problem = (made.network, made.space, made.grid, made.feasible, MadeUpEvaluator(made.network))
    settings = {"seed": 0, "trials": trials, "storage": storage, "name": "made up"}
    reward = lambda evaluation, _: evaluation.metric  # noqa: E731
    return Study(*problem, reward, agent=agent, fingerprint=budget, evaluates=evaluates, **settings)


def policies(space: Study) -> list[PruningPolicy]:
    """Four within half of the MACs."""
    return [space.network.policy(row) for row in np.array([[2, 2, 2, 2], [3, 3, 3, 3], [2, 3, 4, 5], [4, 4, 8, 8]])]


def test_an_earlier_study_is_told_at_this_ones_costs_and_is_not_evaluated_again(tmp_path: Path) -> None:
    storage = tmp_path / "study.db"
    first = study(storage, "first", "0.5x")
    done = first.evaluate(policies(first))
    later = study(storage, "later", "0.4x")
    assert [trial.policy for trial in later.earlier] == [trial.policy for trial in done]
    assert [trial.evaluation for trial in later.earlier] == [trial.evaluation for trial in done]
    assert [trial.reward for trial in later.earlier] == [trial.reward for trial in done]
    evaluator = later._executor
    assert isinstance(evaluator, MadeUpEvaluator)
    (again, new) = later.evaluate([done[0].policy, PruningPolicy({**done[0].policy, "g0": 3})])
    assert again.evaluation == done[0].evaluation
    assert evaluator.calls == [new.policy]
    assert len(later.trials) == 2  # both count


@pytest.mark.parametrize(("budget", "evaluates"), [("0.4x", "other"), ("0.4x", ""), ("0.5x", "same")])
def test_studies_of_other_evaluations_and_of_the_same_settings_are_no_earlier_ones(
    tmp_path: Path, budget: str, evaluates: str
) -> None:
    storage = tmp_path / "study.db"
    first = study(storage, "first", "0.5x", "" if not evaluates else "same")
    first.evaluate(policies(first))
    assert study(storage, "later", budget, evaluates).earlier == []


def test_a_resumed_study_is_told_what_it_was_told_first(tmp_path: Path) -> None:
    storage = tmp_path / "study.db"
    first = study(storage, "first", "0.5x")
    first.evaluate(policies(first)[:2])
    assert len(study(storage, "later", "0.4x").earlier) == 2
    first.evaluate(policies(first))
    assert len(study(storage, "later", "0.4x").earlier) == 2
    assert len(study(storage, "last", "0.4x").earlier) == 4


def test_ladder_is_sooner_where_a_wider_budget_was_searched_before(tmp_path: Path) -> None:
    best = {}
    for taught in (False, True):
        storage = tmp_path / f"{taught}.db"
        if taught:
            AGENTS["ladder"]().run(study(storage, "before", "0.5x", trials=16), 1)
        later = study(storage, "ladder", "0.3x", trials=5)
        AGENTS["ladder"]().run(later, 0)
        best[taught] = later.best.reward
    assert best[True] > best[False]
