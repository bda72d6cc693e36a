"""Routes for those who operate a service: alive, ready, workers, and metrics for Prometheus."""

from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Depends, HTTPException, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from amcsearch.service.access import requires
from amcsearch.service.device_table import DeviceTable
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import WorkerRecord
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER"]

ROUTER = APIRouter(tags=["operation"])

DEVICE: Final = "device"
"""Kind of a worker that measures on a device."""
_READ: Final = [Depends(requires(Scope.READ))]
Running = Annotated[Service, Depends(running_service)]


class _Jobs(Collector):
    """Numbers of jobs and workers, read from the job table at every scrape."""

    def __init__(self, table: JobTable, devices: DeviceTable) -> None:
        self.table, self.devices = table, devices

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("amcsearch_jobs", "Jobs by kind and state.", labels=["kind", "state"])
        for (kind, state), count in self.table.counts().items():
            jobs.add_metric([kind, state], count)
        yield jobs
        silence = GaugeMetricFamily(
            "amcsearch_worker_silence_seconds", "Since a worker's sign of life.", labels=["worker"]
        )
        busy = GaugeMetricFamily("amcsearch_worker_busy", "Whether a worker runs a job.", labels=["worker"])
        for worker in self.table.workers():
            silence.add_metric([worker.name], worker.age_s)
            busy.add_metric([worker.name], float(worker.job is not None))
        yield silence
        yield busy
        away = GaugeMetricFamily(
            "amcsearch_device_silence_seconds", "Since an agent's sign of life.", labels=["device"]
        )
        for device in self.devices.every():
            away.add_metric([device.name], device.age_s)
        yield away


@ROUTER.get("/healthz")
def alive() -> Response:
    """Whether this process answers."""
    return JSONResponse({"status": "ok"})


@ROUTER.get("/readyz")
def ready(service: Running) -> Response:
    """Whether the database answers and the folder of runs is there."""
    if not service.settings.runs.is_dir():  # first: the database may lie in it
        raise HTTPException(503, f"the folder of runs {service.settings.runs} is not there; mount it")
    service.table.page(limit=1)
    return JSONResponse({"status": "ok"})


@ROUTER.get("/workers", dependencies=_READ)
def workers(service: Running) -> Response:
    """List workers with what they run and their last sign of life; devices with agents are of kind ``device``."""
    devices = (
        WorkerRecord(
            each.name, (DEVICE,), str(each.says.get("cpu") or ""), each.job, each.begun_s, each.seen_s, each.age_s
        )
        for each in service.devices.every()
    )
    return JSONResponse({"workers": [worker.to_json() for worker in (*service.table.workers(), *devices)]})


@ROUTER.get("/metrics", dependencies=_READ)
def metrics(service: Running) -> Response:
    """Metrics for Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Jobs(service.table, service.devices))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@ROUTER.get("/audit", dependencies=[Depends(requires(Scope.ADMIN))])
def audit(
    service: Running,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """List what callers changed and what was refused, the newest first; ``before`` is a number of an earlier page."""
    return JSONResponse({"entries": [entry.to_json() for entry in service.tokens.audit(before, limit)]})
