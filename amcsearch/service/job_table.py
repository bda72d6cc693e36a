"""The queue of jobs in the database: submit, claim under a lease, and write only as the holder of the latest attempt.

A claim takes the oldest job that waits, or one whose lease ran out by the database's clock, and counts the attempt up.
Every write of a worker names its attempt; one that is no longer the latest is refused. A job whose workers are lost
again and again without a further evaluation between is failed, so that a job which kills its workers ends.
"""

import json
import secrets
from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy import Connection, Double, Row, Select, and_, bindparam, case, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.expression import ColumnElement

from amcsearch.core import BadInputError
from amcsearch.service.database import DEVICES, JOBS, WORKERS, Database
from amcsearch.service.device_table import AWAY_S
from amcsearch.service.records import (
    ENDED,
    Claim,
    JobPage,
    JobProblem,
    JobProgress,
    JobRecord,
    JobState,
    StaleClaimError,
    WorkerRecord,
)

__all__ = ["MOST_LOST", "JobTable", "NoSuchJobError", "WrongStateError"]

MOST_LOST: Final = 5
"""Workers that a job may lose in a row without a further evaluation."""
_MOST_JOBS: Final = 500  # a page
_WAITING: Final = (JobState.QUEUED, JobState.RUNNING)


class NoSuchJobError(LookupError):
    """There is no job of this number."""


class WrongStateError(ValueError):
    """What was asked for does not go with the job's state; the message says which state it needs."""


class JobTable:
    """All jobs and workers of a service; any number of processes may use one at once.

    Every method is one transaction. Any may raise ``sqlalchemy.exc.OperationalError`` where the database is away.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        now, is_able = database.now, JOBS.c.kind.in_(bindparam("kinds", expanding=True))
        is_heard = select(DEVICES).where(DEVICES.c.name == JOBS.c.device, DEVICES.c.seen_s > now - AWAY_S).exists()
        # made once: putting a statement together takes longer than running it
        self._lost = (
            select(JOBS.c.sequence, JOBS.c.lost, JOBS.c.is_cancel_asked)
            .where(JOBS.c.state == JobState.RUNNING, JOBS.c.lease_until_s <= now, is_able)
            .order_by(JOBS.c.lease_until_s)
            .with_for_update(skip_locked=True)
        )
        is_waiting = and_(JOBS.c.state == JobState.QUEUED, or_(JOBS.c.device.is_(None), is_heard))
        self._waiting = select(JOBS.c.sequence).where(is_waiting).order_by(JOBS.c.sequence).limit(1)
        self._of_kind = self._waiting.where(JOBS.c.kind == bindparam("kind")).with_for_update(skip_locked=True)
        self._oldest: dict[tuple[str, ...], Select[Any]] = {}
        taken: dict[str, Any] = {
            "state": JobState.RUNNING,
            "worker": bindparam("by"),
            "device": None,
            "attempt": JOBS.c.attempt + 1,
            "lost": JOBS.c.lost + bindparam("lost_now"),
            "lease_until_s": now + bindparam("lease_s", type_=Double),
            "started_s": func.coalesce(JOBS.c.started_s, now),
            "revision": JOBS.c.revision + 1,
            "changed_s": now,
        }
        self._take = update(JOBS).where(JOBS.c.sequence == bindparam("taken")).values(taken).returning(JOBS)

    def submit(
        self,
        kind: str,
        name: str,
        request: Mapping[str, object],
        owner: str,
        idempotency_key: str | None = None,
        most_waiting: int | None = None,
    ) -> JobRecord:
        """Add a job, or return the one that the owner has added under the same key.

        Args:
            kind: what is to be done.
            name: for people.
            request: of that kind, as JSON.
            owner: who submits.
            idempotency_key: of the owner's own; None adds a job in any case.
            most_waiting: jobs of the owner that may wait or run.

        Raises:
            BadInputError: the key goes with another request, or too many jobs of the owner wait.
        """
        values = {"kind": kind, "name": name[:128], "request": dict(request), "owner": owner}
        try:
            with self.database.writing() as connection:
                earlier = self._submitted(connection, owner, idempotency_key)
                if earlier is None:
                    self._check_quota(connection, owner, most_waiting)
                    return self._added(connection, values, idempotency_key)
        except IntegrityError:  # two requests with one key at the same moment, on PostgreSQL
            with self.database.reading() as connection:
                earlier = self._submitted(connection, owner, idempotency_key)
            if earlier is None:
                raise
        if (earlier.kind, _text(earlier.request)) != (kind, _text(request)):
            raise BadInputError(
                f"Idempotency-Key {idempotency_key!r} goes with another request, job {earlier.id}; send another key"
            )
        return earlier

    def _submitted(self, connection: Connection, owner: str, key: str | None) -> JobRecord | None:
        if key is None:
            return None
        query = select(JOBS).where(JOBS.c.owner == owner, JOBS.c.idempotency_key == key)
        row = connection.execute(query).first()
        return None if row is None else _record(row)

    def _check_quota(self, connection: Connection, owner: str, most: int | None) -> None:
        if most is None:
            return
        waiting = select(func.count()).select_from(JOBS).where(JOBS.c.owner == owner, JOBS.c.state.in_(_WAITING))
        count = connection.execute(waiting).scalar_one()
        if count >= most:
            raise BadInputError(f"{count} jobs of {owner} wait or run, at most {most}; wait for one, or cancel one")

    def _added(self, connection: Connection, values: Mapping[str, object], key: str | None) -> JobRecord:
        now = self.database.now
        added = insert(JOBS).values(
            **values,
            id=secrets.token_hex(8),
            idempotency_key=key,
            state=JobState.QUEUED,
            is_cancel_asked=False,
            attempt=0,
            lost=0,
            revision=1,
            created_s=now,
            changed_s=now,
            progress=JobProgress().to_json(),
        )
        return _record(connection.execute(added.returning(JOBS)).one())

    def claim(self, worker: str, kinds: Collection[str], lease_s: float) -> Claim | None:
        """Take the oldest job that waits or whose lease ran out; None where there is none.

        Args:
            worker: name of the worker.
            kinds: of jobs that it runs.
            lease_s: seconds until the job counts as lost unless ``renew`` is called.
        """
        with self.database.writing() as connection:
            sequence, lost = self._taken_over(connection, kinds), 1
            if sequence is None:
                sequence, lost = self._longest_waiting(connection, tuple(kinds)), 0
            if sequence is None:
                return None
            parameters = {"taken": sequence, "by": worker, "lost_now": lost, "lease_s": lease_s}
            row = connection.execute(self._take, parameters).one()
            return Claim(_record(row), worker, row.attempt, lease_s)

    def _taken_over(self, connection: Connection, kinds: Collection[str]) -> int | None:
        """The first job whose lease ran out; those that were to be cancelled, or are lost once too often, end."""
        for job in connection.execute(self._lost, {"kinds": list(kinds)}).all():
            if not job.is_cancel_asked and job.lost < MOST_LOST:
                return int(job.sequence)
            ended = {**self._ended(), "state": JobState.CANCELLED}
            if not job.is_cancel_asked:
                problem = JobProblem("lost", f"{MOST_LOST + 1} workers were lost in a row; {_CURE_OF_LOSS}").to_json()
                ended |= {"state": JobState.FAILED, "problem": problem, "lost": JOBS.c.lost + 1}
            self._changed(connection, JOBS.c.sequence == job.sequence, ended)
        return None

    def _longest_waiting(self, connection: Connection, kinds: tuple[str, ...]) -> int | None:
        """The oldest job that waits, by one look into the index for each kind; of several kinds nearly the oldest.

        One that another worker takes at this moment is passed over, for a job of its kind where there is one.
        """
        if kinds not in self._oldest:
            each = (self._waiting.where(JOBS.c.kind == kind).scalar_subquery() for kind in kinds)
            self._oldest[kinds] = select(*each)
        oldest = zip(connection.execute(self._oldest[kinds]).one(), kinds, strict=True)
        for _, kind in sorted((sequence, kind) for sequence, kind in oldest if sequence is not None):
            sequence = connection.execute(self._of_kind, {"kind": kind}).scalar()
            if sequence is not None:
                return int(sequence)
        return None

    def renew(self, claim: Claim, progress: JobProgress | None = None) -> JobRecord:
        """Prolong a lease, and note the progress of the job; the record says whether the job is to be cancelled.

        Raises:
            StaleClaimError: the worker no longer holds the job.
        """
        values: dict[str, object] = {"lease_until_s": self.database.now + claim.lease_s}
        if progress is None:
            with self.database.writing() as connection:
                renewed = update(JOBS).where(_held(claim)).values(values).returning(JOBS)
                return _held_record(connection.execute(renewed).first(), claim)
        values["progress"] = progress.to_json()
        if progress.evaluations > claim.job.progress.evaluations:
            values["lost"] = 0
        return self._write(claim, values)

    def finish(self, claim: Claim, result: Mapping[str, object]) -> JobRecord:
        """End a job well; raises as ``renew``."""
        return self._write(claim, {**self._ended(), "state": JobState.DONE, "result": dict(result), "problem": None})

    def fail(self, claim: Claim, problem: JobProblem) -> JobRecord:
        """End a job with its error; raises as ``renew``."""
        return self._write(claim, {**self._ended(), "state": JobState.FAILED, "problem": problem.to_json()})

    def release(self, claim: Claim, device: str | None = None) -> JobRecord:
        """Give a job back that can go on: it waits again, or is cancelled where that was asked for.

        Args:
            claim: of the job.
            device: without which it cannot go on; it waits until the agent of that is heard of.

        Raises:
            StaleClaimError: as ``renew``.
        """
        state = case((JOBS.c.is_cancel_asked, JobState.CANCELLED.value), else_=JobState.QUEUED.value)
        ended = case((JOBS.c.is_cancel_asked, self.database.now), else_=None)
        return self._write(claim, {**self._ended(), "state": state, "ended_s": ended, "device": device})

    def lose(self, claim: Claim, reason: str) -> JobRecord:
        """Give a job back whose process died: it waits again, unless it was lost too often; raises as ``renew``."""
        with self.database.writing() as connection:
            held = connection.execute(select(JOBS).where(_held(claim)).with_for_update()).first()
            record = _held_record(held, claim)
            values: dict[str, object] = {**self._ended(), "lost": record.lost + 1}
            if record.is_cancel_asked:
                values["state"] = JobState.CANCELLED
            elif record.lost >= MOST_LOST:
                problem = JobProblem("lost", f"{reason}, {MOST_LOST + 1} times in a row; {_CURE_OF_LOSS}")
                values |= {"state": JobState.FAILED, "problem": problem.to_json()}
            else:
                values |= {"state": JobState.QUEUED, "ended_s": None}
            return _held_record(self._changed(connection, _held(claim), values), claim)

    def _ended(self) -> dict[str, object]:
        return {"ended_s": self.database.now, "lease_until_s": None, "worker": None, "is_cancel_asked": False}

    def cancel(self, job: str) -> JobRecord:
        """Cancel a job: at once where no worker holds it; else its worker stops it. One that has ended stays as it is.

        Raises:
            NoSuchJobError: there is no such job.
        """
        is_mine = JOBS.c.id == job
        ran_out = and_(JOBS.c.state == JobState.RUNNING, JOBS.c.lease_until_s <= self.database.now)
        with self.database.writing() as connection:
            row = self._changed(
                connection,
                and_(is_mine, or_(JOBS.c.state == JobState.QUEUED, ran_out)),
                {**self._ended(), "state": JobState.CANCELLED},
            )
            if row is None:
                running = and_(is_mine, JOBS.c.state == JobState.RUNNING, JOBS.c.is_cancel_asked.is_(False))
                row = self._changed(connection, running, {"is_cancel_asked": True})
            row = row if row is not None else connection.execute(select(JOBS).where(is_mine)).first()
        return _existing(row, job)

    def resume(
        self, job: str, request: Mapping[str, object] | None = None, most_waiting: int | None = None
    ) -> JobRecord:
        """Let a job go on: one that was cancelled or failed, or, with a larger ``request``, one that is done.

        Raises:
            NoSuchJobError: there is no such job.
            WrongStateError: it waits or runs, or is done and nothing is added.
            BadInputError: more than ``most_waiting`` jobs of its owner would wait or run.
        """
        allowed = ENDED if request is not None else ENDED - {JobState.DONE}
        again = dict.fromkeys(("ended_s", "problem", "result", "device")) | {"state": JobState.QUEUED, "lost": 0}
        changes = {} if request is None else {"request": dict(request)}
        is_meant = and_(JOBS.c.id == job, JOBS.c.state.in_(allowed))
        with self.database.writing() as connection:
            owner = connection.execute(select(JOBS.c.owner).where(is_meant)).scalar()
            if owner is not None:
                self._check_quota(connection, owner, most_waiting)
            row = self._changed(connection, is_meant, {**self._ended(), **again, **changes})
            if row is not None:
                return _record(row)
            record = _existing(connection.execute(select(JOBS).where(JOBS.c.id == job)).first(), job)
        wanted = " or ".join(sorted(allowed))
        raise WrongStateError(f"job {job} is {record.state}, it must be {wanted}; wait for it, or cancel it first")

    def get(self, job: str) -> JobRecord:
        """Return a job.

        Raises:
            NoSuchJobError: there is no such job.
        """
        with self.database.reading() as connection:
            return _existing(connection.execute(select(JOBS).where(JOBS.c.id == job)).first(), job)

    def page(self, cursor: str | None = None, limit: int = 50, state: JobState | None = None) -> JobPage:
        """Return jobs, the newest first, from where ``cursor`` of the page before ended.

        Raises:
            BadInputError: a limit out of bounds, or a cursor that no page gave.
        """
        if not 1 <= limit <= _MOST_JOBS:
            raise BadInputError(f"limit = {limit}, must be at least 1 and at most {_MOST_JOBS}")
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
            raise BadInputError(
                f"cursor = {cursor!r:.40}, must be next_cursor of an earlier page; leave it out to begin"
            )
        query = select(JOBS).order_by(JOBS.c.sequence.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(JOBS.c.sequence < int(cursor))
        if state is not None:
            query = query.where(JOBS.c.state == state)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        jobs = [_record(row) for row in rows[:limit]]
        return JobPage(jobs, str(jobs[-1].sequence) if len(rows) > limit else None)

    def counts(self) -> dict[tuple[str, JobState], int]:
        """Return how many jobs there are of each kind in each state."""
        query = select(JOBS.c.kind, JOBS.c.state, func.count()).group_by(JOBS.c.kind, JOBS.c.state)
        with self.database.reading() as connection:
            return {(kind, JobState(state)): count for kind, state, count in connection.execute(query)}

    def greet(self, worker: str, kinds: Collection[str], host: str, job: str | None = None) -> None:
        """Note a worker's sign of life, what it can run, and the job that it runs."""
        now = self.database.now
        values: dict[str, object] = {"kinds": sorted(kinds), "host": host, "job": job, "seen_s": now}
        with self.database.writing() as connection:
            changed = connection.execute(update(WORKERS).where(WORKERS.c.name == worker).values(values))
            if not changed.rowcount:
                connection.execute(insert(WORKERS).values(name=worker, begun_s=now, **values))

    def part(self, worker: str) -> None:
        """Remove a worker that ends."""
        with self.database.writing() as connection:
            connection.execute(WORKERS.delete().where(WORKERS.c.name == worker))

    def workers(self) -> list[WorkerRecord]:
        """Return every worker that has not parted, the latest sign of life first."""
        query = select(WORKERS, (self.database.now - WORKERS.c.seen_s).label("age_s"))
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(WORKERS.c.seen_s.desc())).all()
        return [
            WorkerRecord(row.name, tuple(row.kinds), row.host, row.job, row.begun_s, row.seen_s, max(row.age_s, 0.0))
            for row in rows
        ]

    def _write(self, claim: Claim, values: Mapping[str, object]) -> JobRecord:
        with self.database.writing() as connection:
            return _held_record(self._changed(connection, _held(claim), values), claim)

    def _changed(
        self, connection: Connection, where: ColumnElement[bool], values: Mapping[str, object]
    ) -> Row[Any] | None:
        noted = {"revision": JOBS.c.revision + 1, "changed_s": self.database.now, **values}
        return connection.execute(update(JOBS).where(where).values(noted).returning(JOBS)).first()


_CURE_OF_LOSS: Final = "look at its output.log, give its workers more memory, then resume it"


def _held(claim: Claim) -> ColumnElement[bool]:
    is_latest = and_(JOBS.c.attempt == claim.attempt, JOBS.c.worker == claim.worker)
    return and_(JOBS.c.id == claim.job.id, JOBS.c.state == JobState.RUNNING, is_latest)


def _held_record(row: Row[Any] | None, claim: Claim) -> JobRecord:
    if row is None:
        raise StaleClaimError(f"{claim.worker} no longer holds attempt {claim.attempt} of job {claim.job.id}")
    return _record(row)


def _existing(row: Row[Any] | None, job: str) -> JobRecord:
    if row is None:
        raise NoSuchJobError(f"there is no job {job[:40]}; GET /jobs lists them")
    return _record(row)


def _record(row: Row[Any]) -> JobRecord:
    """A row as a record: its columns have the names of the fields."""
    return JobRecord.from_json(row._mapping, f"job {row.id}")


def _text(request: Mapping[str, object]) -> str:
    return json.dumps(request, sort_keys=True)
