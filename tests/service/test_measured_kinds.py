"""Tables built of what kits measured, by a job, the client, the command line and the page; and what a check leaves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from amcsearch.cli.main import main
from amcsearch.config import read_latency_table, write_latency_table
from amcsearch.core import BadInputError
from amcsearch.costs import Accuracy, LatencyTable
from amcsearch.jobs import TableCheck, table_files
from amcsearch.jobs.observer import Observer
from amcsearch.jobs.tables import build_table
from amcsearch.service.app import create_app
from amcsearch.service.client import connect
from amcsearch.service.job_kinds import KINDS, read_request, request_of
from amcsearch.service.measured_kinds import BuildRequest, CheckRequest
from amcsearch.service.settings import ServiceLimits, ServiceSettings
from amcsearch.service.tokens import Scope
from tests.measured_results import measure_small

from .conftest import LiveService

ORIGIN = "http://127.0.0.1"
CONFIG = {
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}


class Silent(Observer):
    """Shows nothing."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What kits of two networks wrote on one device."""
    folder = tmp_path_factory.mktemp("kits")
    return measure_small("small", 32, folder / "small.jsonl"), measure_small("wide", 48, folder / "wide.jsonl")


def same(table: LatencyTable, other: LatencyTable) -> bool:
    return table.rows.equals(other.rows) and table.as_mapping() == other.as_mapping()


def test_a_table_is_built_as_the_local_call_builds_it_and_extends_another(
    results: tuple[Path, Path], tmp_path: Path
) -> None:
    small, wide = results
    folder, known = tmp_path / "run", tmp_path / "known"
    shown = BuildRequest("board", (str(small),)).run(folder, Silent())
    write_latency_table(build_table([small]), known)
    assert same(read_latency_table(folder), read_latency_table(known))
    assert shown["rows"] == len(read_latency_table(known).rows)
    BuildRequest("board", (str(small),)).run(folder, Silent())  # an attempt that lost its process after it had written
    assert same(read_latency_table(folder), read_latency_table(known))
    BuildRequest("board", (str(wide),), known=str(known)).run(tmp_path / "both", Silent())
    assert list(read_latency_table(tmp_path / "both").networks) == ["small", "wide"]
    assert list(read_latency_table(known).networks) == ["small"]


def test_a_build_has_a_name_and_results_and_no_configuration(tmp_path: Path) -> None:
    result = tmp_path / "a.jsonl"
    result.touch()
    body = {"kind": "table_build", "name": "board", "results": [str(result)]}
    kind, request = read_request(body)
    assert (kind, request.job_name, request.location) == ("table_build", "board", "here")
    assert request_of(kind, request.to_json()) == request
    refusals = {
        "results: 0 files, expected 1 to 64": {**body, "results": []},
        r"results\.1: file .*b\.jsonl does not exist": {**body, "results": [str(result), str(tmp_path / "b.jsonl")]},
        r"results\.0: .* is a folder, expected a file": {**body, "results": [str(tmp_path)]},
        "source: latency table nowhere does not exist": {**body, "source": "nowhere"},
        "known: latency table nowhere does not exist": {**body, "known": "nowhere"},
        "name = '../x', expected up to 80 letters": {**body, "name": "../x"},
        "unknown key config of kind table_build": {**body, "config": CONFIG},
        "unknown key settings of kind table_build": {**body, "settings": {}},
    }
    for words, refused in refusals.items():
        with pytest.raises(BadInputError, match=words):
            read_request(refused)


@contextmanager
def working(live: LiveService, kind: str) -> Iterator[None]:
    """A worker in a thread that does one job of a kind, as the process of a job does it."""

    def work() -> None:
        while (claim := live.table.claim("worker", [kind], 1e6)) is None:
            pass
        request = request_of(kind, claim.job.request)
        live.table.finish(claim, request.run(live.settings.runs / claim.job.id / "run", Silent()))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def test_the_client_and_the_command_line_build_a_table_there(
    live: LiveService, results: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tmp_path / "local"
    write_latency_table(build_table(results), local)
    with working(live, "table_build"):
        table = connect(live.url).build_latency_table("board", results, folder=tmp_path / "fetched")
    assert same(table, read_latency_table(local))
    command = ["table", "build", *map(str, results), "--connect", live.url, "-o"]
    with working(live, "table_build"):
        assert main([*command, str(tmp_path / "typed")]) == 0
    assert "2 networks" in capsys.readouterr().out
    assert same(read_latency_table(tmp_path / "typed"), read_latency_table(local))
    assert main([*command, str(tmp_path / "typed")]) == 2
    assert "with --connect a table is built anew; name a new folder" in capsys.readouterr().err


def test_the_client_checks_a_table_as_the_local_call(
    live: LiveService, results: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of another machine, which nothing corrects and which stays as it is."""
    known, before = build_table([results[0]]), Accuracy(mape=0.02, variants=3)
    elsewhere = replace(known, provenance=replace(known.provenance, cpu="another"))
    write_latency_table(elsewhere, live.settings.runs / "made" / "run")
    monkeypatch.setattr(table_files, "check_table", lambda table, *_, **__: TableCheck(before, None, table))
    folder = str(live.settings.runs / "made" / "run")
    with working(live, "table_check"):
        checked = connect(live.url).check_latency_table(folder, CONFIG, fresh=3, folder=tmp_path / "fetched")
    assert (checked.before, checked.after) == (before, None)
    assert same(checked.table, read_latency_table(folder))
    (record,) = connect(live.url).jobs()
    assert (record.request["fresh"], record.request["anchors"]) == (3, 0)
    _, request = read_request({"kind": "table_check", "table": folder, "config": CONFIG})
    assert isinstance(request, CheckRequest)
    with pytest.raises(BadInputError, match="--anchors 0"):
        table_files.check_into(tmp_path / "other", folder, request.configuration, Silent())


class TestForms:
    @pytest.fixture
    def http(self, tmp_path: Path) -> Iterator[TestClient]:
        limits = ServiceLimits(request_bytes=2000, upload_bytes=3000, uploads=4)
        app = create_app(ServiceSettings(tmp_path / "runs", limits=limits))
        with TestClient(app, base_url=ORIGIN, client=("127.0.0.1", 1), follow_redirects=False) as http:
            http.headers["Origin"] = ORIGIN
            yield http

    def done(self, http: TestClient, measured_at: str | None) -> str:
        """A search that is done and whose device is offline; its id."""
        service = http.app.state.service  # type: ignore[attr-defined]
        _, request = read_request({"kind": "search", "config": CONFIG})
        job = service.table.submit("search", "mine", request.to_json(), "loopback").id
        device = {"name": "<Cortex>", "location": "offline", "threads": 3, "batch": 1, "runtime": None}
        service.table.finish(
            service.table.claim("w", ["search"], 60.0), {"device": {**device, "measured": measured_at}}
        )
        run = service.settings.runs / job / "run"
        run.mkdir(parents=True)
        (run / "verify.pyz").touch()
        return str(job)

    def test_a_run_that_awaits_its_measurement_is_finished_with_the_file(self, http: TestClient) -> None:
        job = self.done(http, None)
        text = http.get(f"/page/jobs/{job}").text
        assert "Nothing was measured on &lt;Cortex&gt; yet" in text
        assert "python3 verify.pyz -o result.jsonl</pre>" in text  # the kit carries its threads
        assert f'action="/page/jobs/{job}/measured" enctype="multipart/form-data"' in text
        sent = {"result": ("result.jsonl", b'{"kind": "header"}\n')}
        answer = http.post(f"/page/jobs/{job}/measured", files=sent)
        assert answer.status_code == 303, answer.text
        made = http.get(answer.headers["location"].replace("/page", "")).json()
        assert (made["kind"], made["name"], made["request"]["job"]) == ("verify", "search", job)
        assert Path(made["request"]["result"]).read_bytes() == b'{"kind": "header"}\n'
        assert "multipart/form-data" not in http.get(f"/page/jobs/{self.done(http, '2026-01-01')}").text

    def test_a_table_is_built_of_several_files(self, http: TestClient) -> None:
        text = http.get("/page/tables").text
        assert 'action="/page/tables" enctype="multipart/form-data"' in text
        files = [("results", (f"{name}.jsonl", b"{}\n")) for name in "ab"]
        fields = {"name": "board", "known": "x86_epyc_avx512", "source": ""}
        answer = http.post("/page/tables", data=fields, files=files)
        made = http.get(answer.headers["location"].replace("/page", "")).json()
        assert (made["kind"], made["name"]) == ("table_build", "board")
        request = made["request"]
        assert [Path(path).name for path in request["results"]] == ["a.jsonl", "b.jsonl"]
        assert (request["known"], request["source"]) == ("x86_epyc_avx512", None)

    def test_the_table_of_a_job_is_shown_with_the_key_that_names_it(
        self, http: TestClient, results: tuple[Path, Path]
    ) -> None:
        service = http.app.state.service  # type: ignore[attr-defined]
        request = BuildRequest("board", (str(results[0]),))
        job = service.table.submit("table_build", "board", request.to_json(), "loopback").id
        refused = http.get(f"/page/jobs/{job}/table")
        assert (refused.status_code, "is a table_build, queued" in refused.text) == (404, True)
        folder = (service.settings.runs / job / "run").absolute()
        service.table.finish(service.table.claim("w", ["table_build"], 60.0), request.run(folder, Silent()))
        text = http.get(f"/page/jobs/{job}").text
        assert f"device: {{table: {folder}}}" in text
        assert f'href="/page/jobs/{job}/table"' in text
        text = http.get(f"/page/jobs/{job}/table?network=small").text
        assert '<h1>board <span class="soft">latency table</span></h1>' in text
        assert "<dt>Mean error</dt>" in text
        assert http.get(f"/page/jobs/{job}/table?network=none").status_code == 404

    @pytest.mark.parametrize(
        ("content", "status", "words"),
        [
            ({"data": {"name": "board"}}, 415, "the form is not multipart/form-data"),
            ({"files": {"note": (None, b"a")}}, 422, "the form has no file"),
            ({"files": {"result": ("a.txt", b"{}")}}, 422, "expected one that ends with"),
            ({"files": {"result": ("a.jsonl", b"no")}}, 422, "a.jsonl does not begin as such a file does"),
            ({"files": {"result": ("a.jsonl", b"{" * 4000)}}, 422, "more than 0.00286102 MiB"),
            ({"files": {"result": ("a.jsonl", b"{" * 6000)}}, 413, "the form has more than 5000 bytes"),
            ({"files": [("a", ("a.jsonl", b"{}"))] * 17}, 422, "Too many files"),
            ({"content": b"a", "headers": {"Content-Type": "multipart/form-data"}}, 422, "Missing boundary"),
            ({"content": b"a", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 422, "cannot be read"),
        ],
    )
    def test_a_form_that_cannot_be_taken_is_refused_and_leaves_nothing(
        self, http: TestClient, content: dict[str, object], status: int, words: str
    ) -> None:
        answer = http.post("/page/tables", **content)  # type: ignore[arg-type]
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
        assert http.get("/uploads").json() == {"uploads": []}
        assert http.get("/jobs").json()["jobs"] == []

    def test_another_sites_page_and_a_reader_send_nothing(self, tmp_path: Path) -> None:
        app = create_app(ServiceSettings(tmp_path / "runs", needs_token=True))
        reader, sender = (app.state.service.tokens.create(s, [s], None).text for s in (Scope.READ, Scope.SUBMIT))
        files = {"results": ("a.jsonl", b"{}")}
        refused = ((reader, ORIGIN, 403), (sender, "https://evil.example", 403), ("", ORIGIN, 303))
        with TestClient(app, base_url=ORIGIN, follow_redirects=False) as http:
            for token, origin, status in refused:
                headers = {"Cookie": f"amcsearch_token={token}", "Origin": origin}
                answer = http.post("/page/tables", files=files, data={"name": "a"}, headers=headers)
                assert answer.status_code == status, answer.text
        assert app.state.service.uploads.every(None) == []


def test_a_verification_has_the_result_of_a_kit(tmp_path: Path) -> None:
    body = {"kind": "verify", "config": CONFIG, "job": "0123456789abcdef"}
    with pytest.raises(BadInputError, match=r"result: file .*none\.jsonl does not exist"):
        read_request({**body, "result": str(tmp_path / "none.jsonl")})


def test_every_kind_says_where_it_measures() -> None:
    assert set(KINDS) >= {"table_build", "table_measure", "table_check", "verify"}
    settings = {"device.location": "edge"}
    _, request = read_request({"kind": "table_measure", "config": CONFIG, "settings": settings})
    assert request.location == "edge"
