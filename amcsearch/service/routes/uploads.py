"""Routes of files that callers send, whose paths their requests name: checkpoints and results of kits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from amcsearch.service.access import Caller, requires
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER", "receiving"]

ROUTER = APIRouter(prefix="/uploads", tags=["uploads"])
Running = Annotated[Service, Depends(running_service)]
Sender = Annotated[Caller, Depends(requires(Scope.SUBMIT))]

_OPEN: Final = asyncio.Semaphore(4)  # files on their way at once, which bounds what they take beside those kept
_MOST_S: Final = 3600.0  # that one may take
_CONTENT: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@ROUTER.post("/{name}", status_code=201, openapi_extra=_CONTENT)
async def sent(request: Request, service: Running, caller: Sender, name: str) -> Response:
    """Send a file as the body: .safetensors, .pt or .pth, or .jsonl of a kit; requests name it by its path."""
    async with receiving():
        return await _kept(request, service, caller, name)


@asynccontextmanager
async def receiving() -> AsyncIterator[None]:
    """Bound how many requests with files are on their way at once, and how long each takes.

    Raises:
        HTTPException: there are too many now, or it took too long.
    """
    if _OPEN.locked():
        raise HTTPException(503, "other files are being sent now; try again in a minute", {"Retry-After": "10"})
    async with _OPEN:
        try:
            async with asyncio.timeout(_MOST_S):
                yield
        except TimeoutError as error:
            raise HTTPException(408, f"the file took more than {_MOST_S:.0f} s; send a smaller one") from error


async def _kept(request: Request, service: Service, caller: Caller, name: str) -> Response:
    with await run_sync(service.uploads.begin, caller.name, name) as sending:
        async for part in request.stream():
            await run_sync(sending.write, part)
        upload = await run_sync(service.uploads.keep, caller.name, sending)
    return JSONResponse(upload.to_json(), 201)


@ROUTER.get("")
def listed(service: Running, caller: Sender) -> Response:
    """List one's files, the newest first; an administrator sees all."""
    owner = None if caller.may(Scope.ADMIN) else caller.name
    return JSONResponse({"uploads": [upload.to_json() for upload in service.uploads.every(owner)]})


@ROUTER.delete("/{upload}", status_code=204)
def removed(service: Running, caller: Sender, upload: str) -> Response:
    """Remove a file of one's own; jobs that name it fail when they read it."""
    if not service.uploads.remove(None if caller.may(Scope.ADMIN) else caller.name, upload):
        raise HTTPException(404, f"there is no file {upload[:40]} of yours; GET /uploads lists them")
    return Response(status_code=204)
