"""Tokens, scopes, owners, quotas, the audit log, headers, and what other sites' pages cannot do."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DBAPIError

from amcsearch.core import BadInputError
from amcsearch.service.access import COOKIE
from amcsearch.service.app import create_app
from amcsearch.service.database import AUDIT, TOKENS, Database
from amcsearch.service.settings import ServiceLimits, ServiceSettings, is_loopback
from amcsearch.service.tokens import AuditEntry, Scope, TokenTable, read_lifetime

HERE = ("127.0.0.1", 50000)
CONFIG = {
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}
SEARCH = {"kind": "search", "config": CONFIG}
MEASURE = {"kind": "table_measure", "config": CONFIG}


@pytest.fixture(params=["sqlite", "postgresql"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TokenTable]:
    is_file = request.param == "sqlite"
    database = Database(f"sqlite:///{tmp_path}/jobs.db" if is_file else request.getfixturevalue("postgresql_url"))
    yield TokenTable(database)
    database.close()


class TestTokens:
    def test_a_token_is_known_by_its_text_alone(self, tokens: TokenTable) -> None:
        made = tokens.create("ci", [Scope.READ, Scope.SUBMIT], 90 * 86400.0, most_jobs=3)
        assert re.fullmatch(r"amc_[0-9a-f]{8}_[\w-]{43}", made.text)
        assert tokens.holder(made.text) == made.record == tokens.every()[0]
        assert (made.record.scopes, made.record.most_jobs) == ((Scope.READ, Scope.SUBMIT), 3)
        last = "A" if made.text[-1] != "A" else "B"
        for wrong in (
            made.text[:-1] + last,
            made.text.upper(),
            made.record.id,
            "",
            f"{made.text} ",
            "\ud800",
            "x" * 10**5,
        ):
            assert tokens.holder(wrong) is None

    def test_the_secret_is_nowhere_at_rest_and_in_no_repr(self, tokens: TokenTable) -> None:
        made = tokens.create("ci", [Scope.READ], None)
        secret = made.text.rpartition("_")[2]
        with tokens.database.reading() as connection:
            rows = repr(connection.execute(select(TOKENS)).all())
        assert len(rows) > 64
        assert not any(secret in shown for shown in (rows, repr(made), str(made.record.to_json())))

    def test_a_token_ends_when_it_expires_or_is_revoked(self, tokens: TokenTable) -> None:
        expired, revoked = tokens.create("a", [Scope.READ], -1.0), tokens.create("b", [Scope.READ], 60.0)
        assert tokens.holder(expired.text) is None
        assert not tokens.is_empty()
        assert tokens.revoke("b").is_valid is False
        assert tokens.holder(revoked.text) is None
        assert tokens.is_empty()
        assert tokens.revoke(revoked.record.id).revoked_s == tokens.every()[1].revoked_s

    def test_a_name_has_one_valid_token(self, tokens: TokenTable) -> None:
        first = tokens.create("ci", [Scope.READ], None)
        with pytest.raises(BadInputError, match=rf"name = 'ci' has the valid token {first.record.id}; revoke it first"):
            tokens.create("ci", [Scope.ADMIN], None)
        tokens.revoke("ci")
        assert tokens.create("ci", [Scope.READ], None).record.id != first.record.id

    @pytest.mark.parametrize(
        ("name", "scopes", "most", "told"),
        [
            ("", [Scope.READ], None, "name = ''"),
            ("a b", [Scope.READ], None, "name = 'a b'"),
            ("x" * 65, [Scope.READ], None, "name = 'xx"),
            ("a", [], None, "scopes: none is named"),
            ("a", [Scope.READ], 0, "most_jobs = 0, must be at least 1"),
        ],
    )
    def test_what_is_no_token_is_refused(
        self, tmp_path: Path, name: str, scopes: list[Scope], most: int | None, told: str
    ) -> None:
        database = Database(f"sqlite:///{tmp_path}/jobs.db")
        with pytest.raises(BadInputError, match=re.escape(told)):
            TokenTable(database).create(name, scopes, None, most)
        with pytest.raises(BadInputError, match="token 'nobody': no valid one has that id or name"):
            TokenTable(database).revoke("nobody")
        database.close()

    def test_lifetimes(self) -> None:
        assert [read_lifetime(t) for t in ("12h", "90d", "2w")] == [43200.0, 7776000.0, 1209600.0]
        for wrong in ("", "90", "0d", "-1d", "1.5d", "12345d", "9m", "٣d"):
            with pytest.raises(BadInputError, match="expected a number of hours, days or weeks"):
                read_lifetime(wrong)


class TestAudit:
    def test_lines_come_back_newest_first(self, tokens: TokenTable) -> None:
        for number in range(3):
            tokens.note(AuditEntry("ada", "POST", f"/jobs/{number}" + "x" * 500, 201, "10.0.0.7"))
        first, *others = tokens.audit(limit=2)
        assert first.target.startswith("/jobs/2x")
        assert (first.caller, first.status, first.address, len(first.target)) == ("ada", 201, "10.0.0.7", 200)
        assert first.at_s > 1.7e9
        assert [entry.target[:7] for entry in (*others, *tokens.audit(others[-1].number))] == ["/jobs/1", "/jobs/0"]

    def test_no_line_is_changed_or_removed(self, tokens: TokenTable) -> None:
        tokens.note(AuditEntry("ada", "POST", "/jobs", 201, "10.0.0.7"))
        for statement in (update(AUDIT).values(caller="bob"), delete(AUDIT)):
            with pytest.raises(DBAPIError, match="only added to"), tokens.database.writing() as connection:
                connection.execute(statement)
        if tokens.database.kind == "postgresql":
            with pytest.raises(DBAPIError, match="only added to"), tokens.database.writing() as connection:
                connection.execute(text("TRUNCATE amcsearch_audit"))
        assert [entry.caller for entry in tokens.audit()] == ["ada"]


@dataclass(frozen=True)
class Running:
    """A service that asks for tokens; ``texts`` by name: one of each scope, and some that are no longer valid."""

    client: TestClient
    tokens: TokenTable
    texts: dict[str, str]

    def ask(self, method: str, path: str, holder: str | None = None, body: object = None) -> tuple[int, object]:
        headers = {} if holder is None else {"Authorization": f"Bearer {self.texts[holder]}"}
        answer = self.client.request(method, path, headers=headers, json=body)
        return answer.status_code, answer.json()

    def submitted(self, holder: str, body: object = SEARCH) -> str:
        status, job = self.ask("POST", "/jobs", holder, body)
        assert status == 201, job
        assert isinstance(job, dict)
        return str(job["id"])


def started(settings: ServiceSettings, base_url: str = "http://127.0.0.1") -> TestClient:
    return TestClient(create_app(settings), base_url=base_url, client=HERE, raise_server_exceptions=False)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    settings = ServiceSettings(tmp_path / "runs", needs_token=True, limits=ServiceLimits(waiting_jobs=3))
    with started(settings) as client:
        tokens = client.app.state.service.tokens  # type: ignore[attr-defined]
        texts = {scope.value: tokens.create(scope.value, [scope], None).text for scope in Scope}
        texts["both"] = tokens.create("both", [Scope.READ, Scope.SUBMIT], None, 1).text
        texts["expired"] = tokens.create("expired", list(Scope), -1.0).text
        texts["revoked"] = tokens.create("revoked", list(Scope), None).text
        tokens.revoke("revoked")
        yield Running(client, tokens, texts)


def test_the_first_token_closes_a_service_that_runs(tmp_path: Path) -> None:
    with started(ServiceSettings(tmp_path / "runs")) as client:
        tokens = client.app.state.service.tokens  # type: ignore[attr-defined]
        tokens.create("expired", list(Scope), -1.0)
        assert client.get("/jobs").status_code == 200
        text = tokens.create("ci", [Scope.READ], None).text
        assert client.get("/jobs").status_code == 401
        assert client.get("/jobs", headers={"Authorization": f"Bearer {text}"}).status_code == 200
        tokens.revoke("ci")
        assert client.get("/jobs").status_code == 401


class TestScopes:
    @pytest.mark.parametrize(
        ("method", "path", "body", "allowed"),
        [
            ("GET", "/jobs", None, {"read", "admin", "both"}),
            ("GET", "/workers", None, {"read", "admin", "both"}),
            ("GET", "/audit", None, {"admin"}),
            ("POST", "/jobs", SEARCH, {"submit", "admin", "both"}),
            ("POST", "/jobs", MEASURE, {"measure", "admin"}),
        ],
    )
    def test_a_scope_allows_its_own(
        self, running: Running, method: str, path: str, body: object, allowed: set[str]
    ) -> None:
        for holder in running.texts:
            status, answer = running.ask(method, path, holder, body)
            invalid = holder in ("expired", "revoked")
            assert status == (401 if invalid else (200, 201)[method == "POST"] if holder in allowed else 403), answer

    def test_every_route_refuses_who_is_not_known(self, running: Running) -> None:
        job = running.submitted("submit")
        open_paths = {"/healthz", "/readyz", "/openapi.json"}
        checked = 0
        for path, methods in running.client.get("/openapi.json").json()["paths"].items():
            for method in methods:
                if path in open_paths:
                    continue
                for holder in (None, "expired", "revoked"):
                    status, _ = running.ask(
                        method.upper(),
                        path.format(job=job, path="x", device="pi5", name="a.pt", upload="a"),
                        holder,
                        {},
                    )
                    assert status == 401, (method, path)
                checked += 1
        assert checked >= 10

    def test_the_answer_names_the_cure_and_not_the_token(self, running: Running) -> None:
        answer = running.client.get("/jobs", headers={"Authorization": "Bearer amc_0123"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "amcsearch token create" in answer.json()["detail"]
        assert "amc_0123" not in answer.text
        assert running.client.get("/jobs", headers={"Authorization": "Basic YTpi"}).status_code == 401

    def test_jobs_belong_to_who_submitted_them(self, running: Running) -> None:
        job = running.submitted("both")
        for action, body in (("cancel", None), ("resume", None), ("extend", {"trials": 1})):
            status, answer = running.ask("POST", f"/jobs/{job}/{action}", "submit", body)
            assert (status, "is both's" in str(answer)) == (403, True)
        assert running.ask("POST", f"/jobs/{job}/cancel", "both")[0] == 200
        assert running.ask("POST", f"/jobs/{job}/resume", "admin")[0] == 200

    def test_a_quota_holds_for_submitting_and_for_resuming(self, running: Running) -> None:
        job = running.submitted("both")
        assert "1 jobs of both wait or run, at most 1" in str(running.ask("POST", "/jobs", "both", SEARCH))
        assert running.ask("POST", f"/jobs/{job}/cancel", "both")[0] == 200
        running.submitted("both")
        status, answer = running.ask("POST", f"/jobs/{job}/resume", "both")
        assert (status, "at most 1" in str(answer)) == (422, True)
        assert "at most 3" in str([running.ask("POST", "/jobs", "submit", SEARCH) for _ in range(4)][-1])

    def test_a_request_is_bounded(self, tmp_path: Path) -> None:
        with started(ServiceSettings(tmp_path, limits=ServiceLimits(request_bytes=100))) as client:
            assert client.post("/jobs", content=b"x" * 101).status_code == 413


class TestRequests:
    def test_code_and_files_that_are_not_allowed_are_refused(self, running: Running) -> None:
        for settings, told in (
            ({"search.agent": "os:system"}, "settings.search.agent = 'os:system' names code"),
            ({"model.checkpoint": "/etc/shadow"}, "settings.model.checkpoint = '/etc/shadow' is outside"),
            ({"device.profile": "/no/such/file"}, "settings.device.profile = '/no/such/file' is outside"),
        ):
            status, answer = running.ask("POST", "/jobs", "submit", {**SEARCH, "settings": settings})
            assert (status, told in str(answer)) == (422, True), answer

    def test_no_path_leads_out_of_a_run(self, running: Running) -> None:
        job = running.submitted("submit")
        folder = running.client.app.state.service.settings.runs / job / "run"  # type: ignore[attr-defined]
        folder.mkdir(parents=True)
        (folder / "policy.json").write_text("{}")
        assert running.ask("GET", f"/jobs/{job}/files/policy.json", "read") == (200, {})
        ways = (
            "%2e%2e/output.log",
            "..%2Foutput.log",
            "..%5Coutput.log",
            "%2Fetc%2Fpasswd",
            "/etc/passwd",
            "%2e",
            "%00",
            "C:%5Cx",
        )
        for path in (
            *ways,
            "%252e%252e/output.log",
            "policy.json/",
            "policy.json%00",
            "policy.json/%2e%2e/%2e%2e/output.log",
        ):
            assert running.ask("GET", f"/jobs/{job}/files/{path}", "read")[0] == 404, path


class TestBrowsers:
    def test_every_answer_has_the_headers(self, running: Running) -> None:
        for path in ("/healthz", "/jobs", "/no/such/page", "/openapi.json"):
            headers = running.client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")

    def test_the_cookie_changes_something_from_our_own_pages_alone(self, running: Running) -> None:
        running.client.cookies.set(COOKIE, running.texts["submit"])
        for headers, status in (
            ({}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-site"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Origin": "http://127.0.0.1"}, 201),
            ({"Sec-Fetch-Site": "same-origin"}, 201),
        ):
            assert running.client.post("/jobs", json=SEARCH, headers=headers).status_code == status, headers

    def test_without_tokens_this_machine_alone_is_answered(self, tmp_path: Path) -> None:
        settings = ServiceSettings(tmp_path)
        with started(settings) as near:
            assert near.get("/jobs").status_code == 200
            assert near.post("/jobs", json=SEARCH).status_code == 201
            assert near.post("/jobs", json=SEARCH, headers={"Origin": "https://evil.example"}).status_code == 403
            assert near.get("/jobs", headers={"Host": "evil.example"}).status_code == 403
            assert near.get("/jobs", headers={"Host": "[::1]:8765"}).status_code == 200
            assert near.get("/jobs", headers={"Host": "[::1"}).status_code == 403
        with TestClient(create_app(settings), base_url="http://127.0.0.1", client=("10.0.0.7", 1)) as far:
            assert far.get("/jobs").status_code == 401
            assert far.get("/healthz").status_code == 200
        with started(replace(settings, needs_token=True)) as strict:
            assert strict.get("/jobs").status_code == 401

    def test_loopback(self) -> None:
        assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST")))
        assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "", "testclient", "localhost.evil.example")))


class TestWhatIsNoted:
    def test_changes_and_refusals_are_noted(self, running: Running) -> None:
        job = running.submitted("submit")
        running.ask("GET", "/jobs", "read")
        running.ask("GET", "/audit", "read")
        running.ask("GET", "/jobs?secret=1", "expired")
        status, answer = running.ask("GET", "/audit", "admin")
        assert status == 200
        lines = [(e["caller"], e["action"], e["target"], e["status"], e["address"]) for e in answer["entries"]]  # type: ignore[index]
        assert lines == [
            ("", "GET", "/jobs", 401, "127.0.0.1"),
            ("read", "GET", "/audit", 403, "127.0.0.1"),
            ("submit", "POST", "/jobs", 201, "127.0.0.1"),
        ]
        assert job not in json.dumps(lines)

    def test_refusals_do_not_fill_the_log(self, running: Running) -> None:
        for _ in range(130):
            running.ask("GET", "/jobs")
        assert 60 <= len(running.tokens.audit(limit=500)) <= 120  # 60 a minute, and one may end on the way
