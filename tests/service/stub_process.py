"""The process of a job whose kind is ``stub``: a few evaluations, each a line in a file, and whatever may go wrong."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from amcsearch.core import (
    BadInputError,
    Cost,
    DeviceAwayError,
    Evaluation,
    InfeasibleBudgetError,
    PruningPolicy,
    Trial,
    TrialState,
    check_interrupt,
)
from amcsearch.service import job_kinds
from amcsearch.service.job_process import main
from amcsearch.service.job_request import ConfiguredRequest, JobEngine


@dataclass(frozen=True)
class StubRequest(ConfiguredRequest):
    """``evaluations`` of which each takes ``pause_s``; at the end, ``does``."""

    evaluations: int = 3
    pause_s: float = 0.0
    does: str = "end"

    def run(self, folder: Path, observer, engine: JobEngine) -> Mapping[str, object]:
        folder.mkdir(parents=True, exist_ok=True)
        stored = folder / "evaluations.txt"
        (folder / "process").write_text(str(os.getpid()))
        observer.network(PruningPolicy({"conv": 99}), Cost({"macs": 10.0}), {})
        observer.phase("Searching")
        sys.stdout.write("what the job prints\n")
        sys.stdout.flush()
        done = len(stored.read_text().splitlines()) if stored.exists() else 0
        for number in range(done, self.evaluations):
            check_interrupt()
            time.sleep(self.pause_s)
            with stored.open("a") as lines:  # as a run folder: what is evaluated is stored at once
                lines.write(f"{number}\n")
            trial = Trial(
                *(number, "stub", 0, TrialState.COMPLETE, PruningPolicy({"conv": number + 1})),
                *(Evaluation(0.9, 0.1, 0.0), Cost({"macs": 5.0}), 0.9),
            )
            observer.trial(trial, trial, number + 1, self.evaluations)
        return ENDS[self.does](stored)


def end(stored: Path) -> Mapping[str, object]:
    return {"evaluations": len(stored.read_text().splitlines()), "nan": float("nan")}


def refuse(stored: Path) -> Mapping[str, object]:
    raise BadInputError("search.trials = 0; expected a number above 0")


def refuse_file(stored: Path) -> Mapping[str, object]:
    raise BadInputError(f"{stored} cannot be read; send another one")


def find_nothing(stored: Path) -> Mapping[str, object]:
    raise InfeasibleBudgetError("budget.macs = 0.01x: the smallest is 0.1x")


def lack_device(stored: Path) -> Mapping[str, object]:
    mark = stored.parent / "lacked"
    if mark.exists():
        return end(stored)
    mark.touch()
    raise DeviceAwayError("device pi5 is away; start its agent", "pi5")


def break_down(stored: Path) -> Mapping[str, object]:
    raise RuntimeError("no such\nthing")


def die(stored: Path) -> Mapping[str, object]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def die_once(stored: Path) -> Mapping[str, object]:
    mark = stored.parent / "died"
    if mark.exists():
        return end(stored)
    mark.touch()
    return die(stored)


def swell(stored: Path) -> Mapping[str, object]:
    held = b"x" * (400 * 2**20)
    wait(stored)
    return {"bytes": len(held)}


def spread(stored: Path) -> Mapping[str, object]:
    for _ in range(4):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return wait(stored)


def wait(stored: Path) -> Mapping[str, object]:
    (stored.parent / "waits").touch()
    while True:
        time.sleep(0.01)


def hang(stored: Path) -> Mapping[str, object]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return wait(stored)


ENDS = {
    f.__name__: f
    for f in (end, refuse, refuse_file, find_nothing, lack_device, break_down, die, die_once, swell, spread, wait, hang)
}

if __name__ == "__main__":
    job_kinds.KINDS["stub"] = StubRequest
    main()
