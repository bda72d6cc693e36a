"""The connection of a client to a service: requests, events and files, also while the service restarts."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import quote

from amcsearch.core import BadInputError, InfeasibleBudgetError, parse_json
from amcsearch.runs import read_as, replacing
from amcsearch.service.records import JobRecord

if TYPE_CHECKING:
    import httpx

__all__ = ["ServiceConnection"]

_AGAIN_S: Final = 1.0  # between two tries to reach a service that is away
_FIRST_S: Final = 30.0  # that a service may be away that has never answered: its address may be wrong


class ServiceConnection:
    """Requests to one service; ``patience_s`` is how long it may be away before a call is given up.

    A service that has never answered is given up after half a minute.
    """

    def __init__(self, http: "httpx.Client", patience_s: float) -> None:
        self._http, self._most_s, self._has_answered = http, patience_s, False
        http.event_hooks = {"response": [self._answered]}

    def _answered(self, _: "httpx.Response") -> None:
        self._has_answered = True

    @property
    def patience_s(self) -> float:
        """Seconds that the service may be away now."""
        return self._most_s if self._has_answered else min(self._most_s, _FIRST_S)

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Mapping[str, object]:
        """Send a request and return the object that the service answers with, also after it was away for a while.

        Raises:
            BadInputError, InfeasibleBudgetError: the service refuses, with its own words, or stays away.
        """
        for _ in self._tries():
            with suppress(*_away()):
                response = self._http.request(method, path, json=body, headers=headers, params=parameters)
                if response.status_code not in _RETRIED:
                    _check(response)
                    return _object(response)
        raise self.gone()

    def _tries(self) -> Iterator[None]:
        """Give as many tries as fit into the patience."""
        deadline = time.monotonic() + self.patience_s
        yield
        while time.monotonic() < deadline:
            time.sleep(min(_AGAIN_S, self.patience_s))
            yield

    def gone(self) -> BadInputError:
        """The error of a service that stays away."""
        return BadInputError(
            f"the service at {self._http.base_url} does not answer for {self.patience_s:g} s; start it, or name "
            "another address"
        )

    def events(self, job: str, last: int) -> Iterator[JobRecord | None]:
        """Give None once connected, then a job at each change after revision ``last``, until the connection ends."""
        headers = {"Last-Event-ID": str(last), "Accept": "text/event-stream"}
        with suppress(*_away()), self._http.stream("GET", f"/jobs/{job}/events", headers=headers) as response:
            if response.status_code in _RETRIED:
                return
            if response.is_error:
                response.read()
            _check(response)
            yield None
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield read_as(JobRecord, parse_json(line.removeprefix("data:"), "event"), "event")

    def upload(self, file: Path) -> Mapping[str, object]:
        """Send a file and return what the service says of it; raises BadInputError as ``ask``, or it cannot be read."""
        for _ in self._tries():
            with suppress(*_away()), _readable(file) as stream:
                response = self._http.post(f"/uploads/{quote(file.name, safe='')}", content=stream)
                if response.status_code not in _RETRIED:
                    _check(response)
                    return _object(response)
        raise self.gone()

    def download(self, job: str, path: str, target: Path) -> None:
        """Fetch a file of a job; a connection that breaks begins it again.

        Raises:
            BadInputError: as ``ask``, or the file cannot be written.
        """
        for _ in self._tries():
            with suppress(*_away()), self._http.stream("GET", f"/jobs/{job}/files/{quote(path)}") as response:
                if response.status_code in _RETRIED:
                    continue
                if response.is_error:
                    response.read()
                _check(response)
                with replacing(target) as temporary, temporary.open("wb") as stream:
                    for part in response.iter_bytes():
                        stream.write(part)
                return
        raise self.gone()


_RETRIED: Final = frozenset({502, 503, 504})


@contextmanager
def _readable(file: Path) -> Iterator[IO[bytes]]:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise BadInputError(f"cannot read {file}: {error.strerror}; name another file") from error
    with stream:
        yield stream


def _away() -> tuple[type[Exception], ...]:
    import httpx

    return (httpx.TransportError,)


def _object(response: "httpx.Response") -> Mapping[str, object]:
    values: Mapping[str, object] = read_as(Mapping[str, object], parse_json(response.text, "the answer"), "the answer")
    return values


def _check(response: "httpx.Response") -> None:
    """Raise what a service refuses a request with.

    Raises:
        BadInputError, InfeasibleBudgetError: with the words of the service.
    """
    if not response.is_error:
        return
    try:
        problem = _object(response)
        detail, kind = str(problem["detail"]), str(problem["type"])
    except (BadInputError, KeyError):
        raise BadInputError(
            f"{response.request.url} answers {response.status_code} and no problem details; is it an amcsearch service?"
        ) from None
    raise (InfeasibleBudgetError if kind.endswith(":infeasible") else BadInputError)(detail)
