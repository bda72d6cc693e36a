"""A server and an agent as two machines: processes with nothing shared but HTTP, killed at random.

``pytest -s -n 0 tests/measure/agents/test_two_machines.py -k killed --kills 100 --crash-seed 7`` kills them a hundred
times, and says how far the table lies from an unbroken one's, and that one from a second.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amcsearch.core.errors import BadInputError
from amcsearch.core.network import NetworkSpec
from amcsearch.costs.latency.rows import KEY_COLUMNS
from amcsearch.costs.latency.table import LatencyTable
from amcsearch.graph.tracing.trace import trace
from amcsearch.measure.agents.client import AgentClient
from amcsearch.measure.agents.server import DeviceServer
from amcsearch.measure.agents.work_list import WorkList
from amcsearch.measure.build.table_builder import table_from_results
from amcsearch.measure.kit.kit import KitPlan, device_plan, measure_here, write_kit
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.measure.plan.measurement_plan import MeasuredSubject, measurement_plan
from amcsearch.measure.plan.variants import random_policies
from amcsearch.runtime.on_device.connection import Connection, RefusedError
from amcsearch.runtime.on_device.records import parsed_lines

TOKEN = "0123456789abcdef0123"
DEADLINE_S = 300.0
FEW = 4  # kills


class Small(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.classifier = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def subject() -> MeasuredSubject:
    model, x = Small().eval(), torch.zeros(1, 3, 16, 16)
    return MeasuredSubject("small", model, trace(model, x, verify=False), x)


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


def _killed_while_measuring(machines: Machines, plan: KitPlan, kills: int, seed: int) -> tuple[Path, int]:
    """Measure while both machines are killed at random; return the result and how many kills there were."""
    dice, out, told = random.Random(seed), machines.folder / "result.jsonl", []
    machines.start_server()
    machines.start_agent()
    machines.wait_for_agent()
    measuring = threading.Thread(target=machines.client().measure, args=(plan, out, None, lambda *_: told.append(1)))
    measuring.start()
    before, count = b"", 0
    try:
        for _ in range(kills):
            measuring.join(dice.uniform(0.1, 1.5))
            if not measuring.is_alive():
                break
            count += 1
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
        measuring.join(DEADLINE_S + 10 * kills)
    assert not measuring.is_alive(), (machines.folder / "agent.log").read_text()
    assert out.read_bytes().startswith(before)
    return out, count


def _apart(tables: tuple[LatencyTable, LatencyTable], network: NetworkSpec) -> float:
    """Median difference of two tables' predictions, as a share, over the channel grid."""
    rng = np.random.default_rng(0)
    layers = [network.with_channels(policy).layers for policy in random_policies(network, 64, 8, rng)]
    one, other = (table.bind(network).predict_all(layers) for table in tables)
    return float(np.median(np.abs(one / other - 1.0)))


def _unbroken(plan: KitPlan, path: Path) -> LatencyTable:
    """The table of a plan that nothing interrupts."""
    measure_here(plan, path)
    return table_from_results(read_results([path]))


def _layers(table: LatencyTable) -> set[tuple[object, ...]]:
    """Shapes of its layers, each with its kernels."""
    return set(map(tuple, table.rows[list(KEY_COLUMNS)].to_numpy().tolist()))


def test_no_record_is_lost_or_counted_twice_where_both_are_killed(
    tmp_path: Path, machines: Machines, subject: MeasuredSubject, pytestconfig: pytest.Config
) -> None:
    kills = max(FEW, pytestconfig.getoption("kills"))
    plan = measurement_plan([subject], variants=12, held_out=3, passes=3 if kills == FEW else 3 + 2 * kills)
    plan = replace(plan, sample_ms=0.5, profile_rounds=3)
    out, count = _killed_while_measuring(machines, plan, kills, pytestconfig.getoption("crash_seed"))
    (result,) = read_results([out], device_plan(plan).hash)
    records = [record for record in parsed_lines(out.read_bytes(), "result").records if record["kind"] == "timing"]
    keys = [(record["model"], record["pass"]) for record in records]
    assert len(keys) == len(set(keys)) == len(result.models) * plan.passes
    assert result.coverage.timed == (len(result.models),) * plan.passes
    assert result.coverage.profiled == sum(model.profiled for model in plan.models)
    assert not any("twice" in note for note in result.notes)
    assert machines.client().provenance().cores == os.cpu_count()

    table, unbroken = table_from_results([result]), _unbroken(plan, tmp_path / "unbroken.jsonl")
    assert _layers(table) == _layers(unbroken)
    if kills > FEW:
        network, again = subject.trace.network, _unbroken(plan, tmp_path / "again.jsonl")
        apart, noise = _apart((table, unbroken), network), _apart((again, unbroken), network)
        figures = f"{count} kills, {len(keys)} timings: {apart:.1%} from the unbroken table, a second one {noise:.1%}"
        sys.stdout.write(f"\n{figures}; load {os.getloadavg()[1]:.1f}\n")


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
