"""Standard streams that are closed, full, lost or of another encoding never decide how a verb ends."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amcsearch.cli.main import main
from amcsearch.cli.streams import Streams


class Broken(io.StringIO):
    """A stream on which nothing can be written."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


LOST: dict[str, Callable[[], io.StringIO | None]] = {
    "none": lambda: None,
    "closed": closed_stream,
    "full": lambda: Broken(errno.ENOSPC),
    "no terminal": lambda: Broken(errno.EIO),
    "no reader": lambda: Broken(errno.EPIPE),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_lost_stderr_changes_no_exit_code(kind: str, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.setattr(sys, "stderr", LOST[kind]())
    assert main(["search", "nowhere.yaml"]) == 2
    assert main(["list", "costs"]) == 0


@pytest.mark.parametrize(
    ("kind", "code"), [("none", 0), ("closed", 2), ("full", 2), ("no terminal", 2), ("no reader", 0)]
)
def test_a_result_that_is_only_printed_and_cannot_be_is_an_error(
    kind: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", LOST[kind]())
    assert main(["list", "costs"]) == code
    assert ("cannot be printed" in capsys.readouterr().err) == (code == 2)


def test_a_result_that_is_kept_in_files_is_done_although_it_cannot_be_printed(
    write_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    profile = ["--device", "eyeriss_65nm"]
    assert main(["energy", str(write_config()), *profile, "--out", str(tmp_path / "energy")]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"amcsearch: the result cannot be printed: No space left on device; it is in {tmp_path / 'energy'}"


def test_characters_that_an_encoding_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    streams = Streams()
    streams.out.stream = io.TextIOWrapper(raw, encoding="ascii")
    assert streams.show("± \udcff") is None
    assert raw.getvalue() == b"\\xb1 \\udcff\n"


def test_what_user_code_prints_is_not_in_the_json(
    write_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud.py").write_text(
        "import ctypes, os, sys\n"
        "print('imported')\n"
        "from tiny_job import network\n"
        "def loud():\n"
        "    print('made')\n"
        "    os.write(1, b'raw')\n"
        "    ctypes.CDLL(None).puts(b'native')\n"
        "    sys.__stdout__.write('kept stdout')\n"
        "    sys.__stdout__.flush()\n"
        "    return network()\n"
    )
    override = f"model.factory={tmp_path}/loud.py:loud"
    assert main(["search", str(write_config()), "--set", override, "--dry-run", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["samples"]
    assert all(text in err for text in ("imported", "made", "raw", "native", "kept stdout"))


REDIRECTIONS = [
    ("list costs --json", ">&-", 0),
    ("list costs --json", "2>&-", 0),
    ("list costs --json", "<&- >&- 2>&-", 0),
    ("list costs", "| head -c 1 >/dev/null", 0),
    ("list costs", ">/dev/full", 2),
    ("search nowhere.yaml", "2>/dev/full", 2),
    ("search nowhere.yaml", "2>&-", 2),
]


@pytest.mark.parametrize(("verb", "redirection", "code"), REDIRECTIONS)
def test_redirections_of_a_process(verb: str, redirection: str, code: int) -> None:
    command = f"set -o pipefail; {sys.executable} -m amcsearch {verb} {redirection}"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    assert subprocess.run(["bash", "-c", command], check=False, env=environment).returncode == code
