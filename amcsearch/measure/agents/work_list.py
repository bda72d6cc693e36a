"""The work of devices' agents, kept in a folder: plans that wait, and the records that agents bring.

Nothing here knows of HTTP: a server, or a service that has one, calls it from several threads. Every change is on the
disk before its call returns, so that the server may die at any moment.

A measurement's records are a beginning of its agent's file. What an agent sends is taken from a place in that file:
records that are there already must be the same to the last byte and count once; a gap is answered with how many there
are. Every record is held to the plan, every duration to what a device can take, and a device to what it was before.
"""

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from amcsearch.core import BadInputError, parse_json, printable, read_bytes, read_text
from amcsearch.measure.agents.received import (
    OF_DEVICE,
    AgentRefusedError,
    JobOffer,
    RecordCheck,
    is_word,
    parsed_records,
)
from amcsearch.runs import StoredDocument, make_folder, replacing, take_lock
from amcsearch.runtime import (
    CPU,
    MOST_ARCHIVE_BYTES,
    SAYS,
    SUM,
    DeviceError,
    DevicePlan,
    Journal,
    checked_plan,
)

__all__ = [
    "AgentRefusedError",
    "DeviceState",
    "GapError",
    "JobOffer",
    "MeasurementState",
    "UnknownJobError",
    "WorkList",
]

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
JOB: Final = re.compile(r"[0-9a-f]{32}")
INSTANCE: Final = re.compile(r"[0-9a-f]{16,64}")
SILENT_S: Final = 60.0  # after which another agent of the same name may take its measurement
MOST_RESULT_BYTES: Final = 64 * 2**20
MOST_REASON: Final = 400
MOST_DEVICES: Final = 1000
MOST_THREADS, MOST_MINUTES = 1024, 1440.0
PLAN, OFFER, RESULT, REASON = "plan.zip", "job.json", "result.jsonl", "failed.json"


class UnknownJobError(BadInputError):
    """There is no such measurement, or it is no longer wanted."""


class GapError(BadInputError):
    """Records from a later place than there are; ``have`` is how many there are."""

    def __init__(self, have: int) -> None:
        super().__init__(f"{have} records are here; send those from there on")
        self.have = have


@dataclass(frozen=True)
class MeasurementState(StoredDocument):
    """How far a measurement is: ``state`` is waiting, measuring, done or failed, ``reason`` why it failed.

    ``records`` counts those that are here, ``expected`` those of a whole measurement.
    """

    job: str
    device: str
    state: str
    records: int
    expected: int
    reason: str | None = None


@dataclass(frozen=True)
class DeviceState(StoredDocument):
    """What an agent said of its device, and how many seconds ago it was heard of; None since the server began."""

    name: str
    provenance: Mapping[str, object]
    silent_s: float | None


@dataclass
class _Contact:
    """The last word of an agent: when, and of which one under its name."""

    at: float
    instance: str


@dataclass
class _Job:
    """A measurement in memory; ``instance`` is the agent that has it, since this process began."""

    offer: JobOffer
    plan: DevicePlan
    journal: Journal
    reason: str | None = None
    instance: str | None = None

    def __post_init__(self) -> None:
        self.check = RecordCheck(self.plan, self.offer, self.journal.records)

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        return self.journal.records

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to measure."""
        return self.reason is not None or bool(self.records and self.records[-1].get("kind") == "end")

    @property
    def expected(self) -> int:
        """Records of a whole measurement that nothing interrupts."""
        passes, entries = int(self.plan.plan["passes"]), self.plan.entries
        counts = (1 + entry.profiled + passes * entry.timed for entry in entries)
        return 2 + passes + sum(counts)

    def state(self) -> MeasurementState:
        state = "measuring" if self.records else "waiting"
        if self.is_over:
            state = "done" if self.reason is None else "failed"
        offer = self.offer
        return MeasurementState(offer.job, offer.device, state, len(self.records), self.expected, self.reason)


class WorkList:
    """Work for devices in a folder.

    Args:
        folder: made where it is not there; one process at a time holds it.
        clock: seconds.

    Raises:
        BadInputError: the folder cannot be written or is in use, or a file in it is damaged.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self._clock = folder, clock
        for name in ("jobs", "devices"):
            make_folder(folder / name)
        self._file_lock = take_lock(folder / ".lock", "folder of devices' work")
        self._lock = threading.RLock()
        self._contacts: dict[str, _Contact] = {}
        self._jobs = {path.name: self._read(path) for path in self._stored()}

    def close(self) -> None:
        """Give the folder back."""
        with self._lock:
            for job in self._jobs.values():
                job.journal.close()
            self._file_lock.close()

    def submit(
        self, device: str, plan: bytes, threads: int, provider: str = CPU, minutes: float | None = None
    ) -> MeasurementState:
        """Add a measurement for a device; the same one again is the one that is there.

        Args:
            device: name of its agent.
            plan: archive of a plan.
            threads: inside an operator.
            provider: execution provider of the runtime.
            minutes: bound of the measuring, None for none.

        Raises:
            BadInputError: a name or number out of range, what is no plan, or another setting than the plan's.
        """
        if not NAME.fullmatch(device) or not NAME.fullmatch(provider) or not 1 <= threads <= MOST_THREADS:
            raise BadInputError(f"measurement: device {device!r:.80}, provider {provider!r:.40}, {threads} threads")
        if minutes is not None and not 0 < minutes <= MOST_MINUTES:
            raise BadInputError(f"measurement: minutes = {minutes}, must be more than 0 and at most {MOST_MINUTES:g}")
        checked = _checked(plan)
        try:
            checked.check_setting(threads, provider)
        except DeviceError as error:
            raise BadInputError(f"measurement: {error}") from error
        with self._lock:
            for known in self._jobs.values():
                if known.offer == JobOffer(known.offer.job, device, checked.hash, threads, provider, minutes):
                    return known.state()
            offer = JobOffer(secrets.token_hex(16), device, checked.hash, threads, provider, minutes)
            folder = self._folder(offer.job)
            make_folder(folder)
            with replacing(folder / PLAN) as temporary:
                temporary.write_bytes(plan)
            _write(folder / OFFER, offer.to_json())  # last: a folder without it is no measurement
            self._jobs[offer.job] = _Job(offer, checked, Journal(folder / RESULT))
            return self._jobs[offer.job].state()

    def state(self, job: str) -> MeasurementState:
        """Say how far a measurement is; raises ``UnknownJobError``."""
        with self._lock:
            return self._job(job).state()

    def result(self, job: str) -> bytes:
        """Return the records of a measurement as its agent's file holds them; raises ``UnknownJobError``."""
        with self._lock:
            return self._job(job).journal.path.read_bytes()

    def forget(self, job: str) -> None:
        """Remove a measurement, which its agent then breaks off; raises ``UnknownJobError``."""
        with self._lock:
            self._job(job).journal.close()
            del self._jobs[job]
            (self._folder(job) / OFFER).unlink(missing_ok=True)  # first: without it the folder is no measurement
            shutil.rmtree(self._folder(job), ignore_errors=True)

    def device(self, name: str) -> DeviceState | None:
        """Say what is known of a device, None where its agent was never heard of."""
        with self._lock:
            path = self._device_file(name)
            if not path.is_file():
                return None
            known = _read_object(path)
            contact = self._contacts.get(name)
            return DeviceState(name, known, None if contact is None else self._clock() - contact.at)

    def forget_device(self, name: str) -> None:
        """Forget what is known of a device, so that another one may take its name."""
        with self._lock:
            self._device_file(name).unlink(missing_ok=True)
            self._contacts.pop(name, None)

    def next(self, device: str, instance: str, says: Mapping[str, object]) -> JobOffer | None:
        """Offer an agent the oldest measurement that its device has to do, None where there is none.

        Args:
            device: its name.
            instance: what tells it from another agent under this name; while that one is heard of, it gets nothing.
            says: what it says of its device.

        Raises:
            AgentRefusedError: a name of another form, or another device than before under this name.
        """
        with self._lock:
            if not NAME.fullmatch(device) or not INSTANCE.fullmatch(instance):
                raise AgentRefusedError(f"agent {device!r:.80} of instance {instance!r:.80}: no such name is possible")
            self._check_device(device, says)
            contact, now = self._contacts.get(device), self._clock()
            if contact is not None and contact.instance != instance and now - contact.at < SILENT_S:
                return None
            self._contacts[device] = _Contact(now, instance)
            job = next((job for job in self._jobs.values() if job.offer.device == device and not job.is_over), None)
            if job is None:
                return None
            job.instance = instance
            return replace(job.offer, have=len(job.records))

    def plan(self, device: str, job: str, instance: str) -> bytes:
        """Return the archive of a measurement's plan; raises ``UnknownJobError``."""
        with self._lock:
            self._taken(device, job, instance)
            return (self._folder(job) / PLAN).read_bytes()

    def restart(self, device: str, job: str, instance: str) -> None:
        """Drop the records of a measurement whose agent has lost its file; raises ``UnknownJobError``."""
        with self._lock:
            taken = self._taken(device, job, instance)
            taken.journal.close()
            taken.journal.path.unlink(missing_ok=True)
            self._jobs[job] = replace(taken, journal=Journal(taken.journal.path))

    def fail(self, device: str, job: str, instance: str, reason: str) -> None:
        """Note that an agent cannot do a measurement; raises ``UnknownJobError``."""
        with self._lock:
            taken = self._taken(device, job, instance)
            taken.reason = printable(" ".join(reason.split()))[:MOST_REASON] or "the agent gave no reason"
            _write(self._folder(job) / REASON, {"reason": taken.reason})

    def append(self, device: str, job: str, instance: str, at: int, lines: bytes) -> int:
        """Take records from the one numbered ``at`` on; returns how many are here.

        Raises:
            UnknownJobError: it is no longer wanted, or another agent has it.
            GapError: earlier records are missing.
            AgentRefusedError: records that differ from those here, or are not of this plan or device, or impossible.
        """
        with self._lock:
            taken = self._taken(device, job, instance)
            records = parsed_records(lines, job)
            have = len(taken.records)
            if not 0 <= at <= have:
                raise GapError(have)
            known, new = records[: have - at], records[have - at :]
            for number, (ours, theirs) in enumerate(zip(taken.records[at:], known, strict=False), at):
                if ours[SUM] != theirs[SUM]:
                    raise AgentRefusedError(f"record {number} of {job[:12]} was sent before with another content")
            if new:
                taken.check.check(self._says(device), new)
                size = taken.journal.path.stat().st_size + len(lines)
                if size > MOST_RESULT_BYTES:
                    raise AgentRefusedError(
                        f"{job[:12]} has {size} bytes of records, at most {MOST_RESULT_BYTES} are kept"
                    )
            for record in new:
                taken.journal.append(record)
            return len(taken.records)

    def _stored(self) -> list[Path]:
        """Folders of measurements, the oldest first; what is left of one that was not whole goes."""
        folders = [path for path in (self.folder / "jobs").iterdir() if JOB.fullmatch(path.name)]
        for path in folders:
            if not (path / OFFER).is_file():
                shutil.rmtree(path, ignore_errors=True)
        whole = [path for path in folders if (path / OFFER).is_file()]
        return sorted(whole, key=lambda path: ((path / OFFER).stat().st_mtime_ns, path.name))

    def _read(self, path: Path) -> _Job:
        offer = JobOffer.from_json(_read_object(path / OFFER), str(path / OFFER))
        reason = _read_object(path / REASON)["reason"] if (path / REASON).is_file() else None
        plan = _checked(read_bytes(path / PLAN, "plan", MOST_ARCHIVE_BYTES))
        try:
            return _Job(offer, plan, Journal(path / RESULT), reason)
        except DeviceError as error:
            raise BadInputError(f"{error}; remove {path}, and the measurement is made anew") from error

    def _folder(self, job: str) -> Path:
        return self.folder / "jobs" / job

    def _job(self, job: str) -> _Job:
        if job not in self._jobs:
            raise UnknownJobError(f"there is no measurement {job[:40]!r}, or it is no longer wanted")
        return self._jobs[job]

    def _taken(self, device: str, job: str, instance: str) -> _Job:
        """The measurement of an agent, which is heard of by this."""
        taken = self._job(job)
        if taken.offer.device != device or taken.instance not in (None, instance) or taken.reason is not None:
            raise UnknownJobError(f"measurement {job[:12]} is no longer this agent's")
        taken.instance = instance
        self._contacts[device] = _Contact(self._clock(), instance)
        return taken

    def _device_file(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise BadInputError(f"device {name!r:.80}: letters, digits, dots, dashes and underscores, at most 64")
        return self.folder / "devices" / f"{name}.json"

    def _says(self, device: str) -> Mapping[str, object]:
        path = self._device_file(device)
        return _read_object(path) if path.is_file() else {}

    def _check_device(self, name: str, says: Mapping[str, object]) -> None:
        """Note what an agent says of its device, and refuse another device under its name."""
        kept = {key: says.get(key) for key in SAYS}
        if not all(isinstance(value, str | int | None) and is_word(str(value)) for value in kept.values()):
            raise AgentRefusedError(f"agent {name} says of its device what no device is: {kept!r:.100}")
        path, before = self._device_file(name), self._says(name)
        for key in OF_DEVICE if before else ():
            if before.get(key) != kept[key]:
                raise AgentRefusedError(
                    f"agent {name} is another device: {key} was {before.get(key)!r:.60}, is {kept[key]!r:.60}; give it "
                    f"another --name, or remove {path} from the server"
                )
        if not before and sum(1 for _ in path.parent.iterdir()) >= MOST_DEVICES:
            raise AgentRefusedError(
                f"agent {name} is new, and {MOST_DEVICES} devices are known; remove the gone ones of {path.parent}"
            )
        if before != kept:
            _write(path, kept)


def _checked(plan: bytes) -> DevicePlan:
    try:
        return checked_plan(plan)
    except DeviceError as error:
        raise BadInputError(str(error)) from error


def _read_object(path: Path) -> dict[str, Any]:
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise BadInputError(f"{path} is damaged: it holds no object; remove it")
    return value


def _write(path: Path, value: Mapping[str, object]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")
