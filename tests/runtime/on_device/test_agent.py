"""An agent and what it is offered: honest work through any loss of the network, and hostile offers in one line each."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amcsearch.measure.agents.routes import RequestRefusedError, device_request
from amcsearch.measure.agents.work_list import WorkList
from amcsearch.measure.kit.kit import device_plan, plan_archive
from amcsearch.measure.kit.kit_results import read_results
from amcsearch.runtime.on_device.agent import DeviceAgent
from amcsearch.runtime.on_device.connection import Connection, RefusedError, UnreachableError
from amcsearch.runtime.on_device.errors import DeviceError


class Wire(Connection):
    """A connection to a work list in this process, which a test can cut or answer itself."""

    def __init__(self, work: WorkList) -> None:
        super().__init__("http://127.0.0.1:1")
        self.work = work
        self.asked: list[str] = []
        self.cut: Callable[[str, int], bool] = lambda path, number: False
        self.answers: dict[str, bytes] = {}

    def send(self, method: str, path: str, body: bytes | None, most_bytes: int) -> bytes:
        self.asked.append(path)
        if self.cut(path, len(self.asked)):
            raise UnreachableError("the network is gone")
        plain, _, _ = path.partition("?")
        for end, answer in self.answers.items():
            if plain.endswith(end):
                return answer
        try:
            answer = device_request(method, path).answer(self.work, body or b"")
        except RequestRefusedError as error:
            raise RefusedError(str(error), int(error.status), json.dumps(error.content).encode()) from error
        return answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    work = WorkList(tmp_path / "work")
    yield Wire(work)
    work.close()


@pytest.fixture
def said() -> list[str]:
    """What the agent said."""
    return []


@pytest.fixture
def make_agent(wire: Wire, tmp_path: Path, said: list[str]) -> Callable[..., DeviceAgent]:
    return lambda folder="agent": DeviceAgent(wire, "pi5", tmp_path / folder, said.append, pause=lambda _: None)


def timings(work: WorkList, job: str, path: Path) -> tuple[int, ...]:
    path.write_bytes(work.result(job))
    return read_results([path])[0].coverage.timed


def test_a_plan_is_measured_and_its_files_go(
    wire: Wire, make_agent: Callable[..., DeviceAgent], small_plan: Callable[..., Any], tmp_path: Path
) -> None:
    agent = make_agent()
    assert not agent.step()
    job = wire.work.submit("pi5", plan_archive(device_plan(small_plan())), 1).job
    assert agent.step()
    assert wire.work.state(job).state == "done"
    assert timings(wire.work, job, tmp_path / "r.jsonl") == (3, 3)
    assert sorted(path.name for path in agent.folder.iterdir()) == [".lock", "instance"]
    assert not agent.step()


def test_one_agent_a_folder(make_agent: Callable[..., DeviceAgent]) -> None:
    first = make_agent()
    with pytest.raises(DeviceError, match="another agent measures in"):
        make_agent()
    assert make_agent("other").instance != first.instance


def test_a_network_that_comes_and_goes_loses_no_record(
    wire: Wire, make_agent: Callable[..., DeviceAgent], small_plan: Callable[..., Any], tmp_path: Path
) -> None:
    job = wire.work.submit("pi5", plan_archive(device_plan(small_plan())), 1).job
    wire.cut = lambda path, number: number % 3 != 0  # two of three requests are lost
    assert make_agent().step()
    assert wire.work.state(job).state == "done"
    assert timings(wire.work, job, tmp_path / "r.jsonl") == (3, 3)


def test_an_agent_goes_on_with_its_own_file_and_begins_anew_without_it(
    wire: Wire, make_agent: Callable[..., DeviceAgent], small_plan: Callable[..., Any], tmp_path: Path
) -> None:
    class Died(BaseException):
        """The agent was killed."""

    def dies(path: str, number: int) -> bool:
        if "records" in path and wire.work.state(job).records >= 4:
            raise Died
        return False

    job = wire.work.submit("pi5", plan_archive(device_plan(small_plan())), 1).job
    wire.cut = dies
    agent = make_agent()
    with pytest.raises(Died):
        agent.step()
    have = wire.work.state(job).records
    assert have >= 4
    begun = wire.work.result(job)
    agent._lock.close()
    wire.cut = lambda path, number: False
    wire.asked.clear()
    again = make_agent()
    assert again.step()
    assert not any(path.partition("?")[0].endswith(("plan", "restart")) for path in wire.asked)
    assert wire.work.result(job).startswith(begun)
    assert timings(wire.work, job, tmp_path / "r.jsonl") == (3, 3)

    wire.work.forget(job)
    job = wire.work.submit("pi5", plan_archive(device_plan(small_plan())), 1).job
    wire.cut = dies
    with pytest.raises(Died):
        again.step()
    (again.folder / f"{job}.jsonl").unlink()
    wire.cut = lambda path, number: False
    assert again.step()
    assert any("restart" in path for path in wire.asked)
    assert timings(wire.work, job, tmp_path / "r.jsonl") == (3, 3)


def test_a_measurement_that_is_no_longer_wanted_is_broken_off(
    wire: Wire, make_agent: Callable[..., DeviceAgent], small_plan: Callable[..., Any], said: list[str]
) -> None:
    job = wire.work.submit("pi5", plan_archive(device_plan(small_plan())), 1).job

    def forgets(path: str, number: int) -> bool:
        if "records" in path:
            wire.work.forget(job)
            wire.cut = lambda path, number: False
        return False

    wire.cut = forgets
    assert not make_agent().step()
    assert said[-1].endswith("the server no longer wants it")


OFFER = {"job": "a" * 32, "device": "pi5", "threads": 1, "provider": "CPUExecutionProvider", "minutes": None, "have": 0}


@pytest.mark.parametrize(
    ("offer", "told"),
    [
        ({"job": "../../home/pi/.bashrc"}, "which is no name of one"),
        ({"job": ["a"]}, "which is no name of one"),
        ({"threads": 0}, "asks for 0 threads, must be from 1 to 1024"),
        ({"threads": "all"}, "asks for 'all' threads"),
        ({"provider": "x" * 1000}, "must be a name"),
        ({"minutes": -1}, "asks for -1 minutes"),
        ({"have": "many"}, "says that it has 'many' records"),
        ({"plan_hash": "0" * 64}, "its hash is"),
        ({"provider": "MagicExecutionProvider"}, "is not available"),
        ({"threads": 2, "setting": {"threads": 1}}, "threads = 2 is asked for, the plan is of threads = 1"),
        ({"setting": {"provider": "CUDA"}}, "'CPUExecutionProvider' is asked for, the plan is of provider = 'CUDA'"),
    ],
)
def test_offers_of_a_hostile_server_are_refused_in_one_line(
    offer: dict[str, Any],
    told: str,
    wire: Wire,
    make_agent: Callable[..., DeviceAgent],
    small_plan: Callable[..., Any],
    said: list[str],
) -> None:
    plan = device_plan(small_plan(**offer.get("setting", {})))
    whole = {**OFFER, "plan_hash": plan.hash, **offer}
    wire.answers = {"/next": json.dumps(whole).encode(), "/plan": plan_archive(plan)}
    agent = make_agent()
    assert not agent.step()  # so that it pauses: the same offer may come again and again
    assert told in said[-1]
    assert said[-1].isprintable()
    assert sorted(path.name for path in agent.folder.iterdir()) == [".lock", "instance"]


@pytest.mark.parametrize("answer", [b'{"have": -1}', b'{"have": 10000}', b'{"have": 0}', b"{}", b"[]", b"\x00"])
def test_a_server_that_counts_wrong_is_refused(
    answer: bytes, wire: Wire, make_agent: Callable[..., DeviceAgent], small_plan: Callable[..., Any], said: list[str]
) -> None:
    plan = device_plan(small_plan())
    whole = {**OFFER, "plan_hash": plan.hash}
    wire.answers = {"/next": json.dumps(whole).encode(), "/plan": plan_archive(plan), "/records": answer}
    make_agent().step()
    assert "the server has" in said[-1] or "does not say how many it has" in said[-1]


def test_a_server_that_loses_records_for_ever_is_refused(
    wire: Wire, make_agent: Callable[..., DeviceAgent], small_plan: Callable[..., Any], said: list[str]
) -> None:
    plan, sent = device_plan(small_plan()), []

    def forgets(path: str, number: int) -> bool:
        if "/records" in path:
            sent.append(path)
            wire.answers["/records"] = b'{"have": %d}' % (len(sent) % 2)  # one record, none, one, none …
        return False

    wire.answers = {
        "/next": json.dumps({**OFFER, "plan_hash": plan.hash}).encode(),
        "/plan": plan_archive(plan),
        "/failed": b"",
    }
    wire.cut = forgets
    assert not make_agent().step()
    assert "the server lost records 4 times: it had 1 and has 0" in said[-1]
    assert len(sent) < 20
