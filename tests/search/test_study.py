"""The only door: what it counts, stores, refuses and serves again."""

import math
import sqlite3

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amcsearch.core.errors import BadInputError
from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import TrialState
from amcsearch.runs.rows import trial_rows
from amcsearch.search import study_database


def policy(*kept):
    return PruningPolicy({f"g{i}": n for i, n in enumerate(kept)})


SMALL, SMALLER, OTHER = policy(4, 4, 8, 8), policy(4, 4, 8, 4), policy(2, 4, 8, 8)
DENSE = policy(8, 8, 16, 16)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def test_counts_new_policies_once_and_serves_repeats_free(synthetic):
    study = synthetic.make_study(trials=3)
    first, again, second = study.evaluate([SMALL, SMALL, SMALLER])
    assert first is again
    assert second.policy == SMALLER
    assert (study.remaining, len(study._executor.calls)) == (1, 2)
    assert study.evaluate([SMALLER]) == [second]
    assert study.remaining == 1
    assert study.seen(SMALL)
    assert not study.seen(OTHER)


def test_trial_carries_what_was_measured_priced_and_rewarded(synthetic):
    study = synthetic.make_study()
    (trial,) = study.evaluate([DENSE], probe=True)
    assert (trial.evaluation.metric, trial.evaluation.loss, trial.reward) == (1.0, 0.0, 0.0)
    # 3x3 convolutions 1-8-8 on 8x8 maps, 8-16-16 on 4x4, 16-10 on 2x2
    macs = 9 * (64 * (1 * 8 + 8 * 8) + 16 * (8 * 16 + 16 * 16) + 4 * 16 * 10)
    assert trial.cost.macs == macs
    assert trial.cost.latency_ms is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4))
def test_the_counts_of_a_proposal_are_priced_checked_evaluated_and_stored(synthetic, ratios):
    study = synthetic.make_study(widths=(24, 20, 32, 17), multiple=8, budget={"macs": "0.4x"})
    kept = study.feasible.repair(study.space.nearest(ratios))
    assert np.array_equal(study.feasible.repair(kept), kept)
    checked, priced = [], []
    admits, price = study.feasible.admits, study.grid.price
    study.feasible.admits = lambda cost: checked.append(cost) or admits(cost)
    study.grid.price = lambda rows: priced.append(rows) or price(rows)
    (trial,) = study.evaluate([study.network.policy(kept)])
    assert checked == [trial.cost]
    assert [rows.tolist() for rows in priced] == [[kept.tolist()]]  # once
    (evaluated,), (stored,) = study._executor.calls, study._store.load()
    for policy_of_trial in (evaluated, stored.policy, trial.policy):
        assert study.network.kept_array(policy_of_trial).tolist() == kept.tolist()


def test_counts_off_the_channel_grid_are_refused(synthetic):
    study = synthetic.make_study(multiple=4)
    with pytest.raises(BadInputError, match="'g3': n_keep = 6 is off the channel grid, its nearest choice is 8"):
        study.evaluate([policy(4, 4, 8, 6)], probe=True)
    assert not study.trials
    assert not study._executor.calls


def test_over_budget_is_refused_except_as_a_probe_which_is_never_best(synthetic):
    study = synthetic.make_study()
    with pytest.raises(ValueError, match="over budget"):
        study.evaluate([SMALL, DENSE])
    assert not study.trials
    (probe,) = study.evaluate([DENSE], probe=True)
    assert probe.state is TrialState.PROBE
    assert study.best is None
    (inside,) = study.evaluate([SMALL], probe=True)
    assert inside.state is TrialState.COMPLETE
    assert study.best is inside
    assert study.front == [inside]
    assert study.remaining == 10  # probes count


def test_more_than_remaining_is_refused_before_anything_runs(synthetic):
    study = synthetic.make_study(trials=1)
    with pytest.raises(ValueError, match="2 new policies asked for with 1 "):
        study.evaluate([SMALL, SMALLER])
    assert not study._executor.calls


def test_loss_that_is_not_finite_is_stored_as_failed_and_never_best(synthetic, storage):
    study = synthetic.make_study(storage=storage, nan_at=frozenset({1}))
    (failed,) = study.evaluate([SMALL])
    assert (failed.state, failed.reward, study.best) == (TrialState.FAILED, -math.inf, None)
    again = synthetic.make_study(storage=storage)
    (served,) = again.evaluate([SMALL])
    assert (served.state, served.reward) == (TrialState.FAILED, -math.inf)
    assert math.isnan(served.evaluation.loss)
    assert again._executor.calls == []


def test_each_evaluation_is_stored_before_the_next_begins(synthetic, storage, tmp_path):
    study = synthetic.make_study(storage=storage)
    stored = []

    def count_then_evaluate(wanted, evaluate=study._executor.evaluate):
        with sqlite3.connect(tmp_path / "study.db") as database:
            stored.append(database.execute("SELECT COUNT(*) FROM trials").fetchone()[0])
        return evaluate(wanted)

    study._executor.evaluate = count_then_evaluate
    study.evaluate([SMALL, SMALLER, OTHER])
    assert stored == [0, 1, 2]


def test_replay_keeps_the_order_and_executes_only_what_is_missing(synthetic, storage):
    first = synthetic.make_study(storage=storage)
    first.evaluate([SMALL, SMALLER])
    again = synthetic.make_study(storage=storage)
    assert again.remaining == 12  # what is stored counts when it is asked for
    trials = again.evaluate([SMALL, SMALLER, OTHER])
    assert trials[:2] == first.trials
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert again._executor.calls == [OTHER]
    assert again.notes == []


def test_leaving_the_stored_path_is_said(synthetic, storage):
    synthetic.make_study(storage=storage).evaluate([SMALL])
    again = synthetic.make_study(storage=storage)
    again.evaluate([OTHER])
    assert "left the stored path" in again.notes[0]


def test_other_agents_evaluations_are_reused_but_written_for_this_one(synthetic, storage):
    (theirs,) = synthetic.make_study("tpe", storage=storage).evaluate([SMALL])
    study = synthetic.make_study("random", seed=5, storage=storage)
    (mine,) = study.evaluate([SMALL])
    assert study._executor.calls == []
    assert mine.evaluation == theirs.evaluation
    assert (mine.agent, mine.seed, study.remaining) == ("random", 5, 11)
    assert synthetic.make_study("random", seed=5, storage=storage)._store.load() == [mine]


def test_evaluations_under_another_fingerprint_are_not_reused(synthetic, storage):
    synthetic.make_study("tpe", storage=storage, fingerprint="a").evaluate([SMALL])
    study = synthetic.make_study("random", storage=storage, fingerprint="b")
    study.evaluate([SMALL])
    assert study._executor.calls == [SMALL]


def test_resuming_under_other_settings_names_both_and_the_cure(synthetic, storage):
    synthetic.make_study(storage=storage, fingerprint="abc")
    with pytest.raises(BadInputError, match=r"fingerprint = 'abc' and cannot go on with 'xyz'.*--out"):
        synthetic.make_study(storage=storage, fingerprint="xyz")
    with pytest.raises(BadInputError, match=r"objectives = \['reward'\] and cannot go on with \['accuracy', 'macs'\]"):
        synthetic.make_study(storage=storage, fingerprint="abc", objectives=("accuracy", "macs"))


def test_file_that_is_no_database_is_one_clear_line(synthetic, tmp_path):
    (tmp_path / "study.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(BadInputError, match=r"not a database.*--storage") as caught:
        synthetic.make_study(storage=f"sqlite:///{tmp_path}/study.db")
    assert "\n" not in str(caught.value)


def test_folder_that_is_missing_or_url_that_is_none_is_one_clear_line(synthetic, tmp_path):
    for url in (f"sqlite:///{tmp_path}/none/study.db", "no url at all", "nodatabase://x"):
        with pytest.raises(BadInputError, match="cannot be used") as caught:
            synthetic.make_study(storage=url)
        assert "\n" not in str(caught.value)


def test_database_held_by_another_program_is_one_clear_line(synthetic, storage, tmp_path, monkeypatch):
    synthetic.make_study(storage=storage)
    monkeypatch.setattr(study_database, "LOCK_TIMEOUT_S", 0.01)
    with sqlite3.connect(tmp_path / "study.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BadInputError, match=r"locked.*close other programs"):
            synthetic.make_study(storage=storage)
        holder.rollback()


def test_optuna_reads_the_study(synthetic, storage):
    study = synthetic.make_study(storage=storage, nan_at=frozenset({3}))
    trials = [*study.evaluate([SMALL, SMALLER]), *study.evaluate([OTHER]), *study.evaluate([DENSE], probe=True)]
    stored = optuna.load_study(study_name="synthetic/test/0", storage=storage)
    assert [t.state.name for t in stored.trials] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert stored.best_trial.params == dict(study.best.policy)
    assert stored.best_value == study.best.reward
    assert stored.metric_names == ["reward"]
    assert stored.trials[1].user_attrs["policy"] == trials[1].policy.to_json()
    attributes = stored.trials[3].user_attrs
    assert (attributes["agent"], attributes["state"], attributes["cost"]) == ("test", "probe", dict(trials[3].cost))
    assert stored.trials[2].user_attrs["state"] == "failed"
    (summary,) = optuna.get_all_study_summaries(storage)  # what optuna-dashboard lists
    assert (summary.study_name, summary.n_trials) == ("synthetic/test/0", 4)
    assert summary.user_attrs["context"]["name"] == "synthetic"
    assert summary.best_trial.value == study.best.reward


def test_several_objectives_have_values_directions_and_a_front(synthetic, storage):
    study = synthetic.make_study(storage=storage, objectives=("accuracy", "macs"))
    dominated = policy(1, 4, 8, 8)
    trials = study.evaluate([SMALL, SMALLER, dominated])
    assert study.directions == ["maximize", "minimize"]
    assert study.values(trials[0]) == [trials[0].evaluation.metric, trials[0].cost.macs]
    points = np.array([study.values(t) for t in trials]) * [-1, 1]
    expected = [
        t for t, p in zip(trials, points, strict=True) if not any((q <= p).all() and (q < p).any() for q in points)
    ]
    assert study.front == expected
    stored = optuna.load_study(study_name="synthetic/test/0", storage=storage)
    assert stored.metric_names == ["accuracy", "macs"]
    assert stored.trials[0].values == study.values(trials[0])


def test_frame_has_the_columns_of_trials_csv(synthetic):
    study = synthetic.make_study(seed=4)
    measured = ["number", "agent", "seed", "state", "reward", "accuracy", "loss"]
    costs = ["macs", "params", "latency_ms", "energy_mj"]
    assert list(trial_rows(study.trials).columns) == [*measured, *costs, "seconds", "policy"]
    study.evaluate([SMALL])
    row = trial_rows(study.trials).iloc[0]
    assert (row["number"], row["agent"], row["seed"], row["state"]) == (0, "test", 4, "complete")
    assert row["policy"] == SMALL.to_json()
    assert row["latency_ms"] is None


def test_progress_sees_every_trial_with_the_best_so_far(synthetic):
    heard = []
    study = synthetic.make_study(progress=lambda *event: heard.append(event))
    a, b = study.evaluate([SMALLER, SMALL])
    assert heard == [(a, a, 1, 12), (b, b, 2, 12)]
    assert b.reward > a.reward


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"objectives": ("accuracy", "speed")}, r"'speed'\]: name one or more of \['accuracy', 'macs', 'params'\]"),
        ({"objectives": ("latency_ms",)}, "latency_ms"),
        ({"objectives": ()}, "name one or more"),
    ],
)
def test_bad_settings_are_named(synthetic, settings, message):
    with pytest.raises(BadInputError, match=message):
        synthetic.make_study(**settings)
