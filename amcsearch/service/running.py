"""A running service: its settings, its job table, and where the files of a job are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import Request

from amcsearch.service.allowed import Allowed
from amcsearch.service.job_process import RUN
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import JobRecord, JobState
from amcsearch.service.settings import ServiceSettings
from amcsearch.service.tokens import TokenTable

__all__ = ["Service", "service_of"]

_SILENT_S: Final = 120.0  # after which a worker counts as gone


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    settings: ServiceSettings
    table: JobTable
    tokens: TokenTable
    allowed: Allowed

    def folder(self, record: JobRecord) -> Path:
        """The run folder of a job."""
        return self.settings.runs / record.id / RUN

    def shown(self, record: JobRecord) -> Mapping[str, object]:
        """A job as JSON; one that waits says for what."""
        values = record.to_json()
        if record.state is JobState.QUEUED:
            values["waits_for"] = self._missing(record)
        return values

    def _missing(self, record: JobRecord) -> str:
        able = [w for w in self.table.workers() if record.kind in w.kinds and w.age_s < _SILENT_S]
        if not able:
            return f"a worker that runs {record.kind}: none is connected; start one with amcsearch worker"
        return f"one of {len(able)} workers that run {record.kind}"


def service_of(request: Request) -> Service:
    """Return the service that a request reached."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
