"""Servers that are gone, cut off, redirect, do not end, or declare 10 GB: one line each, in bounded memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from amcsearch.runtime.on_device.connection import Connection, RefusedError, UnreachableError, read_token
from amcsearch.runtime.on_device.errors import DeviceError

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers every request so: its address, and the headers of each request."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            answer(self)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def answering(status: int, content: bytes, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        try:
            handler.wfile.write(content)
        except OSError:  # the client had enough
            return

    return answer


def test_the_token_goes_with_every_request_and_an_answer_comes_back() -> None:
    with serving(answering(200, b'{"have": 3}', Content_Length="11")) as (url, asked):
        assert Connection(url, "secret-secret-secret").json("GET", "/x") == {"have": 3}
        assert asked[0]["Authorization"] == "Bearer secret-secret-secret"
        Connection(f"{url}/").json("GET", "/x")
        assert "Authorization" not in asked[1]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answering(200, b"", Content_Length=str(10 * 2**30)), "with 10737418240 bytes, at most 1048576 are read"),
        (answering(200, bytes(2**21)), "does not end its answer to /x within 1048576 bytes"),
        (answering(200, b"<html>", Content_Length="6"), "with what is no object of JSON: <html>"),
        (answering(200, b"[" * 2**19, Content_Length=str(2**19)), "no object of JSON"),
        (answering(401, b'{"error": "the token is not\\n the server\'s"}'), "the token is not the server's"),
        (answering(302, b"", Location="http://127.0.0.1:1/"), "gives 302"),
        (answering(404, b"\x1b[31mred\x00"), " [31mred "),
    ],
)
def test_what_no_server_of_ours_answers_is_refused_in_one_line(answer: Answer, told: str) -> None:
    with serving(answer) as (url, _), pytest.raises(RefusedError) as refused:
        Connection(url).json("GET", "/x")
    assert told in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answering(200, b"{", Content_Length="100"), "broke off its answer"),
        (answering(503, b'{"error": "no disk"}'), "has trouble (503): no disk"),
        (lambda handler: handler.wfile.write(b"no HTTP at all\r\n"), "cannot be reached"),
    ],
)
def test_trouble_that_passes_may_be_tried_again(answer: Answer, told: str) -> None:
    with serving(answer) as (url, _), pytest.raises(UnreachableError) as trouble:
        Connection(url).json("GET", "/x")
    assert told in str(trouble.value)
    assert str(trouble.value).isprintable()


def test_a_server_that_is_gone_may_be_tried_again() -> None:
    with serving(answering(200, b"{}")) as (url, _):
        pass
    with pytest.raises(UnreachableError, match="cannot be reached"):
        Connection(url).json("GET", "/x")


@pytest.mark.parametrize("url", ["", "pi5", "ftp://pi5", "file:///etc/passwd", "http://", "http://a:b@pi5"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(DeviceError, match="is no address such as"):
        Connection(url)


def test_a_token_is_sixteen_characters_and_more(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token(str(path)) == "0123456789abcdef"
    for text in ("short", "", "0123456789 abcdef", "0123456789abcdé" * 2):
        path.write_text(text)
        with pytest.raises(DeviceError, match="holds no token"):
            read_token(str(path))
    with pytest.raises(DeviceError, match="cannot be read"):
        read_token(str(tmp_path))
