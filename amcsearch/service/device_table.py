"""Devices in the database: signs of life of their agents, and requests of jobs to the work list that the service holds.

A worker reaches the database and not the service, so a job's requests are rows: the service that holds the work list
answers them, also one that has just been started, and the job takes the answer.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, func, insert, select, update

from amcsearch.core import BadInputError
from amcsearch.runs import Document
from amcsearch.service.database import DEVICE_REQUESTS, DEVICES, JOBS, MEASUREMENTS, Database
from amcsearch.service.records import ENDED, LOOPBACK

__all__ = ["AWAY_S", "DeviceRecord", "DeviceTable", "JobAsks"]

AWAY_S: Final = 60.0
"""Silence of an agent after which no waiting job is begun for its device."""
_FORGOTTEN_S: Final = 3600.0  # after which a request is removed that nobody waits for
_MOST_REQUESTS: Final = 32  # that are answered at once


@dataclass(frozen=True)
class DeviceRecord(Document):
    """A device with an agent: what it says of itself, and its last sign of life, by the database's clock.

    ``says`` has ``cpu``, ``cpu_flags``, ``cores``, ``ort_version`` and ``machine``, None where it does not say.
    ``job`` is the one it measures for, with ``records`` of about ``expected``; ``is_connected`` whether its agent was
    heard of within a minute.
    """

    name: str
    owner: str
    says: Mapping[str, object]
    job: str | None
    records: int
    expected: int
    begun_s: float
    seen_s: float
    age_s: float

    @property
    def is_connected(self) -> bool:
        """Whether its agent was heard of lately."""
        return self.age_s < AWAY_S

    def to_json(self) -> dict[str, object]:
        """As JSON, ``is_connected`` included."""
        return {**super().to_json(), "is_connected": self.is_connected}


@dataclass(frozen=True)
class JobAsks:
    """A request of a job to the work list."""

    id: str
    job: str
    method: str
    target: str
    body: bytes | None


class DeviceTable:
    """All devices of a service; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def greet(
        self, name: str, owner: str, says: Mapping[str, object], measurement: tuple[str, int, int] | None
    ) -> None:
        """Note an agent's sign of life, and what it measures: name, records and expected ones.

        A device belongs to who first connected with it; to the first with a token, where the service had none before.
        """
        now, progress = self.database.now, measurement or (None, 0, 0)
        values: dict[str, object] = {
            "says": dict(says),
            "measurement": progress[0],
            "records": progress[1],
            "expected": progress[2],
            "seen_s": now,
        }
        with self.database.writing() as connection:
            known = connection.execute(select(DEVICES.c.owner).where(DEVICES.c.name == name)).scalar()
            if known is None:
                connection.execute(insert(DEVICES).values(name=name, owner=owner, begun_s=now, **values))
                return
            if known == LOOPBACK:
                values["owner"] = owner
            connection.execute(update(DEVICES).where(DEVICES.c.name == name).values(values))

    def owner(self, name: str) -> str | None:
        """Return whose tokens serve a device, None where there is none."""
        with self.database.reading() as connection:
            return connection.execute(select(DEVICES.c.owner).where(DEVICES.c.name == name)).scalar()

    def every(self) -> list[DeviceRecord]:
        """Return every device, the latest sign of life first."""
        age = (self.database.now - DEVICES.c.seen_s).label("age_s")
        joined = DEVICES.outerjoin(MEASUREMENTS, MEASUREMENTS.c.id == DEVICES.c.measurement)
        query = select(DEVICES, MEASUREMENTS.c.job, age).select_from(joined).order_by(DEVICES.c.seen_s.desc())
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            DeviceRecord(
                *(row.name, row.owner, row.says, row.job or None, row.records, row.expected),
                *(row.begun_s, row.seen_s, max(row.age_s, 0.0)),
            )
            for row in rows
        ]

    def remove(self, name: str) -> None:
        """Remove a device, which is anybody's again.

        Raises:
            BadInputError: there is none of this name.
        """
        with self.database.writing() as connection:
            if not connection.execute(delete(DEVICES).where(DEVICES.c.name == name)).rowcount:
                raise BadInputError(f"there is no device {name[:64]!r}; GET /devices lists them")

    def ask(self, job: str, method: str, target: str, body: bytes | None) -> str:
        """Ask the work list for a job; returns the request's name."""
        request = secrets.token_hex(16)
        values = {"id": request, "job": job, "method": method, "target": target, "body": body}
        with self.database.writing() as connection:
            connection.execute(insert(DEVICE_REQUESTS).values(**values, asked_s=self.database.now))
        return request

    def taken(self, request: str) -> tuple[int, bytes] | None:
        """Take the status and the answer of a request, None where there is none yet."""
        query = select(DEVICE_REQUESTS.c.status, DEVICE_REQUESTS.c.answer).where(DEVICE_REQUESTS.c.id == request)
        with self.database.reading() as connection:
            row = connection.execute(query).first()
        if row is None or row.status is None:
            return None
        self.drop(request)
        return row.status, bytes(row.answer or b"")

    def drop(self, request: str) -> None:
        """Remove a request that nobody waits for any more."""
        with self.database.writing() as connection:
            connection.execute(delete(DEVICE_REQUESTS).where(DEVICE_REQUESTS.c.id == request))

    def asked(self) -> list[JobAsks]:
        """Return requests that have no answer, the oldest first."""
        columns = (DEVICE_REQUESTS.c[name] for name in ("id", "job", "method", "target", "body"))
        waiting = select(*columns).where(DEVICE_REQUESTS.c.status.is_(None))
        with self.database.reading() as connection:
            rows = connection.execute(waiting.order_by(DEVICE_REQUESTS.c.asked_s).limit(_MOST_REQUESTS)).all()
        return [
            JobAsks(row.id, row.job, row.method, row.target, None if row.body is None else bytes(row.body))
            for row in rows
        ]

    def answer(self, request: str, status: int, content: bytes) -> None:
        """Answer a request."""
        with self.database.writing() as connection:
            answered = update(DEVICE_REQUESTS).where(DEVICE_REQUESTS.c.id == request)
            connection.execute(answered.values(status=status, answer=content, body=None))

    def measures_for(self, measurement: str, job: str) -> None:
        """Note for which job a measurement is."""
        with self.database.writing() as connection:
            connection.execute(delete(MEASUREMENTS).where(MEASUREMENTS.c.id == measurement))
            connection.execute(insert(MEASUREMENTS).values(id=measurement, job=job))

    def keep_for(self, measurement: str, owner: str, most: int) -> bool:
        """Note whose a measurement is that belongs to no job; False where the owner has ``most`` others already."""
        with self.database.writing() as connection:
            if (
                connection.execute(select(MEASUREMENTS.c.id).where(MEASUREMENTS.c.id == measurement)).first()
                is not None
            ):
                return True
            counted = select(func.count()).select_from(MEASUREMENTS).where(MEASUREMENTS.c.owner == owner)
            if connection.execute(counted).scalar_one() >= most:
                return False
            connection.execute(insert(MEASUREMENTS).values(id=measurement, job="", owner=owner))
            return True

    def unwanted(self) -> list[str]:
        """Return measurements whose jobs have ended, and remove requests that nobody waits for."""
        is_old = DEVICE_REQUESTS.c.asked_s < self.database.now - _FORGOTTEN_S
        ended = select(MEASUREMENTS.c.id).join(JOBS, JOBS.c.id == MEASUREMENTS.c.job).where(JOBS.c.state.in_(ENDED))
        with self.database.writing() as connection:
            connection.execute(delete(DEVICE_REQUESTS).where(is_old))
            return [row.id for row in connection.execute(ended)]

    def forget(self, measurement: str) -> None:
        """Remove what is known of a measurement that is over."""
        with self.database.writing() as connection:
            connection.execute(delete(MEASUREMENTS).where(MEASUREMENTS.c.id == measurement))
