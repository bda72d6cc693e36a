"""The process that runs one job for a worker: it reads the job from standard input and tells what happens in lines.

Each line is a ``Message`` as JSON. What the job itself prints goes to standard error, the job's ``output.log``. SIGTERM
stops the job so that it can be resumed. When the worker dies, standard input ends, and the process kills its session.
"""

import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from amcsearch.core import (
    BadInputError,
    Cost,
    DeviceAwayError,
    InfeasibleBudgetError,
    PruningPolicy,
    Trial,
    guarded_job,
    interruptible,
    printable,
)
from amcsearch.runs import MetricRecord, StoredDocument, make_folder
from amcsearch.service.devices import devices_of_job
from amcsearch.service.job_kinds import request_of
from amcsearch.service.job_request import JobEngine, JobRequest
from amcsearch.service.records import MOST_IMPROVEMENTS, MOST_WARNINGS, BestSoFar, JobProblem, JobProgress, problem_of
from amcsearch.service.trial_points import TrialPoints

__all__ = ["RUN", "Message", "main"]

RUN: Final = "run"
"""The run folder inside the folder of a job; beside it lies what the job printed."""
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)
_EVERY_S: Final = 0.2  # between two messages of progress
_DRAWN_EVERY_S: Final = 1.0  # between two pictures of all trials
_BUSY_S: Final = 20.0  # that the process of an earlier attempt may take to die


@dataclass(frozen=True)
class Message(StoredDocument):
    """What happened: progress, or one of the ends.

    ``device`` is one without which the job cannot go on; ``is_busy`` where the process of an earlier attempt still
    lives.
    """

    progress: JobProgress | None = None
    result: Mapping[str, object] | None = None
    problem: JobProblem | None = None
    device: str | None = None
    is_stopped: bool = False
    is_busy: bool = False


class _Reporter:
    """The ``Observer`` of a job: keeps its progress, and tells it now and then."""

    def __init__(self, stream: IO[str], folder: Path) -> None:
        self._stream, self._folder, self._progress = stream, folder, JobProgress()
        self._told_s = self._drawn_s = -_DRAWN_EVERY_S
        self._search, self._first = ("", 0), (0, 0.0)
        self._points = TrialPoints()

    def phase(self, text: str) -> None:
        """Begin a phase of the run."""
        self._progress = replace(self._progress, phase=text, text="", share=None)
        self._tell(at_once=True)

    def warn(self, text: str) -> None:
        """Say something the user should know."""
        if text not in self._progress.warnings and len(self._progress.warnings) < MOST_WARNINGS:
            self._progress = replace(self._progress, warnings=(*self._progress.warnings, text))
            self._tell(at_once=True)

    def epoch(self, epoch: int, loss: float) -> None:
        """End an epoch of training."""
        self._progress = replace(self._progress, text=f"epoch {epoch}: loss {loss:.4f}")
        self._tell()

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int) -> None:
        """End one evaluation."""
        now = time.monotonic()
        if self._search != (trial.agent, trial.seed):  # each counts its own evaluations
            self._search, self._first = (trial.agent, trial.seed), (done, now)
            self._progress = replace(self._progress, best=None, improvements=())
        self._points.add(trial)
        first, begun = self._first
        per_s = (done - first) / (now - begun) if now > begun else None
        improvements, earlier = self._progress.improvements, self._progress.best
        if best is not None and (earlier is None or earlier.trial != best.number):
            improvements = (*improvements, (float(done), best.evaluation.metric))[-MOST_IMPROVEMENTS:]
        self._progress = replace(
            self._progress,
            text=f"{trial.agent} trial {done}/{total}",
            evaluations=done,
            total=total,
            evaluations_per_s=per_s,
            best=None if best is None else _best(best),
            improvements=improvements,
        )
        self._tell(at_once=done == total)

    def network(self, dense: PruningPolicy, cost: Cost, limits: Mapping[str, float]) -> None:
        """Take the channels and costs of the dense network, and the most that a policy may cost."""
        self._points.network(cost, limits)
        self._progress = replace(self._progress, dense=dict(dense))

    def progress(self, share: float, text: str) -> None:
        """Take a step of a measurement."""
        self._progress = replace(self._progress, share=share, text=text)
        self._tell()

    def _tell(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() >= self._told_s + _EVERY_S:
            self._told_s = time.monotonic()
            self._draw(at_once=at_once)
            _say(self._stream, Message(progress=self._progress))

    def _draw(self, *, at_once: bool) -> None:
        if self._search[0] and (at_once or time.monotonic() >= self._drawn_s + _DRAWN_EVERY_S):
            self._drawn_s = time.monotonic()
            with suppress(BadInputError):  # a picture alone; a full disk ends the job elsewhere
                self._points.write(self._folder)


def _best(trial: Trial) -> BestSoFar:
    judged_by = MetricRecord.of(trial.judged_by)
    return BestSoFar(trial.number, trial.evaluation.metric, judged_by, dict(trial.cost), dict(trial.policy))


def _say(stream: IO[str], message: Message) -> None:
    stream.write(json.dumps(message.to_json(), allow_nan=False) + "\n")
    stream.flush()


def main() -> None:
    """Run the job that standard input names, and end the process."""
    lines = os.fdopen(os.dup(0))
    messages = os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    task = json.loads(lines.readline())
    threading.Thread(target=_die_with_worker, args=(lines,), daemon=True).start()
    engine = JobEngine(**task["engine"])
    _say(messages, _done(task["kind"], task["request"], Path(task["folder"]), messages, task["database"], engine))
    sys.stdout.flush()
    os._exit(0)


def _die_with_worker(lines: IO[str]) -> None:
    """Wait until the worker's end of standard input closes, which it does also when the worker is killed."""
    lines.read()
    os.killpg(0, signal.SIGKILL)


def _done(
    kind: str, stored: Mapping[str, object], folder: Path, messages: IO[str], database: str, engine: JobEngine
) -> Message:
    """Run the job and return how it ended."""
    try:
        with interruptible(*_STOPS, replace=True), guarded_job(*_STOPS), (folder / ".lock").open("w") as lock:
            if not _taken(lock):
                return Message(is_busy=True)
            request = request_of(kind, stored)
            with devices_of_job(request, folder.name, database):
                return Message(result=_result(request, folder / RUN, messages, engine))
    except KeyboardInterrupt:
        return Message(is_stopped=True)
    except DeviceAwayError as error:
        return Message(device=error.device)
    except (BadInputError, InfeasibleBudgetError) as error:
        return Message(problem=problem_of(error))
    except Exception as error:
        traceback.print_exc()
        line = printable(" ".join(str(error).split())[:500])
        detail = f"the job raised {type(error).__name__}: {line}; its output.log has the traceback"
        return Message(problem=JobProblem("internal", detail))


def _result(request: JobRequest, run: Path, messages: IO[str], engine: JobEngine) -> Mapping[str, object]:
    make_folder(run.parent)
    return request.run(run, _Reporter(messages, run.parent), engine)


def _taken(lock: IO[str]) -> bool:
    """Wait for the lock of the job's folder, which the process of an earlier attempt holds until it is dead."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


if __name__ == "__main__":
    main()
