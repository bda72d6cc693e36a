"""Executors: evaluate policies in this process, or in worker processes."""

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import torch

from amcsearch.core import BadInputError, Evaluation, PruningPolicy, check_interrupt
from amcsearch.evaluation.worker import (
    CURE,
    MAX_DEATHS,
    NO_INCUMBENTS,
    CanEvaluate,
    Deaths,
    Incumbents,
    PolicySource,
    Request,
    Worker,
    WorkerStartError,
    pickled,
    prepare_workers,
    request_of,
)

__all__ = ["Engine", "Executor", "ProcessExecutor", "SerialExecutor"]

_log = logging.getLogger(__name__)

MOST_PROCESSES = 1024  # and threads of each


class Executor(Protocol):
    """Evaluates batches of policies.

    Promise: ``map`` yields one evaluation a policy, in the order given, each as soon as it and all before it are done.
    It takes a policy when a worker is idle, and hands it out before it takes the next: making policies may take time.
    None among ``policies`` says that there is no other now; after the next evaluation it asks again, and ends where
    nothing is under way. ``incumbents``, which may grow, holds what a policy has to beat, for the evaluator.
    The evaluations are the same on every executor with the same number of threads. A policy that kills its workers has
    an evaluation without numbers (``Deaths``). ``close`` ends everything that the executor started; a second call does
    nothing.
    """

    @property
    def capacity(self) -> int:
        """How many policies it evaluates at once."""
        ...

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


class SerialExecutor:
    """Evaluates in this process, one after the other, on ``threads`` torch threads (restored after each)."""

    def __init__(self, evaluator: CanEvaluate, threads: int = 1) -> None:
        self.capacity = 1
        self._evaluator = evaluator
        self._threads = _checked("threads", threads)

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``."""
        for policy in policies:
            if policy is None:
                return
            check_interrupt()
            with _torch_threads(self._threads):
                evaluation = self._evaluator.evaluate(*request_of(policy, incumbents))
            yield evaluation

    def close(self) -> None:
        """Nothing to end."""


class ProcessExecutor:
    """Evaluates in ``workers`` spawned processes of ``threads`` torch threads each; also a context manager.

    The evaluator is sent to a worker once, when it starts. A worker that dies (out of memory, ``kill -9``) is replaced
    and its policy is tried again. Workers start with the first ``map`` and stay until ``close``; they also end when
    this process does, however it ends.

    Raises:
        BadInputError: fewer than 1 worker or thread, or an evaluator that cannot be sent.
    """

    def __init__(
        self, evaluator: CanEvaluate, workers: int, threads: int = 1, warn: Callable[[str], None] = _log.warning
    ) -> None:
        self.capacity = _checked("workers", workers)
        self._threads = _checked("threads", threads)
        self._payload = pickled(evaluator)
        self._workers: list[Worker] = []
        self._failed_starts = 0
        self._deaths = Deaths(warn)

    def __enter__(self) -> "ProcessExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, policies: PolicySource, incumbents: Incumbents = NO_INCUMBENTS) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``.

        Raises:
            BadInputError: as ``Deaths.record``, or workers that die while starting.
            Exception: whatever the evaluation of a policy raised.
        """
        tasks, source = _Tasks(), iter(policies)
        finished = True
        try:
            for wanted in count():
                while wanted not in tasks.done:
                    check_interrupt()
                    is_new = self._take(source, incumbents, tasks)
                    if wanted == len(tasks.requests):
                        return
                    finished = False
                    self._fill(tasks)
                    self._collect(tasks, waits=not is_new)
                while self._take(source, incumbents, tasks):
                    self._fill(tasks)  # nobody waits while the result is stored
                finished = wanted == len(tasks.requests) - 1  # a reader may take this result and ask no more
                yield tasks.done.pop(wanted)
        finally:
            if not finished:  # an error, Ctrl-C, or a reader that stopped early: nobody waits for what is under way
                self.close()

    def close(self) -> None:
        """End all workers, also in the middle of an evaluation."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()

    def _take(self, source: Iterator[PruningPolicy | None], incumbents: Incumbents, tasks: "_Tasks") -> bool:
        """Take the next policy, where a worker can evaluate it at once; false where there is none."""
        if self._busy() + len(tasks.waiting) >= self.capacity or (policy := next(source, None)) is None:
            return False
        tasks.waiting.append(len(tasks.requests))
        tasks.requests.append(request_of(policy, incumbents))
        return True

    def _busy(self) -> int:
        return sum(worker.task is not None for worker in self._workers)

    def _fill(self, tasks: "_Tasks") -> None:
        """Start missing workers and give every idle one a policy."""
        while len(self._workers) < min(self.capacity, self._busy() + len(tasks.waiting)):
            self._workers.append(Worker(self._payload, self._threads))
        for worker in self._workers:
            if worker.is_ready and worker.task is None and tasks.waiting:
                task = tasks.waiting.popleft()
                worker.give(task, tasks.requests[task])

    def _collect(self, tasks: "_Tasks", *, waits: bool) -> None:
        """Record the results of workers that have answered or died; ``waits`` until one has."""
        for worker in Worker.wait(self._workers, None if waits else 0.0):
            task = worker.task
            try:
                answer = worker.take()
            except WorkerStartError as error:
                raise BadInputError(f"a worker process could not start: {error}; try 1 worker") from error
            except EOFError:
                self._bury(worker)
                if task is not None:
                    tasks.deaths[task] += 1
                    if tasks.deaths[task] < MAX_DEATHS:
                        tasks.waiting.appendleft(task)
                    else:
                        tasks.done[task] = self._deaths.record(tasks.requests[task][0], _killed(worker.exit_code))
                continue
            if answer is not None and task is not None:
                self._deaths.survived()
                tasks.done[task] = answer

    def _bury(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.join()
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts == MAX_DEATHS:
            raise BadInputError(f"starting {_killed(worker.exit_code)}; {CURE}")


@dataclass
class _Tasks:
    """Policies that were taken, by their place in the order; ``waiting`` are those that no worker has."""

    requests: list[Request] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    deaths: Counter[int] = field(default_factory=Counter)
    done: dict[int, Evaluation] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """What evaluates policies: this process, so many worker processes, or the cluster of a Dask scheduler.

    Raises:
        BadInputError: fewer than 1 worker, workers and a scheduler, or as ``check_scheduler``.
    """

    workers: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        _checked("workers", self.workers)
        if self.scheduler is None:
            return
        if self.workers > 1:
            raise BadInputError(
                f"workers = {self.workers} and scheduler = {self.scheduler}: a scheduler has its own; leave one out"
            )
        from amcsearch.evaluation.cluster import check_scheduler  # Dask is an extra

        check_scheduler(self.scheduler)

    @property
    def sends(self) -> bool:
        """Whether the evaluator leaves this process."""
        return self.workers > 1 or self.scheduler is not None

    def prepare(self) -> None:
        """Begin what takes seconds and needs no evaluator."""
        if self.workers > 1:
            prepare_workers()

    def executor(self, evaluator: CanEvaluate, warn: Callable[[str], None] = _log.warning) -> Executor:
        """Return the executor; ``warn`` is told of policies that fail because they kill workers.

        Raises:
            BadInputError: as ``ProcessExecutor`` or ``ClusterExecutor``.
        """
        if self.scheduler is not None:
            from amcsearch.evaluation.cluster import ClusterExecutor

            return ClusterExecutor(evaluator, self.scheduler, warn)
        return SerialExecutor(evaluator) if self.workers == 1 else ProcessExecutor(evaluator, self.workers, warn=warn)


def _killed(exit_code: int | None) -> str:
    return f"killed {MAX_DEATHS} worker processes in a row (exit code {exit_code}; -9 is usually out of memory)"


def _checked(name: str, value: int) -> int:
    if not isinstance(value, int) or not 1 <= value <= MOST_PROCESSES:
        cores = f"this machine has {os.cpu_count()} cores"
        raise BadInputError(f"{name} = {value!r}, must be at least 1 and at most {MOST_PROCESSES} ({cores})")
    return value


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
