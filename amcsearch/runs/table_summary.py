"""The latency table of a result: its errors, and where the table of this machine is from."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from amcsearch.core import counted
from amcsearch.runs.documents import StoredDocument, items_of

__all__ = ["ComparedTable", "TableComparison", "TableErrors", "TableOrigin", "TableSummary"]


@dataclass(frozen=True)
class TableErrors(StoredDocument):
    """Errors of a latency table on variants of the network that it had not seen, as shares; None is not known.

    A run folder keeps them as they were when the run was made: the fields are those of ``costs.Accuracy``.
    ``mape`` is the mean and ``median`` the median absolute relative error; ``within_5`` and ``within_10`` are the
    shares of variants within 5 and 10 %; ``noise_mape`` is what measuring twice differs by. ``unknown`` names those
    that the table states to be unknown.
    """

    variants: int | None = None
    mape: float | None = None
    median: float | None = None
    worst: float | None = None
    within_5: float | None = None
    within_10: float | None = None
    bias: float | None = None
    spearman: float | None = None
    noise_mape: float | None = None
    unknown: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON with what is known, and null for what is stated to be unknown."""
        values = {name: value for name, value in super().to_json().items() if name != "unknown"}
        return {name: value for name, value in values.items() if value is not None or name in self.unknown}

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` wrote; raises as ``StoredDocument.from_json``."""
        given = items_of(value, where)
        unknown = [item.name for item in fields(cls) if item.name in given and given[item.name] is None]
        return super().from_json({**given, "unknown": unknown}, where)


def _age(seconds: float) -> str:
    """A time in the unit that people would say it in."""
    for unit, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


@dataclass(frozen=True)
class TableOrigin(StoredDocument):
    """Where the table of ``device.table: auto`` is from, and what the job did for it.

    ``folder`` keeps it on the machine ``device``. ``measured`` (UTC) is when the network was measured or brought up to
    date, ``age_s`` how long before the job. ``models`` were measured now, in ``seconds``, for what ``done`` says:
    ``used`` as it was, ``measured`` or ``updated``. ``drift`` is the share by which networks measured now were slower
    than predicted, null where that was not asked.
    """

    folder: str
    device: str
    done: str
    measured: str | None = None
    age_s: float | None = None
    models: int = 0
    seconds: float = 0.0
    drift: float | None = None

    @property
    def sentence(self) -> str:
        """What was done, for which machine, and how old the table was."""
        done = {"measured": "measured", "updated": "brought up to date"}.get(self.done, "used as it was")
        parts = [f"{done} on {self.device}"]
        if self.models:
            parts.append(f"{counted(self.models, 'network')} run in {self.seconds:.0f} s")
        if self.drift is not None:
            parts.append(
                f"the machine was {abs(self.drift):.1%} {'slower' if self.drift > 0 else 'faster'} than predicted"
            )
        if self.age_s is not None and self.done != "measured":
            parts.append(f"{_age(self.age_s)} old before")
        return f"{', '.join(parts)} ({self.folder})"


@dataclass(frozen=True)
class TableSummary(StoredDocument):
    """The latency table: its name, the network in it that predicts, and its errors there, None where unchecked.

    ``origin`` is that of ``device.table: auto``, null where the configuration names a table.
    """

    name: str
    network: str | None = None
    accuracy: TableErrors | None = None
    origin: TableOrigin | None = None

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, without the origin of a table that has a name."""
        values = super().to_json()
        return values if self.origin is not None else {key: values[key] for key in values if key != "origin"}


@dataclass(frozen=True)
class ComparedTable(StoredDocument):
    """What one latency table says of a network: ``ms`` of every policy, dense first.

    ``setting`` is its device, runtime and setting in words. ``channel_multiple`` is the channel grid that the device
    rewards, ``grid`` what a finer multiple saves there beside twice it: shares of MACs and of time. ``mape`` is the
    mean error on variants that it had not seen, null where it was not checked.
    """

    name: str
    setting: str
    ms: tuple[float, ...]
    sigma_ms: tuple[float, ...]
    channel_multiple: int | None
    grid: Mapping[str, tuple[float, float]]
    mape: float | None

    @property
    def speed_up(self) -> tuple[float, ...]:
        """How many times as fast as dense every policy is."""
        return tuple(self.ms[0] / ms for ms in self.ms)

    @property
    def description(self) -> str:
        """Its setting, channel grid and error in words."""
        error = "errors not checked" if self.mape is None else f"mean error {self.mape:.1%}"
        return f"{self.setting}; channel multiple {self.channel_multiple or 'unknown'}; {error}"


@dataclass(frozen=True)
class TableComparison(StoredDocument):
    """Several latency tables on the same policies of one network: ``policies`` in words, ``macs`` their shares."""

    network: str
    policies: tuple[str, ...]
    macs: tuple[float, ...]
    tables: tuple[ComparedTable, ...]

    def to_json(self) -> dict[str, Any]:
        """Return an object of JSON, with the speed-ups."""
        tables = [{**table.to_json(), "speed_up": list(table.speed_up)} for table in self.tables]
        return {**super().to_json(), "tables": tables}
