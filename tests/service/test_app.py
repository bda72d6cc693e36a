"""The HTTP interface: submit, list, follow, cancel, resume, extend, files, problems and metrics."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from amcsearch.service.app import create_app
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import JobProgress
from amcsearch.service.settings import ServiceLimits, ServiceSettings

TINY = Path(__file__).parents[1] / "tiny_job.py"
CONFIG = {"name": "tiny", "model": {"factory": f"{TINY}:network"}, "data": {"factory": f"{TINY}:quadrants"}}
SEARCH = {"kind": "search", "config": CONFIG, "settings": {"search.trials": 5}}
FOR_EVER = 1e6


@pytest.fixture
def http(tmp_path: Path) -> Iterator[TestClient]:
    limits = ServiceLimits(waiting_jobs=8, request_bytes=20_000)
    settings = ServiceSettings(tmp_path / "runs", factories=("*:*", "/*.py:*"), limits=limits, poll_s=0.01)
    with TestClient(create_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        yield client


def table_of(http: TestClient) -> JobTable:
    return http.app.state.service.table


def submitted(http: TestClient, body: Mapping[str, Any] = SEARCH, **headers: str) -> dict[str, Any]:
    answer = http.post("/jobs", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def problem(http: TestClient, status: int, method: str, path: str, **arguments: Any) -> dict[str, Any]:
    answer = http.request(method, path, **arguments)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def events(text: str) -> list[tuple[int, dict[str, Any]]]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(int(block["id"]), json.loads(block["data"])) for block in blocks if "id" in block]


def test_a_submission_is_a_job_with_its_whole_configuration(http: TestClient) -> None:
    answer = http.post("/jobs", json=SEARCH)
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert (job["kind"], job["name"], job["state"]) == ("search", "tiny", "queued")
    assert job["request"]["config"]["search"]["trials"] == 5
    assert job["request"]["config"]["seed"] == 0
    assert job["request"]["workers"] == 1
    assert http.get(f"/jobs/{job['id']}").json() == job


def test_a_job_that_waits_says_for_what(http: TestClient) -> None:
    job = submitted(http)
    assert job["waits_for"] == ("a worker that runs search: none is connected; start one with amcsearch worker")
    table_of(http).greet("first", ["search"], "host")
    assert http.get(f"/jobs/{job['id']}").json()["waits_for"] == "the worker that runs search"


def test_a_job_whose_worker_is_silent_says_since_when(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    job, table = submitted(http), table_of(http)
    table.greet("killed", ["search"], "host")
    assert table.claim("killed", ["search"], 30.0) is not None
    assert http.get(f"/jobs/{job['id']}").json()["waits_for"] is None
    (seen,) = table.workers()
    monkeypatch.setattr(JobTable, "workers", lambda table: [replace(seen, age_s=25.4)])
    shown = http.get(f"/jobs/{job['id']}").json()
    assert shown["state"] == "running"
    assert shown["waits_for"] == (
        "worker killed on host, last heard of 25 s ago; once its lease has run out, another worker takes the job up"
    )


def test_a_page_looks_at_the_workers_once(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [submitted(http) for _ in range(4)]
    looks: list[object] = []
    monkeypatch.setattr(JobTable, "workers", lambda table: looks.append(table) or [])
    assert http.get("/jobs").json()["jobs"] == jobs[::-1]
    assert len(looks) == 1


def test_the_same_key_gives_the_same_job(http: TestClient) -> None:
    first = submitted(http, **{"Idempotency-Key": "a"})
    assert submitted(http, **{"Idempotency-Key": "a"})["id"] == first["id"]
    other = {**SEARCH, "settings": {"search.trials": 6}}
    said = problem(http, 422, "POST", "/jobs", json=other, headers={"Idempotency-Key": "a"})
    assert "goes with another request" in said["detail"]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"settings": {"search.trials": 0}}, "search.trials = 0; expected a number above 0"),
        ({"settings": {"search.trails": 5}}, "unknown key search.trails; did you mean 'trials'?"),
        (
            {"settings": {"budget": {"latency_ms": "0.5x"}, "device.table": None}},
            "budget.latency_ms needs a latency table",
        ),
        ({"config": {**CONFIG, "model": {"factory": "nowhere.py:f"}}}, "nowhere.py"),
        (
            {"settings": {"search.agent": "ddgp"}},
            "search.agent = 'ddgp' is unknown; did you mean 'ddpg'?; known: cmaes",
        ),
        ({"settings": {"search.baseline": "randon"}}, "search.baseline = 'randon' is unknown; did you mean 'random'?"),
        ({"settings": {"search.reward.name": "acuracy"}}, "search.reward.name = 'acuracy' is unknown; did you mean"),
        ({"settings": {"selection.criterion": "taylr"}}, "selection.criterion = 'taylr' is unknown; did you mean"),
        ({"settings": {"task": "regresion"}}, "task.name = 'regresion' is unknown; did you mean 'regression'?"),
        ({"kind": "front", "settings": {"device.runtime": "onnx"}}, "device.runtime = 'onnx' is unknown"),
        ({"kind": "prune", "settings": {"selection.selector": "obs"}}, "selection.selector = 'obs' is unknown; did"),
        ({"kind": "sparsify", "settings": {"sparsify.method": "gradul"}}, "sparsify.method = 'gradul' is unknown; did"),
        ({"kind": "sparsify", "settings": {"sparsify.criterion": "taylr"}}, "sparsify.criterion = 'taylr' is unknown"),
        ({"kind": "compare", "agents": ["ddpg", "randon"]}, "agents.1 = 'randon' is unknown; did you mean 'random'?"),
        ({"kind": "serch"}, "kind = 'serch', expected one of search, prune, sparsify, front, compare"),
        ({"workers": 0}, "workers = 0, must be at least 1 and at most 1024"),
        ({"workers": "two"}, "the request: workers is 'two', expected a whole number"),
        ({"wrokers": 2}, "unknown key wrokers of kind search; did you mean 'workers'?"),
        ({"kind": "compare"}, "the request lacks agents"),
        ({"kind": "compare", "agents": []}, "agents and seeds: at least one of each is needed"),
        ({"kind": "compare", "agents": ["random", "random"]}, "agents: random is there twice; name each agent once"),
        ({"kind": "compare", "agents": ["random"], "seeds": [1, -1]}, "seeds = [1, -1], expected from 1 to 1000"),
        ({"settings": {"device.table": "nowhere"}}, "device.table: latency table nowhere does not exist"),
        ({"settings": {"device.location": "edge"}}, "device.location = 'edge': no agent of that name has connected"),
        ({"kind": "prune", "settings": {"device.table": "nowhere"}}, "device.table: latency table nowhere"),
        ({"kind": "sparsify", "settings": {"device.table": "nowhere"}}, "device.table: latency table nowhere"),
        ({"kind": "front", "devices": ["x86_servr"]}, "devices: x86_servr is no device profile and no latency table"),
        ({"kind": "front", "devices": ["auto", "auto"]}, "devices: auto is there twice; name each device once"),
        ({"kind": "front", "settings": {"device.table": "nowhere"}}, "device.table: latency table nowhere"),
        ({"kind": "table_measure", "variants": 11}, "variants = 11, must be at least 12"),
        ({"kind": "table_measure", "minutes": 0.0}, "minutes = 0.0, must be more than 0"),
        ({"kind": "table_check", "table": "nowhere"}, "table: latency table nowhere does not exist"),
        ({"kind": "table_check", "table": "x86_epyc_avx512", "fresh": 2}, "fresh = 2, must be at least 3"),
    ],
)
def test_what_the_command_line_refuses_is_refused_in_its_words(
    http: TestClient, change: Mapping[str, Any], detail: str
) -> None:
    said = problem(http, 422, "POST", "/jobs", json={**SEARCH, **change})
    assert detail in said["detail"]
    assert said["type"] == "urn:amcsearch:bad_input"
    assert http.get("/jobs").json() == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("settings", "key", "bound", "cure"),
    [
        ({"search.trials": 0}, "search.trials", "expected a number above 0", "expected a number above 0"),
        ({"search.trails": 5}, "search.trails", "known: agent, agent_params, ", "did you mean 'trials'?"),
        ({"budget": {"macs": "1.5x"}}, "budget.macs", None, None),
        ({"data.factory": None, "model": None}, "model", "expected a mapping of keys, some of ch", None),
    ],
)
def test_a_problem_names_key_bound_and_cure(
    http: TestClient, settings: Mapping[str, Any], key: str, bound: str | None, cure: str | None
) -> None:
    said = problem(http, 422, "POST", "/jobs", json={**SEARCH, "settings": settings})
    assert said["key"] == key
    assert (said["bound"] or "").startswith(bound or "")
    assert cure is None or said["cure"] == cure


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"{", "the request is not JSON"),
        (b"[1]", "the request is [1], expected an object"),
        (b'{"kind": "search", "kind": "prune"}', "key 'kind' is given 2 times"),
        (b'"\xff"', "the request is not UTF-8 text"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_submission_is_refused(http: TestClient, content: bytes, detail: str) -> None:
    assert detail in problem(http, 422, "POST", "/jobs", content=content)["detail"]


def test_a_request_has_a_bound(http: TestClient) -> None:
    said = problem(http, 413, "POST", "/jobs", content=b" " * 20_001)
    assert said["detail"] == "the request has more than 20000 bytes; send a smaller one"


def test_jobs_are_listed_in_pages(http: TestClient) -> None:
    jobs = [submitted(http)["id"] for _ in range(3)]
    first = http.get("/jobs?limit=2").json()
    assert [job["id"] for job in first["jobs"]] == [jobs[2], jobs[1]]
    second = http.get(f"/jobs?limit=2&cursor={first['next_cursor']}").json()
    assert ([job["id"] for job in second["jobs"]], second["next_cursor"]) == ([jobs[0]], None)
    http.post(f"/jobs/{jobs[1]}/cancel")
    assert [job["id"] for job in http.get("/jobs?state=cancelled").json()["jobs"]] == [jobs[1]]
    assert "must be next_cursor" in problem(http, 422, "GET", "/jobs?cursor=x")["detail"]
    assert problem(http, 422, "GET", "/jobs?limit=0")["key"] == "limit"
    assert problem(http, 422, "GET", "/jobs?state=asleep")["key"] == "state"


def test_a_job_that_is_not_there(http: TestClient) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/files"), ("GET", "/files/a"), ("POST", "/cancel")):
        assert "there is no job abc" in problem(http, 404, method, f"/jobs/abc{path}")["detail"]


def test_a_follower_hears_every_state_and_then_the_end(http: TestClient) -> None:
    job = submitted(http)["id"]
    table = table_of(http)
    claim = table.claim("worker", ["search"], FOR_EVER)
    table.renew(claim, JobProgress("Searching", evaluations=3, total=5))
    table.finish(claim, {"accuracy": 0.9})
    ((number, record),) = events(http.get(f"/jobs/{job}/events").text)
    assert (number, record["state"], record["result"]) == (4, "done", {"accuracy": 0.9})
    assert record["progress"]["evaluations"] == 3


def test_following_goes_on_after_the_last_event(http: TestClient) -> None:
    job = submitted(http)["id"]
    http.post(f"/jobs/{job}/cancel")
    assert [number for number, _ in events(http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": "1"}).text)] == [2]
    assert events(http.get(f"/jobs/{job}/events", headers={"Last-Event-ID": "2"}).text) == []


def test_a_job_is_cancelled_and_goes_on(http: TestClient) -> None:
    job = submitted(http)["id"]
    assert http.post(f"/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert http.post(f"/jobs/{job}/resume").json()["state"] == "queued"
    said = problem(http, 409, "POST", f"/jobs/{job}/resume")
    assert said["detail"] == f"job {job} is queued, it must be cancelled or failed; wait for it, or cancel it first"


def test_a_search_that_is_done_takes_further_trials(http: TestClient) -> None:
    job = submitted(http)["id"]
    table = table_of(http)
    for trials, further in ((4, [4]), (6, [4, 6])):
        table.finish(table.claim("worker", ["search"], FOR_EVER), {})
        longer = http.post(f"/jobs/{job}/extend", json={"trials": trials}).json()
        assert (longer["state"], longer["request"]["config"]["search"]["further_trials"]) == ("queued", further)
    assert "it must be" in problem(http, 409, "POST", f"/jobs/{job}/extend", json={"trials": 2})["detail"]
    assert "trials = 0" in problem(http, 422, "POST", f"/jobs/{job}/extend", json={"trials": 0})["detail"]
    assert "N a whole number" in problem(http, 422, "POST", f"/jobs/{job}/extend", json={"trials": True})["detail"]
    other = submitted(http, {"kind": "sparsify", "config": CONFIG})["id"]
    said = problem(http, 422, "POST", f"/jobs/{other}/extend", json={"trials": 2})
    assert said["detail"] == f"job {other} is a sparsify; only a search takes further trials"


def test_jobs_of_one_caller_are_limited(http: TestClient) -> None:
    for _ in range(8):
        submitted(http)
    assert "8 jobs of" in problem(http, 422, "POST", "/jobs", json=SEARCH)["detail"]


def test_files_are_those_of_the_run_and_no_others(http: TestClient, tmp_path: Path) -> None:
    job = submitted(http)["id"]
    folder = tmp_path / "runs" / job / "run"
    (folder / "sub").mkdir(parents=True)
    (folder / "policy.json").write_text("{}")
    (folder / "sub" / "é #1.csv").write_text("a,b")
    (folder / ".lock").write_text("1")
    (tmp_path / "secret").write_text("no")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "above").symlink_to(tmp_path)
    listed = http.get(f"/jobs/{job}/files").json()["files"]
    assert listed == [{"path": "policy.json", "bytes": 2}, {"path": "sub/é #1.csv", "bytes": 3}]
    assert http.get(f"/jobs/{job}/files/policy.json").text == "{}"
    assert http.get(f"/jobs/{job}/files/sub/%C3%A9%20%231.csv").text == "a,b"
    for path in (
        *("nothing", "sub", ".lock", "link", "above/secret", "..%2F..%2F..%2Fsecret", "%2Fetc%2Fpasswd", "a%00b"),
        "sub/%2E%2E/%2E%2E/output.log",
    ):
        assert problem(http, 404, "GET", f"/jobs/{job}/files/{path}")["status"] == 404


def test_only_a_front_is_asked_for_a_budget(http: TestClient) -> None:
    job = submitted(http)["id"]
    assert "only a front" in problem(http, 422, "GET", f"/jobs/{job}/policy?macs=0.5x")["detail"]
    front = submitted(http, {"kind": "front", "config": CONFIG})["id"]
    assert "no budget" in problem(http, 422, "GET", f"/jobs/{front}/policy")["detail"]
    said = problem(http, 409, "GET", f"/jobs/{front}/policy?macs=0.5x")
    assert said["detail"] == f"job {front} is queued, a front is asked when it is done; wait for it"


def test_health_says_what_is_missing(http: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http.get("/healthz").json() == http.get("/readyz").json() == {"status": "ok"}
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert "is not there; mount it" in problem(http, 503, "GET", "/readyz")["detail"]
    (tmp_path / "elsewhere").rename(tmp_path / "runs")

    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT secret", {}, Exception("password"))

    monkeypatch.setattr(JobTable, "page", away)
    said = problem(http, 503, "GET", "/readyz")
    assert said["detail"] == "the database does not answer; nothing was lost, try again"
    assert http.get("/healthz").status_code == 200


def test_metrics_count_jobs_and_workers(http: TestClient) -> None:
    submitted(http)
    table = table_of(http)
    table.greet("first", ["search"], "host", "job")
    lines = http.get("/metrics").text.splitlines()
    assert 'amcsearch_jobs{kind="search",state="queued"} 1.0' in lines
    assert 'amcsearch_worker_busy{worker="first"} 1.0' in lines
    assert [worker["name"] for worker in http.get("/workers").json()["workers"]] == ["first"]


def test_openapi_names_every_route_and_the_keys_of_a_submission(http: TestClient) -> None:
    described = http.get("/openapi.json").json()
    assert {"/jobs", "/jobs/{job}", "/jobs/{job}/events", "/jobs/{job}/files/{path}", "/metrics"} <= set(
        described["paths"]
    )
    schema = described["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "compare" in schema["properties"]["kind"]["enum"]
    assert "search" in schema["properties"]["config"]["properties"]


_BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (_BROWSER, True),
        ("text/html", True),
        ("application/json, text/html;q=0.5", False),
        ("application/problem+json;q=0.4, text/html;q=0.5", True),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_an_error_is_a_page_for_a_browser_and_a_problem_for_others(
    http: TestClient, accept: str, is_html: bool
) -> None:
    for path, status in (("/page/jobs/<b>", 404), ("/jobs?limit=0", 422), ("/nowhere", 404)):
        answer = http.get(path, headers={"Accept": accept})
        assert answer.status_code == status
        kind = "text/html; charset=utf-8" if is_html else "application/problem+json"
        assert answer.headers["content-type"] == kind
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "<b>" not in answer.text or not is_html
    assert ("<title>Not found · amcsearch</title>" in http.get("/page/jobs/a", headers={"Accept": accept}).text) is (
        is_html
    )


def test_an_unknown_path_says_where_the_routes_are(http: TestClient) -> None:
    said = problem(http, 404, "GET", "/nowhere")
    assert (said["title"], said["detail"]) == (
        "Not Found",
        "GET /nowhere: Not Found; /openapi.json describes every route",
    )
    assert problem(http, 405, "PUT", "/jobs")["title"] == "Method Not Allowed"


def test_a_failure_of_the_service_is_told_without_its_traceback(tmp_path: Path, monkeypatch: Any) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(JobTable, "page", fails)
    app = create_app(ServiceSettings(tmp_path / "runs"))
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1), raise_server_exceptions=False) as client:
        said = problem(client, 500, "GET", "/jobs")
        page = client.get("/", headers={"Accept": _BROWSER})
    assert said["title"] == "The service failed"
    assert "secret" not in json.dumps(said) + page.text
    assert (page.status_code, page.headers["x-frame-options"]) == (500, "DENY")
