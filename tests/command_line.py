"""The command line in processes that are forked from one that has imported it: an import takes 5 s of processor time.

Signals, exit codes and what is printed are those of ``python -m amcsearch``. The process that forks them is that of
``multiprocessing``, which the evaluation's workers share; ``tests/conftest.py`` says what it imports.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CompletedProcess

from amcsearch.__main__ import run as run_process


def _serve(arguments: list[str], environment: Mapping[str, str], folder: str, printed: str) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        with open(Path(printed) / name, "w") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["amcsearch", *arguments]
    try:
        run_process()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


class CommandLine:
    """A command line that runs, with variables of its environment beside those of this process."""

    def __init__(self, arguments: Sequence[object], **environment: str) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self._printed = tempfile.TemporaryDirectory()
        given = (self.arguments, {**os.environ, **environment}, os.getcwd(), self._printed.name)
        self.process = multiprocessing.get_context("forkserver").Process(target=_serve, args=given)
        self.process.start()

    def ended(self, timeout_s: float | None = None) -> CompletedProcess[str] | None:
        """Wait until it has ended, at most so long; return its exit code and what it printed, None where it runs."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            return None
        out, errors = ((Path(self._printed.name) / name).read_text() for name in ("out", "err"))
        return CompletedProcess(self.arguments, self.process.exitcode, out, errors)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, where it runs."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


def run(arguments: Sequence[object], **environment: str) -> CompletedProcess[str]:
    """Run a command line to its end."""
    ended = CommandLine(arguments, **environment).ended()
    assert ended is not None
    return ended
