"""Observers of a run: phases, epochs and trials as they happen, and how long each phase takes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from amcsearch.core import CallersOwn, Cost, PruningPolicy, Trial, check_interrupt, give_back_freed_memory
from amcsearch.reporting import ProgressBar

__all__ = ["NetworkObserver", "Observer", "Phases", "tell_network", "wall_s", "watcher"]


class Observer(Protocol):
    """Told what a run is doing; the command line draws it, a service would stream it."""

    def phase(self, text: str) -> None:
        """Begin a phase of the run."""

    def warn(self, text: str) -> None:
        """Say something the user should know."""

    def epoch(self, epoch: int, loss: float) -> None:
        """End an epoch of training, counted from 1, with its mean loss in nats."""

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int) -> None:
        """End one evaluation; ``best`` is the best so far."""

    def progress(self, share: float, text: str) -> None:
        """Take a step of a measurement: ``share`` of it, from 0 to 1, is done; ``text`` says what comes."""


@runtime_checkable
class NetworkObserver(Protocol):
    """What an observer may have besides: it is told of the dense network before the first trial."""

    def network(self, dense: PruningPolicy, cost: Cost, limits: Mapping[str, float]) -> None:
        """Take the channels and costs of the dense network, and the most that a policy may cost, by cost."""


@dataclass(frozen=True)
class _CallersObserver(Observer):
    """Tells the observer of a caller; what that raises reaches the caller as it is, as a way to stop a run."""

    observer: Observer

    def phase(self, text: str) -> None:
        """Begin a phase of the run."""
        with CallersOwn():
            self.observer.phase(text)

    def warn(self, text: str) -> None:
        """Say something the user should know."""
        with CallersOwn():
            self.observer.warn(text)

    def epoch(self, epoch: int, loss: float) -> None:
        """End an epoch of training."""
        with CallersOwn():
            self.observer.epoch(epoch, loss)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int) -> None:
        """End one evaluation."""
        with CallersOwn():
            self.observer.trial(trial, best, done, total)

    def progress(self, share: float, text: str) -> None:
        """Take a step of a measurement."""
        with CallersOwn():
            self.observer.progress(share, text)

    def network(self, dense: PruningPolicy, cost: Cost, limits: Mapping[str, float]) -> None:
        """Pass it on to an observer that wants to know."""
        with CallersOwn():
            tell_network(self.observer, dense, cost, limits)


def tell_network(observer: Observer, dense: PruningPolicy, cost: Cost, limits: Mapping[str, float]) -> None:
    """Tell an observer of the dense network, if it has ``NetworkObserver``."""
    if isinstance(observer, NetworkObserver):
        observer.network(dense, cost, limits)


def watcher(observer: Observer | None) -> Observer:
    """Return what a job tells of its progress: the caller's observer, or a bar on stderr."""
    return ProgressBar() if observer is None else _CallersObserver(observer)


def wall_s(work: Callable[[], object]) -> float:
    """Do some work and return its wall time."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Phases:
    """Announces phases to an observer, logs them, and keeps their wall time: ``seconds`` by phase name."""

    def __init__(self, observer: Observer, log: Callable[[Mapping[str, str | float]], None]) -> None:
        self.observer = observer
        self.seconds: dict[str, float] = {}
        self._log = log

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        """Time one phase; an interruption that was caught on its way breaks off here at the latest.

        Memory that the phase has freed goes back to the system.
        """
        check_interrupt()
        self.observer.phase(text)
        self._log({"phase": name, "state": "begun"})
        start = time.perf_counter()
        yield
        give_back_freed_memory()
        self.seconds[name] = time.perf_counter() - start
        self._log({"phase": name, "state": "done", "seconds": self.seconds[name]})
