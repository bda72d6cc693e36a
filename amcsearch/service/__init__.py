"""The search service: jobs in a database, workers that run them, an HTTP interface, and its client."""

from amcsearch.service.client import Client, RemoteJob, connect
from amcsearch.service.job_kinds import KINDS
from amcsearch.service.records import JobRecord, JobState
from amcsearch.service.serve import DATABASE_VARIABLE, serve
from amcsearch.service.settings import ServiceLimits, ServiceSettings
from amcsearch.service.worker import JobLimits, WorkerSettings, work

__all__ = [
    "DATABASE_VARIABLE",
    "KINDS",
    "Client",
    "JobLimits",
    "JobRecord",
    "JobState",
    "RemoteJob",
    "ServiceLimits",
    "ServiceSettings",
    "WorkerSettings",
    "connect",
    "serve",
    "work",
]
