"""Devices at a service: agents under its tokens, jobs that measure through them, and jobs that wait for one."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from amcsearch.core import BadInputError, DeviceAwayError
from amcsearch.measure.agents.client import AgentClient
from amcsearch.measure.agents.work_list import WorkList
from amcsearch.measure.kit.kit import device_plan, plan_archive
from amcsearch.runtime.on_device.connection import RefusedError, UnreachableError
from amcsearch.runtime.on_device.records import encoded
from amcsearch.service import devices
from amcsearch.service.app import create_app
from amcsearch.service.devices import DeviceRefusedError, _JobConnection
from amcsearch.service.records import Claim
from amcsearch.service.running import Service
from amcsearch.service.settings import ServiceSettings
from amcsearch.service.tokens import Scope
from tests.measured_results import made_up

INSTANCE = "a" * 32
DEVICE = {"cpu": "Cortex-A76", "cpu_flags": "f00"}
LATENCIES = {"w64": 1.0, "w16": 0.4, "w32": 0.6}
FOR_EVER = 1e6


@pytest.fixture(scope="module")
def plan(small_plan: Callable[..., Any]) -> Any:
    return small_plan(sample_ms=1.0)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service that asks for tokens; nothing answers its jobs but what a test calls."""
    service = create_app(ServiceSettings(tmp_path / "runs", needs_token=True)).state.service
    yield service
    if service.work._opened is not None:
        service.work._opened.close()
    service.table.database.close()


class Agent:
    """Speaks to a service over HTTP as the agent of a device does."""

    def __init__(self, service: Service, token: str, name: str = "pi5") -> None:
        app = create_app(service.settings)
        app.state.service = service
        self.http = TestClient(app, base_url="http://127.0.0.1", client=("192.168.1.9", 50000))
        self.http.headers["Authorization"] = f"Bearer {token}"
        self.name = name

    def next(self, says: Any = DEVICE) -> Any:
        return self.http.post(f"/v1/agents/{self.name}/next", json={"instance": INSTANCE, "device": says})

    def bring(self, job: str, at: int, *records: dict[str, Any]) -> Any:
        path = f"/v1/agents/{self.name}/jobs/{job}/records?at={at}&instance={INSTANCE}"
        return self.http.post(path, content=b"".join(map(encoded, records)))


def token(service: Service, name: str, *scopes: Scope) -> str:
    return service.tokens.create(name, scopes, None).text


@pytest.fixture
def agent(service: Service) -> Agent:
    return Agent(service, token(service, "board", Scope.MEASURE))


def records(plan: Any) -> list[dict[str, Any]]:
    return made_up(device_plan(plan), LATENCIES, **DEVICE)


def claimed(service: Service) -> Claim:
    service.table.submit("search", "tiny", {"config": {}}, "ada")
    claim = service.table.claim("worker", ["search"], FOR_EVER)
    assert claim is not None
    return claim


class TestAgents:
    def test_an_agent_is_a_worker_of_kind_device_with_its_last_sign_of_life(
        self, service: Service, agent: Agent
    ) -> None:
        reader = Agent(service, token(service, "ada", Scope.READ)).http
        assert reader.get("/devices").json() == {"devices": []}
        assert agent.next().status_code == 200
        (device,) = reader.get("/devices").json()["devices"]
        assert (device["name"], device["owner"], device["is_connected"]) == ("pi5", "board", True)
        assert (device["says"]["cpu"], device["job"], device["records"]) == ("Cortex-A76", None, 0)
        (worker,) = reader.get("/workers").json()["workers"]
        assert (worker["name"], worker["kinds"], worker["host"]) == ("pi5", ["device"], "Cortex-A76")
        assert 'amcsearch_device_silence_seconds{device="pi5"}' in reader.get("/metrics").text

    @pytest.mark.parametrize("scope", [Scope.READ, Scope.SUBMIT])
    def test_only_the_scope_measure_makes_an_agent(self, service: Service, scope: Scope) -> None:
        other = Agent(service, token(service, "other", scope))
        answer = other.next()
        assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
        assert "lacks the scope measure" in answer.json()["detail"]
        assert other.http.get("/v1/devices/pi5").status_code == 403
        assert Agent(service, "amc_none").next().status_code == 401
        assert service.devices.every() == []

    def test_a_device_is_served_with_one_name_of_tokens(self, service: Service, agent: Agent) -> None:
        agent.next()
        other, operator = (
            Agent(service, token(service, "thief", Scope.MEASURE)),
            Agent(service, token(service, "operator", Scope.ADMIN)),
        )
        answer = other.next()
        assert answer.status_code == 403
        assert answer.json()["detail"].startswith("device pi5 is served with the token of board, not of thief; ")
        assert other.http.delete("/devices/pi5").status_code == 403
        assert operator.http.delete("/devices/pi5").status_code == 204
        assert operator.http.delete("/devices/pi5").status_code == 422
        assert other.next({"cpu": "another", "cpu_flags": ""}).status_code == 200
        assert service.devices.owner("pi5") == "thief"

    def test_what_comes_without_tokens_is_the_first_tokens_later(self, service: Service, agent: Agent) -> None:
        service.devices.greet("pi5", "loopback", DEVICE, None)
        assert agent.next().status_code == 200
        assert service.devices.owner("pi5") == "board"

    def test_refusals_are_problem_details_with_what_the_agent_needs(
        self, service: Service, agent: Agent, plan: Any
    ) -> None:
        submitted = agent.http.post("/v1/devices/pi5/jobs?threads=1&provider=CPUExecutionProvider", content=b"no plan")
        assert (submitted.status_code, submitted.headers["content-type"]) == (400, "application/problem+json")
        assert agent.http.get("/v1/nothing").status_code == 404
        assert agent.bring("b" * 32, 0).status_code == 410
        agent.next()
        assert "another device" in agent.next({"cpu": "another"}).json()["detail"]
        assert agent.http.post("/v1/agents/pi5/next", content=b"x" * 70_000).status_code == 413

    def test_measurements_without_a_job_are_counted(self, service: Service, small_plan: Callable[..., Any]) -> None:
        client = Agent(service, service.tokens.create("ada", [Scope.MEASURE], None, most_jobs=2).text).http
        archives = [plan_archive(device_plan(small_plan((width,)))) for width in (8, 16, 32)]
        first, second = (
            client.post("/v1/devices/pi5/jobs?threads=1&provider=CPUExecutionProvider", content=each)
            for each in archives[:2]
        )
        assert (first.status_code, second.status_code) == (200, 200)
        assert (
            client.post("/v1/devices/pi5/jobs?threads=1&provider=CPUExecutionProvider", content=archives[0]).json()
            == first.json()
        )
        third = client.post("/v1/devices/pi5/jobs?threads=1&provider=CPUExecutionProvider", content=archives[2])
        assert (third.status_code, third.json()["detail"]) == (
            429,
            "2 measurements of ada are here, at most 2; remove one that is done: DELETE /v1/jobs/NAME",
        )
        assert len(service.work._opened._jobs) == 2
        assert client.delete(f"/v1/jobs/{first.json()['job']}").status_code == 200
        assert (
            client.post("/v1/devices/pi5/jobs?threads=1&provider=CPUExecutionProvider", content=archives[2]).status_code
            == 200
        )

    def test_asking_for_work_fills_no_audit_log(self, service: Service, agent: Agent) -> None:
        for _ in range(3):
            agent.next()
        agent.http.get("/v1/nothing")
        assert [entry.target for entry in service.tokens.audit() if entry.target.startswith("/v1")] == []
        agent.bring("b" * 32, 0)
        assert [entry.status for entry in service.tokens.audit()] == [410]

    def test_another_service_on_the_same_runs_answers_in_its_place(self, service: Service, agent: Agent) -> None:
        held = WorkList(service.work.folder)
        answer = agent.next()
        assert (answer.status_code, "in use" in answer.json()["detail"]) == (503, True)
        held.close()
        assert agent.next().status_code == 200


class TestJobs:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "_LOOK_S", 0.005)

    def measured(self, service: Service, job: str, plan: Any, out: Path, said: list[str]) -> None:
        connection = _JobConnection(service.devices, job)
        client = AgentClient(connection, "pi5", pause=lambda _: None, silent_s=300.0)
        try:
            client.measure(plan, out, progress=lambda _, text: said.append(text))
        except BadInputError as error:
            said.append(str(error))

    def test_a_job_measures_through_the_database(
        self, service: Service, agent: Agent, plan: Any, tmp_path: Path
    ) -> None:
        claim, said, made = claimed(service), [], records(plan)
        agent.next()
        arguments = (service, claim.job.id, plan, tmp_path / "result.jsonl", said)
        job = threading.Thread(target=self.measured, args=arguments)
        with service.work.answering():
            job.start()
            offer = b""
            while not offer and job.is_alive():
                offer = agent.next().content
            measurement = agent.next().json()["job"]
            assert agent.bring(measurement, 0, *made[:3]).json() == {"have": 3}
            gap = agent.bring(measurement, 5, made[5])
            assert (gap.status_code, gap.json()["have"]) == (409, 3)
            service.work._greeted.clear()
            agent.next()
            (device,) = service.devices.every()
            assert (device.job, device.records) == (claim.job.id, 3)
            assert agent.bring(measurement, 3, *made[3:]).json() == {"have": len(made)}
            job.join()
        assert said[-1].startswith("pi5: ")
        assert (tmp_path / "result.jsonl").read_bytes() == b"".join(map(encoded, made))
        assert service.devices.asked() == []

    def test_a_measurement_whose_job_has_ended_is_broken_off(
        self, service: Service, agent: Agent, plan: Any, tmp_path: Path
    ) -> None:
        claim = claimed(service)
        agent.next()
        connection = _JobConnection(service.devices, claim.job.id)
        with service.work.answering():
            client = AgentClient(connection, "pi5", pause=lambda _: None)
            client._pause = lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                client.measure(plan, tmp_path / "result.jsonl")
            measurement = agent.next().json()["job"]
            service.work.sweep()
            assert agent.next().json()["job"] == measurement  # it is interrupted, and may go on
            service.table.finish(claim, {})
            service.work.sweep()
            assert agent.next().content == b""
        assert service.devices.unwanted() == []

    def test_what_the_work_list_refuses_reaches_the_job(self, service: Service, agent: Agent) -> None:
        connection = _JobConnection(service.devices, "job")
        with service.work.answering():
            client = AgentClient(connection, "pi5", silent_s=300.0)
            with pytest.raises(
                DeviceAwayError, match="no agent of that name has connected to this service; on"
            ) as away:
                client.state()
            assert away.value.device == "pi5"
            agent.next()
            assert client.provenance().cpu == "Cortex-A76"
            with pytest.raises(RefusedError, match="there is no GET '/v1/other'"):
                connection.json("GET", "/v1/other")

    def test_a_job_without_a_service_waits(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "_ANSWER_S", 0.0)
        with pytest.raises(UnreachableError, match="no service answers"):
            _JobConnection(service.devices, "job").json("GET", "/v1/devices/pi5")
        assert service.devices.asked() == []

    def test_requests_are_answered_once_another_service_has_ended(self, service: Service) -> None:
        held = WorkList(service.work.folder)
        service.devices.ask("job", "GET", "/v1/devices/pi5", None)
        with pytest.raises(DeviceRefusedError):
            service.work.answer_jobs()
        held.close()
        service.work.answer_jobs()
        assert service.devices.asked() == []


def test_a_job_names_a_device_that_has_been_here(
    service: Service, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "offline"):
        service.check_location(place)
    agent.next()
    service.check_location("pi5")
    with pytest.raises(BadInputError) as refused:
        service.check_location("pi4")
    assert str(refused.value) == (
        "device.location = 'pi4': no agent of that name has connected to this service; did you mean 'pi5'?; on the "
        "device: python3 kit.pyz agent --connect URL --token-file F --name pi4"
    )
    monkeypatch.setenv("AMCSEARCH_DEVICE_SERVER", "http://elsewhere:8753")
    service.check_location("pi4")


def test_a_job_waits_for_its_device_and_says_so(service: Service, agent: Agent) -> None:
    claim = claimed(service)
    record = service.table.release(claim, "pi5")
    assert (record.state, record.device, record.worker, record.lost) == ("queued", "pi5", None, 0)
    reader = Agent(service, token(service, "ada", Scope.READ)).http
    shown = reader.get(f"/jobs/{record.id}").json()
    assert shown["waits_for"] == (
        "device pi5: no agent of that name has connected; on the device: python3 kit.pyz agent --connect URL "
        "--token-file F --name pi5"
    )
    assert service.table.claim("worker", ["search"], FOR_EVER) is None
    other = service.table.submit("search", "tiny", {"config": {}}, "ada")
    later = service.table.claim("worker", ["search"], FOR_EVER)
    assert later is not None
    assert later.job.id == other.id  # the worker is free for others
    agent.next()
    again = service.table.claim("worker", ["search"], FOR_EVER)
    assert again is not None
    assert (again.job.id, again.attempt, again.job.device) == (record.id, 2, None)


def test_a_job_that_waits_for_a_device_can_be_cancelled_and_resumed(service: Service) -> None:
    claim = claimed(service)
    service.table.cancel(claim.job.id)
    assert service.table.release(claim, "pi5").state == "cancelled"
    assert service.table.resume(claim.job.id).device is None


def test_a_job_whose_workers_are_away_waits_for_one_when_its_device_is_there(service: Service, agent: Agent) -> None:
    agent.next()
    record = service.table.release(claimed(service), "pi5")
    assert str(service.shown(record)["waits_for"]).startswith("a worker that runs search: none is connected")
