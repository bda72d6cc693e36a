"""Forms of the page: log in and out, and a new search or latency table, shown before it is submitted."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final
from urllib.parse import parse_qs

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from amcsearch.config import DEVICES, TABLES, dump, listed, parse_mapping
from amcsearch.core import COST_NAMES, BadInputError, InfeasibleBudgetError, parse_json, printable
from amcsearch.service.access import COOKIE, Caller, check_site, read_body
from amcsearch.service.allowed import SHIPPED
from amcsearch.service.job_request import ConfiguredRequest
from amcsearch.service.rendering import drawn
from amcsearch.service.routes.jobs import add_job, checked_request, extend_job
from amcsearch.service.routes.pages import page_for
from amcsearch.service.running import Service, running_service
from amcsearch.service.tokens import Scope

__all__ = ["ROUTER"]

ROUTER = APIRouter(include_in_schema=False)
Running = Annotated[Service, Depends(running_service)]
Submitter = Annotated[Caller, Depends(page_for(Scope.SUBMIT, Scope.MEASURE))]

_COOKIE_S: Final = 12 * 3600  # that a browser stays logged in
_PLAN_S: Final = 120  # that a plan may take
_PLANNING: Final = threading.BoundedSemaphore(1)  # a plan builds the network; two at once would not fit small machines
_FORM_KINDS: Final = {"search": "search", "table_measure": "latency table"}
_DEFAULTS: Final = {
    "kind": "search",
    "location": "here",
    "name": "search",
    "model": "amcsearch.training.models:resnet20",
    "data": "amcsearch.training.data:digits",
    "cost": "macs",
    "limit": "0.5x",
    "table": "",
    "profile": "",
    "trials": "100",
    "seed": "0",
    "further": "model: {pretrain: {epochs: 20}}",
}
"""Fields of the form, each with its value at first."""


async def _form(request: Request, service: Service) -> dict[str, str]:
    """The fields of a form, each once.

    Raises:
        HTTPException: it is larger than a request may be, or is no form.
    """
    body = await read_body(request, service.settings.limits.request_bytes)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=64)
    except ValueError as error:
        raise HTTPException(422, "the form cannot be read; send it again from its page") from error
    return {name: values[-1] for name, values in fields.items()}


@ROUTER.get("/login")
def asked() -> Response:
    """The log-in form."""
    return drawn("login.html", {"problem": ""})


@ROUTER.post("/login")
async def logged_in(request: Request, service: Running) -> Response:
    """Put a valid token into the cookie."""
    check_site(request, is_browser=True)
    token = (await _form(request, service)).get("token", "").strip()
    record = await run_sync(service.tokens.holder, token)
    if record is None:
        return drawn("login.html", {"problem": "The token is not known, has expired or was revoked."}, 401)
    request.state.caller = record.name
    answer = RedirectResponse("/", 303)
    is_secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, token, max_age=_COOKIE_S, httponly=True, samesite="strict", secure=is_secure)
    return answer


@ROUTER.post("/logout")
def logged_out(request: Request) -> Response:
    """Remove the cookie."""
    check_site(request, is_browser=True)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@ROUTER.get("/page/new")
def new(service: Running, caller: Submitter) -> Response:
    """The form of a new job."""
    return _new(service, caller, _DEFAULTS, "")


def _new(service: Service, caller: Caller, values: Mapping[str, str], problem: str) -> Response:
    shown: Mapping[str, object] = {
        "caller": caller,
        "here": "/page/new",
        "problem": problem,
        "values": {**_DEFAULTS, **values},
        "kinds": _FORM_KINDS,
        "locations": ["here", *sorted(device.name for device in service.devices.every())],
        "costs": COST_NAMES,
        "tables": list(listed(TABLES)),
        "profiles": list(listed(DEVICES)),
        "models": sorted(name for name in SHIPPED if ".models:" in name),
        "datasets": sorted(name for name in SHIPPED if ".data:" in name),
    }
    return drawn("new.html", shown, 422 if problem else 200)


@ROUTER.post("/page/plan")
async def planned(request: Request, service: Running, caller: Submitter) -> Response:
    """Check the form, and show what the job would do."""
    fields = {name: text for name, text in (await _form(request, service)).items() if name in _DEFAULTS}
    return await run_sync(_planned, service, caller, fields)


def _planned(service: Service, caller: Caller, fields: Mapping[str, str]) -> Response:
    try:
        submission = {"kind": fields.get("kind", "search"), "config": _configuration({**_DEFAULTS, **fields})}
        kind, job_request = checked_request(service, caller, submission)
    except (BadInputError, InfeasibleBudgetError) as error:
        return _new(service, caller, fields, str(error))
    assert isinstance(job_request, ConfiguredRequest)  # the form has made a configuration
    config = job_request.configuration
    plan, problem = _plan(dump(config)) if kind == "search" else ("", "")
    shown = {"name": config.name, "what": _FORM_KINDS.get(kind, kind), "plan": plan, "problem": problem}
    values = {"caller": caller, "here": "/page/new", **shown}
    return drawn("plan.html", {**values, "submission": json.dumps(submission), "configuration": dump(config)})


def _configuration(fields: Mapping[str, str]) -> dict[str, object]:
    """The configuration of a form; ``further`` keys win.

    Raises:
        BadInputError: a number that is none, or no YAML.
    """
    trials, seed = (_whole_number(name, fields[name]) for name in ("trials", "seed"))
    device = {name: fields[name] for name in ("table", "profile") if fields[name]}
    if fields["location"] != "here":
        device["location"] = fields["location"]
    config: dict[str, object] = {
        "name": fields["name"],
        "seed": seed,
        "model": {"factory": fields["model"]},
        "data": {"factory": fields["data"]},
        "device": device,
    }
    if fields["kind"] == "search":
        config |= {"budget": {fields["cost"]: fields["limit"]}, "search": {"trials": trials}}
    further = parse_mapping(fields["further"], "further keys")[0] if fields["further"].strip() else {}
    return _joined(config, further)


def _whole_number(name: str, text: str) -> int:
    """A field that is a whole number.

    Raises:
        BadInputError: it is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise BadInputError(f"{name} = {text!r:.40}, expected a whole number")
    return int(text)


def _joined(base: Mapping[str, object], further: Mapping[str, object]) -> dict[str, object]:
    joined = dict(base)
    for key, value in further.items():
        earlier = joined.get(key)
        is_section = isinstance(earlier, Mapping) and isinstance(value, Mapping) and key != "budget"
        joined[key] = _joined(earlier, value) if is_section else value  # type: ignore[arg-type]
    return joined


def _plan(text: str) -> tuple[str, str]:
    """What ``amcsearch search --dry-run`` prints, and its error; a process of its own builds the network."""
    if not _PLANNING.acquire(timeout=_PLAN_S):
        return "", "another plan is being made; try again in a minute"
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(text, encoding="utf-8")
            command = [sys.executable, "-m", "amcsearch", "search", str(file), "--dry-run"]
            ended = subprocess.run(command, capture_output=True, timeout=_PLAN_S, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return "", f"planning took more than {_PLAN_S} s; submit it from the command line"
    finally:
        _PLANNING.release()
    plan, problems = (printed.decode(errors="replace").strip() for printed in (ended.stdout, ended.stderr))
    if ended.returncode == 0:
        return "\n".join(map(printable, plan.splitlines())), ""
    last = problems.splitlines()[-1] if problems else f"planning ended with {ended.returncode}"
    return "", printable(last.removeprefix("amcsearch: "))


@ROUTER.post("/page/jobs/{job}/extend")
async def extended(request: Request, service: Running, caller: Submitter, job: str) -> Response:
    """Add evaluations to a search that is done, and show it."""
    trials = _whole_number("trials", (await _form(request, service)).get("trials", ""))
    await run_sync(extend_job, service, caller, job, trials)
    return RedirectResponse(f"/page/jobs/{job}", 303)


@ROUTER.post("/page/submit")
async def submitted(request: Request, service: Running, caller: Submitter) -> Response:
    """Submit the job that was shown, and show the job."""
    text = (await _form(request, service)).get("submission", "")
    record = await run_sync(add_job, service, caller, parse_json(text, "the submission"))
    return RedirectResponse(f"/page/jobs/{record.id}", 303)
