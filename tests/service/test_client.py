"""The client against a service that listens: results, errors, broken connections, and the verbs of the command line."""

import json
import threading
from pathlib import Path

import httpx
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import amcsearch
from amcsearch.cli import service_verbs
from amcsearch.cli.main import main
from amcsearch.config import load, parse_mapping
from amcsearch.core import BadInputError, InfeasibleBudgetError
from amcsearch.jobs.compare import CURVE_COLUMNS, RUN_COLUMNS, AgentComparison, Comparison
from amcsearch.runs import MetricRecord
from amcsearch.search import Mean
from amcsearch.service import connection
from amcsearch.service.client import Client, connect
from amcsearch.service.connection import ServiceConnection
from amcsearch.service.device_table import DeviceTable
from amcsearch.service.records import JobState
from amcsearch.service.trial_points import TrialPoints

from .conftest import LiveService, listening

TINY = Path(__file__).parents[1] / "tiny_job.py"
CONFIG = {"name": "tiny", "model": {"factory": f"{TINY}:network"}, "data": {"factory": f"{TINY}:quadrants"}}


@pytest.fixture(autouse=True)
def _tries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_AGAIN_S", 0.02)


class Watcher:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.trials: list[tuple[int, int, float]] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def epoch(self, epoch: int, loss: float) -> None:
        raise AssertionError(epoch)

    def trial(self, trial, best, done: int, total: int) -> None:
        self.trials.append((done, total, best.evaluation.metric))

    def progress(self, share: float, text: str) -> None:
        raise AssertionError(text)


def test_a_job_is_submitted_followed_and_fetched(live: LiveService, tmp_path: Path) -> None:
    job = amcsearch.connect(live.url).submit("stub", CONFIG, arguments={"evaluations": 4})
    watcher = Watcher()
    with live.worker():
        record = job.wait(watcher)
    assert (record.state, record.result) == (JobState.DONE, {"evaluations": 4, "nan": None})
    assert record.progress.dense == {"conv": 99}
    (points,) = TrialPoints.read(live.settings.runs / job.id)
    assert (points.agent, points.count, points.dense, points.front) == ("stub", 4, 10.0, ((5.0, 0.9),))
    assert watcher.phases == ["Searching"]
    assert watcher.trials[-1] == (4, 4, 0.9)
    folder = job.fetch(tmp_path / "fetched")
    assert (folder / "evaluations.txt").read_text() == "0\n1\n2\n3\n"
    with pytest.raises(BadInputError, match=r"cannot fetch into .*fetched: it is there already"):
        job.fetch(folder)
    assert [other.id for other in connect(live.url).jobs(JobState.DONE)] == [job.id]
    assert connect(live.url).job(job.id).record == job.record
    assert job.record.with_files_in(job.id) == record


def test_paths_of_the_service_are_shown_as_those_of_the_files_that_are_fetched(
    live: LiveService, tmp_path: Path
) -> None:
    job = connect(live.url).submit("stub", CONFIG, arguments={"does": "refuse_file"})
    assert job.record.run_folder == str(live.settings.runs.absolute() / job.id / "run")
    with live.worker(), pytest.raises(BadInputError, match=rf"^{job.id}/evaluations\.txt cannot be read; send another"):
        job.wait()
    with pytest.raises(BadInputError, match=rf"^{tmp_path}/here/evaluations\.txt cannot be read; send another one$"):
        job.wait(folder=tmp_path / "here")
    said = {"file": f"{job.record.run_folder}/a.csv", "of": [f"see {job.record.run_folder}", 3, None]}
    assert job.record.moved(said, "out") == {"file": "out/a.csv", "of": ["see out", 3, None]}


def test_fetched_summaries_and_pages_name_their_own_folder(live: LiveService, tmp_path: Path) -> None:
    """Commands in them go on with what was fetched; other files stay as they are."""
    job = connect(live.url).submit("stub", CONFIG, arguments={"evaluations": 1})
    with live.worker():
        job.wait()
    there = Path(str(job.record.run_folder))
    content = f"amcsearch verify {there} result.jsonl"
    (there / "part").mkdir()
    for name in ("summary.json", "part/summary.json", "report.html", "notes.txt"):
        (there / name).write_text(content)
    folder = job.fetch(tmp_path / "a & b")
    assert (folder / "summary.json").read_text() == f"amcsearch verify {folder} result.jsonl"
    assert (folder / "part/summary.json").read_text() == f"amcsearch verify {folder} result.jsonl"
    assert (folder / "report.html").read_text() == f"amcsearch verify {tmp_path}/a &amp; b result.jsonl"
    assert (folder / "notes.txt").read_text() == content


def test_a_fetched_configuration_names_the_files_that_are_here(live: LiveService, tmp_path: Path) -> None:
    client, sent = connect(live.url), tmp_path / "my nets" / "net.safetensors"
    sent.parent.mkdir()
    save_file({"weight": torch.zeros(1)}, sent)
    there = client.upload(sent)
    job = client.submit("stub", CONFIG, arguments={"evaluations": 1})
    with live.worker():
        job.wait()
    folder = Path(str(job.record.run_folder))
    text = (
        f"# configuration abc\nname: mine\nmodel: {{factory: 'nets:make', checkpoint: '{there}'}}\n"
        "data: {factory: '/srv/data.py:splits'}\ndevice: {profile: /srv/amcsearch/configs/devices/edge_cpu.yaml}\n"
    )
    (folder / "config.yaml").write_text(text)
    fetched = job.fetch(tmp_path / "fetched") / "config.yaml"
    assert fetched.read_text().startswith("# configuration abc\nname: mine\n")
    values = parse_mapping(fetched.read_text(), "fetched")[0]
    assert values["model"] == {"factory": "nets:make", "checkpoint": str(sent)}
    assert values["device"] == {"profile": "edge_cpu"}
    assert job.not_here == {"data.factory": "/srv/data.py:splits"}
    with pytest.raises(BadInputError, match=r"data.factory: file /srv/data.py does not exist; if another"):
        load(fetched)
    assert load(fetched, keys={"data.factory": "a.b:data"}).model.checkpoint == str(sent)


def test_who_follows_is_told_of_a_device_that_is_away(live: LiveService) -> None:
    job = amcsearch.connect(live.url).submit("stub", CONFIG, arguments={"does": "lack_device"})

    class Starter(Watcher):
        """Starts the agent when it hears that one is lacking."""

        def phase(self, text: str) -> None:
            super().phase(text)
            if text.startswith("Waiting"):
                DeviceTable(live.table.database).greet("pi5", "board", {}, None)

    watcher = Starter()
    with live.worker():
        assert job.wait(watcher).state is JobState.DONE
    waiting = [text for text in watcher.phases if text.startswith("Waiting")]
    assert waiting == [
        "Waiting for device pi5: no agent of that name has connected; on the device: python3 kit.pyz agent --connect "
        "URL --token-file F --name pi5"
    ]


@pytest.mark.parametrize(
    ("does", "error", "words"),
    [
        ("refuse", BadInputError, "search.trials = 0; expected a number above 0"),
        ("find_nothing", InfeasibleBudgetError, "budget.macs = 0.01x"),
    ],
)
def test_a_job_that_fails_raises_what_the_local_call_raises(
    live: LiveService, does: str, error: type[Exception], words: str
) -> None:
    job = connect(live.url).submit("stub", CONFIG, arguments={"does": does})
    with live.worker(), pytest.raises(error, match=words):
        job.wait()


def test_a_comparison_comes_back_as_the_local_one(live: LiveService, tmp_path: Path) -> None:
    mean = Mean(0.5, None, 1)
    agent = AgentComparison("uniform", 1.0, mean, mean, mean, mean, mean, None, 1, 1.0)
    runs = pd.DataFrame([("uniform", 4, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0, "{}")], columns=list(RUN_COLUMNS))
    curves = pd.DataFrame([("uniform", 4, 1, 2.0, 0.5)], columns=list(CURVE_COLUMNS))
    metric = MetricRecord("accuracy", "%", True)
    local = Comparison((agent,), (4,), 1, metric, "obc", 2.0, ("macs",), {}, runs, curves)

    def work() -> None:
        while (claim := live.table.claim("worker", ["compare"], 1e6)) is None:
            pass
        folder = live.settings.runs / claim.job.id / "run"
        folder.mkdir(parents=True)
        (folder / "comparison.json").write_text(json.dumps(local.to_json()))
        runs.to_csv(folder / "comparison.csv", index=False)
        curves.to_csv(folder / "curves.csv", index=False)
        live.table.finish(claim, local.to_json())

    thread = threading.Thread(target=work)
    thread.start()
    result = connect(live.url).compare(CONFIG, agents=["uniform"], seeds=[4], trials=1, folder=tmp_path / "fetched")
    thread.join()
    (record,) = connect(live.url).jobs()
    assert (record.request["agents"], record.request["seeds"]) == (["uniform"], [4])
    assert record.request["config"]["search"]["trials"] == 1
    assert type(result) is amcsearch.Comparison
    assert (result.agents, result.seeds, result.metric) == ((agent,), (4,), metric)
    assert result.files["curves"] == str(tmp_path / "fetched" / "curves.csv")
    pd.testing.assert_frame_equal(result.runs, runs)
    pd.testing.assert_frame_equal(result.curves, curves)


def test_a_cancelled_job_says_so_and_can_be_resumed(live: LiveService) -> None:
    job = connect(live.url).submit("stub", CONFIG)
    assert job.cancel().state is JobState.CANCELLED
    with pytest.raises(BadInputError, match=f"job {job.id} was cancelled; resume it"):
        job.wait()
    job.resume()
    with live.worker():
        assert job.wait().state is JobState.DONE


def test_what_the_service_refuses_is_raised_in_its_words(live: LiveService) -> None:
    client = connect(live.url)
    with pytest.raises(BadInputError, match=r"search.trials = 0; expected a number above 0"):
        client.search(CONFIG, trials=0)
    with pytest.raises(BadInputError, match="there is no job abc"):
        client.job("abc")
    with pytest.raises(BadInputError, match="only a search takes further trials"):
        client.submit("stub", CONFIG).extend(3)


def test_a_service_that_never_answered_gets_less_patience(live: LiveService) -> None:
    http = httpx.Client(base_url=live.url)
    connection = ServiceConnection(http, 300.0)
    assert connection.patience_s == 30.0
    connection.ask("GET", "/jobs")
    assert connection.patience_s == 300.0
    assert ServiceConnection(httpx.Client(), 0.1).patience_s == 0.1


def test_what_is_no_service_is_named(live: LiveService) -> None:
    with pytest.raises(BadInputError, match="'localhost' is no address of a service; write http://HOST:PORT"):
        connect("localhost")
    with pytest.raises(BadInputError, match=r"does not answer for 0.1 s; start it"):
        connect("http://127.0.0.1:9", patience_s=0.1).job("a")
    for token in ("", " ", "amc_1 2", "käse"):
        with pytest.raises(BadInputError, match=f"the token of {len(token)} characters is none .AMCSEARCH_TOKEN"):
            connect("http://127.0.0.1:9", token)
    other = httpx.MockTransport(lambda _: httpx.Response(404, text="<html>"))
    client = Client(ServiceConnection(httpx.Client(transport=other, base_url="http://x"), 0.1))
    with pytest.raises(BadInputError, match="http://x/jobs/a answers 404 and no problem details; is it an amcsearch"):
        client.job("a")


@pytest.mark.parametrize("path", ["../../outside", "/outside", "a/../../outside"])
def test_a_service_cannot_write_outside_the_folder(tmp_path: Path, path: str, live: LiveService) -> None:
    job = connect(live.url).submit("stub", CONFIG)
    listed = httpx.MockTransport(lambda _: httpx.Response(200, json={"files": [{"path": path, "bytes": 1}]}))
    job._connection = ServiceConnection(httpx.Client(transport=listed, base_url="http://x"), 0.1)
    with pytest.raises(BadInputError, match="outside its run"):
        job.fetch(tmp_path / "a" / "fetched")
    assert not (tmp_path / "outside").exists()


def test_a_follower_outlives_a_restart_of_the_service(live: LiveService) -> None:
    with listening(live.settings) as first:
        job = connect(first.url).submit("stub", CONFIG)
        heard = job.follow()
        assert next(heard).state is JobState.QUEUED
    states: list[JobState] = []
    thread = threading.Thread(target=lambda: states.extend(record.state for record in heard))
    thread.start()
    with listening(live.settings, first.port), live.worker():
        thread.join()
    assert states[-1] is JobState.DONE


def test_the_command_line_submits_and_fetches(
    live: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(CONFIG))
    submit = ["submit", str(file), "--connect", live.url]
    assert main([*submit, "--json", "--set", "search.trials=7", "--key", "a"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["request"]["config"]["search"]["trials"]) == ("queued", 7)
    assert main([*submit, "--set", "search.trials=0"]) == 2
    assert "amcsearch: search.trials = 0; expected a number above 0" in capsys.readouterr().err
    assert main([*submit, "--out", "x"]) == 2
    assert "--out goes with --follow" in capsys.readouterr().err
    assert main([*submit, "--argument", "workers"]) == 2
    assert "--argument workers: expected NAME=VALUE" in capsys.readouterr().err
    monkeypatch.setattr(service_verbs, "_KINDS", ("stub",))
    with live.worker():
        assert main([*submit, "--kind", "stub", "--argument", "evaluations=2", "--follow", "-o", "fetched"]) == 0
    assert capsys.readouterr().out.endswith("is done; its files are in fetched\n")
    assert (tmp_path / "fetched" / "evaluations.txt").read_text() == "0\n1\n"
