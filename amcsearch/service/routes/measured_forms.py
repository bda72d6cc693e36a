"""Forms of the page that take what a kit measured on a device: the end of a run, and a new latency table.

A form has its files in it (multipart/form-data). They are kept as those that a client sends, and the job names them.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from amcsearch.service.access import Caller
from amcsearch.service.routes.jobs import add_job
from amcsearch.service.routes.pages import page_for
from amcsearch.service.routes.uploads import receiving
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER"]

ROUTER = APIRouter(include_in_schema=False)
Running = Annotated[Service, Depends(running_service)]
Sender = Annotated[Caller, Depends(page_for(Scope.SUBMIT))]

_MULTIPART: Final = "multipart/form-data"
_MOST_FIELDS: Final = 8
_MOST_FILES: Final = 16
_PART_BYTES: Final = 2**20


@ROUTER.post("/page/jobs/{job}/measured")
async def verified(request: Request, service: Running, caller: Sender, job: str) -> Response:
    """Finish the run of a job with the file that its kit wrote on the device, and show the job that does it."""
    _, paths = await _received(request, service, caller, most_files=1)
    return await _submitted(service, caller, {"kind": "verify", "job": job, "result": paths[0]})


@ROUTER.post("/page/tables")
async def built(request: Request, service: Running, caller: Sender) -> Response:
    """Build a table of the files that kits wrote on one device, and show the job that does it."""
    fields, paths = await _received(request, service, caller, most_files=_MOST_FILES)
    tables = {name: fields[name] for name in ("source", "known") if fields.get(name)}
    submission = {"kind": "table_build", "name": fields.get("name", ""), "results": paths, **tables}
    return await _submitted(service, caller, submission)


async def _submitted(service: Service, caller: Caller, submission: Mapping[str, object]) -> Response:
    record = await run_sync(add_job, service, caller, submission)
    return RedirectResponse(f"/page/jobs/{record.id}", 303)


async def _received(
    request: Request, service: Service, caller: Caller, most_files: int
) -> tuple[dict[str, str], list[str]]:
    """The fields of a form, and the paths of its files, which are kept.

    Raises:
        BadInputError: a file that is not taken, as ``UploadTable``.
        HTTPException: the form is too large, cannot be read, or has no file.
    """
    if not request.headers.get("content-type", "").startswith(_MULTIPART):
        raise HTTPException(415, f"the form is not {_MULTIPART}, which carries files; send it from its page")
    limits = service.settings.limits
    async with receiving():
        parts = _bounded(request, limits.upload_bytes + limits.request_bytes)
        parser = MultiPartParser(request.headers, parts, max_files=most_files, max_fields=_MOST_FIELDS)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(
                422, f"the form cannot be read: {error.message}; send it again from its page"
            ) from error
        try:
            items = form.multi_items()
            files = [value for _, value in items if isinstance(value, UploadFile) and value.filename]
            if not files:
                raise HTTPException(422, "the form has no file; choose the .jsonl that the kit wrote")
            paths = [await run_sync(_keep, service, caller, file) for file in files]
            return {name: value for name, value in items if isinstance(value, str)}, paths
        finally:
            await form.close()


async def _bounded(request: Request, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """The parts of a body.

    Raises:
        HTTPException: they are more than ``most_bytes``.
    """
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise HTTPException(413, f"the form has more than {most_bytes} bytes; send its files by the client")
        yield part


def _keep(service: Service, caller: Caller, file: UploadFile) -> str:
    """Keep a file of a form, and return its path."""
    assert file.filename is not None
    with service.uploads.begin(caller.name, file.filename) as sending:
        while part := file.file.read(_PART_BYTES):
            sending.write(part)
        return service.uploads.keep(caller.name, sending).path
