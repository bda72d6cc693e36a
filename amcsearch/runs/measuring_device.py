"""The device that measures the latencies of a run, and what is said while it has not measured them yet."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from amcsearch.runs.documents import StoredDocument

__all__ = ["DEVICE_SERVER", "HERE", "OFFLINE", "MeasuringDevice", "table_commands", "verify_commands"]

DEVICE_SERVER: Final = "AMCSEARCH_DEVICE_SERVER"
"""Environment variable of the address of ``amcsearch device serve``."""
HERE: Final = "here"
OFFLINE: Final = "offline"
"""What ``device.location`` says of the machine that searches, and of a device that only files reach."""


@dataclass(frozen=True)
class MeasuringDevice(StoredDocument):
    """Where latencies are measured.

    ``name`` is the device's CPU, or what is known of an absent device; ``location`` is ``here``, ``offline`` or the
    name of its agent. ``runtime`` and ``measured``, the time in UTC, are None while nothing was measured.
    ``predicted_for`` is the ``name`` of an absent device as it was before its measurement.
    """

    name: str
    location: str
    threads: int
    batch: int
    runtime: str | None = None
    measured: str | None = None
    predicted_for: str | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether its measurement is still to come."""
        return self.measured is None

    @property
    def label(self) -> str:
        """Its name, with that of its agent where one measures."""
        return self.name if self.location in (HERE, OFFLINE, self.name) else f"{self.location} ({self.name})"

    def awaited(self, share: float | None) -> str:
        """Say that its measurement is to come; ``share`` is the predicted one of dense, None where none is known."""
        begin = "" if share is None else "predicted, "
        return f"{begin}not yet measured on {self.label}"


def verify_commands(run: Path) -> tuple[str, str]:
    """Return the two commands by which a run goes on whose device is absent: the kit, and the results that it wrote."""
    folder = shlex.quote(str(run))
    return f"amcsearch verify kit {folder} -o verify.pyz", f"amcsearch verify {folder} result.jsonl"


def table_commands(location: str, folder: str = "latency_tables/NAME") -> str:
    """Return how to measure a network into the table in ``folder``, where ``device.location`` is ``location``."""
    if location == OFFLINE:
        return (
            "amcsearch table kit CONFIG -o kit.pyz; run python3 kit.pyz -o result.jsonl on the device; then "
            f"amcsearch table build result.jsonl -o {folder}"
        )
    there = "" if location == HERE else f" --set device.location={location}"
    return f"amcsearch table measure CONFIG -o {folder}{there}"
