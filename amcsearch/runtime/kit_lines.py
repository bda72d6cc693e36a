"""The lines of result files and what can be wrong with them: torn, edited, doubled, of another plan or device."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from amcsearch.core import BadInputError
from amcsearch.runtime.on_device.errors import DeviceError
from amcsearch.runtime.on_device.plan import KIT_VERSION
from amcsearch.runtime.on_device.provenance import COMPARED
from amcsearch.runtime.on_device.records import SUM, parsed_lines

__all__ = ["Line", "check_one_device", "headers_of", "lines_of", "once"]

ONE_EACH: Final = ("graph", "timing", "profile", "overhead", "failed")


@dataclass(frozen=True, slots=True)
class Line:
    """A record and where it was read."""

    record: Mapping[str, Any]
    place: str


def lines_of(path: Path) -> tuple[list[Line], list[str]]:
    """Records of a file, and what was repaired.

    Raises:
        BadInputError: the file cannot be read, is empty, or a line was edited.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from error
    if not content.strip():
        raise BadInputError(f"{path} is empty; run the kit with -o {path.name} and bring the file it writes")
    try:
        found = parsed_lines(content, str(path))
    except DeviceError as error:
        raise BadInputError(f"{error}; bring the file as the kit wrote it") from error
    pairs = zip(found.records, found.numbers, strict=True)
    return [Line(record, f"{path}, line {number}") for record, number in pairs], found.notes


def headers_of(lines: Sequence[Line], path: Path) -> list[Line]:
    """The file's headers in the order of its parts.

    Raises:
        BadInputError: there is none, or they are of two plans or of another version of the kit.
    """
    headers = sorted((line for line in lines if line.record["kind"] == "header"), key=lambda h: int(h.record["part"]))
    if not headers:
        raise BadInputError(f"{path} holds no header; bring the file as the kit wrote it")
    for header in headers:
        if header.record["kit_version"] != KIT_VERSION:
            version = header.record["kit_version"]
            raise BadInputError(f"{header.place}: kit version {version}, this program reads {KIT_VERSION}; build a kit")
        if header.record["plan_hash"] != headers[0].record["plan_hash"]:
            raise BadInputError(f"{header.place}: another plan than {headers[0].place}; give the files one by one")
    return headers


def check_one_device(headers: Sequence[Line]) -> None:
    """Refuse headers that differ in what decides a latency.

    Raises:
        BadInputError: naming both values and both places.
    """
    first = headers[0]
    for other in headers[1:]:
        for key in COMPARED:
            ours, theirs = first.record["provenance"].get(key), other.record["provenance"].get(key)
            if ours != theirs:
                values = f"{key} is {ours} in {first.place}, {theirs} in {other.place}"
                raise BadInputError(f"results of two devices: {values}; give those of one")


def _content(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != SUM}


def once(lines: Iterable[Line]) -> tuple[dict[tuple[str, str, int], Mapping[str, Any]], list[str]]:
    """One record for each kind, model and pass, and notes on those that occur twice.

    Raises:
        BadInputError: two of them differ.
    """
    found: dict[tuple[str, str, int], Line] = {}
    twice = 0
    for line in lines:
        if line.record["kind"] not in ONE_EACH:
            continue
        key = (line.record["kind"], line.record.get("model", ""), line.record.get("pass", 0))
        before = found.setdefault(key, line)
        if before is line:
            continue
        if repr(_content(before.record)) != repr(_content(line.record)):  # repr, because nan is not equal to itself
            what = " ".join([key[0], *filter(None, [key[1], f"pass {key[2]}" if key[2] else ""])])
            raise BadInputError(f"{before.place} and {line.place} hold different results of {what}; give one of them")
        twice += 1
    notes = [f"{twice} records occur twice and were counted once"] if twice else []
    return {key: line.record for key, line in found.items()}, notes
