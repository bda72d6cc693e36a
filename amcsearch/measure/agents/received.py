"""What an agent sends, checked: records of the offered plan, of one device, once each, with possible durations.

A device without a word for its CPU counts as one that says nothing: its records are held to what it said before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from amcsearch.core import BadInputError
from amcsearch.measure.kit.kit_lines import Line, check_line, check_lines
from amcsearch.runs import StoredDocument
from amcsearch.runtime import COMPARED, KIT_VERSION, DeviceError, DevicePlan, parsed_lines

__all__ = ["OF_DEVICE", "AgentRefusedError", "JobOffer", "RecordCheck", "is_word", "parsed_records"]

LEAST_MS, MOST_MS = 1e-4, 1e7  # a call of the runtime takes a microsecond and more, and less than three hours
MOST_DRIFT: Final = 1e4  # of a reference beside its quiet moments
MOST_TEXT: Final = 400
KINDS: Final = ("header", "overhead", "timing", "graph", "profile", "drift", "failed", "end")
IDENTIFYING: Final = {
    "overhead": ("pass",),
    "timing": ("model", "pass"),
    **dict.fromkeys(("graph", "profile", "failed"), ("model",)),
}
"""What tells a record from the others of its kind, where each is sent once."""
OF_DEVICE: Final = ("cpu", "cpu_flags")
"""What must stay the same for a device under one name."""


class AgentRefusedError(BadInputError):
    """What an agent sends is refused: it is not of this plan, this device, or no possible time."""


@dataclass(frozen=True)
class JobOffer(StoredDocument):
    """A measurement as an agent is offered it: ``have`` counts the records that are here already."""

    job: str
    device: str
    plan_hash: str
    threads: int
    provider: str
    minutes: float | None
    have: int = 0


class RecordCheck:
    """Holds new records of a measurement to the plan, the device and what is there; a record is looked at once.

    Args:
        plan: that is measured.
        offer: of the measurement.
        records: that are here and were checked. They may grow, and do not change.
    """

    def __init__(self, plan: DevicePlan, offer: JobOffer, records: Sequence[Mapping[str, Any]]) -> None:
        self._plan, self._offer, self._records = plan, offer, records
        self._numbers: dict[tuple[object, ...], int] = {}
        self._counted = 0

    def check(self, says: Mapping[str, object], new: Sequence[Mapping[str, Any]]) -> None:
        """Check the records that come next; ``says`` is what the agent said of its device.

        Raises:
            AgentRefusedError: names the record and what is wrong with it.
        """
        lines = [Line(record, f"record {number}") for number, record in enumerate(new, len(self._records))]
        first = Line(self._records[0], "record 0") if self._records else lines[0]
        try:
            if first.record.get("kind") != "header":
                raise BadInputError("record 0 is no header")
            for line in lines:
                check_line(line)
                if line.record.get("kind") == "header":
                    _check_header(line, self._plan, self._offer, says, first)
                elif line.record.get("kind") not in KINDS:
                    raise BadInputError(f"{line.place} is of kind {line.record.get('kind')!r:.40}, which no kit writes")
            check_lines(lines, first, self._plan.by_id)
            _check_references(self._plan, lines)
            _check_durations(lines)
            self._check_once(new)
        except BadInputError as error:
            raise AgentRefusedError(f"refused: {error}") from error

    def _check_once(self, new: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a record of which there is one already, among those here or the new ones."""
        for number in range(self._counted, len(self._records)):
            self._numbers.setdefault(_key(self._records[number]), number)
        self._counted = len(self._records)
        numbers: dict[tuple[object, ...], int] = {}
        for number, record in enumerate(new, self._counted):
            key = _key(record)
            before = self._numbers.get(key, numbers.setdefault(key, number))
            if key and before != number:
                name = " ".join(map(str, key))
                raise BadInputError(f"record {number} is a {name} record, which record {before} is already")


def _key(record: Mapping[str, Any]) -> tuple[object, ...]:
    """The kind of a record and what tells it from others of that kind; () where there may be several."""
    kind = record.get("kind")
    return (kind, *(record[name] for name in IDENTIFYING[kind])) if kind in IDENTIFYING else ()


def _check_header(line: Line, plan: DevicePlan, offer: JobOffer, says: Mapping[str, object], first: Line) -> None:
    record = line.record
    where = record["provenance"]
    pairs = [("kit_version", KIT_VERSION, record.get("kit_version")), ("plan_hash", plan.hash, record["plan_hash"])]
    pairs += [(key, getattr(offer, key), where.get(key)) for key in ("threads", "provider")]
    pairs += [(key, says.get(key), where.get(key)) for key in OF_DEVICE]
    pairs += [(key, first.record["provenance"].get(key), where.get(key)) for key in COMPARED]
    for key, expected, value in pairs:
        if value != expected:
            raise BadInputError(f"{line.place}: {key} is {value!r:.60}, expected {expected!r:.60}")
    if record["plan"] != plan.described():
        raise BadInputError(f"{line.place}: it describes another plan")
    for key, value in where.items():
        if isinstance(value, str) and not is_word(value):
            raise BadInputError(
                f"{line.place}: {key} is {value!r:.60}, must be at most {MOST_TEXT} printable characters"
            )


def is_word(text: str) -> bool:
    """Whether a text of a device can be shown: one line without control characters, those of terminals among them."""
    return len(text) <= MOST_TEXT and text.isprintable()


def _check_references(plan: DevicePlan, lines: Sequence[Line]) -> None:
    """Refuse times beside another reference than that of the model's network."""
    for line in lines:
        record = line.record
        if record.get("kind") == "timing":
            expected = plan.by_id[record["model"]].reference
            if record["reference"] != expected:
                raise BadInputError(
                    f"{line.place}: {record['model']!r:.60} is timed beside {record['reference']!r:.60}, its reference "
                    f"is {expected!r:.60}"
                )


def _check_durations(lines: Sequence[Line]) -> None:
    """Refuse durations of which most are no possible ones, for a clock may give a few, and drifts that none has."""
    for line in lines:
        ratio = line.record.get("ratio", 1.0) if line.record.get("kind") == "drift" else 1.0
        if not 0.0 < ratio <= MOST_DRIFT:
            raise BadInputError(f"{line.place}: ratio = {ratio:.3g}, must be more than 0 and at most {MOST_DRIFT:g}")
        for key in ("samples_ms", "reference_ms"):
            samples = line.record.get(key, [])
            possible = sum(math.isfinite(ms) and LEAST_MS <= ms <= MOST_MS for ms in samples)
            if samples and 2 * possible <= len(samples):
                raise BadInputError(
                    f"{line.place}: {key} begins with {samples[0]:.3g} ms, must be from {LEAST_MS:g} to {MOST_MS:g}"
                )


def parsed_records(lines: bytes, job: str) -> list[dict[str, Any]]:
    """Records of whole lines.

    Raises:
        AgentRefusedError: a line that is cut off, edited, or no record.
    """
    try:
        parsed = parsed_lines(lines, f"records of {job[:12]}")
    except DeviceError as error:
        raise AgentRefusedError(str(error)) from error
    if parsed.notes or parsed.whole_bytes != len(lines):
        raise AgentRefusedError(f"records of {job[:12]} are cut off")
    return parsed.records
