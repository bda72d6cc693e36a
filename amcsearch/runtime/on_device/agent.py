"""The agent of a device: ``python3 kit.pyz agent --connect URL --token-file F --name pi5``.

It asks a server for plans, measures one at a time, and sends records as they are made. Its own file of a measurement is
the truth; the server's is a beginning of it. So a record that is sent twice counts once, and after a loss of the
network, of the server or of the agent the measurement goes on where it stopped. Where the agent has lost its files, the
server drops what it has and the measurement begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from amcsearch.runtime.on_device.connection import Connection, RefusedError, UnreachableError, read_token
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.part import Settings
from amcsearch.runtime.on_device.plan import KIT_VERSION, DevicePlan
from amcsearch.runtime.on_device.program import run
from amcsearch.runtime.on_device.provenance import provenance
from amcsearch.runtime.on_device.records import Journal, encoded
from amcsearch.runtime.on_device.session import CPU
from amcsearch.runtime.on_device.untrusted import MOST_ARCHIVE_BYTES, MOST_THREADS, checked_plan

__all__ = ["JOB", "NAME", "DeviceAgent", "main"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
JOB = re.compile(r"[0-9a-f]{16,64}")
POLL_S, MOST_WAIT_S = 5.0, 60.0
BATCH_BYTES = 2**20
GONE = (404, 410)
CONFLICT = 409
MOST_LOSSES = 3  # of records by a server, while some are sent: it may have died
MOST_MINUTES = 1440.0
SAYS = ("cpu", "cpu_flags", "cores", "ort_version", "machine")
"""What an agent says of its device before it measures."""
Say = Callable[[str], None]


class GoneError(DeviceError):
    """The server no longer wants a measurement."""


class DeviceAgent:
    """Measures what a server asks for, one plan at a time.

    Args:
        connection: to the server.
        name: of the device.
        folder: where files of a measurement lie; one process at a time holds it.
        say: told each step, in a line.
        pause: waits so many seconds.

    Raises:
        DeviceError: the folder cannot be written, or another process holds it.
    """

    def __init__(
        self, connection: Connection, name: str, folder: Path, say: Say, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.connection, self.name, self.folder, self.say, self.pause = connection, name, folder, say, pause
        self._lock = _locked(folder)
        self.instance = _instance(folder / "instance")
        where = provenance(1, 1, "float32", CPU, 0)
        self._device = {key: where[key] for key in SAYS}

    def serve(self, poll_s: float = POLL_S) -> None:
        """Ask and measure for ever.

        Raises:
            DeviceError: the server refuses the agent itself: its token or its name.
        """
        while True:
            if not self.step():
                self.pause(poll_s)

    def step(self) -> bool:
        """Ask once, and measure what there is; False where there is nothing, or nothing that can be measured.

        Raises:
            DeviceError: as ``serve``.
        """
        offer = self._patiently(self._ask)
        if not offer:
            return False
        job = str(offer.get("job", ""))
        if not JOB.fullmatch(job):
            self.say(f"the server offers a measurement named {job[:40]!r}, which is no name of one; left out")
            return False
        is_measured = False
        try:
            self._measure(job, offer)
            is_measured = True
        except GoneError:
            self.say(f"{job[:12]}: the server no longer wants it")
        except DeviceError as error:
            self._give_up(job, error)
        self._forget(job)
        return is_measured

    def _ask(self) -> Mapping[str, Any]:
        content = {"instance": self.instance, "version": KIT_VERSION, "device": self._device}
        return self.connection.json("POST", f"/v1/agents/{self.name}/next", content)

    def _patiently(self, request: Callable[[], Any]) -> Any:
        """The answer to a request, as soon as the server can be reached."""
        wait_s = 1.0
        while True:
            try:
                return request()
            except UnreachableError as error:
                self.say(f"{error}; trying again in {wait_s:.0f} s")
                self.pause(wait_s)
                wait_s = min(2 * wait_s, MOST_WAIT_S)

    def _measure(self, job: str, offer: Mapping[str, Any]) -> None:
        settings = _settings(offer)
        plan = self._plan(job, str(offer.get("plan_hash", "")))
        plan.check_setting(settings.threads, settings.provider)
        journal = SendingJournal(self.folder / f"{job}.jsonl", self, job)
        have = offer.get("have")
        if not isinstance(have, int) or isinstance(have, bool) or have < 0:
            raise DeviceError(f"the server says that it has {have!r:.40} records, expected a count")
        if have > len(journal.records):
            self._patiently(lambda: self._of_job("POST", job, "restart"))
            have = 0
        journal.sent = have
        self.say(f"{job[:12]}: measuring {len(plan.entries)} models, {len(journal.records)} records are there")
        run(plan, journal, settings)
        self._patiently(journal.send)
        self.say(f"{job[:12]}: done, {journal.sent} records")

    def _plan(self, job: str, expected: str) -> DevicePlan:
        """The plan as a checked value; its archive is kept, so that a restart does not load it again."""
        path = self.folder / f"{job}.zip"
        if path.is_file() and path.stat().st_size <= MOST_ARCHIVE_BYTES:
            try:
                return checked_plan(path.read_bytes(), expected)
            except DeviceError:
                path.unlink()
        content = self._patiently(lambda: self._of_job("GET", job, "plan", most_bytes=MOST_ARCHIVE_BYTES))
        plan = checked_plan(content, expected)
        partial = path.with_suffix(".partial")
        partial.write_bytes(content)
        os.replace(str(partial), str(path))
        return plan

    def _of_job(self, method: str, job: str, target: str, body: bytes | None = None, most_bytes: int = 2**16) -> bytes:
        """Send a request on a measurement.

        Raises:
            GoneError: the server no longer wants it.
            UnreachableError, RefusedError: as ``Connection.send``.
        """
        body = b"" if method == "POST" and body is None else body
        separator = "&" if "?" in target else "?"
        path = f"/v1/agents/{self.name}/jobs/{job}/{target}{separator}instance={self.instance}"
        try:
            return self.connection.send(method, path, body, most_bytes)
        except RefusedError as error:
            if error.status in GONE:
                raise GoneError(str(error)) from error
            raise

    def send_records(self, job: str, at: int, lines: bytes) -> int:
        """Send records from the one numbered ``at``; returns how many the server has.

        Raises:
            GoneError, UnreachableError, RefusedError: as ``_of_job``, or the answer is no count.
        """
        try:
            answer = self._of_job("POST", job, f"records?at={at}", lines)
        except RefusedError as error:
            if error.status != CONFLICT:
                raise
            answer = error.content
        try:
            have = json.loads(answer)["have"]
        except (ValueError, KeyError, TypeError):
            have = None
        if not isinstance(have, int) or isinstance(have, bool) or have < 0:
            raise RefusedError(f"server {self.connection.url} takes records and does not say how many it has")
        return have

    def _give_up(self, job: str, error: DeviceError) -> None:
        reason = " ".join(str(error).split())[:400]
        self.say(f"{job[:12]}: {reason}")
        with suppress(GoneError, RefusedError):  # a server that does not want to know is left alone
            self._patiently(lambda: self._of_job("POST", job, "failed", json.dumps({"reason": reason}).encode()))

    def _forget(self, job: str) -> None:
        for suffix in (".jsonl", ".zip", ".partial"):
            with suppress(OSError):
                (self.folder / f"{job}{suffix}").unlink()


class SendingJournal(Journal):
    """A result file whose records also go to the server, as soon as that can be reached; ``sent`` is what it has."""

    def __init__(self, path: Path, agent: DeviceAgent, job: str) -> None:
        super().__init__(path)
        self._agent, self._job = agent, job
        self.sent = 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Write and sync a record, and try to send what is not sent yet.

        Raises:
            DeviceError: as ``Journal.append``, or the server refuses the records or no longer wants them.
        """
        super().append(record)
        with suppress(UnreachableError):  # the next record tries again, and the end waits for it
            self.send()

    def send(self) -> None:
        """Send what the server does not have.

        Raises:
            GoneError, UnreachableError, RefusedError: as ``DeviceAgent.send_records``.
        """
        losses = 0
        while self.sent < len(self.records):
            lines: list[bytes] = []
            at, size = self.sent, 0
            for record in self.records[at:]:
                line = encoded(record)
                if lines and size + len(line) > BATCH_BYTES:
                    break
                lines.append(line)
                size += len(line)
            have = self._agent.send_records(self._job, at, b"".join(lines))
            if have > len(self.records) or have == at:
                raise RefusedError(f"the server has {have} records of {len(self.records)} and took none from {at}")
            losses += have < at
            if losses > MOST_LOSSES:
                raise RefusedError(f"the server lost records {losses} times: it had {at} and has {have}")
            self.sent = have


def _settings(offer: Mapping[str, Any]) -> Settings:
    """How to measure what is offered.

    Raises:
        DeviceError: a value that is out of range.
    """
    threads, provider, minutes = (offer.get(key) for key in ("threads", "provider", "minutes"))
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MOST_THREADS:
        raise DeviceError(f"the server asks for {threads!r:.40} threads, must be from 1 to {MOST_THREADS}")
    if not isinstance(provider, str) or len(provider) > 100:
        raise DeviceError(f"the server asks for provider {provider!r:.40}, must be a name")
    is_number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
    if minutes is not None and (not is_number or not 0 < minutes <= MOST_MINUTES):
        raise DeviceError(
            f"the server asks for {minutes!r:.40} minutes, must be more than 0 and at most {MOST_MINUTES:g}"
        )
    return Settings(threads, provider, minutes)


def _locked(folder: Path) -> Any:
    """Take the folder for this process; the lock goes with it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("ab")
    except OSError as error:
        raise DeviceError(f"cannot write {folder}: {error.strerror}; name another --folder") from error
    try:
        import fcntl

        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such lock there
        return lock
    except OSError as error:
        raise DeviceError(f"another agent measures in {folder}; end it, or name another --folder") from error
    return lock


def _instance(path: Path) -> str:
    """What tells this agent's files from those of another one under the same name."""
    text = path.read_text() if path.is_file() else ""
    if not JOB.fullmatch(text):
        text = secrets.token_hex(16)
        path.write_text(text)
    return text


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kit.pyz agent",
        description="Measure what a server of `amcsearch device serve` asks for, until interrupted.",
        epilog="example: python3 kit.pyz agent --connect http://192.168.1.2:8753 --token-file token --name pi5",
    )
    parser.add_argument("--connect", required=True, metavar="URL", help="address of the server")
    parser.add_argument("--token-file", metavar="F", help="file that holds the server's token")
    parser.add_argument("--name", required=True, help="name of this device, as device.location gives it")
    parser.add_argument("--folder", type=Path, help="files of a measurement (default: ~/.cache/amcsearch-agent/NAME)")
    parser.add_argument("--poll", type=float, default=POLL_S, metavar="S", help="seconds between questions (5)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str], say: Say) -> int:
    """Run the agent until it is interrupted.

    Raises:
        DeviceError: an argument out of range, or as ``DeviceAgent``.
    """
    parsed = _arguments(arguments)
    if not NAME.fullmatch(parsed.name):
        raise DeviceError(f"--name {parsed.name[:80]!r}: letters, digits, dots, dashes and underscores, at most 64")
    if not 0.01 <= parsed.poll <= 3600:
        raise DeviceError(f"--poll {parsed.poll:g}: must be from 0.01 to 3600 seconds")
    token = None if parsed.token_file is None else read_token(parsed.token_file)
    folder = parsed.folder or Path("~/.cache/amcsearch-agent").expanduser() / parsed.name
    agent = DeviceAgent(Connection(parsed.connect, token), parsed.name, folder, say)
    say(f"{parsed.name} asks {parsed.connect} for work, pid {os.getpid()}")
    agent.serve(parsed.poll)
    return 0
