"""Pages for people: jobs, a job as it runs, its report and budget, two jobs side by side, and workers.

Pages are made here from templates; htmx (vendored) fetches their moving parts again. They need no script to be read.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from amcsearch.core import BadInputError, InfeasibleBudgetError
from amcsearch.runs import FrontResult, MeasuringDevice
from amcsearch.service.access import Caller, known_caller
from amcsearch.service.drawings import best_so_far, front_drawing
from amcsearch.service.records import ENDED, JobProgress, JobRecord, JobState
from amcsearch.service.rendering import drawn, fragment
from amcsearch.service.routes.jobs import controlled, event_number, existing, resume_job
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope
from amcsearch.service.trial_points import TrialPoints

__all__ = ["ROUTER", "TABLE_KINDS", "Reader", "page_for"]

TABLE_KINDS: Final = frozenset({"table_measure", "table_build", "table_check"})
"""Kinds whose run folder is a latency table."""

_REPORT_POLICY: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
_KIT: Final = "verify.pyz"  # among the files of a run whose device is offline
_NOTHING: Final = "–"
_MOST_COMPARED: Final = 100  # jobs to choose from

ROUTER = APIRouter(include_in_schema=False)
Running = Annotated[Service, Depends(running_service)]


def page_for(*scopes: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """Return a dependency that gives the caller of a page, and sends one who is not known to the log-in form."""

    async def caller(request: Request) -> Caller:
        try:
            known = await known_caller(request)
        except HTTPException as error:
            if error.status_code != 401:
                raise
            raise HTTPException(303, "log in first", {"Location": "/login"}) from error
        known.check(*scopes)
        return known

    return caller


Reader = Annotated[Caller, Depends(page_for(Scope.READ))]
Changer = Annotated[Caller, Depends(page_for(Scope.SUBMIT, Scope.MEASURE))]


@ROUTER.get("/")
def jobs(service: Running, caller: Reader, cursor: Annotated[str | None, Query(max_length=32)] = None) -> Response:
    """Jobs and the queue."""
    query = "" if cursor is None else f"?cursor={cursor}"
    return drawn("jobs.html", {**_queue(service, cursor), "caller": caller, "here": "/", "query": query})


@ROUTER.get("/page/queue")
def queue(service: Running, _: Reader, cursor: Annotated[str | None, Query(max_length=32)] = None) -> Response:
    """The moving part of the page of jobs."""
    return drawn("queue.html", _queue(service, cursor))


def _queue(service: Service, cursor: str | None) -> Mapping[str, object]:
    page, counts = service.table.page(cursor, 50), service.table.counts()
    by_state = [(state, sum(n for (_, other), n in counts.items() if other is state)) for state in JobState]
    return {"jobs": page.jobs, "counts": by_state, "next_cursor": page.next_cursor}


@ROUTER.get("/page/jobs/{job}")
def looked_at(service: Running, caller: Reader, job: str) -> Response:
    """A job as it runs, and what it left."""
    record = service.table.get(job)
    folder = service.folder(record)
    files = sorted(path.name for path in folder.glob("[!.]*") if path.is_file() and not path.is_symlink())
    front = _front(service, record)
    is_own = record.owner == caller.name and caller.may(Scope.SUBMIT, Scope.MEASURE)
    has_report = record.state is JobState.DONE and "report.html" in files
    is_shown = has_report or record.kind in ("table_measure", "table_build")  # whose result is the table
    values: Mapping[str, object] = {
        **_live(service, record),
        "caller": caller,
        "here": "",
        "may_change": is_own or caller.may(Scope.ADMIN),
        "awaited": _awaited(record, files) if caller.may(Scope.SUBMIT) else None,
        "table": folder.absolute() if record.kind in TABLE_KINDS and record.state is JobState.DONE else None,
        "has_report": has_report,
        "result_rows": [] if is_shown else list(_flat(record.result or {}, "")),
        "files": files,
        "front_devices": [] if front is None else [device.name for device in front.summary.devices],
        "front_costs": [] if front is None else list(front.summary.devices[0].dense),
    }
    return drawn("job.html", values)


def _awaited(record: JobRecord, files: Sequence[str]) -> MeasuringDevice | None:
    """The device that has still to measure the result of a job, None where none has."""
    device = (record.result or {}).get("device")
    if record.state is not JobState.DONE or _KIT not in files or not isinstance(device, Mapping):
        return None
    measuring = MeasuringDevice.from_json(device, "device")
    return measuring if measuring.is_awaited else None


@ROUTER.get("/page/jobs/{job}/live")
def live(service: Running, _: Reader, job: str) -> Response:
    """The moving part of a job's page; asks for the whole page when the job has ended."""
    record = service.table.get(job)
    answer = drawn("live.html", _live(service, record))
    if record.has_ended:
        answer.headers["HX-Refresh"] = "true"
    return answer


@ROUTER.get("/page/jobs/{job}/events", response_class=EventSourceResponse)
async def followed(
    service: Running,
    _: Reader,
    record: Annotated[JobRecord, Depends(existing)],
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """The moving part of a job's page at each change, as HTML; the last event tells that the job has ended."""

    def draw(latest: JobRecord) -> str:
        return fragment("live.html", _live(service, latest))

    async for update in service.feeds.follow(record, event_number(last_event_id)):
        if not update.record.has_ended:
            yield ServerSentEvent(raw_data=await update.text(draw), event="live", id=str(update.record.revision))
    yield ServerSentEvent(raw_data="ended", event="ended")


def _live(service: Service, record: JobRecord) -> Mapping[str, object]:
    widths, is_of_all = _widths(record)
    points = TrialPoints.read(service.folder(record).parent)
    return {
        "job": record,
        "waits_for": service.shown(record).get("waits_for"),
        "left_s": None if record.state in ENDED else _left_s(record.progress),
        "curve": best_so_far(record.progress),
        "fronts": [front_drawing(each, record.progress.best) for each in points],
        "widths": widths,
        "is_of_all": is_of_all,
    }


def _left_s(progress: JobProgress) -> float | None:
    if not progress.total or not progress.evaluations_per_s:
        return None
    return (progress.total - progress.evaluations) / progress.evaluations_per_s


def _widths(record: JobRecord) -> tuple[list[tuple[str, int, int]], bool]:
    """Channels kept by group, each with those of the dense network where the result has them, else of the widest."""
    network = (record.result or {}).get("network")
    if isinstance(network, list) and all(isinstance(group, dict) and "kept" in group for group in network):
        return [(group["group"], group["kept"], group["channels"]) for group in network], True
    policy, dense = {} if record.progress.best is None else record.progress.best.policy, record.progress.dense
    if set(policy) <= set(dense):
        return [(group, kept, dense[group]) for group, kept in policy.items()], True
    widest = max(policy.values(), default=1)
    return [(group, kept, max(widest, 1)) for group, kept in policy.items()], False


@ROUTER.get("/page/jobs/{job}/report")
def report(service: Running, _: Reader, job: str) -> Response:
    """The report of a job, for a frame in its page: it may load and run nothing."""
    file = service.folder(service.table.get(job)) / "report.html"
    if not file.is_file() or file.is_symlink():
        raise HTTPException(404, f"job {job} has no report yet; wait until it is done")
    headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Frame-Options": "SAMEORIGIN"}
    return HTMLResponse(file.read_bytes(), headers=headers)


@ROUTER.post("/page/jobs/{job}/cancel")
def cancelled(service: Running, caller: Changer, job: str) -> Response:
    """Cancel a job, and show it."""
    service.table.cancel(controlled(service, caller, job).id)
    return RedirectResponse(f"/page/jobs/{job}", 303)


@ROUTER.post("/page/jobs/{job}/resume")
def resumed(service: Running, caller: Changer, job: str) -> Response:
    """Resume a job, and show it."""
    resume_job(service, caller, job)
    return RedirectResponse(f"/page/jobs/{job}", 303)


def _front(service: Service, record: JobRecord) -> FrontResult | None:
    if record.kind != "front" or record.state is not JobState.DONE:
        return None
    return FrontResult.open(service.folder(record))


@ROUTER.get("/page/jobs/{job}/budget")
def of_budget(
    request: Request,
    service: Running,
    caller: Reader,
    job: str,
    device: Annotated[str, Query(max_length=200)],
    cost: Annotated[str, Query(max_length=80)],
    percent: Annotated[int, Query(ge=1, le=100)],
) -> Response:
    """The policy that a front has for a share of the dense network's cost."""
    record = service.table.get(job)
    front = _front(service, record)
    if front is None:
        raise HTTPException(404, f"job {job} is no front that is done; wait for it")
    template = "budget.html" if "hx-request" in request.headers else "budget_page.html"
    values: dict[str, object] = {"caller": caller, "here": "", "job": record, "problem": ""}
    values |= {"percent": percent, "cost": cost}
    try:
        values["choice"] = front.within({cost: f"{percent / 100}x"}, device)
    except (BadInputError, InfeasibleBudgetError) as error:
        values["problem"] = str(error)
    return drawn(template, values)


@ROUTER.get("/page/compare")
def compared(
    service: Running,
    caller: Reader,
    first: Annotated[str | None, Query(max_length=32)] = None,
    second: Annotated[str | None, Query(max_length=32)] = None,
) -> Response:
    """Two jobs that are done, side by side: results, and keys of the configuration that differ."""
    left, right = (None if job is None else service.table.get(job) for job in (first, second))
    sections: list[tuple[str, list[tuple[str, str, str]]]] = []
    if left is not None and right is not None:
        rows = _side_by_side(left.request, right.request)
        results = _side_by_side(left.result or {}, right.result or {})
        if left.kind != right.kind:
            results = [row for row in results if _NOTHING not in row[1:]]
        sections = [
            ("Results", results),
            ("Keys that differ", [row for row in rows if row[1] != row[2]]),
        ]
    done = service.table.page(None, _MOST_COMPARED, JobState.DONE).jobs
    values = {"caller": caller, "here": "/page/compare", "jobs": done, "first": left, "second": right}
    return drawn("compare.html", {**values, "sections": sections})


def _side_by_side(left: Mapping[str, object], right: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Every single value of two documents by dotted key, in the order of the first one."""
    first, second = dict(_flat(left, "")), dict(_flat(right, ""))
    return [(key, first.get(key, _NOTHING), second.get(key, _NOTHING)) for key in {**first, **second}]


def _flat(value: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            label = inner.get("group", inner.get("name", number)) if isinstance(inner, Mapping) else number
            yield from _flat(inner, f"{key}.{label}")
    elif isinstance(value, float):
        yield key, f"{value:.5g}"
    elif value is not None:
        yield key, str(value)


@ROUTER.get("/page/workers")
def workers(service: Running, caller: Reader) -> Response:
    """Workers, and devices with agents, with their last sign of life."""
    shown = {"workers": service.table.workers(), "devices": service.devices.every()}
    return drawn("workers.html", {"caller": caller, "here": "/page/workers", **shown})
