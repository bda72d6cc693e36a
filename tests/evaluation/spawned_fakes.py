"""Evaluators that worker processes can import; a program too, for the tests that kill it."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

from amcsearch.core.policy import PruningPolicy
from amcsearch.core.trial import Evaluation


class Echo:
    """Loss = kept channels."""

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        if policy["g"] == 13:
            raise ValueError("thirteen is refused")
        return Evaluation(metric=0.5, loss=float(policy["g"]), seconds=0.0)


class Threads:
    """Loss = torch threads."""

    def __setstate__(self, state: dict[str, object]) -> None:
        import torch

        self.torch = torch

    def __getstate__(self) -> dict[str, object]:
        return {"torch": "imported by whoever loads this"}

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        import torch

        return Evaluation(metric=0.5, loss=float(torch.get_num_threads()), seconds=0.0)


class Deadly(Echo):
    """Policy 1 kills its worker, as often as ``folder`` has room for marks."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder = folder
        self.times = times

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        marks = len(list(self.folder.iterdir()))
        if policy["g"] == 1 and marks < self.times:
            (self.folder / str(marks)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(policy)


class Loaded(Echo):
    """Marks in ``folder`` where it is loaded, by the number of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, object]) -> None:
        self.folder = state["folder"]
        (self.folder / f"{os.getpid()}-{len(list(self.folder.iterdir()))}").touch()


class Unloadable:
    """Cannot be loaded by a worker."""

    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("no such weights")


class DeadOnArrival:
    """Kills the worker that loads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return _die, ()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Endless(Echo):
    """Policy 1 never ends, and says when it began."""

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        if policy["g"] == 1:
            os.write(1, b"begun\n")
            signal.pause()
        return super().evaluate(policy)


class Reporting(Echo):
    """Policy 1 says when it began, then waits until its parent has gone."""

    def evaluate(self, policy: PruningPolicy) -> Evaluation:
        parent = multiprocessing.parent_process()
        assert parent is not None
        os.write(1, b"begun\n")
        while parent.is_alive():
            os.sched_yield()
        return super().evaluate(policy)


if __name__ == "__main__":
    import spawned_fakes  # under its own name, so that workers find the classes

    from amcsearch.evaluation.executors import ProcessExecutor

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a batch system may have started us with it ignored
    with ProcessExecutor(getattr(spawned_fakes, sys.argv[1])(), workers=2) as executor:
        list(executor.map([PruningPolicy({"g": 1}), PruningPolicy({"g": 2})]))
