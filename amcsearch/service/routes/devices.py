"""Routes of devices: who has an agent here, and the work list that agents ask, as ``amcsearch device serve`` has it."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from amcsearch.service.access import Caller, read_body, requires
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER"]

ROUTER = APIRouter(tags=["devices"])
Running = Annotated[Service, Depends(running_service)]
Measurer = Annotated[Caller, Depends(requires(Scope.MEASURE))]


@ROUTER.get("/devices", dependencies=[Depends(requires(Scope.READ))])
def listed(service: Running) -> Response:
    """List devices with agents: what they say of themselves, what they measure, and their last sign of life."""
    return JSONResponse({"devices": [device.to_json() for device in service.devices.every()]})


@ROUTER.delete("/devices/{device}", status_code=204, dependencies=[Depends(requires(Scope.ADMIN))])
def removed(service: Running, device: str) -> Response:
    """Remove a device, so that another one, or another token's agent, may take its name."""
    service.work.remove(device)
    return Response(status_code=204)


@ROUTER.api_route("/v1/{path:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
async def worked(request: Request, service: Running, caller: Measurer, path: str) -> Response:
    """What agents of devices ask, and clients that measure on one without a job; see ``measure.agents``."""
    target = f"/v1/{path}?{request.url.query}"
    work = await run_sync(service.work.request, request.method, target)
    body = await read_body(request, work.most_bytes)

    def answered() -> object:
        most = service.settings.limits.jobs_of(caller.most_jobs)
        return service.work.answer(work, body, caller.name, is_admin=caller.may(Scope.ADMIN), most=most)

    answer = await run_sync(answered)
    if isinstance(answer, bytes) or answer is None:
        return Response(answer or b"", media_type="application/octet-stream")
    return JSONResponse(answer)
