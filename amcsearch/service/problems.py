"""Errors as problem details (RFC 9457, 2023): the one line of the command line, with its key, bound and cure."""

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException as AnyHTTPException

from amcsearch.core import BadInputError, InfeasibleBudgetError
from amcsearch.service.job_table import NoSuchJobError, WrongStateError
from amcsearch.service.records import JobProblem, problem_of

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
    "unavailable": "The database does not answer",
}


def _response(status: int, problem: JobProblem, headers: dict[str, str] | None = None) -> JSONResponse:
    title = _TITLES.get(problem.kind, problem.kind)
    body = {"type": f"urn:amcsearch:{problem.kind}", "title": title, "status": status, **problem.to_json()}
    return JSONResponse(body, status, headers, media_type=PROBLEM_TYPE)


def add_problem_handlers(app: FastAPI) -> None:
    """Answer every error with problem details."""

    @app.exception_handler(BadInputError)
    @app.exception_handler(InfeasibleBudgetError)
    def _bad_input(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, BadInputError | InfeasibleBudgetError)
        return _response(422, problem_of(error))

    @app.exception_handler(NoSuchJobError)
    def _not_found(_: Request, error: Exception) -> JSONResponse:
        return _response(404, JobProblem("not_found", str(error.args[0])))

    @app.exception_handler(WrongStateError)
    def _conflict(_: Request, error: Exception) -> JSONResponse:
        return _response(409, JobProblem("conflict", str(error)))

    @app.exception_handler(DBAPIError)
    def _unavailable(_: Request, __: Exception) -> JSONResponse:
        detail = "the database does not answer; nothing was lost, try again"
        return _response(503, JobProblem("unavailable", detail), {"Retry-After": "5"})

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][1:]))
        return _response(422, JobProblem("bad_input", f"{key}: {first['msg']}", key=key))

    @app.exception_handler(AnyHTTPException)
    def _http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, AnyHTTPException | HTTPException)
        return _response(error.status_code, JobProblem("http", str(error.detail)), dict(error.headers or {}))
