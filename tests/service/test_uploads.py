"""Files that callers send: bounds, forms, owners, and that a request names them by their path alone."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import amcsearch
from amcsearch.cli.main import main
from amcsearch.core import BadInputError
from amcsearch.service import connection
from amcsearch.service.app import create_app
from amcsearch.service.client import connect
from amcsearch.service.records import JobState
from amcsearch.service.settings import ServiceLimits, ServiceSettings
from amcsearch.service.tokens import Scope
from amcsearch.service.uploads import UploadTable

from .conftest import LiveService

WEIGHTS = (2).to_bytes(8, "little") + b"{}"
RESULT = b'{"kind": "header"}\n'
CONFIG = {
    "model": {"factory": "amcsearch.training.models:vgg"},
    "data": {"factory": "amcsearch.training.data:digits"},
}


class Sender:
    """A service with small limits, and callers of several scopes."""

    def __init__(self, runs: Path, limits: ServiceLimits) -> None:
        app = create_app(ServiceSettings(runs, needs_token=True, limits=limits))
        self.http = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
        self.service, self.runs = app.state.service, runs
        scopes = {
            "ada": [Scope.SUBMIT, Scope.READ],
            "bob": [Scope.SUBMIT],
            "reader": [Scope.READ],
            "root": [Scope.ADMIN],
        }
        self.texts = {name: self.service.tokens.create(name, each, None).text for name, each in scopes.items()}

    def ask(self, method: str, path: str, who: str = "ada", **content: object) -> tuple[int, dict]:
        headers = {"Authorization": f"Bearer {self.texts[who]}"}
        answer = self.http.request(method, path, headers=headers, **content)
        return answer.status_code, answer.json() if answer.content else {}

    def send(self, name: str, content: bytes = WEIGHTS, who: str = "ada") -> tuple[int, dict]:
        return self.ask("POST", f"/uploads/{name}", who, content=content)

    def left(self) -> list[Path]:
        return [path for path in (self.runs / "uploads").rglob("*") if path.is_file()]


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    sender = Sender(tmp_path / "runs", ServiceLimits(upload_bytes=64, uploads=2))
    yield sender
    sender.service.table.database.close()


def test_a_file_is_kept_whole_and_named_by_its_path(sender: Sender) -> None:
    status, upload = sender.send("net.safetensors")
    assert status == 201
    assert Path(upload["path"]).read_bytes() == WEIGHTS
    assert (upload["owner"], upload["bytes"], upload["sha256"]) == ("ada", 10, hashlib.sha256(WEIGHTS).hexdigest())
    assert sender.send("net.safetensors") == (201, upload)  # the same again, as after a broken connection
    assert sender.ask("GET", "/uploads")[1] == {"uploads": [upload]}
    config = {**CONFIG, "model": {**CONFIG["model"], "checkpoint": upload["path"]}}
    status, job = sender.ask("POST", "/jobs", json={"kind": "search", "config": config})
    assert (status, job["request"]["config"]["model"]["checkpoint"]) == (201, upload["path"])
    assert sender.ask("DELETE", f"/uploads/{upload['id']}")[0] == 204
    assert sender.left() == []
    assert sender.ask("GET", "/uploads")[1] == {"uploads": []}


def test_files_are_limited_in_size_and_count(sender: Sender) -> None:
    status, problem = sender.send("a.safetensors", WEIGHTS + b" " * 55)
    assert (status, problem["detail"]) == (
        422,
        "a.safetensors has more than 6.10352e-05 MiB; let the operator raise --most-upload",
    )
    assert sender.left() == []
    for name in ("a.safetensors", "b.safetensors"):
        assert sender.send(name)[0] == 201
    status, problem = sender.send("c.safetensors")
    assert (status, problem["detail"]) == (
        422,
        "ada has 2 files here, at most 2; remove one with DELETE /uploads/ID",
    )
    assert sender.send("c.safetensors", who="bob")[0] == 201
    assert len(sender.left()) == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("net.pkl", WEIGHTS, "expected one that ends with .pt, .pth, .safetensors, .jsonl"),
        ("net", WEIGHTS, "expected one that ends with"),
        (".hidden.pt", b"PK\x03\x04", "expected up to 100 letters"),
        ("a%2f..%2fb.pt", b"PK\x03\x04", ""),
        ("..%5cb.pt", b"PK\x03\x04", "expected up to 100 letters"),
        ("net.pt", b"\x80\x04pickle", "net.pt does not begin as such a file does"),
        ("net.safetensors", b"\xff" * 7 + b"\0{}", "does not begin"),
        ("net.safetensors", b"", "does not begin"),
        ("result.jsonl", b"PK\x03\x04", "does not begin"),
    ],
)
def test_what_is_no_such_file_is_refused(name: str, content: bytes, words: str, sender: Sender) -> None:
    status, problem = sender.send(name, content)
    assert status in (404, 422)
    assert words in problem["detail"]
    assert sender.left() == []


def test_files_belong_to_who_sent_them(sender: Sender) -> None:
    _, upload = sender.send("net.pt", b"PK\x03\x04")
    assert sender.send("net.pt", who="reader")[0] == 403
    assert sender.ask("GET", "/uploads", "reader")[0] == 403
    assert sender.ask("GET", "/uploads", "bob")[1] == {"uploads": []}
    status, problem = sender.ask("DELETE", f"/uploads/{upload['id']}", "bob")
    assert (status, problem["detail"]) == (404, f"there is no file {upload['id']} of yours; GET /uploads lists them")
    assert sender.ask("GET", "/uploads", "root")[1] == {"uploads": [upload]}
    assert sender.ask("DELETE", f"/uploads/{upload['id']}", "root")[0] == 204


def test_a_service_may_take_none(tmp_path: Path) -> None:
    sender = Sender(tmp_path / "runs", ServiceLimits(upload_bytes=0))
    status, problem = sender.send("net.pt", b"PK\x03\x04")
    assert (status, problem["detail"]) == (422, "this service takes no files; let its operator raise --most-upload")
    sender.service.table.database.close()


@pytest.mark.parametrize("path", ["uploads", "uploads/{id}", "uploads/.{id}", "uploads/{id}/a/b"])
def test_a_request_names_a_whole_file_alone(path: str, sender: Sender) -> None:
    named = str(sender.runs / path.format(id="a" * 32))
    config = {**CONFIG, "model": {**CONFIG["model"], "checkpoint": named}}
    status, problem = sender.ask("POST", "/jobs", json={"kind": "search", "config": config})
    assert status == 422
    assert "outside what this service may read" in problem["detail"]


def test_what_an_interrupted_sending_left_goes(sender: Sender) -> None:
    sender.send("net.pt", b"PK\x03\x04")
    old, new = sender.runs / "uploads" / ".old", sender.runs / "uploads" / ".new"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    with UploadTable(sender.service.table.database, sender.runs, ServiceLimits()).begin("ada", "a.pt") as sending:
        assert sending.path.exists()
    assert (old.exists(), new.exists(), sending.path.exists()) == (False, True, False)


def verification(job: str, **further: object) -> dict[str, object]:
    return {"kind": "verify", "job": job, "result": "x", **further}


def test_a_verification_has_the_configuration_of_its_job(sender: Sender) -> None:
    _, upload = sender.send("result.jsonl", RESULT)
    _, job = sender.ask("POST", "/jobs", json={"kind": "search", "config": {**CONFIG, "name": "mine"}})
    wanted = verification(job["id"], result=upload["path"])
    status, problem = sender.ask("POST", "/jobs", json=wanted)
    assert (status, problem["detail"]) == (
        422,
        f"job {job['id']} is a search, queued; name a search or prune that is done",
    )
    claim = sender.service.table.claim("w", ["search"], 60.0)
    sender.service.table.finish(claim, {})
    status, made = sender.ask("POST", "/jobs", json=wanted)
    assert (status, made["name"], made["request"]["config"]) == (201, "mine", job["request"]["config"])
    refusals = {
        "leave out config and settings": {**wanted, "config": CONFIG},
        "there is no job": verification("../../etc"),
        "outside what this service may read": {**wanted, "result": "/etc/passwd"},
        "unknown key runs": {**wanted, "runs": "a"},
    }
    for words, body in refusals.items():
        status, problem = sender.ask("POST", "/jobs", json=body)
        assert status == 422
        assert words in problem["detail"]


def test_the_client_sends_files_and_finishes_runs(
    live: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connection, "_AGAIN_S", 0.02)
    file, config = tmp_path / "net.safetensors", tmp_path / "tiny.yaml"
    file.write_bytes(WEIGHTS)
    config.write_text(json.dumps(CONFIG))
    path = amcsearch.connect(live.url).upload(file)
    assert Path(path).read_bytes() == WEIGHTS
    submit = ["submit", str(config), "--connect", live.url, "--json", "--upload"]
    assert main([*submit, f"model.checkpoint={file}"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["request"]["config"]["model"]["checkpoint"]) == (JobState.QUEUED, path)
    assert main([*submit, "net.safetensors"]) == 2
    assert "--upload net.safetensors: expected KEY=FILE" in capsys.readouterr().err
    with pytest.raises(BadInputError, match=r"cannot read .*none.pt: No such file or directory; name another file"):
        connect(live.url).upload(tmp_path / "none.pt")
    result = tmp_path / "result.jsonl"
    result.write_bytes(RESULT)
    with pytest.raises(BadInputError, match="is a search, queued; name a search or prune that is done"):
        connect(live.url).verify(shown["id"], result)
    assert main(["verify", shown["id"], str(result), "--connect", live.url]) == 2
    assert "name a search or prune that is done" in capsys.readouterr().err
