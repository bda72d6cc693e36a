"""Requests to a server that may be gone, slow or hostile: no redirects, and every answer bounded in bytes and seconds.

A request ends in one of three ways: an answer; ``UnreachableError``, which may be tried again; or ``RefusedError``,
which may not. The token goes to the given address alone: a redirect is an error.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Mapping

from amcsearch.runtime.on_device.errors import DeviceError

__all__ = ["JSON_BYTES", "Connection", "RefusedError", "UnreachableError", "read_token"]

JSON_BYTES = 2**20
CHUNK = 2**16
SILENCE_S = 30.0  # that a server may be silent
ANSWER_S = 300.0  # that an answer may take in all
GONE = 500  # and above: the server's own trouble, which passes
LEAST_TOKEN = 16
WORDS = 200  # characters of what the other end says, in an error


class UnreachableError(DeviceError):
    """The server cannot be reached now."""


class RefusedError(DeviceError):
    """The server refuses the request, or answers what no server of ours would; ``status`` is HTTP's, 0 without one."""

    def __init__(self, message: str, status: int = 0, content: bytes = b"") -> None:
        super().__init__(message)
        self.status, self.content = status, content


def read_token(path: str) -> str:
    """Read a token from a file.

    Raises:
        DeviceError: the file cannot be read, or holds no token.
    """
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DeviceError(f"token file {path} cannot be read: {error}") from error
    if len(token) < LEAST_TOKEN or not token.isascii() or any(c.isspace() or not c.isprintable() for c in token):
        raise DeviceError(f"token file {path} holds no token: {LEAST_TOKEN} printable characters or more, no spaces")
    return token


def _said(content: bytes) -> str:
    """What the other end says, in one line without control characters."""
    text = content[: 4 * WORDS].decode("utf-8", "replace")
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict):  # a server's own words, or problem details of a service
            text = str(parsed.get("error", parsed.get("detail", text)))
    except (ValueError, RecursionError):
        pass
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:WORDS]


class Connection:
    """A server at ``url``; ``token`` is its bearer token, None where it wants none.

    Raises:
        DeviceError: the address is no http or https one.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise DeviceError(f"server {url!r:.200} is no address such as http://192.168.1.2:8753")
        self.url, self._token = url.rstrip("/"), token
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            *(urllib.request.ProxyHandler(), urllib.request.HTTPHandler()),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            *(urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor()),
        ):
            self._opener.add_handler(handler)

    def json(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send and get an object of JSON; {} where the server has nothing to say.

        Raises:
            UnreachableError, RefusedError: as ``send``.
        """
        body = None if content is None else json.dumps(content).encode()
        answer = self.send(method, path, body, JSON_BYTES)
        if not answer:
            return {}
        try:
            parsed = json.loads(answer)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise RefusedError(f"server {self.url} answered {path} with what is no object of JSON: {_said(answer)}")
        return parsed

    def send(self, method: str, path: str, body: bytes | None, most_bytes: int) -> bytes:
        """Send a request and read an answer of at most ``most_bytes``.

        Raises:
            UnreachableError: no connection, a silence, an answer that breaks off or takes too long, or the server's own
                trouble.
            RefusedError: the server refuses, redirects, or answers more than that.
        """
        headers = {"Content-Type": "application/octet-stream"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(f"{self.url}{path}", body, headers, method=method)
        try:
            with self._opener.open(request, timeout=SILENCE_S) as answer:
                return self._read(answer, path, most_bytes)
        except urllib.error.HTTPError as error:
            with error:
                raise self._http_error(error, method, path) from error
        except DeviceError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreachableError(f"server {self.url} cannot be reached: {_said(str(error).encode())}") from error

    def _http_error(self, error: urllib.error.HTTPError, method: str, path: str) -> DeviceError:
        try:
            content = self._read(error, path, JSON_BYTES)
        except (OSError, http.client.HTTPException, DeviceError):
            content = b""
        if error.code >= GONE:
            return UnreachableError(f"server {self.url} has trouble ({error.code}): {_said(content)}")
        words = _said(content) or f"{method} {path[:WORDS]} gives {error.code}"
        return RefusedError(f"server {self.url}: {words}", error.code, content)

    def _read(self, answer: Any, path: str, most_bytes: int) -> bytes:
        declared = answer.headers.get("Content-Length")
        if declared is not None and declared.isdecimal() and int(declared) > most_bytes:
            raise RefusedError(
                f"server {self.url} answers {path[:WORDS]} with {declared} bytes, at most {most_bytes} are read"
            )
        parts, size, end = [], 0, time.monotonic() + ANSWER_S
        while True:
            part = answer.read1(CHUNK) if hasattr(answer, "read1") else answer.read(CHUNK)
            if not part:
                break
            size += len(part)
            if size > most_bytes:
                raise RefusedError(
                    f"server {self.url} does not end its answer to {path[:WORDS]} within {most_bytes} bytes"
                )
            if time.monotonic() > end:
                raise UnreachableError(f"server {self.url} took more than {ANSWER_S:.0f} s to answer {path[:WORDS]}")
            parts.append(part)
        if declared is not None and declared.isdecimal() and size < int(declared):
            raise UnreachableError(f"server {self.url} broke off its answer to {path[:WORDS]}")
        return b"".join(parts)
