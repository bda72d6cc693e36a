"""Observers of a run: phases, epochs and trials as they happen, and how long each phase takes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from amcsearch.core import Trial

__all__ = ["Observer", "Phases"]


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


class Phases:
    """Announces phases to an observer, logs them, and keeps their wall time: ``seconds`` by phase name."""

    def __init__(self, observer: Observer, log: Callable[[Mapping[str, str | float]], None]) -> None:
        self.observer = observer
        self.seconds: dict[str, float] = {}
        self._log = log

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        """Time one phase."""
        self.observer.phase(text)
        self._log({"phase": name, "state": "begun"})
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._log({"phase": name, "state": "done", "seconds": self.seconds[name]})
