"""What a result file holds already, so that a broken-off run goes on there."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from amcsearch.runtime.on_device.drift import Drift
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.plan import DevicePlan
from amcsearch.runtime.on_device.provenance import COMPARED

__all__ = ["Done", "check_same_run"]

Record = Mapping[str, Any]


class Done:
    """What has been recorded, by kind, and the drift of the reference over it.

    Without ``profiled``, a run needs neither graphs nor profiles: its provider is a black box.
    """

    def __init__(self, plan: DevicePlan, records: Sequence[Record], profiled: bool = True) -> None:
        self.plan = plan
        self.profiled = profiled
        self.parts = 0
        self.overheads: set[int] = set()
        self.graphs: set[str] = set()
        self.profiles: set[str] = set()
        self.failed: set[str] = set()
        self.timings: dict[int, set[str]] = {k: set() for k in range(1, int(plan.plan["passes"]) + 1)}
        self.fastest_ms: dict[str, float] = {}
        self.drift = Drift()
        for record in records:
            self.add(record)
        self.drift.replay(record for record in records if record["kind"] == "timing")

    def add(self, record: Record) -> None:
        """Note that a record was written."""
        kind = record["kind"]
        if kind == "header":
            self.parts += 1
        elif kind == "overhead":
            self.overheads.add(record["pass"])
        elif kind == "timing":
            self.timings[record["pass"]].add(record["model"])
            fastest = min(record["samples_ms"])
            self.fastest_ms[record["model"]] = min(fastest, self.fastest_ms.get(record["model"], fastest))
        elif kind in ("graph", "profile", "failed"):
            {"graph": self.graphs, "profile": self.profiles, "failed": self.failed}[kind].add(record["model"])

    def coverage(self) -> dict[str, Any]:
        """How much of the plan is measured, and which models lack something."""
        entries = [entry for entry in self.plan.entries if entry.id not in self.failed]
        lacking = [
            entry.id
            for entry in entries
            if (self.profiled and entry.id not in self.graphs)
            or (self.profiled and entry.profiled and entry.id not in self.profiles)
            or (entry.timed and any(entry.id not in ids for ids in self.timings.values()))
        ]
        return {
            "models": len(self.plan.entries),
            "graphs": len(self.graphs),
            "timed": [len(ids) for _, ids in sorted(self.timings.items())],
            "profiled": len(self.profiles),
            "failed": sorted(self.failed),
            "incomplete": lacking,
            "left_out": [e.id for e in entries if e.timed and not any(e.id in ids for ids in self.timings.values())],
        }

    def work(self) -> tuple[float, float]:
        """Units of work done and planned: one for a timing or a profile, a tenth for a graph."""
        left = [entry for entry in self.plan.entries if entry.id not in self.failed]
        planned = sum(self.profiled * (0.1 + e.profiled) + len(self.timings) * e.timed for e in left)
        return 0.1 * len(self.graphs) + len(self.profiles) + sum(map(len, self.timings.values())), planned


def check_same_run(first: Record, now: Record) -> None:
    """Refuse to go on with a result of another plan, program or device.

    Raises:
        DeviceError: naming what differs, with both values.
    """
    pairs = [(key, first.get(key), now[key]) for key in ("kit_version", "plan_hash")]
    pairs += [(key, first["provenance"].get(key), now["provenance"].get(key)) for key in COMPARED]
    for key, before, after in pairs:
        if before != after:
            raise DeviceError(
                f"the result file was begun with {key} = {before}, this run has {after}; write to another file with -o"
            )
