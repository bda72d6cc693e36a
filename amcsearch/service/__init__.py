"""The search service: jobs in a database, workers that run them, an HTTP interface, and its client."""

from amcsearch.service.client import Client, connect
from amcsearch.service.job_kinds import KINDS
from amcsearch.service.job_request import JobEngine
from amcsearch.service.records import JobRecord, JobState
from amcsearch.service.remote_job import RemoteJob
from amcsearch.service.serve import DATABASE_VARIABLE, serve
from amcsearch.service.settings import ServiceLimits, ServiceSettings
from amcsearch.service.tokens import AuditEntry, Scope, TokenRecord, TokenTable, open_tokens, read_lifetime
from amcsearch.service.worker import JobLimits, WorkerSettings, work

__all__ = [
    "DATABASE_VARIABLE",
    "KINDS",
    "AuditEntry",
    "Client",
    "JobEngine",
    "JobLimits",
    "JobRecord",
    "JobState",
    "RemoteJob",
    "Scope",
    "ServiceLimits",
    "ServiceSettings",
    "TokenRecord",
    "TokenTable",
    "WorkerSettings",
    "connect",
    "open_tokens",
    "read_lifetime",
    "serve",
    "work",
]
