"""Who may do what: callers by their token, the cookie of the page, headers that protect browsers, and the audit.

A request says who it comes from by ``Authorization: Bearer TOKEN``, or by the page's cookie, which holds the token and
which browsers send from our own pages alone. A service without tokens answers this machine alone.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import MutableHeaders

from amcsearch.core import BadInputError
from amcsearch.service.records import LOOPBACK, JobRecord
from amcsearch.service.running import service_of
from amcsearch.service.settings import is_loopback
from amcsearch.service.tokens import AuditEntry, Scope, TokenTable

__all__ = ["BROWSER_HEADERS", "COOKIE", "Caller", "Guard", "check_site", "known_caller", "read_body", "requires"]

AGENTS: Final = "/v1/agents/"
"""Where agents of devices ask for work and bring records."""
COOKIE: Final = "amcsearch_token"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LEAST_ERROR: Final = 400
_REFUSED: Final = frozenset({401, 403})
_MOST_REFUSALS: Final = 60  # of a minute that the audit log keeps, so that nobody fills it from outside
BROWSER_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers send Origin: null with our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Headers that protect browsers, of every answer."""
_BEARER: Final = HTTPBearer(auto_error=False, description="a token of `amcsearch token create`")
_CURE: Final = "send it as Authorization: Bearer TOKEN; the operator makes one with amcsearch token create"

_Messages = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Caller:
    """Who sent a request; ``most_jobs`` that may wait or run at once, None for the service's limit."""

    name: str
    scopes: frozenset[Scope]
    most_jobs: int | None = None

    def may(self, *scopes: Scope) -> bool:
        """Whether one of the scopes is allowed; ``admin`` allows all."""
        return Scope.ADMIN in self.scopes or not self.scopes.isdisjoint(scopes)

    def check(self, *scopes: Scope) -> None:
        """Check that one of the scopes is allowed.

        Raises:
            HTTPException: none is.
        """
        if not self.may(*scopes):
            needed = " or ".join(scopes)
            raise HTTPException(403, f"{self.name} lacks the scope {needed}; ask the operator for a token that has it")

    def check_owns(self, job: JobRecord) -> None:
        """Check that a job is the caller's own, or that the caller administers.

        Raises:
            HTTPException: it is another's.
        """
        if job.owner != self.name and not self.may(Scope.ADMIN):
            raise HTTPException(
                403, f"job {job.id} is {job.owner}'s, and {self.name} lacks the scope admin; ask {job.owner}"
            )


async def known_caller(request: Request) -> Caller:
    """Return ``caller_of``, from a thread where it asks the database, which may be slow or away."""
    has_token = "authorization" in request.headers or COOKIE in request.cookies
    asks = has_token or not service_of(request).settings.needs_token
    return await run_sync(caller_of, request) if asks else caller_of(request)


def requires(*scopes: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency that gives the caller, and refuses one without any of ``scopes``."""

    async def caller(
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None
    ) -> Caller:
        known = await known_caller(request)
        known.check(*scopes)
        return known

    return caller


def caller_of(request: Request) -> Caller:
    """Return who sent a request.

    Raises:
        HTTPException: nobody who is known, or another site's page sent it through the caller's browser.
    """
    tokens = service_of(request).tokens
    header, cookie = request.headers.get("authorization"), request.cookies.get(COOKIE)
    if header is not None:
        scheme, _, text = header.partition(" ")
        known = _holder(tokens, text.strip() if scheme.lower() == "bearer" else "")
    elif cookie is not None:
        known = _holder(tokens, cookie)
        check_site(request, is_browser=True)
    else:
        _check_open(request)
        known = Caller(LOOPBACK, frozenset(Scope))
    request.state.caller = known.name
    return known


def _holder(tokens: TokenTable, text: str) -> Caller:
    record = tokens.holder(text)
    if record is None:
        raise _unknown(f"the token is not known, has expired or was revoked; {_CURE}")
    return Caller(record.name, frozenset(record.scopes), record.most_jobs)


def _unknown(detail: str) -> HTTPException:
    return HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def _check_open(request: Request) -> None:
    """Let a request without a token through where the service asks for none: from this machine, to this machine.

    A name of another site in ``Host`` means that its page reached this machine through a browser (DNS rebinding).
    """
    is_near = request.client is not None and is_loopback(request.client.host)
    service = service_of(request)
    if service.settings.needs_token or not is_near or service.tokens.are_needed():
        raise _unknown(f"a token is needed; {_CURE}")
    host = request.headers.get("host", "")
    with suppress(ValueError):
        if is_loopback(urlsplit(f"//{host}").hostname or ""):
            return check_site(request, is_browser=False)
    raise HTTPException(403, f"host {host[:80]!r} is not this machine; without tokens ask 127.0.0.1 or localhost")


def check_site(request: Request, *, is_browser: bool) -> None:
    """Refuse what another site's page sends to change something (Fetch Metadata, W3C 2021; and ``Origin``).

    Raises:
        HTTPException: it does, or a browser that must say where it comes from does not.
    """
    if request.method in _SAFE:
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    is_ours = origin is not None and origin.partition("://")[2] == request.headers.get("host")
    lacks_both = origin is None and site is None
    if (origin is not None and not is_ours) or site in ("cross-site", "same-site") or (is_browser and lacks_both):
        raise HTTPException(403, "the request comes from another site's page; use the page of the service itself")


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Return the body of a request of bounded size.

    Raises:
        HTTPException: it is larger.
    """
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise HTTPException(413, f"the request has more than {most_bytes} bytes; send a smaller one")
        parts.append(part)
    return b"".join(parts)


class Guard:
    """ASGI middleware: headers that protect browsers, and a line of the audit log for what changes or is refused.

    The log keeps no query, no body and no header of a request, so no secret.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], tokens: TokenTable) -> None:
        self.app, self.tokens = app, tokens
        self._minute, self._refusals = 0, 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: object, send: _Messages) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        state = scope.setdefault("state", {})

        async def guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in BROWSER_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, guarded)
        finally:
            if self._is_noted(scope["method"], scope["path"], status):
                address = scope["client"][0] if scope.get("client") else ""
                entry = AuditEntry(state.get("caller", ""), scope["method"], scope["path"], status, address)
                with suppress(DBAPIError, BadInputError):  # the database is away, and the answer said so
                    await run_sync(self.tokens.note, entry)

    def _is_noted(self, method: str, path: str, status: int) -> bool:
        if status not in _REFUSED:
            is_routine = path.startswith(AGENTS) and status < _LEAST_ERROR  # an agent asks for work every few seconds
            return method not in _SAFE and not is_routine
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._refusals = minute, 0
        self._refusals += 1
        return self._refusals <= _MOST_REFUSALS
