"""``amcsearch token``, and ``serve`` on an address that others reach."""

import json
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.service import Scope, ServiceSettings, open_tokens

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, *words: str, code: int = 0) -> str:
    """What the verb prints; to standard error where it fails."""
    ended = 0
    try:
        ended = main(list(words)) or 0
    except SystemExit as error:
        ended = int(error.code or 0)
    streams = capsys.readouterr()
    assert ended == code, streams.err
    return streams.err if code else streams.out


@pytest.mark.parametrize("verb", ["create", "list", "revoke"])
def test_every_verb_helps_with_an_example(verb: str, capsys: Capture) -> None:
    assert f"example: amcsearch token {verb}" in told(capsys, "token", verb, "--help")


def test_a_token_is_made_shown_once_and_revoked(tmp_path: Path, capsys: Capture) -> None:
    runs = ("--runs", str(tmp_path))
    assert "no tokens" in told(capsys, "token", "list", *runs)
    made = json.loads(told(capsys, "token", "create", *runs, "--name", "ci", "--expires", "12h", "--json"))
    assert (made["scopes"], made["expires_s"] - made["created_s"]) == (["read", "submit"], pytest.approx(43200.0))
    text = told(capsys, "token", "create", *runs, "--name", "ada", "--scopes", "admin", "--expires", "never").strip()
    with open_tokens(tmp_path) as tokens:
        holder = tokens.holder(text)
        assert holder is not None
        assert (holder.name, holder.scopes, holder.expires_s) == ("ada", (Scope.ADMIN,), None)
    assert "revoked" in told(capsys, "token", "revoke", "ci", *runs)
    listed = told(capsys, "token", "list", *runs)
    assert [line.split()[1:4] for line in listed.splitlines()[1:]] == [
        ["ci", "read,submit", "revoked"],
        ["ada", "admin", "valid"],
    ]
    with open_tokens(tmp_path) as tokens:
        entries = tokens.audit()
    assert [entry.action for entry in entries] == ["revoke", "create", "create"]
    secrets = [each.rpartition("_")[2] for each in (text, made["token"])]
    assert not any(secret in listed + repr(entries) for secret in secrets)


@pytest.mark.parametrize("words", [("list",), ("create", "--name", "ci")])
def test_a_folder_without_a_service_is_told(tmp_path: Path, capsys: Capture, words: tuple[str, ...]) -> None:
    """The first token is made before the service, so a folder that was misspelt cannot be refused."""
    runs = ("--runs", str(tmp_path / "new"))
    line = f"Made a new job table, sqlite:///{tmp_path}/new/service.db; for another service name its --runs"
    assert main(["token", *words, *runs]) in (0, None)
    assert line in capsys.readouterr().err
    assert main(["token", "list", *runs]) in (0, None)
    assert line not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("create", "--name", "a", "--scopes", "read,root"),
            "--scopes root: expected some of read, submit, measure, admin",
        ),
        (("create", "--name", "a", "--expires", "soon"), "expires = 'soon', expected a number of hours, days or weeks"),
        (("create", "--name", "a/b"), "name = 'a/b', expected up to 64 letters"),
        (("revoke", "nobody"), "token 'nobody': no valid one has that id or name; amcsearch token list shows all"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: Capture, words: tuple[str, ...], line: str) -> None:
    with open_tokens(tmp_path):  # of a service that is there already
        pass
    said = told(capsys, "token", *words, "--runs", str(tmp_path), code=2)
    assert line in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "server.example"])
def test_others_are_not_served_without_a_token(tmp_path: Path, capsys: Capture, host: str) -> None:
    with open_tokens(tmp_path) as tokens:
        tokens.create("old", [Scope.READ], -1.0)
    said = told(capsys, "serve", "--runs", str(tmp_path), "--host", host, code=2)
    assert f"host {host}: others reach it, and no token is valid; make one with amcsearch token create" in said


def test_settings_do_not_show_the_database_password() -> None:
    settings = ServiceSettings(Path("runs"), "postgresql+psycopg://amc:hush@db/amc")
    assert "hush" not in repr(settings)
