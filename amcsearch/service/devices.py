"""Devices with agents at a service: their work list, what agents and jobs ask it, and how a job reaches it.

The work list of ``amcsearch device serve`` runs in the service's process, from the first request that needs it: it
brings torch and ONNX Runtime. One service of all that share a folder of runs holds it at a time.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy.exc import DBAPIError

from amcsearch.core import BadInputError, parse_json
from amcsearch.service.database import Database
from amcsearch.service.device_table import DeviceTable, JobAsks
from amcsearch.service.job_request import JobRequest
from amcsearch.service.records import LOOPBACK

if TYPE_CHECKING:
    from amcsearch.measure import AgentClient, DeviceAnswer, DeviceRequest, WorkList

__all__ = ["DEVICE_FOLDER", "DeviceRefusedError", "DeviceWork", "devices_of_job"]

DEVICE_FOLDER: Final = "devices"
"""The folder of devices' work, inside ``runs``."""
_LOOK_S: Final = 0.25  # between two looks at what jobs ask
_SWEEP_S: Final = 30.0  # between two looks for measurements that nobody wants
_GREET_S: Final = 10.0  # between two signs of life of one device in the database
_ANSWER_S: Final = 60.0  # that the service may take to answer a job
_SILENT_S: Final = 300.0  # of an agent, after which a job gives its worker back
_FORBIDDEN, _TOO_MANY, _AWAY = 403, 429, 503

_log = logging.getLogger(__name__)


class DeviceRefusedError(Exception):
    """A request on devices is refused with a ``status``; ``further`` keys go beside its line."""

    def __init__(self, status: int, detail: str, further: Mapping[str, object] | None = None) -> None:
        super().__init__(detail)
        self.status, self.further = status, further or {}


@dataclass
class _Greeted:
    """What the database was last told of a device."""

    at_s: float
    measurement: str | None


class DeviceWork:
    """The work list of a service's devices.

    Args:
        folder: of the work list.
        table: of the devices.
    """

    def __init__(self, folder: Path, table: DeviceTable) -> None:
        self.folder, self.table = folder, table
        self._opened: WorkList | None = None
        self._lock = threading.Lock()
        self._greeted: dict[str, _Greeted] = {}
        self._ending = threading.Event()

    def request(self, method: str, target: str) -> "DeviceRequest":
        """Return a request of an agent by its method and path.

        Raises:
            DeviceRefusedError: there is no such route.
        """
        from amcsearch.measure import RequestRefusedError, device_request

        try:
            return device_request(method, target)
        except RequestRefusedError as error:
            raise _refused(error) from error

    def answer(
        self, request: "DeviceRequest", body: bytes, caller: str, *, is_admin: bool, most: int
    ) -> "DeviceAnswer":
        """Return the work list's answer to an agent, or to a client with the scope of one.

        Args:
            request: of either.
            body: of the request.
            caller: whose token it has.
            is_admin: whether the caller may serve the devices of others.
            most: measurements of the caller's own that may be here at once.

        Raises:
            DeviceRefusedError: the work list refuses, another service holds it, the device is another's, or the caller
                has too many measurements.
        """
        work, agent = self._work(), request.agent
        if agent is not None:
            owner = self.table.owner(agent)
            if owner not in (None, LOOPBACK, caller) and not is_admin:
                raise DeviceRefusedError(
                    _FORBIDDEN,
                    f"device {agent} is served with the token of {owner}, not of {caller}; give it another --name, or "
                    f"let an administrator remove it: DELETE /devices/{agent}",
                )
        answer = self._answered(work, request, body)
        if agent is not None:
            offered = answer.get("job") if isinstance(answer, Mapping) else None
            self._greet(work, agent, caller, request.measurement or cast("str | None", offered))
        elif request.method == "POST" and isinstance(answer, Mapping):
            self._keep(work, str(answer["job"]), caller, most)
        elif request.method == "DELETE" and request.measurement is not None:
            self.table.forget(request.measurement)
        return answer

    def _keep(self, work: "WorkList", measurement: str, caller: str, most: int) -> None:
        """Note whose a measurement is that belongs to no job; raises DeviceRefusedError where those are too many."""
        if self.table.keep_for(measurement, caller, most):
            return
        with suppress(BadInputError):
            work.forget(measurement)
        raise DeviceRefusedError(
            _TOO_MANY,
            f"{most} measurements of {caller} are here, at most {most}; remove one that is done: DELETE /v1/jobs/NAME",
        )

    def remove(self, name: str) -> None:
        """Remove a device, so that another one may take its name.

        Raises:
            BadInputError: there is none.
            DeviceRefusedError: another service holds the work list.
        """
        work = self._work()
        self.table.remove(name)
        work.forget_device(name)
        self._greeted.pop(name, None)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer what jobs ask, from a thread of its own, for a while."""
        thread = threading.Thread(target=self._serve_jobs, name="devices")
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            thread.join()
            if self._opened is not None:
                self._opened.close()

    def _serve_jobs(self) -> None:
        swept_s = time.monotonic()
        while not self._ending.wait(_LOOK_S):
            try:
                self.answer_jobs()
                if time.monotonic() > swept_s + _SWEEP_S:
                    swept_s = time.monotonic()
                    self.sweep()
            except DeviceRefusedError:  # another service answers
                self._ending.wait(_SWEEP_S)
            except (DBAPIError, BadInputError, OSError) as error:
                _log.warning("devices' work: %s", error)
                self._ending.wait(_SWEEP_S)

    def answer_jobs(self) -> None:
        """Answer what jobs have asked.

        Raises:
            DeviceRefusedError: another service holds the work list.
        """
        for asks in self.table.asked():
            from amcsearch.measure import encoded

            work = self._work()
            answer: DeviceAnswer
            try:
                status, answer = 200, self._of_job(work, asks)
            except DeviceRefusedError as error:
                status, answer = error.status, {"error": str(error), **error.further}
            self.table.answer(asks.id, status, encoded(answer))

    def _of_job(self, work: "WorkList", asks: JobAsks) -> "DeviceAnswer":
        request = self.request(asks.method, asks.target)
        answer = self._answered(work, request, asks.body or b"")
        if asks.method == "POST" and isinstance(answer, Mapping):
            self.table.measures_for(str(answer["job"]), asks.job)
        if asks.method == "DELETE" and request.measurement is not None:
            self.table.forget(request.measurement)
        return answer

    def sweep(self) -> None:
        """Break off measurements whose jobs have ended.

        Raises:
            DeviceRefusedError: another service holds the work list.
        """
        for measurement in self.table.unwanted():
            with suppress(BadInputError):  # it is gone already
                self._work().forget(measurement)
            self.table.forget(measurement)

    def _work(self) -> "WorkList":
        """The work list; opened where it is not.

        Raises:
            DeviceRefusedError: another service holds it, or its folder cannot be used.
        """
        from amcsearch.measure import WorkList

        with self._lock:
            if self._opened is None:
                try:
                    self._opened = WorkList(self.folder)
                except BadInputError as error:
                    raise DeviceRefusedError(_AWAY, str(error)) from error
            return self._opened

    def _answered(self, work: "WorkList", request: "DeviceRequest", body: bytes) -> "DeviceAnswer":
        from amcsearch.measure import RequestRefusedError

        try:
            return request.answer(work, body)
        except RequestRefusedError as error:
            raise _refused(error) from error

    def _greet(self, work: "WorkList", device: str, caller: str, measurement: str | None) -> None:
        """Note a sign of life: when what it measures changes, else now and then."""
        now, last = time.monotonic(), self._greeted.get(device)
        if last is not None and last.measurement == measurement and now < last.at_s + _GREET_S:
            return
        known = work.device(device)
        if known is None:
            return
        progress: tuple[str, int, int] | None = None
        if measurement is not None:
            with suppress(BadInputError):  # it is no longer wanted
                state = work.state(measurement)
                progress = (measurement, state.records, state.expected)
        self.table.greet(device, caller, known.provenance, progress)
        self._greeted[device] = _Greeted(now, measurement)


def _refused(error: Any) -> DeviceRefusedError:
    further = {key: value for key, value in error.content.items() if key != "error"}
    return DeviceRefusedError(int(error.status), str(error), further)


class _JobConnection:
    """Carries the requests of a job to the work list through the database."""

    url = "this service"

    def __init__(self, table: DeviceTable, job: str) -> None:
        self._table, self._job = table, job

    def json(self, method: str, path: str) -> dict[str, object]:
        """Return the object that answers a request; raises as ``send``."""
        answer = self.send(method, path, None, 2**20)
        return cast("dict[str, object]", parse_json(answer.decode(), "the answer of the service"))

    def send(self, method: str, path: str, body: bytes | None, most_bytes: int) -> bytes:
        """Return what answers a request.

        Raises:
            UnreachableError: no service answers now.
            RefusedError: the work list refuses.
        """
        from amcsearch.runtime import RefusedError, UnreachableError

        try:
            request = self._table.ask(self._job, method, path, body)
            deadline, answer = time.monotonic() + _ANSWER_S, None
            while answer is None and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
                answer = self._table.taken(request)
            if answer is None:
                self._table.drop(request)
        except DBAPIError as error:
            raise UnreachableError("the database of the service does not answer") from error
        if answer is None:
            raise UnreachableError("no service answers that hands out devices' work")
        status, content = answer
        if status >= _AWAY:
            raise UnreachableError("the service cannot hand out devices' work now")
        if status >= 400:
            raise RefusedError(str(json.loads(content)["error"]), status, content)
        if len(content) > most_bytes:
            raise RefusedError(f"the work list answers {len(content)} bytes, at most {most_bytes} are read")
        return content


@contextmanager
def devices_of_job(request: JobRequest, job: str, database: str) -> Iterator[None]:
    """Let a running job reach the service's devices by name, where its configuration names one.

    Raises:
        BadInputError: the database cannot be opened.
    """
    if request.location in ("here", "offline"):
        yield
        return
    from amcsearch.jobs import agents_by
    from amcsearch.measure import AgentClient

    opened = Database(database)
    connection = _JobConnection(DeviceTable(opened), job)

    def connect(device: str) -> "AgentClient":
        return AgentClient(connection, device, silent_s=_SILENT_S)

    try:
        with agents_by(connect):
            yield
    finally:
        opened.close()
