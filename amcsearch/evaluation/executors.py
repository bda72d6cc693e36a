"""Executors: evaluate policies in this process, or in worker processes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from amcsearch.core import BadInputError, Evaluation, PruningPolicy, check_interrupt
from amcsearch.evaluation.worker import CanEvaluate, Worker, WorkerStartError, pickled

__all__ = ["MAX_DEATHS", "Executor", "ProcessExecutor", "SerialExecutor", "executor_of"]

MOST_PROCESSES = 1024  # and threads of each
MAX_DEATHS = 3  # workers one policy may kill in a row


class Executor(Protocol):
    """Evaluates batches of policies.

    Promise: ``map`` yields one evaluation a policy, in the order given, each as soon as it and all before it are done.
    The evaluations are the same on every executor with the same number of threads. ``close`` ends everything that the
    executor started; a second call does nothing.
    """

    @property
    def capacity(self) -> int:
        """How many policies it evaluates at once."""
        ...

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
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

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``."""
        for policy in policies:
            check_interrupt()
            with _torch_threads(self._threads):
                evaluation = self._evaluator.evaluate(policy)
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

    def __init__(self, evaluator: CanEvaluate, workers: int, threads: int = 1) -> None:
        self.capacity = _checked("workers", workers)
        self._threads = _checked("threads", threads)
        self._payload = pickled(evaluator)
        self._workers: list[Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> "ProcessExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, policies: Sequence[PruningPolicy]) -> Iterator[Evaluation]:
        """Yield evaluations in the order of ``policies``.

        Raises:
            BadInputError: a policy that killed three workers in a row, or workers that die while starting.
            Exception: whatever the evaluation of a policy raised.
        """
        waiting = list(range(len(policies)))[::-1]
        deaths = [0] * len(policies)
        done: dict[int, Evaluation] = {}
        finished = False
        try:
            for wanted in range(len(policies)):
                while wanted not in done:
                    check_interrupt()
                    self._fill(len(waiting), policies, waiting)
                    self._collect(policies, waiting, deaths, done)
                yield done.pop(wanted)
            finished = True
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

    def _fill(self, wanted: int, policies: Sequence[PruningPolicy], waiting: list[int]) -> None:
        """Start missing workers and give every idle one a policy."""
        busy = sum(worker.task is not None for worker in self._workers)
        while len(self._workers) < min(self.capacity, busy + wanted):
            self._workers.append(Worker(self._payload, self._threads))
        for worker in self._workers:
            if worker.is_ready and worker.task is None and waiting:
                task = waiting.pop()
                worker.give(task, policies[task])

    def _collect(
        self,
        policies: Sequence[PruningPolicy],
        waiting: list[int],
        deaths: list[int],
        done: dict[int, Evaluation],
    ) -> None:
        """Wait until a worker answers or dies, and record the result."""
        for worker in Worker.wait(self._workers):
            task = worker.task
            try:
                answer = worker.take()
            except WorkerStartError as error:
                raise BadInputError(f"a worker process could not start: {error}; try 1 worker") from error
            except EOFError:
                self._bury(worker)
                if task is not None:
                    waiting.append(task)
                    deaths[task] += 1
                    if deaths[task] == MAX_DEATHS:
                        raise BadInputError(_killed(f"policy {policies[task].to_json()}", worker.exit_code)) from None
                continue
            if answer is not None and task is not None:
                done[task] = answer

    def _bury(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.join()
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts == MAX_DEATHS:
            raise BadInputError(_killed("starting", worker.exit_code))


def executor_of(evaluator: CanEvaluate, workers: int) -> Executor:
    """Return what evaluates policies: this process, or so many worker processes.

    Raises:
        BadInputError: as ``ProcessExecutor``.
    """
    return SerialExecutor(evaluator) if workers == 1 else ProcessExecutor(evaluator, workers)


def _killed(what: str, exit_code: int | None) -> str:
    return (
        f"{what} killed {MAX_DEATHS} worker processes in a row (exit code {exit_code}; -9 is usually out of memory); "
        "use fewer workers or a smaller evaluation batch"
    )


def _checked(name: str, value: int) -> int:
    if not 1 <= value <= MOST_PROCESSES:
        cores = f"this machine has {os.cpu_count()} cores"
        raise BadInputError(f"{name} = {value}, must be at least 1 and at most {MOST_PROCESSES} ({cores})")
    return value


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
