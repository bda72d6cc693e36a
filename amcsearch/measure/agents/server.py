"""The HTTP end of a work list: agents ask it for measurements and bring records, clients submit plans and take results.

Every request carries the bearer token, which is compared in constant time; without one a server listens on a loopback
address alone. A body has a stated length within a bound, a socket may be silent for so long, and a refusal is one line
of JSON. TLS is that of a proxy in front.
"""

import hashlib
import hmac
import ipaddress
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from amcsearch.core import BadInputError
from amcsearch.measure.agents.routes import DeviceAnswer, RequestRefusedError, device_request, encoded
from amcsearch.measure.agents.work_list import WorkList

__all__ = ["DeviceServer"]

SILENCE_S: Final = 30.0


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
        except RequestRefusedError as error:
            self._send(error.status, error.content)
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def _check_token(self) -> None:
        if self.server.token_hash is None:
            return
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(hashlib.sha256(given).digest(), self.server.token_hash):
            raise RequestRefusedError(HTTPStatus.UNAUTHORIZED, "the token is not the server's; give its --token-file")

    def _asked(self) -> DeviceAnswer:
        request = device_request(self.command, self.path)
        return request.answer(self.server.work, self._body(request.most_bytes))

    def _body(self, most_bytes: int) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            raise RequestRefusedError(
                HTTPStatus.LENGTH_REQUIRED, "a body without a length is not read; send Content-Length"
            )
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or len(length) > 12 or int(length) > most_bytes:
            raise RequestRefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {length[:20]} bytes, at most {most_bytes} are read"
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the body breaks off")
        return body

    def _send(self, status: HTTPStatus, answer: DeviceAnswer) -> None:
        content = encoded(answer)
        self.close_connection = True
        self.send_response(status)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


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
