"""Routes of what a job left: its files, and the policy that a front has for a budget."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from amcsearch.core import BadInputError
from amcsearch.runs import FrontResult
from amcsearch.service.access import requires
from amcsearch.service.allowed import file_inside
from amcsearch.service.job_table import WrongStateError
from amcsearch.service.records import JobState
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER"]

ROUTER = APIRouter(prefix="/jobs", tags=["files"], dependencies=[Depends(requires(Scope.READ))])

Running = Annotated[Service, Depends(running_service)]
_HIDDEN: Final = "."


@ROUTER.get("/{job}/files")
def listed(service: Running, job: str) -> Response:
    """List the files of a job, by path in its run folder, with their sizes."""
    folder = service.folder(service.table.get(job))
    names = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    kept = (path for path in names if not any(p.startswith(_HIDDEN) for p in path.relative_to(folder).parts))
    return JSONResponse(
        {"files": [{"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size} for path in kept]}
    )


@ROUTER.get("/{job}/files/{path:path}", response_class=FileResponse)
def fetched(service: Running, job: str, path: str) -> FileResponse:
    """Fetch one file of a job."""
    folder = service.folder(service.table.get(job))
    file = file_inside(folder, path)
    if file is None:
        raise HTTPException(404, f"there is no file {path[:80]!r} in this job; GET its /files lists them")
    return FileResponse(file, filename=file.name)


@ROUTER.get("/{job}/policy")
def of_budget(request: Request, service: Running, job: str, device: str | None = None) -> Response:
    """Ask a finished front for the policy of a budget: every other parameter is a cost, such as latency_ms=0.4x."""
    budget = {name: value for name, value in request.query_params.items() if name != "device"}
    record = service.table.get(job)
    if record.kind != "front":
        raise BadInputError(f"job {job} is a {record.kind}, only a front is asked for a budget")
    if not budget:
        raise BadInputError("no budget: add a cost and its limit, such as ?latency_ms=0.4x")
    if record.state is not JobState.DONE:
        raise WrongStateError(f"job {job} is {record.state}, a front is asked when it is done; wait for it")
    return JSONResponse(FrontResult.open(service.folder(record)).within(budget, device).to_json())
