"""Measure a plan on the device of an agent: submit it to the server, wait, and take the result as a file.

Server, agent and network may be gone for a while: the client asks again. The measurement is the server's until the
result is in a file here, so that a client that was killed takes it up by the same plan.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from amcsearch.core import BadInputError, DeviceAwayError, parse_json
from amcsearch.costs import Provenance
from amcsearch.measure.agents.work_list import MOST_RESULT_BYTES, DeviceState, MeasurementState
from amcsearch.measure.kit.kit import KitPlan, device_plan, plan_archive
from amcsearch.runs import replacing
from amcsearch.runtime import CPU, DeviceError, RefusedError, UnreachableError

__all__ = ["AgentClient", "WorkConnection"]

Result = TypeVar("Result")
POLL_S, MOST_WAIT_S = 1.0, 30.0
PATIENCE_S: Final = 600.0  # without the server
SILENT_S: Final = 1800.0  # without the agent
NOTED_S: Final = 30.0  # after which its silence is told
GONE: Final = 410
_ANSWER: Final = "the server's answer"
Progress = Callable[[float, str], None]


class WorkConnection(Protocol):
    """What carries requests to a work list: HTTP's ``Connection``, or another that raises the same errors."""

    @property
    def url(self) -> str:
        """Where the work list is, for people."""

    def json(self, method: str, path: str) -> dict[str, object]:
        """Return the object that answers a request."""

    def send(self, method: str, path: str, body: bytes | None, most_bytes: int) -> bytes:
        """Return what answers a request, at most ``most_bytes``."""


class AgentClient:
    """A device that an agent serves.

    Args:
        connection: to the server.
        device: the agent's name.
        pause: waits so many seconds.
        clock: seconds.
        silent_s: seconds of silence after which the agent counts as away.
    """

    def __init__(
        self,
        connection: WorkConnection,
        device: str,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        silent_s: float = SILENT_S,
    ) -> None:
        self.connection, self.device, self._pause, self._clock = connection, device, pause, clock
        self._silent_s, self._begun = silent_s, clock()

    def state(self) -> DeviceState:
        """Say what the server knows of the device.

        Raises:
            BadInputError: the server refuses.
            DeviceAwayError: the server cannot be reached, or its agent has never connected.
        """
        try:
            return self._state()
        except RefusedError as error:
            if error.status != GONE:
                raise BadInputError(str(error)) from error
            raise DeviceAwayError(
                f"device.location = {self.device!r}: no agent of that name has connected to {self.connection.url}; on "
                f"the device: python3 kit.pyz agent --connect URL --token-file F --name {self.device}",
                self.device,
            ) from error
        except DeviceError as error:
            raise DeviceAwayError(f"{error}; start it: amcsearch device serve", self.device) from error

    def _state(self) -> DeviceState:
        answer = self.connection.json("GET", f"/v1/devices/{self.device}")
        return DeviceState.from_json(answer, f"server {self.connection.url}")

    def provenance(self) -> Provenance:
        """Return what the device says of itself before it measures; what it does not say is None."""
        return Provenance.from_mapping(dict(self.state().provenance))

    def measure(
        self,
        plan: KitPlan,
        out: Path,
        minutes: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Measure a plan with its threads and provider (1 and the CPU's where it names none); write ``out``.

        Raises:
            BadInputError: the server or the agent refuses, or ``out`` cannot be written.
            DeviceAwayError: the server or the agent stays away.
        """
        self._check_heard(self.state())
        query = f"threads={plan.threads or 1}&provider={plan.provider or CPU}" + (
            "" if minutes is None else f"&minutes={min(minutes, 1440.0)}"
        )
        try:
            self._measure(plan_archive(device_plan(plan)), f"/v1/devices/{self.device}/jobs?{query}", out, progress)
        except UnreachableError as error:
            raise DeviceAwayError(str(error), self.device) from error
        except DeviceError as error:
            raise BadInputError(str(error)) from error

    def _measure(self, archive: bytes, path: str, out: Path, progress: Progress | None) -> None:
        """Submit until the server has not lost the measurement before it is done."""
        while True:
            answer = self._patiently(lambda: self.connection.send("POST", path, archive, 2**16))
            state = MeasurementState.from_json(parse_json(answer.decode(errors="replace"), _ANSWER), _ANSWER)
            content = self._awaited(state, progress)
            if content is not None:
                break
        with replacing(out) as temporary:
            temporary.write_bytes(content)
        self._forget(state.job)

    def _awaited(self, state: MeasurementState, progress: Progress | None) -> bytes | None:
        """The records of a measurement once it is done; None where the server has lost it."""
        while state.state not in ("done", "failed"):
            self._pause(POLL_S)
            try:
                answer = self._patiently(partial(self.connection.json, "GET", f"/v1/jobs/{state.job}"))
            except RefusedError as error:
                if error.status == GONE:
                    return None
                raise
            state = MeasurementState.from_json(answer, _ANSWER)
            self._tell(state, progress)
        if state.state == "failed":
            self._forget(state.job)
            raise BadInputError(f"device {self.device}: {state.reason}")
        path = f"/v1/jobs/{state.job}/result"
        return self._patiently(lambda: self.connection.send("GET", path, None, MOST_RESULT_BYTES))

    def _tell(self, state: MeasurementState, progress: Progress | None) -> None:
        """Report the progress, and the silence of the agent; one that lasts too long is an error."""
        silent_s = self._check_heard(self._patiently(self._state))
        if progress is None:
            return
        text = f"{self.device}: {state.records} of about {state.expected} records"
        quiet = "" if silent_s < NOTED_S else f", silent for {silent_s:.0f} s"
        progress(min(state.records / max(state.expected, 1), 1.0), text + quiet)

    def _check_heard(self, known: DeviceState) -> float:
        """Seconds for which the agent is silent, counted from here where its server has begun since.

        Raises:
            DeviceAwayError: it is silent for too long.
        """
        silent_s = self._clock() - self._begun if known.silent_s is None else known.silent_s
        if silent_s > self._silent_s:
            raise DeviceAwayError(
                f"device {self.device} was last heard of {silent_s / 60:.0f} minutes ago; start its agent again and "
                "repeat the command, which goes on",
                self.device,
            )
        return silent_s

    def _forget(self, job: str) -> None:
        try:
            self._patiently(lambda: self.connection.send("DELETE", f"/v1/jobs/{job}", None, 2**16))
        except RefusedError as error:
            if error.status != GONE:
                raise

    def _patiently(self, request: Callable[[], Result]) -> Result:
        """The answer to a request, tried again while the server cannot be reached, for ten minutes.

        Raises:
            RefusedError: the server refuses it.
            UnreachableError: the server stays away.
        """
        begun, wait_s = self._clock(), 1.0
        while True:
            try:
                return request()
            except UnreachableError as error:
                if self._clock() - begun > PATIENCE_S:
                    raise UnreachableError(f"{error}; start it and repeat the command, which goes on") from error
            self._pause(wait_s)
            wait_s = min(2 * wait_s, MOST_WAIT_S)
