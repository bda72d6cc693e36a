"""Routes of jobs: submit, list, look, follow, cancel, resume and extend."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from amcsearch.core import BadInputError, parse_json
from amcsearch.runs import read_as
from amcsearch.service.access import Caller, read_body, requires
from amcsearch.service.job_kinds import (
    MEASURING,
    SearchRequest,
    read_request,
    request_of,
    submission_schema,
)
from amcsearch.service.job_request import JobRequest
from amcsearch.service.job_table import NoSuchJobError
from amcsearch.service.problems import PROBLEM_SCHEMA, PROBLEM_TYPE
from amcsearch.service.records import JobRecord, JobState
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER", "add_job", "checked_request", "controlled", "event_number", "existing", "extend_job", "resume_job"]

_PROBLEM: Final[dict[str, Any]] = {"description": "A problem", "content": {PROBLEM_TYPE: {"schema": PROBLEM_SCHEMA}}}
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = dict.fromkeys((401, 403, 404, 409, 422, 503), _PROBLEM)

ROUTER = APIRouter(prefix="/jobs", tags=["jobs"], responses=_PROBLEMS)

_READ: Final = [Depends(requires(Scope.READ))]
Submitter = Annotated[Caller, Depends(requires(Scope.SUBMIT, Scope.MEASURE))]
Running = Annotated[Service, Depends(running_service)]


async def _body(request: Request, service: Service) -> object:
    """The JSON of a request of bounded size.

    Raises:
        BadInputError: no JSON.
        HTTPException: it is too large.
    """
    try:
        text = (await read_body(request, service.settings.limits.request_bytes)).decode()
    except UnicodeDecodeError as error:
        raise BadInputError(f"the request is not UTF-8 text (byte {error.start}); send JSON") from error
    return parse_json(text, "the request")


_SUBMISSION: Final = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": submission_schema()}}}
}


@ROUTER.post("", status_code=201, openapi_extra=_SUBMISSION)
async def submit(
    request: Request,
    service: Running,
    caller: Submitter,
    idempotency_key: Annotated[str | None, Header(max_length=128)] = None,
) -> Response:
    """Submit a job; with a header Idempotency-Key, the same request again returns the job that is there."""
    body = await _body(request, service)
    record = await run_sync(add_job, service, caller, body, idempotency_key)
    return JSONResponse(await run_sync(service.shown, record), 201, {"Location": f"/jobs/{record.id}"})


def checked_request(service: Service, caller: Caller, body: object) -> tuple[str, JobRequest]:
    """Return the kind and the request of a submission that the caller may make.

    Raises:
        BadInputError: as ``read_request`` and ``Service.check_location``, or it names what the service does not allow.
        HTTPException: the caller lacks the scope.
    """
    body = _of_run(service, body)
    service.allowed.check(body)  # before reading it looks at the files that it names
    kind, job_request = read_request(body)
    caller.check(_scope(kind))
    service.allowed.check(job_request.to_json())  # names that turned out to be files
    service.check_location(job_request.location)
    return kind, job_request


def _of_run(service: Service, body: object) -> object:
    """A submission; a verification gets the configuration of the job whose run it finishes.

    Raises:
        BadInputError: it has one of its own, or that job is no run that has ended well.
    """
    if not isinstance(body, Mapping) or body.get("kind") != "verify":
        return body
    if "config" in body or "settings" in body:
        raise BadInputError("a verification has the configuration of its job; leave out config and settings")
    job = str(body.get("job", ""))
    try:
        record = service.table.get(job)
    except NoSuchJobError as error:
        raise BadInputError(f"job = {job!r:.60}: {error.args[0]}") from error
    if record.kind not in ("search", "prune") or record.state is not JobState.DONE:
        raise BadInputError(f"job {job} is a {record.kind}, {record.state}; name a search or prune that is done")
    return {**body, "config": record.request["config"]}


def add_job(service: Service, caller: Caller, body: object, key: str | None = None) -> JobRecord:
    """Submit a job, or return the one that is there under the same key; raises as ``checked_request``."""
    kind, job_request = checked_request(service, caller, body)
    name, most = job_request.job_name, _most(service, caller)
    return service.table.submit(kind, name, job_request.to_json(), caller.name, key, most)


def _scope(kind: str) -> Scope:
    return Scope.MEASURE if kind in MEASURING else Scope.SUBMIT


def _most(service: Service, caller: Caller) -> int:
    return service.settings.limits.jobs_of(caller.most_jobs)


def controlled(service: Service, caller: Caller, job: str) -> JobRecord:
    """Return a job that the caller may change.

    Raises:
        NoSuchJobError: there is no such job.
        HTTPException: the caller may not.
    """
    record = service.table.get(job)
    caller.check(_scope(record.kind))
    caller.check_owns(record)
    return record


@ROUTER.get("", dependencies=_READ)
def listed(
    service: Running,
    cursor: Annotated[str | None, Query(max_length=32)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    state: JobState | None = None,
) -> Response:
    """List jobs, the newest first; ``next_cursor`` leads to the next page."""
    page = service.table.page(cursor, limit, state)
    return JSONResponse({"jobs": service.all_shown(page.jobs), "next_cursor": page.next_cursor})


@ROUTER.get("/{job}", dependencies=_READ)
def looked_at(service: Running, job: str) -> Response:
    """Look at a job."""
    return JSONResponse(service.shown(service.table.get(job)))


def existing(service: Running, job: str) -> JobRecord:
    """Return the job of a path, looked up before the response begins; raises NoSuchJobError."""
    return service.table.get(job)


def event_number(last_event_id: str | None) -> int:
    """Return the number of the last event that a follower has, 0 for one that begins."""
    is_number = last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal()
    return int(last_event_id[:19]) if last_event_id is not None and is_number else 0


@ROUTER.get("/{job}/events", response_class=EventSourceResponse, dependencies=_READ)
async def followed(
    service: Running,
    record: Annotated[JobRecord, Depends(existing)],
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Follow a job: an event with the whole job at every change, until it has ended; resumes from Last-Event-ID."""
    async for update in service.feeds.follow(record, event_number(last_event_id)):
        text = await update.text(service.text)
        yield ServerSentEvent(raw_data=text, event="job", id=str(update.record.revision))


@ROUTER.post("/{job}/cancel")
def cancelled(service: Running, caller: Submitter, job: str) -> Response:
    """Cancel a job: at once where it waits; else its worker stops it, and it can be resumed."""
    controlled(service, caller, job)
    return JSONResponse(service.shown(service.table.cancel(job)))


@ROUTER.post("/{job}/resume")
def resumed(service: Running, caller: Submitter, job: str) -> Response:
    """Let a job that was cancelled or failed go on from where it stopped."""
    return JSONResponse(service.shown(resume_job(service, caller, job)))


def resume_job(service: Service, caller: Caller, job: str) -> JobRecord:
    """Let a job go on that the caller may change; raises as ``controlled`` and ``JobTable.resume``."""
    service.allowed.check(controlled(service, caller, job).request)  # the operator may allow less than before
    return service.table.resume(job, most_waiting=_most(service, caller))


_EXTENSION: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["trials"],
                    "properties": {"trials": {"type": "integer", "minimum": 1}},
                    "additionalProperties": False,
                }
            }
        },
    }
}


@ROUTER.post("/{job}/extend", openapi_extra=_EXTENSION)
async def extended(request: Request, service: Running, caller: Submitter, job: str) -> Response:
    """Add trials to a search that has ended, and let it go on; a cancelled one first makes up what it lacks."""
    body = read_as(Mapping[str, object], await _body(request, service), "the request")
    trials = body.get("trials")
    if set(body) != {"trials"} or not isinstance(trials, int) or isinstance(trials, bool):
        raise BadInputError(f'the request is {json.dumps(body):.60}, expected {{"trials": N}}, N a whole number')
    return JSONResponse(await run_sync(service.shown, await run_sync(extend_job, service, caller, job, trials)))


def extend_job(service: Service, caller: Caller, job: str, trials: int) -> JobRecord:
    """Add trials to a search that has ended; raises as ``controlled`` and ``JobTable.resume``, and of a wrong kind."""
    record = controlled(service, caller, job)
    service.allowed.check(record.request)
    request = request_of(record.kind, record.request)
    if not isinstance(request, SearchRequest):
        raise BadInputError(f"job {job} is a {record.kind}; only a search takes further trials")
    return service.table.resume(job, request.extended(trials).to_json(), _most(service, caller))
