"""Requests to a work list, whatever carries them: their paths, bounds and answers, and refusals by HTTP's statuses."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from amcsearch.core import BadInputError
from amcsearch.measure.agents.received import AgentRefusedError
from amcsearch.measure.agents.work_list import GapError, UnknownJobError, WorkList
from amcsearch.runtime import MOST_ARCHIVE_BYTES

__all__ = ["DeviceAnswer", "DeviceRequest", "RequestRefusedError", "device_request", "encoded"]

MOST_RECORD_BYTES: Final = 16 * 2**20
MOST_JSON_BYTES: Final = 2**16
MOST_MESSAGE: Final = 400


class RequestRefusedError(Exception):
    """A refusal with its ``status``; ``content`` has its line as ``error``, and further keys."""

    def __init__(self, status: HTTPStatus, message: str, **further: int) -> None:
        line = " ".join(message.split())[:MOST_MESSAGE]
        super().__init__(line)
        self.status, self.content = status, {"error": line, **further}


@dataclass(frozen=True)
class _Asked:
    """A request: parts of its path by name, the first value of each query, and its body."""

    parts: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes

    @property
    def instance(self) -> str:
        return self.query.get("instance", "")

    @property
    def content(self) -> Mapping[str, Any]:
        """The body as an object of JSON; raises ``BadInputError``."""
        try:
            value = json.loads(self.body or b"{}")
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise BadInputError("the body is no object of JSON")
        return value

    def number(self, name: str, kind: Callable[[str], Any], otherwise: Any = None) -> Any:
        """A number of the query; raises ``BadInputError``."""
        text = self.query.get(name)
        if text is None:
            return otherwise
        try:
            return kind(text[:40])
        except ValueError:
            raise BadInputError(f"{name} = {text[:40]!r} is no number") from None


DeviceAnswer = Mapping[str, object] | bytes | None
_DEVICE, _JOB = r"(?P<device>[A-Za-z0-9._-]{1,64})", r"(?P<job>[0-9a-f]{1,64})"
_OF_AGENT = rf"/v1/agents/{_DEVICE}/jobs/{_JOB}"


def _next(work: WorkList, request: _Asked) -> DeviceAnswer:
    content = request.content
    says = content.get("device")
    if not isinstance(says, dict):
        raise BadInputError("an agent says nothing of its device")
    offer = work.next(request.parts["device"], str(content.get("instance", "")), says)
    return None if offer is None else offer.to_json()


def _plan(work: WorkList, request: _Asked) -> DeviceAnswer:
    return work.plan(request.parts["device"], request.parts["job"], request.instance)


def _records(work: WorkList, request: _Asked) -> DeviceAnswer:
    at = request.number("at", int, 0)
    return {"have": work.append(request.parts["device"], request.parts["job"], request.instance, at, request.body)}


def _restart(work: WorkList, request: _Asked) -> DeviceAnswer:
    work.restart(request.parts["device"], request.parts["job"], request.instance)
    return None


def _failed(work: WorkList, request: _Asked) -> DeviceAnswer:
    reason = str(request.content.get("reason", ""))
    work.fail(request.parts["device"], request.parts["job"], request.instance, reason)
    return None


def _submit(work: WorkList, request: _Asked) -> DeviceAnswer:
    threads, minutes = request.number("threads", int, 1), request.number("minutes", float)
    provider = request.query.get("provider", "")
    return work.submit(request.parts["device"], request.body, threads, provider, minutes).to_json()


def _device(work: WorkList, request: _Asked) -> DeviceAnswer:
    known = work.device(request.parts["device"])
    if known is None:
        raise UnknownJobError(f"no agent named {request.parts['device']} was ever heard of")
    return known.to_json()


def _state(work: WorkList, request: _Asked) -> DeviceAnswer:
    return work.state(request.parts["job"]).to_json()


def _result(work: WorkList, request: _Asked) -> DeviceAnswer:
    return work.result(request.parts["job"])


def _forget(work: WorkList, request: _Asked) -> DeviceAnswer:
    work.forget(request.parts["job"])
    return None


@dataclass(frozen=True)
class _Route:
    method: str
    path: re.Pattern[str]
    answer: Callable[[WorkList, _Asked], DeviceAnswer]
    most_bytes: int = MOST_JSON_BYTES


ROUTES: Final = (
    _Route("POST", re.compile(f"/v1/agents/{_DEVICE}/next"), _next),
    _Route("GET", re.compile(f"{_OF_AGENT}/plan"), _plan),
    _Route("POST", re.compile(f"{_OF_AGENT}/records"), _records, MOST_RECORD_BYTES),
    _Route("POST", re.compile(f"{_OF_AGENT}/restart"), _restart),
    _Route("POST", re.compile(f"{_OF_AGENT}/failed"), _failed),
    _Route("POST", re.compile(f"/v1/devices/{_DEVICE}/jobs"), _submit, MOST_ARCHIVE_BYTES),
    _Route("GET", re.compile(f"/v1/devices/{_DEVICE}"), _device),
    _Route("GET", re.compile(f"/v1/jobs/{_JOB}"), _state),
    _Route("GET", re.compile(f"/v1/jobs/{_JOB}/result"), _result),
    _Route("DELETE", re.compile(f"/v1/jobs/{_JOB}"), _forget),
)


@dataclass(frozen=True)
class DeviceRequest:
    """A request that has a route.

    Args:
        route: what answers it.
        parts: of its path, by name.
        query: the first value of each name.
    """

    route: _Route
    parts: Mapping[str, str]
    query: Mapping[str, str]

    @property
    def most_bytes(self) -> int:
        """Bytes that its body may have."""
        return self.route.most_bytes

    @property
    def agent(self) -> str | None:
        """The device whose agent asks; None where another does."""
        return self.parts["device"] if "/agents/" in self.route.path.pattern else None

    @property
    def method(self) -> str:
        """Its method of HTTP."""
        return self.route.method

    @property
    def measurement(self) -> str | None:
        """The measurement that it is about."""
        return self.parts.get("job")

    def answer(self, work: WorkList, body: bytes) -> DeviceAnswer:
        """Return the answer of a work list: an object of JSON, bytes, or nothing.

        Raises:
            RequestRefusedError: the work list refuses.
        """
        try:
            return self.route.answer(work, _Asked(self.parts, self.query, body))
        except GapError as error:
            raise RequestRefusedError(HTTPStatus.CONFLICT, str(error), have=error.have) from error
        except UnknownJobError as error:
            raise RequestRefusedError(HTTPStatus.GONE, str(error)) from error
        except AgentRefusedError as error:
            raise RequestRefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        except BadInputError as error:
            raise RequestRefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error


def device_request(method: str, target: str) -> DeviceRequest:
    """Return a request by its method and its path with the query.

    Raises:
        RequestRefusedError: there is no such route.
    """
    parts = urlsplit(target[:2000])
    for route in ROUTES:
        match = route.path.fullmatch(parts.path)
        if match is not None and route.method == method:
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            return DeviceRequest(route, match.groupdict(), query)
    raise RequestRefusedError(HTTPStatus.NOT_FOUND, f"there is no {method[:20]} {parts.path[:200]!r}")


def encoded(answer: DeviceAnswer) -> bytes:
    """Return an answer as it is sent."""
    return answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
