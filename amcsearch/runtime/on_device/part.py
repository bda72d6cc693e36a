"""One part of a measurement: its settings, its open sessions, its records and its progress.

Sessions stay open between passes as long as they fit into memory.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

from amcsearch.runtime.on_device.done import Done
from amcsearch.runtime.on_device.engine import Engine
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.plan import DevicePlan, Entry
from amcsearch.runtime.on_device.providers import CPU
from amcsearch.runtime.on_device.records import Journal
from amcsearch.runtime.on_device.session import Call, input_array
from amcsearch.runtime.on_device.timing import Clock

if TYPE_CHECKING:  # older numpy lacks it
    from numpy.typing import NDArray

__all__ = ["BLOCK_MODELS", "MS_PER_S", "WARMUP_MS", "Part", "Report", "SessionPool", "Settings", "memory_budget"]

SESSION_BYTES = 4 * 2**20  # of a session besides its weights
COPIES = 3  # of a model's weights the runtime holds while it opens a session
LEAST_BUDGET, MOST_BUDGET = 64 * 2**20, 2 * 2**30


def memory_budget() -> int:
    """Bytes that sessions may take: half of what is available, 2 GiB at most."""
    try:
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        match = None
    available = int(match[1]) * 1024 if match else MOST_BUDGET
    return max(LEAST_BUDGET, min(MOST_BUDGET, available // 2))


class SessionPool:
    """Opens the plan's models and keeps the first that fit: half of the budget for those, half for a block's others.

    The first, because each pass asks in the same order: keeping the last used would close each one just before it is
    wanted again.
    """

    def __init__(self, plan: DevicePlan, engine: Engine, budget: int) -> None:
        self.plan, self.engine, self._budget = plan, engine, budget
        self._open: dict[str, Call] = {}
        self._kept: set[str] = set()
        self._kept_bytes = 0
        self._inputs: dict[str, list[NDArray[np.generic]]] = {}

    def cost(self, entry: Entry) -> int:
        """Bytes the entry's session takes, estimated."""
        return COPIES * self.plan.model_bytes(entry) + SESSION_BYTES

    def inputs(self, network: str) -> Sequence[NDArray[np.generic]]:
        """The network's inputs, in order."""
        if network not in self._inputs:
            specs = self.plan.inputs[network]
            self._inputs[network] = [input_array(spec.shape, spec.dtype, spec.high) for spec in specs]
        return self._inputs[network]

    def first_that_fit(self, entries: Sequence[Entry], most: int) -> list[Entry]:
        """The first entries, ``most`` of them at most, that can be open together besides those kept; one at least."""
        chosen: list[Entry] = []
        total = 0
        for entry in entries[:most]:
            total += 0 if entry.id in self._kept else self.cost(entry)
            if chosen and total > self._budget // 2:
                break
            chosen.append(entry)
        return chosen

    def call(self, entry: Entry) -> Call:
        """A call that runs the entry's model once.

        Raises:
            DeviceError: the model cannot be opened or run.
        """
        if entry.id not in self._open:
            self._open[entry.id] = self.engine.call(self.plan.model(entry), self.inputs(entry.network))
        return self._open[entry.id]

    def release(self) -> None:
        """End a block: close the sessions that do not fit."""
        for name in [name for name in self._open if name not in self._kept]:
            cost = self.cost(self.plan.by_id[name])
            if self._kept_bytes + cost <= self._budget // 2:
                self._kept.add(name)
                self._kept_bytes += cost
            else:
                del self._open[name]


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
        self,
        plan: DevicePlan,
        journal: Journal,
        settings: Settings,
        engine: Engine,
        clock: Clock,
        report: Report | None,
    ) -> None:
        self.plan, self.engine, self.clock = plan, engine, clock
        self._journal, self._report = journal, report
        self.done = Done(plan, journal.records, engine.is_profiled)
        self.pool = SessionPool(plan, engine, settings.memory or memory_budget())
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

    def say(self, action: str, extra: float = 0.0, references: Sequence[str] = ()) -> None:
        """Report; ``extra`` is the work done of the block under way, ``references`` those of its drift."""
        if self._report is None:
            return
        done, planned = self.done.work()
        made = done + extra - self._first_work
        left = self.seconds * max(planned - done - extra, 0.0) / made if made > 0 else math.inf
        left = max(min(left, self.seconds_left), 0.0)
        time_left = f", {left / S_PER_MIN:.1f} min left" if math.isfinite(left) else ""
        drift = f", drift {self.done.drift.ratio(references) - 1:+.1%}" if references else ""
        self._report(min((done + extra) / planned, 1.0), action + time_left + drift)
