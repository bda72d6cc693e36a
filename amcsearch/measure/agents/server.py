"""The HTTP end of a work list: agents ask it for measurements and bring records, clients submit plans and take results.

Every request carries the bearer token, which is compared in constant time; without one a server listens on a loopback
address alone. A body has a stated length within a bound, a socket may be silent for so long, and a refusal is one line
of JSON. TLS is that of a proxy in front.
"""

import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from amcsearch.core import BadInputError
from amcsearch.measure.agents.received import AgentRefusedError
from amcsearch.measure.agents.work_list import GapError, UnknownJobError, WorkList
from amcsearch.runtime import MOST_ARCHIVE_BYTES

__all__ = ["DeviceServer"]

MOST_RECORD_BYTES: Final = 16 * 2**20
MOST_JSON_BYTES: Final = 2**16
MOST_MESSAGE: Final = 400
SILENCE_S: Final = 30.0


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


Answer = Mapping[str, object] | bytes | None
_DEVICE, _JOB = r"(?P<device>[A-Za-z0-9._-]{1,64})", r"(?P<job>[0-9a-f]{1,64})"
_OF_AGENT = rf"/v1/agents/{_DEVICE}/jobs/{_JOB}"


def _next(work: WorkList, asked: _Asked) -> Answer:
    content = asked.content
    says = content.get("device")
    if not isinstance(says, dict):
        raise BadInputError("an agent says nothing of its device")
    offer = work.next(asked.parts["device"], str(content.get("instance", "")), says)
    return None if offer is None else offer.to_json()


def _plan(work: WorkList, asked: _Asked) -> Answer:
    return work.plan(asked.parts["device"], asked.parts["job"], asked.instance)


def _records(work: WorkList, asked: _Asked) -> Answer:
    at = asked.number("at", int, 0)
    return {"have": work.append(asked.parts["device"], asked.parts["job"], asked.instance, at, asked.body)}


def _restart(work: WorkList, asked: _Asked) -> Answer:
    work.restart(asked.parts["device"], asked.parts["job"], asked.instance)
    return None


def _failed(work: WorkList, asked: _Asked) -> Answer:
    reason = str(asked.content.get("reason", ""))
    work.fail(asked.parts["device"], asked.parts["job"], asked.instance, reason)
    return None


def _submit(work: WorkList, asked: _Asked) -> Answer:
    threads, minutes = asked.number("threads", int, 1), asked.number("minutes", float)
    provider = asked.query.get("provider", "")
    return work.submit(asked.parts["device"], asked.body, threads, provider, minutes).to_json()


def _device(work: WorkList, asked: _Asked) -> Answer:
    known = work.device(asked.parts["device"])
    if known is None:
        raise UnknownJobError(f"no agent named {asked.parts['device']} was ever heard of")
    return known.to_json()


def _state(work: WorkList, asked: _Asked) -> Answer:
    return work.state(asked.parts["job"]).to_json()


def _result(work: WorkList, asked: _Asked) -> Answer:
    return work.result(asked.parts["job"])


def _forget(work: WorkList, asked: _Asked) -> Answer:
    work.forget(asked.parts["job"])
    return None


@dataclass(frozen=True)
class _Route:
    method: str
    path: re.Pattern[str]
    answer: Callable[[WorkList, _Asked], Answer]
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


class _HttpError(Exception):
    """An answer that is a refusal, with its status and further keys."""

    def __init__(self, status: HTTPStatus, message: str, **further: int) -> None:
        super().__init__(message)
        self.status, self.content = status, {"error": " ".join(message.split())[:MOST_MESSAGE], **further}


class _Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    server: "DeviceServer"
    timeout = SILENCE_S
    server_version, sys_version = "amcsearch", ""

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_POST(self) -> None:
        """Answer."""
        self._answer()

    def do_DELETE(self) -> None:
        """Answer."""
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: a request a second for each agent says nothing."""

    def _answer(self) -> None:
        try:
            self._check_token()
            self._send(HTTPStatus.OK, self._asked())
        except _HttpError as error:
            self._send(error.status, error.content)
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def _check_token(self) -> None:
        if self.server.token_hash is None:
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(hashlib.sha256(given).digest(), self.server.token_hash):
            raise _HttpError(HTTPStatus.UNAUTHORIZED, "the token is not the server's; give its --token-file")

    def _asked(self) -> Answer:
        parts = urlsplit(self.path[:2000])
        for route in ROUTES:
            match = route.path.fullmatch(parts.path)
            if match is not None and route.method == self.command:
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                return _guarded(route, self.server.work, _Asked(match.groupdict(), query, self._body(route.most_bytes)))
        raise _HttpError(HTTPStatus.NOT_FOUND, f"there is no {self.command} {parts.path[:200]!r}")

    def _body(self, most_bytes: int) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            raise _HttpError(HTTPStatus.LENGTH_REQUIRED, "a body without a length is not read; send Content-Length")
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > 12 or int(length) > most_bytes:
            raise _HttpError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {length[:20]} bytes, at most {most_bytes} are read"
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the body breaks off")
        return body

    def _send(self, status: HTTPStatus, answer: Answer) -> None:
        content = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
        self.close_connection = True
        self.send_response(status)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _guarded(route: _Route, work: WorkList, asked: _Asked) -> Answer:
    """The answer of a route; what it refuses as an error of HTTP."""
    try:
        return route.answer(work, asked)
    except GapError as error:
        raise _HttpError(HTTPStatus.CONFLICT, str(error), have=error.have) from error
    except UnknownJobError as error:
        raise _HttpError(HTTPStatus.GONE, str(error)) from error
    except AgentRefusedError as error:
        raise _HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    except BadInputError as error:
        raise _HttpError(HTTPStatus.BAD_REQUEST, str(error)) from error


class DeviceServer(ThreadingHTTPServer):
    """Serves a work list over HTTP; ``serve_forever`` runs until ``shutdown``.

    Args:
        work: what is handed out.
        host: address to listen on.
        port: 0 takes a free one.
        token: that every request must carry; None only on a loopback address.

    Raises:
        BadInputError: no token on an address that others reach, or an address that cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, work: WorkList, host: str, port: int, token: str | None) -> None:
        if token is None and not _is_loopback(host):
            raise BadInputError(
                f"device serve: others reach {host}; give a --token-file, or listen on 127.0.0.1 with --host"
            )
        self.work, self.token_hash = work, None if token is None else hashlib.sha256(token.encode()).digest()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise BadInputError(f"device serve: cannot listen on {host}, port {port}: {error}; name another") from error

    @property
    def url(self) -> str:
        """The address that agents connect to."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave out what a broken connection raises."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
