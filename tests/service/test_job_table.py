"""The job table's contract, the same on SQLite and on PostgreSQL."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from amcsearch.core import BadInputError
from amcsearch.runs import MetricRecord
from amcsearch.service.database import JOBS, METADATA, Database
from amcsearch.service.job_table import MOST_LOST, JobTable, NoSuchJobError, WrongStateError
from amcsearch.service.records import ENDED, BestSoFar, Claim, JobProblem, JobProgress, JobState, StaleClaimError

FOR_EVER = 1e6  # seconds of a lease
RAN_OUT = 0.0
KINDS = ("search", "prune")


@pytest.fixture(params=["sqlite", "postgresql"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobTable]:
    is_file = request.param == "sqlite"
    database = Database(f"sqlite:///{tmp_path}/jobs.db" if is_file else request.getfixturevalue("postgresql_url"))
    yield JobTable(database)
    database.close()


def submitted(table: JobTable, kind: str = "search", owner: str = "ada", key: str | None = None) -> str:
    return table.submit(kind, "tiny", {"trials": 3}, owner, key).id


def claimed(table: JobTable, worker: str = "first", lease_s: float = FOR_EVER) -> Claim:
    claim = table.claim(worker, KINDS, lease_s)
    assert claim is not None
    return claim


class TestSubmitting:
    def test_a_job_comes_back_as_it_was_submitted(self, table: JobTable) -> None:
        job = table.submit("search", "tiny", {"config": {"seed": 2**60}, "é": [1.5, None]}, "ada")
        assert table.get(job.id) == job
        assert (job.state, job.attempt, job.revision, job.owner) == (JobState.QUEUED, 0, 1, "ada")
        assert job.request == {"config": {"seed": 2**60}, "é": [1.5, None]}
        assert job.created_s == job.changed_s > 1.7e9
        assert type(job).from_json(job.to_json(), "job") == job

    def test_the_same_key_adds_no_second_job(self, table: JobTable) -> None:
        first = submitted(table, key="monday")
        assert submitted(table, key="monday") == first
        assert submitted(table, key="tuesday") != first
        assert submitted(table, key="monday", owner="bob") != first
        assert len({submitted(table), submitted(table)}) == 2

    def test_a_key_goes_with_one_request(self, table: JobTable) -> None:
        submitted(table, key="monday")
        with pytest.raises(
            BadInputError, match=r"Idempotency-Key 'monday' goes with another request, job .* another key"
        ):
            table.submit("search", "tiny", {"trials": 4}, "ada", "monday")

    def test_a_quota_counts_what_waits_or_runs(self, table: JobTable) -> None:
        for _ in range(2):
            table.submit("search", "tiny", {}, "ada", most_waiting=2)
        claimed(table)
        with pytest.raises(BadInputError, match="2 jobs of ada wait or run, at most 2; wait for one, or cancel one"):
            table.submit("search", "tiny", {}, "ada", most_waiting=2)
        table.submit("search", "tiny", {}, "bob", most_waiting=2)

    def test_a_job_that_is_not_there(self, table: JobTable) -> None:
        for call in (table.get, table.cancel, table.resume):
            with pytest.raises(NoSuchJobError, match="no job abc"):
                call("abc")


class TestClaiming:
    def test_the_oldest_of_the_kinds_goes_first(self, table: JobTable) -> None:
        jobs = [submitted(table, kind) for kind in ("prune", "search", "prune")]
        assert [table.claim("w", [kind], FOR_EVER).job.id for kind in ("search", "prune", "prune")] == [
            *(jobs[1], jobs[0], jobs[2])
        ]
        assert table.claim("w", KINDS, FOR_EVER) is None

    def test_the_oldest_of_several_kinds_goes_first_whatever_their_order(self, table: JobTable) -> None:
        jobs = [submitted(table, kind) for kind in ("prune", "search", "prune", "front")]
        orders = (("search", "prune"), ("prune", "search"), ("front", "search", "prune"), KINDS)
        assert [claim and claim.job.id for claim in (table.claim("w", kinds, FOR_EVER) for kinds in orders)] == [
            *jobs[:3],
            None,
        ]

    def test_a_claim_passes_no_job_of_another_kind(self, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path}/jobs.db")
        table = JobTable(database)
        few = _steps(table)
        job = table.get(submitted(table))
        known = {name: value for name, value in job.to_json().items() if name in JOBS.c and name != "sequence"}
        with database.writing() as connection:
            connection.execute(insert(JOBS), [{**known, "id": str(number)} for number in range(1000)])
        assert _steps(table) < few + 1000
        database.close()

    def test_a_lease_holds_a_job_until_it_runs_out(self, table: JobTable) -> None:
        job = submitted(table)
        first = claimed(table, "first", RAN_OUT)
        assert (first.job.id, first.attempt, first.job.state) == (job, 1, JobState.RUNNING)
        second = claimed(table, "second")
        assert (second.job.id, second.attempt, second.job.lost) == (job, 2, 1)
        assert table.claim("third", KINDS, FOR_EVER) is None

    def test_a_renewed_lease_holds(self, table: JobTable) -> None:
        submitted(table)
        claim = claimed(table, lease_s=RAN_OUT)
        table.renew(Claim(claim.job, claim.worker, claim.attempt, FOR_EVER))
        assert table.claim("second", KINDS, FOR_EVER) is None

    @pytest.mark.parametrize("write", ["renew", "progress", "finish", "fail", "release", "lose"])
    def test_a_late_worker_writes_nothing(self, table: JobTable, write: str) -> None:
        job = submitted(table)
        late = claimed(table, "same", RAN_OUT)
        claimed(table, "same")
        before = table.get(job)
        writes = {
            "renew": lambda: table.renew(late),
            "progress": lambda: table.renew(late, JobProgress(evaluations=9)),
            "finish": lambda: table.finish(late, {"accuracy": 1.0}),
            "fail": lambda: table.fail(late, JobProblem("bad_input", "no")),
            "release": lambda: table.release(late),
            "lose": lambda: table.lose(late, "killed"),
        }
        with pytest.raises(StaleClaimError, match=f"same no longer holds attempt 1 of job {job}"):
            writes[write]()
        assert table.get(job) == before

    def test_many_workers_at_once_share_the_jobs_out(self, table: JobTable) -> None:
        jobs = {submitted(table) for _ in range(24)}
        taken: list[str] = []

        def work(worker: str) -> None:
            while (claim := table.claim(worker, KINDS, FOR_EVER)) is not None:
                taken.append(claim.job.id)

        threads = [threading.Thread(target=work, args=(f"worker {i}",)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 24
        assert set(taken) == jobs


def _steps(table: JobTable) -> int:
    """Steps of SQLite's virtual machine in a claim by a worker of other kinds, which finds none."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with table.database.reading() as connection:  # the pool hands it out again
        connection.connection.driver_connection.set_progress_handler(count, 1)
    assert table.claim("w", ("prune", "front"), FOR_EVER) is None
    return steps


class TestEnding:
    def test_a_finished_job_keeps_its_result(self, table: JobTable) -> None:
        submitted(table)
        ended = table.finish(claimed(table), {"accuracy": 0.9})
        assert (ended.state, ended.result, ended.worker) == (JobState.DONE, {"accuracy": 0.9}, None)
        assert ended.ended_s is not None
        assert ended.ended_s >= ended.started_s >= ended.created_s

    def test_a_failed_job_says_why_and_can_be_resumed(self, table: JobTable) -> None:
        job = submitted(table)
        assert table.fail(claimed(table), JobProblem("infeasible", "no policy", cure="0.4x")).problem == JobProblem(
            "infeasible", "no policy", cure="0.4x"
        )
        again = table.resume(job)
        assert (again.state, again.problem, again.ended_s) == (JobState.QUEUED, None, None)
        assert claimed(table).attempt == 2

    def test_a_stopped_job_waits_again_and_is_not_lost(self, table: JobTable) -> None:
        job = submitted(table)
        assert table.release(claimed(table)).state is JobState.QUEUED
        claim = claimed(table, "second")
        assert (claim.job.id, claim.attempt, claim.job.lost) == (job, 2, 0)

    def test_progress_is_kept_and_shown(self, table: JobTable) -> None:
        job = submitted(table)
        claim = claimed(table)
        best = BestSoFar(4, 0.9, MetricRecord("accuracy", "share", True), {"macs": 5e6}, {"conv1": 3})
        progress = JobProgress("search", "Searching", 7, 100, 0.5, 3.5, best, ((1.0, 0.8), (4.0, 0.9)), ("slow disk",))
        assert table.renew(claim, progress).progress == table.get(job).progress == progress

    def test_each_change_is_a_revision_and_a_lease_alone_is_none(self, table: JobTable) -> None:
        job = submitted(table)
        claim = claimed(table)
        assert table.get(job).revision == 2
        assert table.renew(claim).revision == 2
        assert table.renew(claim, JobProgress("search")).revision == 3
        assert table.finish(claim, {}).revision == 4


class TestLosing:
    def test_a_job_that_kills_its_workers_ends(self, table: JobTable) -> None:
        job = submitted(table)
        for _ in range(MOST_LOST + 1):
            claimed(table, lease_s=RAN_OUT)
        assert table.claim("last", KINDS, FOR_EVER) is None
        record = table.get(job)
        assert record.state is JobState.FAILED
        assert record.problem is not None
        assert record.problem.detail.startswith(f"{MOST_LOST + 1} workers were lost in a row; look at its output.log")
        assert table.resume(job).lost == 0

    def test_so_does_one_whose_processes_die(self, table: JobTable) -> None:
        job = submitted(table)
        for _ in range(MOST_LOST + 1):
            assert table.get(job).state is JobState.QUEUED
            table.lose(claimed(table), "killed by SIGKILL")
        record = table.get(job)
        assert record.state is JobState.FAILED
        assert record.problem is not None
        assert record.problem.detail.startswith("killed by SIGKILL, 6 times in a row; look at its output.log")

    def test_evaluations_between_start_the_count_again(self, table: JobTable) -> None:
        submitted(table)
        for done in range(1, 3 * MOST_LOST):
            claim = claimed(table)
            table.renew(claim, JobProgress(evaluations=done))
            table.lose(claim, "killed")
        assert claimed(table).job.lost == 1


class TestCancelling:
    def test_what_waits_is_cancelled_at_once(self, table: JobTable) -> None:
        job = submitted(table)
        assert table.cancel(job).state is JobState.CANCELLED
        assert table.claim("w", KINDS, FOR_EVER) is None
        assert table.resume(job).state is JobState.QUEUED
        assert claimed(table).job.id == job

    @pytest.mark.parametrize("end", ["release", "lose"])
    def test_what_runs_is_stopped_by_its_worker(self, table: JobTable, end: str) -> None:
        job = submitted(table)
        claim = claimed(table)
        assert table.cancel(job).state is JobState.RUNNING
        assert table.renew(claim).is_cancel_asked
        ended = table.release(claim) if end == "release" else table.lose(claim, "killed")
        assert (ended.state, ended.is_cancel_asked) == (JobState.CANCELLED, False)
        assert ended.ended_s is not None

    def test_what_runs_nowhere_any_more_is_cancelled_at_once(self, table: JobTable) -> None:
        job = submitted(table)
        claimed(table, lease_s=RAN_OUT)
        assert table.cancel(job).state is JobState.CANCELLED
        assert table.claim("w", KINDS, FOR_EVER) is None

    def test_so_is_what_its_worker_was_to_stop_when_it_was_lost(self, table: JobTable) -> None:
        job = submitted(table)
        claim = claimed(table)
        table.cancel(job)
        table.renew(Claim(claim.job, claim.worker, claim.attempt, RAN_OUT))
        assert table.claim("w", KINDS, FOR_EVER) is None
        record = table.get(job)
        assert (record.state, record.is_cancel_asked, record.worker) == (JobState.CANCELLED, False, None)

    def test_what_has_ended_stays(self, table: JobTable) -> None:
        job = submitted(table)
        table.finish(claimed(table), {})
        assert table.cancel(job).state is JobState.DONE

    def test_only_what_has_ended_is_resumed(self, table: JobTable) -> None:
        job = submitted(table)
        with pytest.raises(WrongStateError, match=f"job {job} is queued, it must be cancelled or failed"):
            table.resume(job)
        table.finish(claimed(table), {"accuracy": 1.0})
        with pytest.raises(WrongStateError, match="is done, it must be"):
            table.resume(job)
        more = table.resume(job, {"trials": 9})
        assert (more.state, more.request, more.result) == (JobState.QUEUED, {"trials": 9}, None)


class TestListing:
    def test_pages_hold_every_job_once_the_newest_first(self, table: JobTable) -> None:
        jobs = [submitted(table) for _ in range(7)]
        pages, cursor = [], None
        while not pages or cursor is not None:
            page = table.page(cursor, 3)
            pages.append([job.id for job in page.jobs])
            cursor = page.next_cursor
            submitted(table)  # what comes meanwhile moves nothing
        assert [len(page) for page in pages] == [3, 3, 1]
        assert [job for page in pages for job in page] == jobs[::-1]

    def test_by_state(self, table: JobTable) -> None:
        jobs = [submitted(table) for _ in range(3)]
        claimed(table)
        assert [job.id for job in table.page(state=JobState.QUEUED).jobs] == [jobs[2], jobs[1]]
        assert table.counts() == {("search", JobState.QUEUED): 2, ("search", JobState.RUNNING): 1}

    @pytest.mark.parametrize(
        ("cursor", "limit"), [(None, 0), (None, 501), ("x", 1), ("-1", 1), ("9" * 19, 1), ("²", 1)]
    )
    def test_what_is_no_page_is_refused(self, table: JobTable, cursor: str | None, limit: int) -> None:
        with pytest.raises(BadInputError, match="must be"):
            table.page(cursor, limit)


def test_workers_are_known_by_their_last_sign_of_life(table: JobTable) -> None:
    table.greet("first", ["search"], "host-a")
    table.greet("second", ["prune", "search"], "host-b")
    table.greet("first", ["search"], "host-a", "job")
    first, second = table.workers()
    assert (first.name, first.job, first.host, first.kinds) == ("first", "job", "host-a", ("search",))
    assert second.kinds == ("prune", "search")
    assert 0 <= first.age_s <= second.age_s
    table.part("second")
    assert [worker.name for worker in table.workers()] == ["first"]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_does_not_hold_every_text_is_refused(postgresql, encoding: str) -> None:
    with pytest.raises(BadInputError) as refused:
        Database(postgresql.new_database(encoding))
    assert f"has the encoding {encoding}, must be UTF8; make one: createdb -E UTF8 -T template0 NAME" in str(
        refused.value
    )
    assert postgresql.password not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql+psycopg://ann:se cret@host:none/x", "postgresql://a:secret@h:bad/n"])
def test_an_address_that_is_none_is_told_without_its_password(url: str) -> None:
    with pytest.raises(BadInputError, match=r"database .* is no address; write sqlite:///FILE") as told:
        Database(url)
    assert "cret" not in str(told.value)


def test_tables_are_made_once_beside_optunas(table: JobTable) -> None:
    import optuna

    job = submitted(table)
    url = table.database.engine.url.render_as_string(hide_password=False)
    study = optuna.create_study(storage=url)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    again = Database(url)
    assert JobTable(again).get(job).id == job
    again.close()
    assert len(optuna.load_study(study_name=study.study_name, storage=url).trials) == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "claim", "lapse", "finish", "fail", "release", "lose", "cancel", "resume", "renew"]),
        st.integers(0, 30),
    ),
    max_size=60,
)


class Model:
    """Jobs, claims, and for each job the one attempt that may write."""

    def __init__(self, table: JobTable) -> None:
        self.table = table
        self.jobs: list[str] = []
        self.claims: list[Claim] = []
        self.holders: dict[str, int] = {}

    def step(self, name: str, pick: int) -> None:
        if name == "submit" or not self.jobs:
            self.jobs.append(submitted(self.table))
        elif name in ("claim", "lapse"):
            self.take(f"worker {pick}", RAN_OUT if name == "lapse" else FOR_EVER)
        elif name in ("cancel", "resume"):
            self.change(name, self.jobs[pick % len(self.jobs)])
        elif self.claims:
            self.write(name, self.claims[pick % len(self.claims)])

    def take(self, worker: str, lease_s: float) -> None:
        claim = self.table.claim(worker, KINDS, lease_s)
        if claim is not None:
            assert claim.attempt > max((c.attempt for c in self.claims if c.job.id == claim.job.id), default=0)
            self.claims.append(claim)
            self.holders[claim.job.id] = claim.attempt

    def change(self, name: str, job: str) -> None:
        before = self.table.get(job)
        try:
            getattr(self.table, name)(job)
        except WrongStateError:
            assert name == "resume"
            assert before.state not in (JobState.CANCELLED, JobState.FAILED)

    def write(self, name: str, claim: Claim) -> None:
        is_running = self.table.get(claim.job.id).state is JobState.RUNNING
        may_write = is_running and self.holders.get(claim.job.id) == claim.attempt
        arguments = {"finish": [{}], "fail": [JobProblem("x", "y")], "lose": ["killed"]}.get(name, [])
        try:
            getattr(self.table, name)(claim, *arguments)
        except StaleClaimError:
            assert not may_write
        else:
            assert may_write
            if name != "renew":
                del self.holders[claim.job.id]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_no_job_is_lost_and_none_is_held_twice(table: JobTable, steps: list[tuple[str, int]]) -> None:
    model = Model(table)
    for name, pick in steps:
        model.step(name, pick)
    jobs = model.jobs
    records = [table.get(job) for job in jobs]
    assert all((record.state is JobState.RUNNING) == (record.worker is not None) for record in records)
    assert all((record.state in ENDED) == (record.ended_s is not None) for record in records)


def test_migrations_make_the_tables_that_the_code_reads(table: JobTable) -> None:
    with table.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": _is_ours})
        assert compare_metadata(context, METADATA) == []


def _is_ours(name: str | None, kind: str, parents: object) -> bool:
    return kind != "table" or ((name or "").startswith("amcsearch_") and name != "amcsearch_version")
