"""Studies that several drivers share, in PostgreSQL and in a SQLite file."""

import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator

import optuna
import pytest
from sqlalchemy import create_engine, event, text

from amcsearch.core import BadInputError, Cost, Evaluation, PruningPolicy, Trial, TrialState
from amcsearch.runs import trial_rows
from amcsearch.search import AGENTS, study_database
from amcsearch.search.study_database import storage_url
from amcsearch.search.study_store import TrialStore
from amcsearch.testing import MadeUpEvaluator, make_study

POLICY = PruningPolicy({"g": 2})
END_OTHERS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
TRIAL = Trial(0, "a", 0, TrialState.COMPLETE, POLICY, Evaluation(0.5, 1.0, 0.1), Cost(macs=3.0), 0.5)


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shared.db"
    return request.getfixturevalue("postgresql_url")


def store(url: str) -> TrialStore:
    return TrialStore(url, "study", "a", 0, "fingerprint", None)


def run_sql(url: str, statement: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount == 1
    engine.dispose()


def test_a_trial_is_stored_as_optuna_itself_stores_it(url: str) -> None:
    shared = store(url)
    policy = PruningPolicy({"a": 3, "b": 1})
    states = {TrialState.COMPLETE: [0.5], TrialState.PROBE: None, TrialState.FAILED: None}
    for number, (state, values) in enumerate(states.items()):
        policy = PruningPolicy({"a": number + 1, "b": 1})
        trial = Trial(number, "a", 0, state, policy, Evaluation(0.5, 1.0, 0.1), Cost(macs=3.0), 0.5)
        assert shared.claim(policy)
        assert shared.append(trial, {"a": 4, "b": 8}, values or [])
    ours = optuna.load_study(study_name="study/a/0", storage=url)
    theirs = optuna.create_study(study_name="theirs", storage=url, directions=["maximize"])
    for trial in ours.trials:
        theirs.add_trial(trial)
    for mine, copy in zip(ours.trials, theirs.trials, strict=True):
        for field in ("number", "state", "values", "params", "distributions", "user_attrs", "datetime_start"):
            assert getattr(mine, field) == getattr(copy, field), field
        assert mine.duration == copy.duration
    assert ours.best_params == {"a": 1, "b": 1}
    assert ours.metric_names == ["reward"]


def test_a_policy_is_evaluated_by_the_driver_that_claims_it_first(url: str) -> None:
    first, second = store(url), store(url)
    assert first.claim(POLICY)
    assert not second.claim(POLICY)
    assert second.claim(PruningPolicy({"g": 3}))
    assert first.append(TRIAL, {"g": 4}, [0.5])
    assert not first.append(TRIAL, {"g": 4}, [0.5])  # a commit whose answer was lost is tried again
    assert not second.claim(POLICY)
    assert second.load() == [TRIAL]
    second.release()
    assert first.claim(PruningPolicy({"g": 3}))  # given up, not evaluated
    first.release()


def test_a_dead_drivers_policies_are_taken_over_and_a_late_result_is_refused(url: str) -> None:
    late, next_ = store(url), store(url)
    assert late.claim(POLICY)
    run_sql(url, "UPDATE amcsearch_claims SET lease_end = 0")  # as if it had not been renewed
    assert next_.claim(POLICY)
    assert not late.append(TRIAL, {"g": 4}, [0.5])
    assert not late.claim(POLICY)
    assert next_.append(TRIAL, {"g": 4}, [0.5])
    late.release()
    next_.release()
    assert store(url).load() == [TRIAL]


def test_a_living_driver_renews_its_claims(url: str) -> None:
    owner = TrialStore(url, "study", "a", 0, "fingerprint", None, lease_s=0.03)
    other = store(url)
    assert owner.claim(POLICY)
    engine, ends = create_engine(url), set()
    while len(ends) < 3:
        with engine.connect() as connection:
            ends.add(connection.execute(text("SELECT lease_end FROM amcsearch_claims")).scalar_one())
    engine.dispose()
    owner.release()
    assert other.claim(POLICY)
    other.release()


def test_drivers_of_one_study_evaluate_nothing_twice_and_end_alike(url: str) -> None:
    alone = make_study("nsga2", trials=24, batch=6, seed=3)
    AGENTS["nsga2"]().run(alone, 3)
    evaluators: list[MadeUpEvaluator] = []
    rows, gate = {}, threading.Barrier(3)

    def drive(number: int) -> None:
        def evaluator(network) -> MadeUpEvaluator:
            evaluators.append(MadeUpEvaluator(network))
            return evaluators[-1]

        gate.wait()
        study = make_study("nsga2", trials=24, batch=6, seed=3, storage=url, evaluator=evaluator)
        AGENTS["nsga2"]().run(study, 3)
        rows[number] = trial_rows(study.trials).drop(columns="seconds")

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(3)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert len(rows) == 3
    assert all(table.equals(trial_rows(alone.trials).drop(columns="seconds")) for table in rows.values())
    calls = [policy for evaluator in evaluators for policy in evaluator.calls]
    assert sorted(map(str, calls)) == sorted(str(trial.policy) for trial in alone.trials)
    stored = optuna.load_study(study_name="synthetic/nsga2/3", storage=url)
    assert [trial.number for trial in stored.trials] == list(range(24))
    assert stored.best_value == alone.best.reward


class TwoWorkers(MadeUpEvaluator):
    """Two workers before a clock, which the first evaluation takes four units of, and each other one."""

    capacity = 2
    now = 0

    def map(self, policies) -> Iterator[Evaluation]:
        source, ends = iter(policies), deque()
        while True:
            while sum(end > self.now for _, end in ends) < self.capacity:
                if (policy := next(source, None)) is None:
                    break
                ends.append((self.evaluate(policy), self.now + (4 if len(self.calls) == 1 else 1)))
            if not ends:
                return
            if ends[0][1] > self.now:
                self.now += 1
            else:
                yield ends.popleft()[0]


def test_a_driver_claims_for_a_worker_that_is_idle_while_another_is_busy(url: str) -> None:
    study = make_study("random", trials=8, batch=8, storage=url, evaluator=TwoWorkers)
    AGENTS["random"]().run(study, 0)
    assert len(study._executor.calls) == 8
    assert study._executor.now == 6  # 4 beside four of 1, then three of 1 on both; in rounds of two it took 7


def test_claims_are_given_up_when_an_evaluation_raises(url: str) -> None:
    class Broken(MadeUpEvaluator):
        def evaluate(self, policy: PruningPolicy) -> Evaluation:
            raise RuntimeError("broken")

    study = make_study(storage=url, evaluator=Broken)
    policy = study.network.policy(study.feasible.largest_uniform())
    with pytest.raises(RuntimeError, match="broken"):
        study.evaluate([policy])
    (trial,) = make_study(storage=url).evaluate([policy])
    assert trial.state is TrialState.COMPLETE


def test_a_server_that_restarts_loses_no_trial(postgresql, postgresql_url: str) -> None:
    def crash(evaluations: Iterator[Evaluation]) -> Iterator[Evaluation]:
        for number, evaluation in enumerate(evaluations):
            if number == 2:
                postgresql.stop(signal.SIGKILL)
                starting = threading.Timer(0.3, postgresql.start)
                starting.start()
            yield evaluation
            if number == 2:
                starting.join()

    class Crashing(MadeUpEvaluator):
        capacity = 8

        def map(self, policies) -> Iterator[Evaluation]:
            return crash(super().map(policies))

    study = make_study("random", trials=5, batch=5, storage=postgresql_url, evaluator=Crashing)
    AGENTS["random"]().run(study, 0)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4]
    again = make_study("random", trials=5, batch=5, storage=postgresql_url)
    AGENTS["random"]().run(again, 0)
    assert again._executor.calls == []
    assert again.trials == study.trials


def test_a_connection_may_be_lost_while_trials_are_read(postgresql_url: str) -> None:
    shared = store(postgresql_url)
    assert shared.claim(POLICY)
    assert shared.append(TRIAL, {"g": 4}, [0.5])
    reader, lost = store(postgresql_url), []

    @event.listens_for(reader._storage.engine, "before_cursor_execute")
    def lose(*call: object) -> None:
        if "FROM trials" in str(call[2]) and not lost:
            lost.append(call[2])
            run_sql(postgresql_url, END_OTHERS)

    assert reader.load() == [TRIAL]
    assert lost
    shared.release()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_does_not_hold_every_text_is_refused(postgresql, encoding: str) -> None:
    words = f"has the encoding {encoding}, must be UTF8; make one: createdb -E UTF8 -T template0 NAME"
    with pytest.raises(BadInputError, match=words):
        make_study("random", trials=1, batch=1, storage=postgresql.new_database(encoding))


def test_a_study_waits_for_its_server_and_says_so_once(postgresql, postgresql_url: str) -> None:
    warned: list[str] = []

    def start(text: str) -> None:
        warned.append(text)
        postgresql.start()

    def opened() -> TrialStore:
        return TrialStore(postgresql_url, "study", "a", 0, "fingerprint", None, warn=start)

    shared = opened()
    for call in (opened, shared.siblings, shared.earlier, shared.load, lambda: shared.claim(POLICY)):
        postgresql.stop(signal.SIGKILL)
        call()
        text = warned.pop()
        assert re.search(
            r"database postgresql.*\*\*\*.* is away \(.*\); waiting for it, at most 120 s, .* --resume", text
        )
        assert postgresql.password not in text
        assert warned == []
    assert shared.append(TRIAL, {"g": 4}, [0.5])
    assert opened().load() == [TRIAL]
    shared.release()


def test_a_server_that_stays_away_is_one_line(postgresql, postgresql_url: str, monkeypatch) -> None:
    monkeypatch.setattr(study_database, "RETRIED_S", 0.0)
    shared = store(postgresql_url)
    postgresql.stop(signal.SIGKILL)
    try:
        for call in (shared.load, lambda: store(postgresql_url)):
            with pytest.raises(
                BadInputError, match=r"study storage postgresql.* cannot be used: .*connection.*--resume"
            ) as caught:
                call()
            assert len(str(caught.value).splitlines()) == 1
            assert postgresql.password not in str(caught.value)
    finally:
        postgresql.start()


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("/database", "/nothing"),
        lambda url: url.replace("secret-", "secret-wrong-"),
        lambda url: url.replace("@/", "@host:port/"),
        lambda url: url.replace("+psycopg", "+nodriver"),
        lambda url: url.replace("postgresql+psycopg", ""),
        lambda url: re.sub(":secret[^@]*@", "@", url) + "&password=secret-in-query",
        lambda url: url.replace(":secret", ":a@:/?#secret"),
    ],
)
def test_no_error_shows_a_password(postgresql_url: str, change: Callable[[str], str]) -> None:
    with pytest.raises(BadInputError) as caught:
        store(change(postgresql_url))
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_driver_is_one_line_with_the_cure(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(BadInputError, match=r"psycopg is not installed; type: pip install 'amcsearch\[cluster\]'"):
        store("postgresql+psycopg://tests@/none")


def test_an_address_is_shown_without_its_password() -> None:
    with pytest.raises(BadInputError, match=r"study storage x://u:\*\*\*@h:p/d cannot be used: it is no URL"):
        storage_url("x://u:p@ss@h:p/d")
