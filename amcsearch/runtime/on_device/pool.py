"""Sessions that stay open between passes as long as they fit into memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

import numpy as np

from amcsearch.runtime.on_device.plan import DevicePlan, Entry
from amcsearch.runtime.on_device.session import Call, bound_call, input_array, open_session

if TYPE_CHECKING:  # older numpy lacks it
    from numpy.typing import NDArray

__all__ = ["SessionPool", "memory_budget"]

SESSION_BYTES = 4 * 2**20  # of a session besides its weights
COPIES = 3  # of a model's weights the runtime holds while it opens a session
LEAST_BUDGET, MOST_BUDGET = 64 * 2**20, 2 * 2**30


def memory_budget() -> int:
    """Bytes that sessions may take: half of what is available, 2 GiB at most."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    available = int(found[1]) * 1024 if found else MOST_BUDGET
    return max(LEAST_BUDGET, min(MOST_BUDGET, available // 2))


class SessionPool:
    """Opens the plan's models and keeps the first that fit: half of the budget for those, half for a block's others.

    The first, because each pass asks in the same order: keeping the last used would close each one just before it is
    wanted again.
    """

    def __init__(self, plan: DevicePlan, threads: int, provider: str, budget: int) -> None:
        self.plan, self.threads, self.provider, self._budget = plan, threads, provider, budget
        self._open: dict[str, Call] = {}
        self._kept: set[str] = set()
        self._kept_bytes = 0
        self._inputs: dict[str, NDArray[np.generic]] = {}

    def cost(self, entry: Entry) -> int:
        """Bytes the entry's session takes, estimated."""
        return COPIES * self.plan.model_bytes(entry) + SESSION_BYTES

    def inputs(self, network: str) -> NDArray[np.generic]:
        """The network's input."""
        if network not in self._inputs:
            spec = self.plan.inputs[network]
            self._inputs[network] = input_array(spec.shape, spec.dtype, spec.high)
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
            session = open_session(self.plan.model(entry), self.threads, self.provider)
            self._open[entry.id] = bound_call(session, self.inputs(entry.network))
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
