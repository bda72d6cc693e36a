"""A stream of policies: how many are under way, when the next is drawn, and that nothing depends on the workers."""

from collections import deque
from collections.abc import Iterator
from itertools import takewhile

import pytest

from amcsearch.core import PruningPolicy
from amcsearch.runs.rows import trial_rows
from amcsearch.search import AGENTS, Study
from amcsearch.testing import MadeUpEvaluator, make_study


def policies(count: int) -> list[PruningPolicy]:
    return [PruningPolicy({"g0": n % 4 + 1, "g1": n // 4 + 1, "g2": 8, "g3": 4}) for n in range(count)]


def drawing(study: Study, count: int, served: list[int]) -> Iterator[PruningPolicy]:
    """Notes how many trials were served when each policy was drawn."""
    for policy in policies(count):
        served.append(len(study.trials))
        yield policy


@pytest.mark.parametrize("shared", [False, True])
def test_a_policy_is_drawn_after_each_trial_once_a_batch_is_under_way(shared, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db" if shared else "sqlite:///:memory:"
    study, served = make_study(batch=3, trials=7, storage=storage), []
    trials = list(study.stream(drawing(study, 7, served)))
    assert [trial.policy for trial in trials] == policies(7)
    assert served == [0, 0, 0, 1, 2, 3, 4]
    assert (study.trials, study.remaining, study.under_way) == (trials, 0, set())


def test_no_more_are_drawn_than_evaluations_remain():
    study, served = make_study(batch=4, trials=5), []
    list(study.stream(drawing(study, 12, served)))
    assert served == [0, 0, 0, 0, 1]


def test_a_reader_that_stops_leaves_nothing_under_way():
    study = make_study(batch=3, trials=7)
    stream = study.stream(iter(policies(7)))
    first = next(stream)
    assert study.under_way == set(policies(3)[1:])
    stream.close()
    assert study.under_way == set()
    assert [trial.policy for trial in study.trials] == [first.policy]
    assert [trial.policy for trial in study.evaluate(policies(2))] == policies(2)


@pytest.mark.parametrize("again", [0, 1])
def test_a_policy_that_was_asked_for_before_is_refused(again):
    study = make_study(batch=2, trials=7)
    study.evaluate(policies(1))
    with pytest.raises(ValueError, match="asked for twice"):
        list(study.stream(iter([policies(2)[1], policies(2)[again]])))


class _Ahead(MadeUpEvaluator):
    """Evaluates all that it was given before it yields the first, as workers do that are faster than the driver."""

    capacity = 64

    def map(self, policies):
        source, done = iter(policies), deque()
        while True:
            done.extend(self.evaluate(policy) for policy in takewhile(lambda policy: policy is not None, source))
            if not done:
                return
            yield done.popleft()


@pytest.mark.parametrize("agent", ["nsga2", "tpe", "random", "uniform"])
def test_the_trials_do_not_depend_on_how_far_workers_are_ahead(agent):
    tables = []
    for evaluator in (MadeUpEvaluator, _Ahead):
        study = make_study(agent, trials=30, batch=7, evaluator=evaluator)
        AGENTS[agent]().run(study, 5)
        tables.append(trial_rows(study.trials).drop(columns="seconds"))
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("kept", [5, 12])
def test_a_resumed_stream_goes_on_where_it_was_broken_off(kept, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    whole = make_study("nsga2", trials=20, batch=4)
    AGENTS["nsga2"]().run(whole, 1)
    broken = make_study("nsga2", trials=20, batch=4, storage=storage)

    def interrupt(*_: object) -> None:
        if len(broken.trials) == kept:
            raise KeyboardInterrupt

    broken._progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        AGENTS["nsga2"]().run(broken, 1)
    resumed = make_study("nsga2", trials=20, batch=4, storage=storage)
    AGENTS["nsga2"]().run(resumed, 1)
    assert len(resumed._executor.calls) == 20 - kept
    assert [trial.policy for trial in resumed.trials] == [trial.policy for trial in whole.trials]
    assert resumed.notes == []


def test_a_stream_that_leaves_the_stored_path_says_so(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    list(make_study(trials=6, batch=2, storage=storage).stream(iter(policies(4))))
    study = make_study(trials=6, batch=2, storage=storage)
    list(study.stream(iter([*policies(2), *policies(8)[4:]])))
    (note,) = study.notes
    assert "left the stored path with 2 stored trials" in note


class _Noting(MadeUpEvaluator):
    """Three workers, none of which ends before all are busy; notes what it is given."""

    capacity = 3

    def map(self, policies):
        source, under_way = iter(policies), deque()
        while True:
            while len(under_way) < self.capacity and (policy := next(source, None)) is not None:
                self.events.append(("given", policy))
                under_way.append(policy)
            if not under_way:
                return
            yield self.evaluate(under_way.popleft())


@pytest.mark.parametrize("shared", [False, True])
def test_a_policy_is_handed_out_before_the_next_is_drawn(shared, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db" if shared else "sqlite:///:memory:"
    study = make_study(batch=4, trials=6, storage=storage, evaluator=_Noting)
    study._executor.events = events = []

    def drawing() -> Iterator[PruningPolicy]:
        for policy in policies(6):
            events.append(("drawn", policy))
            yield policy

    for trial in study.stream(drawing()):
        events.append(("learned", trial.policy))
    a, b, c, d, e, f = policies(6)
    assert events == [
        *[("drawn", a), ("given", a), ("drawn", b), ("given", b), ("drawn", c), ("given", c)],
        *[("drawn", d), ("learned", a)],
        *[("given", d), ("drawn", e), ("learned", b)],
        *[("given", e), ("drawn", f), ("learned", c)],
        *[("given", f), ("learned", d), ("learned", e), ("learned", f)],
    ]
