"""A server and an agent as two machines: processes with nothing shared but HTTP, killed at random."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amcsearch.core.errors import BadInputError
from amcsearch.measure.agents.client import AgentClient
from amcsearch.measure.agents.server import DeviceServer
from amcsearch.measure.agents.work_list import WorkList
from amcsearch.measure.kit.kit import device_plan, write_kit
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.runtime.on_device.connection import Connection, RefusedError
from amcsearch.runtime.on_device.records import parsed_lines

TOKEN = "0123456789abcdef0123"
DEADLINE_S = 300.0


class Machines:
    """The two processes, each with a folder of its own; either may be killed and started again."""

    def __init__(self, folder: Path, kit: Path) -> None:
        self.folder, self.kit = folder, kit
        (folder / "token").write_text(TOKEN)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.server: int | None = None
        self.agent: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_server(self) -> None:
        """Fork: what a server needs is imported already; nothing else of this process is used there."""
        self.server = os.fork()
        if self.server == 0:
            try:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                DeviceServer(WorkList(self.folder / "server"), "127.0.0.1", self.port, TOKEN).serve_forever(0.05)
            finally:
                os._exit(1)

    def start_agent(self, name: str = "pi5") -> None:
        arguments = ["agent", "--connect", self.url, "--token-file", str(self.folder / "token"), "--name", name]
        command = [sys.executable, str(self.kit), *arguments, "--folder", str(self.folder / "agent"), "--poll", "0.05"]
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(command, stderr=log, env={"PATH": os.environ["PATH"]})

    def kill_server(self) -> None:
        if self.server is not None:
            os.kill(self.server, signal.SIGKILL)
            os.waitpid(self.server, 0)
            self.server = None

    def kill_agent(self) -> None:
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()
            self.agent = None

    def client(self, token: str = TOKEN) -> AgentClient:
        return AgentClient(Connection(self.url, token), "pi5", pause=lambda _: time.sleep(0.05))

    def wait_for_agent(self) -> None:
        """Until its first word has reached the server."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.client().state()
                return
            except BadInputError:
                assert time.monotonic() < end, (self.folder / "agent.log").read_text()
                time.sleep(0.05)

    @property
    def records(self) -> bytes:
        """What lies on the server's disk."""
        return b"".join(path.read_bytes() for path in (self.folder / "server" / "jobs").glob("*/result.jsonl"))


@pytest.fixture
def machines(tmp_path: Path, small_plan: Callable[..., Any]) -> Iterator[Machines]:
    write_kit(small_plan(), tmp_path / "kit.pyz")
    machines = Machines(tmp_path, tmp_path / "kit.pyz")
    yield machines
    machines.kill_agent()
    machines.kill_server()


def _measured_under_fire(machines: Machines, plan: Any, kills: int, seed: int) -> None:
    """Measure while both machines are killed at random; check that nothing is lost or counted twice."""
    dice, out, told = random.Random(seed), machines.folder / "result.jsonl", []
    machines.start_server()
    machines.start_agent()
    machines.wait_for_agent()
    measuring = threading.Thread(target=machines.client().measure, args=(plan, out, None, lambda *_: told.append(1)))
    measuring.start()
    before = b""
    try:
        for _ in range(kills):
            measuring.join(dice.uniform(0.1, 1.5))
            if not measuring.is_alive():
                break
            if dice.random() < 0.5:
                machines.kill_agent()
                machines.start_agent()
                continue
            machines.kill_server()
            whole = machines.records[: parsed_lines(machines.records, "server").whole_bytes]
            assert whole.startswith(before)  # a record that was taken stays
            before = whole
            machines.start_server()
    finally:
        measuring.join(DEADLINE_S)
    assert not measuring.is_alive(), (machines.folder / "agent.log").read_text()
    assert out.read_bytes().startswith(before)
    (result,) = read_results([out], device_plan(plan).hash)
    records = [record for record in parsed_lines(out.read_bytes(), "result").records if record["kind"] == "timing"]
    keys = [(record["model"], record["pass"]) for record in records]
    assert len(keys) == len(set(keys)) == len(result.models) * plan.passes
    assert result.coverage.timed == (len(result.models),) * plan.passes
    assert result.coverage.profiled == len(result.models)
    assert not any("twice" in note for note in result.notes)


def test_no_record_is_lost_or_counted_twice_where_both_are_killed(
    machines: Machines, small_plan: Callable[..., Any]
) -> None:
    plan = small_plan(widths=tuple(range(4, 64, 2)), passes=3, rounds=4, sample_ms=0.5, profile_rounds=2)
    _measured_under_fire(machines, plan, kills=4, seed=1)
    assert machines.client().provenance().cores == os.cpu_count()


@pytest.mark.slow
def test_the_same_under_twenty_five_kills(
    machines: Machines, small_plan: Callable[..., Any], pytestconfig: pytest.Config
) -> None:
    """Four seeds (``--crash-seed``) make a hundred kills."""
    plan = small_plan(widths=tuple(range(4, 64)), passes=20, rounds=10, sample_ms=2.0, profile_rounds=8)
    _measured_under_fire(machines, plan, kills=25, seed=pytestconfig.getoption("crash_seed"))


def test_a_wrong_token_and_an_unknown_device_are_one_line(machines: Machines) -> None:
    machines.start_server()
    machines.start_agent("nobody-asks")
    with pytest.raises(BadInputError, match="the token is not the server's"):
        _once_reachable(machines.client("x" * 20).state)
    with pytest.raises(BadInputError, match=r"no agent of that name has connected .* kit.pyz agent --connect"):
        _once_reachable(machines.client().state)
    with pytest.raises(RefusedError, match="there is no GET"):
        _once_reachable(lambda: Connection(machines.url, TOKEN).json("GET", "/../../etc/passwd"))


def _once_reachable(request: Callable[[], object]) -> None:
    """Make a request until the server is up."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            request()
            return
        except BadInputError as error:
            if "cannot be reached" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)
