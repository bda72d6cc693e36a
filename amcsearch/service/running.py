"""A running service: its settings, its job table, and where the files of a job are."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import Request

from amcsearch.config import hint
from amcsearch.core import BadInputError
from amcsearch.runs import DEVICE_SERVER, HERE, OFFLINE
from amcsearch.service.allowed import Allowed
from amcsearch.service.device_table import DeviceRecord, DeviceTable
from amcsearch.service.devices import DeviceWork
from amcsearch.service.feeds import JobFeeds
from amcsearch.service.job_process import RUN
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import JobRecord, JobState, WorkerRecord
from amcsearch.service.settings import ServiceSettings
from amcsearch.service.tokens import TokenTable
from amcsearch.service.uploads import UploadTable

__all__ = ["Service", "running_service", "service_of"]

_SILENT_S: Final = 120.0  # after which a worker counts as gone
_LATE_S: Final = 20.0  # after which the worker of a job is named; it gives a sign of life every 15 s


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    settings: ServiceSettings
    table: JobTable
    tokens: TokenTable
    allowed: Allowed
    feeds: JobFeeds
    devices: DeviceTable
    work: DeviceWork
    uploads: UploadTable

    def folder(self, record: JobRecord) -> Path:
        """The run folder of a job."""
        return self.settings.runs / record.id / RUN

    def check_location(self, location: str) -> None:
        """Check where a job is to measure: here, offline, or on a device whose agent has been at this service.

        Where the environment names another server of devices, workers use that, and any name may be one of its.

        Raises:
            BadInputError: no agent of that name has connected.
        """
        if location in (HERE, OFFLINE) or os.environ.get(DEVICE_SERVER):
            return
        names = [device.name for device in self.devices.every()]
        if location not in names:
            raise BadInputError(
                f"device.location = {location!r}: no agent of that name has connected to this service"
                f"{hint(location, names)}; {_agent_of(location)}",
                "device.location",
            )

    def shown(self, record: JobRecord) -> Mapping[str, object]:
        """A job as JSON with where its files are; one that waits says for what."""
        return self.all_shown([record])[0]

    def text(self, record: JobRecord) -> str:
        """A job as the text of its JSON."""
        return json.dumps(self.shown(record), allow_nan=False, ensure_ascii=False)

    def all_shown(self, records: Sequence[JobRecord]) -> list[Mapping[str, object]]:
        """Several as ``shown``, with one look at the workers."""
        waiting = any(record.state in (JobState.QUEUED, JobState.RUNNING) for record in records)
        every = self.table.workers() if waiting else []
        workers = [worker for worker in every if worker.age_s < _SILENT_S]
        late = {worker.name: worker for worker in every if worker.age_s > _LATE_S}
        needed = any(record.device is not None for record in records)
        devices = {device.name: device for device in self.devices.every()} if needed else {}
        return [
            {
                **record.to_json(),
                "waits_for": _missing(record, workers, devices)
                if record.state is JobState.QUEUED
                else _silent(record, late),
                "run_folder": str(self.folder(record).absolute()),
            }
            for record in records
        ]


def _missing(record: JobRecord, workers: Sequence[WorkerRecord], devices: Mapping[str, DeviceRecord]) -> str:
    if record.device is not None:
        device = devices.get(record.device)
        if device is None or not device.is_connected:
            state = "no agent of that name has connected" if device is None else _heard(device)
            return f"device {record.device}: {state}; {_agent_of(record.device)}"
    able = sum(record.kind in worker.kinds for worker in workers)
    if not able:
        return f"a worker that runs {record.kind}: none is connected; start one with amcsearch worker"
    return f"one of {able} workers that run {record.kind}" if able > 1 else f"the worker that runs {record.kind}"


def _silent(record: JobRecord, late: Mapping[str, WorkerRecord]) -> str | None:
    """Since when nothing was heard of the worker of a job that runs; None where it gives signs of life."""
    worker = late.get(record.worker or "") if record.state is JobState.RUNNING else None
    if worker is None:
        return None
    return (
        f"worker {worker.name} on {worker.host}, last heard of {worker.age_s:.0f} s ago; once its lease has run out, "
        "another worker takes the job up"
    )


def _agent_of(device: str) -> str:
    return f"on the device: python3 kit.pyz agent --connect URL --token-file F --name {device}"


def _heard(device: DeviceRecord) -> str:
    return f"its agent was last heard of {max(device.age_s / 60, 1):.0f} min ago"


def service_of(request: Request) -> Service:
    """Return the service that a request reached."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def running_service(request: Request) -> Service:
    """Return ``service_of`` as a dependency of routes, which takes no thread."""
    return service_of(request)
