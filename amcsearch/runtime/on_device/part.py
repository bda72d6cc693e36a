"""One part of a measurement, from the start of the program to its end: what is written, and what is said meanwhile."""

from __future__ import annotations

import math
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from amcsearch.runtime.on_device.done import Done
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.plan import DevicePlan, Entry
from amcsearch.runtime.on_device.pool import SessionPool, memory_budget
from amcsearch.runtime.on_device.records import Journal
from amcsearch.runtime.on_device.session import CPU
from amcsearch.runtime.on_device.timing import Clock

__all__ = ["BLOCK_MODELS", "MS_PER_S", "WARMUP_MS", "Part", "Report", "Settings"]

Report = Callable[[float, str], None]
"""Called with the share done, in [0, 1], and what is being done."""

BLOCK_MODELS = 24  # measured in the same rounds; a run that is killed loses one block
WARMUP_MS = 10.0
S_PER_MIN = 60.0
MS_PER_S = 1e3


class Settings(NamedTuple):
    """How to run a plan: ``minutes`` bounds this run (None: until all is done), ``memory`` the bytes of sessions."""

    threads: int = 1
    provider: str = CPU
    minutes: float | None = None
    memory: int | None = None


class Part:
    """What every phase needs: the plan, what is done, open sessions, the clock and the result file."""

    def __init__(
        self, plan: DevicePlan, journal: Journal, settings: Settings, clock: Clock, report: Report | None
    ) -> None:
        self.plan, self.settings, self.clock = plan, settings, clock
        self._journal, self._report = journal, report
        self.done = Done(plan, journal.records)
        self.pool = SessionPool(plan, settings.threads, settings.provider, settings.memory or memory_budget())
        self.rounds, self.sample_ms = int(plan.plan["rounds"]), float(plan.plan["sample_ms"])
        self.seed, self.profile_rounds = int(plan.plan["seed"]), int(plan.plan["profile_rounds"])
        self.started = clock.now()
        self.deadline = math.inf if settings.minutes is None else self.started + S_PER_MIN * settings.minutes
        self._first_work = self.done.work()[0]

    @property
    def seconds(self) -> float:
        """Since the start of the part."""
        return self.clock.now() - self.started

    @property
    def seconds_left(self) -> float:
        """Until the deadline, infinite without one."""
        return self.deadline - self.clock.now()

    def write(self, kind: str, content: Mapping[str, Any]) -> None:
        """Append a record and sync it.

        Raises:
            DeviceError: the disk is full or broken.
        """
        record = {"kind": kind, **content}
        self._journal.append(record)
        self.done.add(record)

    def fail(self, entry: Entry, error: DeviceError) -> None:
        """Leave a model out and record why.

        Raises:
            DeviceError: the model is a reference: without it the network cannot be measured at all.
        """
        if entry.id == entry.reference:
            raise DeviceError(f"reference model {entry.id}: {error}") from error
        self.write("failed", {"model": entry.id, "reason": str(error)})

    def say(self, what: str, extra: float = 0.0, references: Sequence[str] = ()) -> None:
        """Report; ``extra`` is the work done of the block under way, ``references`` those of its drift."""
        if self._report is None:
            return
        done, planned = self.done.work()
        made = done + extra - self._first_work
        left = self.seconds * max(planned - done - extra, 0.0) / made if made > 0 else math.inf
        left = max(min(left, self.seconds_left), 0.0)
        time_left = f", {left / S_PER_MIN:.1f} min left" if math.isfinite(left) else ""
        drift = f", drift {self.done.drift.ratio(references) - 1:+.1%}" if references else ""
        self._report(min((done + extra) / planned, 1.0), what + time_left + drift)
