"""Errors as problem details (RFC 9457, 2023), or as a page: the one line of the command line, with its cure."""

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException as AnyHTTPException

from amcsearch.core import BadInputError, InfeasibleBudgetError
from amcsearch.service.access import BROWSER_HEADERS
from amcsearch.service.devices import DeviceRefusedError
from amcsearch.service.job_table import NoSuchJobError, WrongStateError
from amcsearch.service.records import JobProblem, problem_of
from amcsearch.service.rendering import drawn, wants_html

__all__ = ["PROBLEM_SCHEMA", "PROBLEM_TYPE", "add_problem_handlers"]

PROBLEM_TYPE = "application/problem+json"
PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "key": {"type": ["string", "null"]},
        "bound": {"type": ["string", "null"]},
        "cure": {"type": ["string", "null"]},
    },
}
_TITLES = {
    "bad_input": "Input that cannot be used",
    "infeasible": "A budget that no policy can meet",
    "not_found": "Not found",
    "conflict": "Not in this state",
    "device": "A device's work list refuses",
    "unavailable": "The database does not answer",
    "internal": "The service failed",
}


def _response(
    request: Request,
    status: int,
    problem: JobProblem,
    headers: Mapping[str, str] | None = None,
    further: Mapping[str, object] | None = None,
) -> Response:
    """The problem as a page where a browser opens an address, else as problem details; ``further`` keys go beside."""
    title = _TITLES.get(problem.kind) or _phrase(status)
    if wants_html(request):
        return drawn("error.html", {"title": title, "status": status, "detail": problem.detail}, status, headers)
    described = {"type": f"urn:amcsearch:{problem.kind}", "title": title, "status": status}
    body = {**described, **problem.to_json(), **(further or {})}
    return JSONResponse(body, status, headers, media_type=PROBLEM_TYPE)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else "Refused"


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error with problem details, and with a page of HTML where a browser opens an address."""

    @app.exception_handler(BadInputError)
    @app.exception_handler(InfeasibleBudgetError)
    def _bad_input(request: Request, error: Exception) -> Response:
        assert isinstance(error, BadInputError | InfeasibleBudgetError)
        return _response(request, 422, problem_of(error))

    @app.exception_handler(NoSuchJobError)
    @app.exception_handler(WrongStateError)
    def _of_job(request: Request, error: Exception) -> Response:
        status, kind = (404, "not_found") if isinstance(error, NoSuchJobError) else (409, "conflict")
        return _response(request, status, JobProblem(kind, str(error.args[0])))

    @app.exception_handler(DeviceRefusedError)
    def _device(request: Request, error: DeviceRefusedError) -> Response:
        return _response(request, error.status, JobProblem("device", str(error)), further=error.further)

    @app.exception_handler(DBAPIError)
    def _unavailable(request: Request, _: Exception) -> Response:
        detail = "the database does not answer; nothing was lost, try again"
        return _response(request, 503, JobProblem("unavailable", detail), {"Retry-After": "5"})

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][1:]))
        return _response(request, 422, JobProblem("bad_input", f"{key}: {first['msg']}", key=key))

    @app.exception_handler(AnyHTTPException)
    def _http(request: Request, error: Exception) -> Response:
        assert isinstance(error, AnyHTTPException | HTTPException)
        problem = JobProblem("http", _detail(error, request))
        return _response(request, error.status_code, problem, error.headers)

    @app.exception_handler(Exception)  # outside the guard, and raised again for the log
    def _internal(request: Request, _: Exception) -> Response:
        detail = "the service failed at this request; its log has the traceback, tell its operator"
        return _response(request, 500, JobProblem("internal", detail), BROWSER_HEADERS)


def _detail(error: AnyHTTPException, request: Request) -> str:
    """The error's own words; the framework's for a path or a method that is not there name neither."""
    if error.detail != _phrase(error.status_code):
        return str(error.detail)
    return f"{request.method} {request.url.path[:80]}: {error.detail}; /openapi.json describes every route"
