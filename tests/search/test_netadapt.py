"""NetAdapt: its schedule by hand, its proposals by hand, and steps that fall and move one group each."""

import numpy as np
import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.core.trial import TrialState
from amcsearch.search.netadapt import NetAdapt, proposals, resources


def test_resources_fall_in_the_ratio_of_the_decay_and_end_at_the_budget() -> None:
    """0.4, 0.2 and then what is left of 0.7: the last is scaled with the others so that they end at 1 exactly."""
    assert resources(1.7, 0.4, 0.5, 10) == pytest.approx([1.3, 1.1, 1.0])
    assert resources(1.4, 0.1, 1.0, 10) == pytest.approx([1.3, 1.2, 1.1, 1.0])


def test_fewer_steps_are_longer() -> None:
    assert resources(2.0, 0.025, 1.0, 4) == pytest.approx([1.75, 1.5, 1.25, 1.0])
    assert resources(2.0, 0.025, 0.5, 1) == [1.0]


def test_each_proposal_narrows_one_group_to_the_most_channels_that_meet_the_target(synthetic) -> None:
    study = synthetic.make_study(budget={"macs": "0.5x"}, trials=60)
    dense = study.space.dense
    rows = proposals(study, dense, 1.8)
    assert len(rows) == len(dense)
    for row in rows:
        (g,) = np.flatnonzero(row != dense)
        assert study.feasible.overshoot(row[None, :])[0] <= 1.8
        wider = row.copy()
        wider[g] += 1
        assert study.feasible.overshoot(wider[None, :])[0] > 1.8


def test_where_no_group_alone_meets_the_target_each_comes_as_cheap_as_it_gets(synthetic) -> None:
    study = synthetic.make_study(budget={"macs": "0.5x"}, trials=60)
    rows = proposals(study, study.space.dense, 0.001)
    assert [int(row[g]) for g, row in enumerate(rows)] == [1, 1, 1, 1]
    assert len(proposals(study, study.space.floor, 0.001)) == 0


def test_the_resource_falls_with_every_step_and_each_step_moves_one_group(synthetic, monkeypatch) -> None:
    study = synthetic.make_study(budget={"macs": "0.5x"}, trials=26)
    steps, evaluate = [], study.evaluate

    def spied(policies, *, probe=False):
        trials = evaluate(policies, probe=probe)
        if probe:
            steps.append(trials)
        return trials

    monkeypatch.setattr(study, "evaluate", spied)
    NetAdapt(step=0.1).run(study, 0)
    start, over = study.space.dense, 2.0
    assert len(steps) >= 5
    for trials in steps:
        rows = np.array([study.network.kept_array(trial.policy) for trial in trials])
        assert ((rows != start).sum(axis=1) == 1).all()
        assert (rows <= start).all()
        start = rows[int(np.argmax([trial.evaluation.metric for trial in trials]))]
        before, over = over, float(study.feasible.overshoot(start[None, :])[0])
        assert over < before
    assert over <= 1.0
    assert any(trial.state is TrialState.COMPLETE for trial in steps[-1])


def test_it_finds_better_than_one_ratio_for_all(synthetic) -> None:
    study = synthetic.make_study(budget={"macs": "0.5x"}, trials=26)
    NetAdapt(step=0.1).run(study, 0)
    uniform = study.network.policy(study.feasible.largest_uniform())
    assert study.best.evaluation.metric > study._executor.evaluate(uniform).metric


def test_too_few_evaluations_are_said(synthetic) -> None:
    study = synthetic.make_study(budget={"macs": "0.5x"}, trials=4)
    NetAdapt().run(study, 0)
    assert "too few for a step of 4 groups" in study.notes[0]
    assert study.remaining == 0


@pytest.mark.parametrize("wrong", [{"step": 0.0}, {"step": 1.0}, {"decay": 0.0}, {"decay": 1.1}])
def test_bad_parameters_are_named(wrong) -> None:
    with pytest.raises(BadInputError, match=r"netadapt: step = .*, decay = "):
        NetAdapt(**wrong)
