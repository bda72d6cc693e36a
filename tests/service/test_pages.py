"""Pages: what they show and refuse, in TestClient; and in Chromium, what axe-core says of them and that they move."""

import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from amcsearch.config import from_mapping
from amcsearch.core import Cost, Evaluation, InfeasibleBudgetError, PruningPolicy, Trial, TrialState
from amcsearch.runs import MetricRecord
from amcsearch.service.access import COOKIE
from amcsearch.service.app import create_app
from amcsearch.service.job_table import JobTable
from amcsearch.service.records import BestSoFar, Claim, JobProblem, JobProgress, JobState
from amcsearch.service.rendering import STATIC
from amcsearch.service.settings import ServiceSettings
from amcsearch.service.tokens import Scope, TokenTable
from amcsearch.service.trial_points import TrialPoints

ORIGIN = "http://127.0.0.1"
CONFIG = {
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}
ACCURACY = MetricRecord("accuracy", "%", True)
BEST = BestSoFar(3, 0.91, ACCURACY, {"macs": 1e6}, {"stem": 6, "<b>": 12})
PROGRESS = JobProgress(
    "Searching", "ddpg trial 50/200", 50, 200, None, 2.5, BEST, ((1.0, 0.5), (4.0, 0.91)), ("busy & hot",)
)
AWAITED = {"name": "edge", "location": "offline", "threads": 1, "batch": 1, "runtime": None, "measured": None}
AXE = Path(__file__).parent / "vendor/axe-core-4.10.2.min.js"
FRAMES = """
<script>
const pages = %s, axe_source = %s, width = %s;
function judged(page, width) {
  return new Promise(done => {
    const frame = document.createElement("iframe");
    frame.style.width = width + "px"; frame.style.height = "1500px"; frame.title = page.path;
    frame.srcdoc = page.html;
    frame.onload = async () => {
      const inner = frame.contentWindow;
      const script = inner.document.createElement("script");
      script.textContent = axe_source;
      inner.document.head.append(script);
      const result = await inner.axe.run(inner.document, {iframes: false});
      const wide = inner.document.documentElement.scrollWidth > width;
      done({path: page.path, width, wide, rules: result.passes.length,
            found: result.violations.map(v => [v.id, v.impact, v.nodes[0].html])});
    };
    document.body.append(frame);
  });
}
(async () => {
  const results = [];
  for (const page of pages) results.push(await judged(page, width));
  const out = document.createElement("pre"); out.id = "results"; out.textContent = JSON.stringify(results);
  document.body.replaceChildren(out);
})();
</script>
"""


@dataclass(frozen=True)
class Site:
    """A service that asks for no token, with a job in every state; ``jobs`` by state."""

    http: TestClient
    runs: Path
    table: JobTable
    tokens: TokenTable
    jobs: dict[str, str]

    def page(self, path: str, status: int = 200) -> str:
        answer = self.http.get(path)
        assert answer.status_code == status, answer.text
        return answer.text


def write_points(folder: Path) -> None:
    """Three trials of an agent, one of them over the budget."""
    points = TrialPoints()
    points.network(Cost(macs=4e6), {"macs": 2e6})
    evaluations = ((1e6, 0.5, "complete"), (3e6, 0.95, "probe"), (1.5e6, 0.9, "complete"))
    for number, (macs, metric, state) in enumerate(evaluations):
        cost, evaluation = Cost(macs=macs), Evaluation(metric, 0.1, 0.0)
        points.add(Trial(number, "<i>", 0, TrialState(state), PruningPolicy({"stem": 6}), evaluation, cost, 0.0))
    folder.mkdir(parents=True, exist_ok=True)
    points.write(folder)


def submitted(table: JobTable, name: str, seed: int = 0) -> str:
    return table.submit("search", name, {"config": {"seed": seed, "search": {"agent": "ddpg"}}}, "loopback").id


def claimed(table: JobTable) -> Claim:
    claim = table.claim("first", ["search"], 1e6)
    assert claim is not None
    return claim


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    runs = tmp_path / "runs"
    app = create_app(ServiceSettings(runs))
    with TestClient(app, base_url=ORIGIN, client=("127.0.0.1", 1), follow_redirects=False) as http:
        table: JobTable = app.state.service.table
        jobs = {}
        for seed, name in enumerate(("done", "other")):
            jobs[name] = submitted(table, f"{name} job", seed)
            claim = claimed(table)
            table.renew(claim, PROGRESS)
            network = [{"group": "stem", "channels": 16, "kept": 6 + seed}]
            dense = {"accuracy": 0.5 + seed}
            table.finish(claim, {"agent": "ddpg", "dense": dense, "network": network, "device": AWAITED})
            folder = runs / jobs[name] / "run"
            folder.mkdir(parents=True)
            (folder / "report.html").write_text("<p>all of it</p><script>alert(1)</script>")
            (folder / ".lock").touch()
            (folder / "verify.pyz").touch()
            write_points(folder.parent)
        jobs["bare"] = submitted(table, "bare job")
        table.finish(claimed(table), {"density": {"all": 0.5}})
        jobs["failed"] = submitted(table, "failed job")
        table.fail(claimed(table), JobProblem("bad_input", "search.trials = 0; expected <a number>"))
        jobs["running"] = submitted(table, "running job")
        table.renew(claimed(table), PROGRESS)
        write_points(runs / jobs["running"])
        table.greet("first", ["search"], "host", jobs["running"])
        jobs["queued"] = submitted(table, "queued job")
        devices = app.state.service.devices
        devices.greet("edge", "ada", {"cpu": "<Cortex>", "cores": 4}, ("one", 3, 40))
        devices.greet("idle", "ada", {"cpu": None, "cores": None}, None)
        yield Site(http, runs, table, app.state.service.tokens, jobs)


class TestWhatPagesShow:
    def test_jobs_and_the_queue(self, site: Site) -> None:
        text = site.page("/")
        for name in site.jobs:
            assert f"{name} job" in text
        assert "50 of 200" in text
        assert "<dt>done</dt><dd>3</dd>" in text

    def test_a_job_that_runs(self, site: Site) -> None:
        text = site.page(f"/page/jobs/{site.jobs['running']}")
        for shown in ("50 of 200", "2.5", "<dd>60 s</dd>", "91.00 %", "busy &amp; hot", "Searching: ddpg trial 50/200"):
            assert shown in text
        assert f'sse-connect="/page/jobs/{site.jobs["running"]}/events"' in text
        assert 'value="6" max="12"' in text
        assert "&lt;b&gt;" in text
        assert "<b>" not in text

    def test_a_job_that_runs_shows_its_trials_and_the_dense_widths(self, site: Site) -> None:
        text = site.page(f"/page/jobs/{site.jobs['running']}/live")
        assert "3 trials of &lt;i&gt;, accuracy against MACs; the front goes from 50.00 %" in text
        assert len(re.findall('<circle class="knee" cx', text)) == 3  # two, and the legend's
        assert text.count('class="limit"') == 2
        claim = Claim(site.table.get(site.jobs["running"]), "first", 1, 1e6)
        site.table.renew(claim, replace(PROGRESS, dense={"stem": 16, "<b>": 32}))
        text = site.page(f"/page/jobs/{site.jobs['running']}/live")
        assert "6 of 16" in text
        assert 'value="12" max="32"' in text

    def test_followers_of_the_page_get_html_until_the_end(self, site: Site) -> None:
        job = site.jobs["done"]
        assert site.http.get(f"/page/jobs/{job}/events").text == "event: ended\ndata: ended\n\n"
        record = site.table.get(site.jobs["running"])
        thread = threading.Timer(0.3, lambda: site.table.finish(Claim(record, "first", 1, 1e6), {}))
        thread.start()
        events = site.http.get(f"/page/jobs/{record.id}/events").text.split("\n\n")
        thread.join()
        assert events[0].startswith("event: live\ndata: <dl class")
        assert events[-2] == "event: ended\ndata: ended"
        assert site.http.get("/page/jobs/nothing/events").status_code == 404

    def test_the_curve_rises_in_steps(self, site: Site) -> None:
        text = site.page(f"/page/jobs/{site.jobs['running']}/live")
        # 200 evaluations are 564 wide from 64 on; 0.5 is at the foot (188), 0.91 at the top (24)
        assert 'd="M 66.8 188.0 L 75.3 188.0 L 75.3 24.0 L 205.0 24.0 L 205.0 24.0"' in text
        assert "Best accuracy so far: 91.00 % after 50 evaluations" in text

    def test_the_whole_page_is_fetched_when_a_job_has_ended(self, site: Site) -> None:
        assert "hx-refresh" not in site.http.get(f"/page/jobs/{site.jobs['running']}/live").headers
        assert site.http.get(f"/page/jobs/{site.jobs['done']}/live").headers["hx-refresh"] == "true"
        assert "sse-connect" not in site.page(f"/page/jobs/{site.jobs['done']}")

    def test_a_report_may_run_nothing(self, site: Site) -> None:
        assert f'src="/page/jobs/{site.jobs["done"]}/report"' in site.page(f"/page/jobs/{site.jobs['done']}")
        answer = site.http.get(f"/page/jobs/{site.jobs['done']}/report")
        assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert site.http.get(f"/page/jobs/{site.jobs['queued']}/report").status_code == 404

    def test_what_failed_says_why(self, site: Site) -> None:
        assert "search.trials = 0; expected &lt;a number&gt;" in site.page(f"/page/jobs/{site.jobs['failed']}")

    def test_two_jobs_side_by_side(self, site: Site) -> None:
        text = site.page(f"/page/compare?first={site.jobs['done']}&second={site.jobs['other']}").replace("<wbr>", "")
        rows = re.findall(
            r'<th scope="row">([^<]*)</th><td class="number">([^<]*)</td><td class="number">([^<]*)<', text
        )
        assert ("dense.accuracy", "0.5", "1.5") in rows
        assert ("network.stem.kept", "6", "7") in rows
        assert ("config.seed", "0", "1") in rows
        assert not [row for row in rows if row[0] == "config.search.agent"]

    def test_a_result_without_a_report_is_a_table_of_its_values(self, site: Site) -> None:
        job = site.table.submit("sparsify", "sparse", {"config": {}}, "loopback").id
        claim = site.table.claim("first", ["sparsify"], 1e6)
        assert claim is not None
        site.table.finish(claim, {"density": {"<all>": 0.123456, "none": None}, "steps": [3, 4]})
        text = site.page(f"/page/jobs/{job}").replace("<wbr>", "")
        rows = re.findall('<th scope="row">([^<]*)</th><td class="number">([^<]*)</td>', text)
        assert rows == [("density.&lt;all&gt;", "0.12346"), ("steps.0", "3"), ("steps.1", "4")]
        assert "<h2>Result</h2>" not in site.page(f"/page/jobs/{site.jobs['done']}")

    def test_of_jobs_of_two_kinds_only_what_both_have_is_shown(self, site: Site) -> None:
        other = site.table.submit("prune", "pruned", {"config": {}}, "loopback").id
        claim = site.table.claim("first", ["prune"], 1e6)
        assert claim is not None
        site.table.finish(claim, {"dense": {"accuracy": 0.9}, "ratio": 3})
        text = site.page(f"/page/compare?first={site.jobs['done']}&second={other}").replace("<wbr>", "")
        assert "These are a search and a prune" in text
        assert "dense.accuracy" in text
        for hidden in ("ratio", "network.stem.kept"):
            assert hidden not in text

    def test_a_table_shows_its_cliffs_and_its_error(self, site: Site) -> None:
        assert "/page/tables/x86_epyc_avx512?network=digits-vit" in site.page("/page/tables")
        text = site.page("/page/tables/x86_epyc_avx512?network=digits-vit")
        assert "<option selected>digits-vit</option>" in text
        cliffs, widths = re.findall(r"<dt>Cliffs</dt><dd>(\d+) of (\d+) widths</dd>", text)[0]
        assert 0 < int(cliffs) < int(widths)
        counted = re.findall(r"<summary>(\d+) cliffs</summary>", text)
        assert sum(map(int, counted)) == int(cliffs)
        assert "<dt>Mean error</dt><dd>" in text
        assert (
            site.http.get("/page/tables/none").json()["detail"] == "there is no table 'none'; /page/tables lists them"
        )
        assert "has no network 'a'" in site.page("/page/tables/x86_epyc_avx512?network=a", 404)

    def test_tables_and_workers(self, site: Site) -> None:
        assert "x86_epyc_avx512" in site.page("/page/tables")
        text = site.page("/page/workers")
        assert "first" in text
        assert "&lt;Cortex&gt;, 4 cores" in text
        assert "a client, 3 of about 40 records" in text
        assert '<td data-label="Measures for">idle</td>' in text


class TestTheBudgetOfAFront:
    def test_the_slider_asks_for_a_share_of_dense(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        class Front:
            summary = SimpleNamespace(devices=[SimpleNamespace(name="edge", dense={"macs": 8.0, "latency_ms": 2.0})])

            def within(self, budget: dict[str, str], device: str) -> SimpleNamespace:
                asked.append((budget, device))
                if budget == {"macs": "0.05x"}:
                    raise InfeasibleBudgetError("macs = 0.05x, the least is 0.2x; ask for more")
                confidence = SimpleNamespace(text="predicted only")
                shares = {"macs": 0.397, "latency_ms": 0.5}
                return SimpleNamespace(of_dense=shares, error=0.0123, confidence=confidence, policy={"stem": 6})

        monkeypatch.setattr("amcsearch.service.routes.pages._front", lambda *_: Front())
        job = f"/page/jobs/{site.jobs['done']}"
        assert 'type="range"' in site.page(job)
        text = site.http.get(f"{job}/budget?device=edge&cost=macs&percent=40", headers={"HX-Request": "true"}).text
        assert "<html" not in text
        assert "at most 40 % of the dense network's MACs" in text
        assert asked == [({"macs": "0.4x"}, "edge")]
        for shown in (
            "<dt>MACs</dt><dd>39.7 %</dd>",
            "<dt>Predicted latency</dt><dd>50.0 %</dd>",
            "0.0123",
            "predicted only",
            '<th scope="row">stem</th>',
        ):
            assert shown in text
        text = site.page(f"{job}/budget?device=edge&cost=macs&percent=5")  # a whole page, where no script runs
        assert "macs = 0.05x, the least is 0.2x" in text
        assert f'<a href="{job}">done job</a>' in text
        assert site.http.get(f"{job}/budget?device=edge&cost=macs&percent=0").status_code == 422

    def test_a_job_that_is_no_front_has_none(self, site: Site) -> None:
        assert 'type="range"' not in site.page(f"/page/jobs/{site.jobs['done']}")
        site.page(f"/page/jobs/{site.jobs['done']}/budget?device=edge&cost=macs&percent=40", 404)


class TestForms:
    def test_a_job_is_cancelled_and_resumed(self, site: Site) -> None:
        job, headers = site.jobs["queued"], {"Origin": ORIGIN}
        answer = site.http.post(f"/page/jobs/{job}/cancel", headers=headers)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/page/jobs/{job}")
        assert site.table.get(job).state is JobState.CANCELLED
        assert site.http.post(f"/page/jobs/{job}/resume", headers=headers).status_code == 303
        assert site.table.get(job).state is JobState.QUEUED
        assert site.http.post(f"/page/jobs/{job}/cancel", headers={"Origin": "https://evil.example"}).status_code == 403

    def test_a_search_that_is_done_takes_further_evaluations(self, site: Site) -> None:
        config = from_mapping(CONFIG, "").model_dump(mode="json")
        job = site.table.submit("search", "mine", {"config": config}, "loopback").id
        for _ in range(2):  # the one that waits since before, and this one
            site.table.finish(claimed(site.table), {})
        path, headers = f"/page/jobs/{job}", {"Origin": ORIGIN}
        assert f'action="{path}/extend"' in site.page(path)
        answer = site.http.post(f"{path}/extend", data={"trials": "none"}, headers=headers)
        assert (answer.status_code, answer.json()["detail"]) == (422, "trials = 'none', expected a whole number")
        answer = site.http.post(f"{path}/extend", data={"trials": "7"}, headers=headers)
        assert (answer.status_code, answer.headers["location"]) == (303, path)
        record = site.table.get(job)
        assert (record.state, record.request["config"]["search"]["further_trials"]) == (JobState.QUEUED, [7])
        assert "/extend" not in site.page(path)

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"trials": "many"}, "trials = &#39;many&#39;, expected a whole number"),
            ({"limit": "half"}, "budget.macs = &#39;half&#39;"),
            ({"model": "os:system"}, "config.model.factory = &#39;os:system&#39; names code"),
            ({"further": "a: [b"}, "further keys"),
            ({"further": "search: {agnet: random}"}, "unknown key search.agnet; did you mean &#39;agent&#39;?"),
        ],
    )
    def test_a_form_that_makes_no_search_comes_back(self, site: Site, fields: dict[str, str], told: str) -> None:
        answer = site.http.post("/page/plan", data={**fields, "name": "mine"}, headers={"Origin": ORIGIN})
        assert answer.status_code == 422
        assert told in answer.text
        assert 'value="mine"' in answer.text

    def test_a_plan_is_shown_before_it_is_submitted(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[list[str]] = []

        def planned(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
            asked.append(command)
            assert "agent: random" in Path(command[4]).read_text()
            return subprocess.CompletedProcess(command, 0, b"about 3 minutes\n", b"")

        monkeypatch.setattr("amcsearch.service.routes.forms.subprocess.run", planned)
        fields = {"name": "mine", "trials": "7", "further": "search: {agent: random}"}
        text = site.http.post("/page/plan", data=fields, headers={"Origin": ORIGIN}).text
        assert "about 3 minutes" in text
        assert asked[0][-1] == "--dry-run"
        before = len(site.table.page().jobs)
        submission = html.unescape(re.findall('name="submission" value="([^"]*)"', text)[0])
        answer = site.http.post("/page/submit", data={"submission": submission}, headers={"Origin": ORIGIN})
        record = site.table.get(answer.headers["location"].rpartition("/")[2])
        assert (record.name, len(site.table.page().jobs)) == ("mine", before + 1)
        config = record.request["config"]
        assert isinstance(config, dict)
        assert (config["search"]["trials"], config["search"]["agent"]) == (7, "random")

    def test_a_table_is_submitted_from_the_form_without_a_plan(self, site: Site) -> None:
        assert "<option>edge</option>" in site.page("/page/new")
        fields = {"kind": "table_measure", "name": "board", "location": "edge", "further": ""}
        text = site.http.post("/page/plan", data=fields, headers={"Origin": ORIGIN}).text
        submission = html.unescape(re.findall('name="submission" value="([^"]*)"', text)[0])
        answer = site.http.post("/page/submit", data={"submission": submission}, headers={"Origin": ORIGIN})
        record = site.table.get(answer.headers["location"].rpartition("/")[2])
        assert (record.kind, record.name) == ("table_measure", "board")
        config = record.request["config"]
        assert isinstance(config, dict)
        assert config["device"]["location"] == "edge"


class TestLoggingIn:
    def test_a_token_opens_the_page_until_it_is_revoked(self, tmp_path: Path) -> None:
        app = create_app(ServiceSettings(tmp_path, needs_token=True))
        tokens: TokenTable = app.state.service.tokens
        token = tokens.create("ada", [Scope.READ], None).text
        with TestClient(app, base_url=ORIGIN, client=("10.0.0.7", 1), follow_redirects=False) as http:
            for path in ("/", "/page/queue", "/page/new", "/page/tables", "/page/workers", "/page/compare"):
                answer = http.get(path)
                assert (answer.status_code, answer.headers["location"]) == (303, "/login")
            headers = {"Origin": ORIGIN}
            assert "Log in" in http.get("/login").text
            wrong = http.post("/login", data={"token": "amc_1"}, headers=headers)
            assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
            assert (
                http.post("/login", data={"token": token}, headers={"Origin": "https://evil.example"}).status_code
                == 403
            )
            entered = http.post("/login", data={"token": token}, headers=headers)
            assert (entered.status_code, entered.headers["location"]) == (303, "/")
            assert re.search("HttpOnly;.*SameSite=strict", entered.headers["set-cookie"])
            assert http.cookies[COOKIE] == token
            assert token not in http.get("/").text
            assert http.get("/page/new").status_code == 403
            tokens.revoke("ada")
            assert http.get("/").status_code == 303
            assert http.post("/logout", headers=headers).headers["location"] == "/login"
            assert COOKIE not in http.cookies

    def test_the_cookie_is_sent_encrypted_where_the_page_came_so(self, tmp_path: Path) -> None:
        app = create_app(ServiceSettings(tmp_path, needs_token=True))
        token = app.state.service.tokens.create("ada", [Scope.READ], None).text
        with TestClient(app, base_url="https://amc.example", follow_redirects=False) as http:
            entered = http.post("/login", data={"token": token}, headers={"Origin": "https://amc.example"})
        assert "Secure" in entered.headers["set-cookie"]


class TestInABrowser:
    @pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
    def test_axe_finds_nothing_serious(self, site: Site, tmp_path: Path, scheme: str, width: int) -> None:
        job, jobs = "/page/jobs/", site.jobs
        paths = [
            "/",
            "/login",
            "/page/new",
            "/page/tables",
            "/page/tables/x86_epyc_avx512?network=digits-vit",
            "/page/workers",
            *(job + jobs[s] for s in ("running", "done", "bare")),
        ]
        paths.append(f"/page/compare?first={jobs['done']}&second={jobs['other']}")
        style = (STATIC / "style.css").read_text()
        pages = [{"path": path, "html": self._inlined(site.page(path), style)} for path in paths]
        error = site.http.get("/page/jobs/none", headers={"Accept": "text/html"}).text
        pages.append({"path": "an error", "html": self._inlined(error, style)})
        harness = tmp_path / "harness.html"
        quoted = (json.dumps(value).replace("</", "<\\/") for value in (pages, AXE.read_text(), width))
        harness.write_text("<!doctype html><body>" + FRAMES % tuple(quoted))
        results = json.loads(html.unescape(self._dom(harness.as_uri(), tmp_path, scheme)))
        assert len(results) == len(pages)
        assert min(result["rules"] for result in results) > 10
        assert not [
            (r["path"], r["width"], finding) for r in results for finding in r["found"] if finding[1] != "minor"
        ]
        assert not [(r["path"], r["width"]) for r in results if r["wide"]]

    def _inlined(self, page: str, style: str) -> str:
        page = re.sub("<script.*?</script>", "", page)
        return page.replace('<link rel="stylesheet" href="/static/style.css">', f"<style>{style}</style>")

    def _dom(self, address: str, folder: Path, scheme: str) -> str:
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/chromium"]
        command += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--virtual-time-budget=60000"]
        ended = subprocess.run([*command, "--dump-dom", address], capture_output=True, timeout=120, check=True)
        shown = re.search('<pre id="results">(.*?)</pre>', ended.stdout.decode(), re.DOTALL)
        assert shown is not None, ended.stdout[-300:]
        return shown[1]
