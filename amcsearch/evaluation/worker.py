"""A worker process: loads the evaluator once, then evaluates one policy at a time over a pipe.

We start processes ourselves and do not use ``concurrent.futures``. When a worker of its pool dies, the pool cannot say
which policy that worker had, and it abandons all other policies too.

Workers are forked from one server process (``multiprocessing``'s), which has imported torch and nothing of this job: an
import takes 2.3 s of processor time, a fork none. ``prepare_workers`` starts the server, which then imports beside the
first steps of a job. Nothing is forked from this process, whose threads would not survive it.

The child blocks SIGINT (it inherits the signal mask it was started under), so that Ctrl-C is the parent's to handle,
and it ends by itself when the parent's end of the pipe closes, also after ``kill -9`` of the parent.
"""

import math
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import Final, Protocol

from amcsearch.core import (
    BadInputError,
    Evaluation,
    Incumbent,
    PruningPolicy,
    UserCode,
    described,
    keep_freed_memory,
)

__all__ = [
    "CURE",
    "MAX_DEATHS",
    "NO_INCUMBENTS",
    "CanEvaluate",
    "Deaths",
    "Incumbents",
    "PolicySource",
    "Request",
    "Worker",
    "WorkerStartError",
    "answer",
    "pickled",
    "prepare_workers",
    "request_of",
]

MAX_DEATHS: Final = 3
"""Workers that one policy may kill in a row."""
CURE: Final = "use fewer workers or a smaller evaluation batch"


_GRACE_S = 2.0  # between SIGTERM and SIGKILL


Incumbents = Mapping[PruningPolicy, Incumbent]
"""What policies have to beat."""
NO_INCUMBENTS: Final[Incumbents] = MappingProxyType({})

PolicySource = Iterable[PruningPolicy | None]
"""Policies to evaluate, in order; None: no other now."""

Request = tuple[PruningPolicy] | tuple[PruningPolicy, Incumbent]
"""What ``CanEvaluate.evaluate`` is given."""


def request_of(policy: PruningPolicy, incumbents: Incumbents) -> Request:
    """Join a policy with its incumbent, where it has one."""
    return (policy, incumbents[policy]) if policy in incumbents else (policy,)


class WorkerStartError(RuntimeError):
    """The worker could not load the evaluator; the message says why."""


class CanEvaluate(Protocol):
    """All that executors know of an ``Evaluator``."""

    @property
    def evaluate(self) -> Callable[..., Evaluation]:
        """Gives what a policy is worth; one that can stop early takes an incumbent, too."""
        ...


def pickled(evaluator: object) -> bytes:
    """Return an evaluator, or the network in it, as bytes for workers.

    Raises:
        BadInputError: it cannot be pickled: names why and the cure.
    """
    try:
        return pickle.dumps(evaluator, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BadInputError(
            f"the model cannot be sent to worker processes ({error}); define its classes at the top of an importable "
            "module, or use 1 worker"
        ) from error


def prepare_workers() -> None:
    """Start the process from which workers are forked, where it does not run; it imports while this process goes on."""
    multiprocessing.set_forkserver_preload(["amcsearch.evaluation"])
    with _interrupts_blocked():
        forkserver.ensure_running()


class Deaths:
    """Policies that kill every worker which evaluates them: each fails alone, unless nothing else succeeds."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._in_a_row = 0

    def survived(self) -> None:
        """Note that an evaluation succeeded."""
        self._in_a_row = 0

    def record(self, policy: PruningPolicy, reason: str) -> Evaluation:
        """Return the evaluation of a policy that killed its workers, which is told.

        Raises:
            BadInputError: it is the third such policy in a row: the fault is not theirs.
        """
        self._in_a_row += 1
        if self._in_a_row == MAX_DEATHS:
            raise BadInputError(f"policy {policy.to_json()} {reason}, as {MAX_DEATHS - 1} before it; {CURE}")
        self._warn(f"policy {policy.to_json()} {reason}; it is recorded as failed")
        return Evaluation(metric=math.nan, loss=math.nan, seconds=math.nan)


class Worker:
    """A forked process and this side of its pipe; ``task`` is what it works on (None: nothing)."""

    def __init__(self, payload: bytes, threads: int) -> None:
        self.task: int | None = None
        self.is_ready = False
        prepare_workers()
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        with _interrupts_blocked():
            self._process.start()
        theirs.close()
        self._payload: bytes | None = payload

    @property
    def exit_code(self) -> int | None:
        """Exit code of the process; negative: the signal that killed it."""
        return self._process.exitcode

    @staticmethod
    def wait(workers: Sequence["Worker"], timeout_s: float | None = None) -> list["Worker"]:
        """Return the workers that have something to take, or have died; block until one has (None: without end)."""
        ready = wait([worker._connection for worker in workers], timeout_s)
        return [worker for worker in workers if worker._connection in ready]

    def give(self, task: int, request: Request) -> None:
        """Start the evaluation of a policy; a dead worker shows at ``take``."""
        self.task = task
        try:
            self._connection.send(request)
        except OSError:
            return

    def take(self) -> Evaluation | None:
        """Return the evaluation of the current task, or None where the worker only reported that it is ready.

        Raises:
            EOFError: the worker has died.
            WorkerStartError: it could not load the evaluator.
            Exception: whatever the evaluation raised.
        """
        try:
            answer = self._connection.recv()
            if self._payload is not None:  # the first word: it is up and asks for the evaluator
                self._connection.send_bytes(self._payload)
                self._payload = None
                return None
        except OSError as error:  # reset by peer: it died in the middle of a message
            raise EOFError from error
        if not self.is_ready:
            if isinstance(answer, str):
                raise WorkerStartError(answer)
            self.is_ready = True
            return None
        self.task = None
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Evaluation)
        return answer

    def terminate(self) -> None:
        """Ask the process to end; ``join`` makes sure."""
        self._connection.close()
        self._process.terminate()

    def join(self) -> None:
        """Wait for the end of the process, and force it where it takes too long."""
        self._process.join(_GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    resource_tracker.ensure_running()  # where it starts of itself, with the first child, it unblocks SIGINT
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(connection: Connection, threads: int) -> None:
    """Run in the worker: load the evaluator, report that it is ready, then answer policies until the pipe closes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a server that code of the user started does not
    keep_freed_memory()
    try:
        connection.send(None)
        try:
            evaluator: CanEvaluate = pickle.loads(connection.recv_bytes())
        except BaseException as error:  # code of the user runs here, too
            connection.send(described(error))
            return
        if "torch" in sys.modules:  # the evaluator brings it; this module alone would not need its seconds of importing
            sys.modules["torch"].set_num_threads(threads)
        connection.send(None)
        while True:
            connection.send(answer(evaluator, connection.recv()))
    except (EOFError, OSError):
        sys.exit(0)  # the parent has gone


def answer(evaluator: CanEvaluate, request: Request) -> Evaluation | Exception:
    """Return the evaluation, or what it raised in a form that can be sent back."""
    try:
        with UserCode("the evaluation of a policy"):
            return evaluator.evaluate(*request)
    except Exception as error:
        error.add_note("in a worker process:\n" + traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
