"""Results of device kits, read and checked on the host.

A result file holds one record a line. What can be repaired is, with a note: torn last lines, records that occur twice,
samples that no clock gives. What cannot is refused: edited lines, two devices in one table, results of another program,
two results where one is meant.
"""

import base64
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from amcsearch.core import MIB, BadInputError, printable, read_bytes
from amcsearch.costs import Provenance
from amcsearch.measure.kit.kit_lines import Line, PlannedModel, check_line, check_lines
from amcsearch.measure.plan.network_record import DescribedNetwork, described_networks
from amcsearch.runtime import COMPARED, KIT_VERSION, SUM, DeviceError, Drift, ExecutedNode, parsed_lines

__all__ = [
    "Coverage",
    "DriftEvent",
    "DriftSummary",
    "KitResult",
    "ModelResult",
    "TimedPass",
    "check_one_device",
    "headers_of",
    "lines_of",
    "once",
    "read_results",
]

Records = Mapping[tuple[str, str, int], Mapping[str, Any]]  # by kind, model and pass
MOST_BYTES: Final = 64 * MIB
"""Of a result file; those of large networks have a few MiB."""
MOST_GRAPH_BYTES: Final = 4 * MIB
"""Of a graph without weights; a ResNet-50's has 20 KB. Read, it takes some fifty times as much memory."""
MOST_REASON: Final = 400
"""Characters of why a model could not be run."""
ONE_EACH: Final = ("graph", "timing", "profile", "overhead", "failed")


def lines_of(path: Path) -> tuple[list[Line], list[str]]:
    """Records of a file, and what was repaired.

    Raises:
        BadInputError: the file cannot be read, is empty, or a line was edited.
    """
    content = read_bytes(path, "kit result", MOST_BYTES)
    if not content.strip():
        raise BadInputError(f"{path} is empty; run the kit with -o {path.name} and bring the file it writes")
    try:
        parsed = parsed_lines(content, str(path))
    except DeviceError as error:
        raise BadInputError(f"{error}; bring the file as the kit wrote it") from error
    pairs = zip(parsed.records, parsed.numbers, strict=True)
    return [Line(record, f"{path}, line {number}") for record, number in pairs], parsed.notes


def headers_of(lines: Sequence[Line], path: Path) -> list[Line]:
    """The file's headers in the order of its parts.

    Raises:
        BadInputError: there is none, or they are of two plans or of another version of the kit.
    """
    headers = [line for line in lines if line.record.get("kind") == "header"]
    if not headers:
        raise BadInputError(f"{path} holds no header; bring the file as the kit wrote it")
    for header in headers:
        version = header.record.get("kit_version")
        if version != KIT_VERSION:
            raise BadInputError(
                f"{header.place}: kit version {version!r:.40}, this program reads {KIT_VERSION}; build a kit"
            )
        check_line(header)
        if header.record["plan_hash"] != headers[0].record["plan_hash"]:
            raise BadInputError(f"{header.place}: another plan than {headers[0].place}; give the files one by one")
    return sorted(headers, key=lambda header: int(header.record["part"]))


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


def once(lines: Iterable[Line]) -> tuple[Records, list[str]]:
    """One record for each kind, model and pass, and notes on those that occur twice.

    Raises:
        BadInputError: two of them differ.
    """
    first: dict[tuple[str, str, int], Line] = {}
    twice = 0
    for line in lines:
        if line.record.get("kind") not in ONE_EACH:
            continue
        key = (line.record["kind"], line.record.get("model", ""), line.record.get("pass", 0))
        before = first.setdefault(key, line)
        if before is line:
            continue
        if repr(_content(before.record)) != repr(_content(line.record)):  # repr, because nan is not equal to itself
            name = " ".join([key[0], *filter(None, [key[1], f"pass {key[2]}" if key[2] else ""])])
            raise BadInputError(f"{before.place} and {line.place} hold different results of {name}; give one of them")
        twice += 1
    notes = [f"{twice} records occur twice and were counted once"] if twice else []
    return {key: line.record for key, line in first.items()}, notes


MOST_MS: Final = 1e9  # eleven days: no call takes as long
ABSURD: Final = 100.0  # times a model's median sample, either way: no load explains it


@dataclass(frozen=True, slots=True)
class TimedPass:
    """Samples of one pass, ms a call, and its reference's samples of the same rounds: (rounds,) each."""

    number: int
    samples_ms: NDArray[np.float64]
    reference_ms: NDArray[np.float64]


@dataclass(frozen=True)
class ModelResult(PlannedModel):
    """What was measured of one model: ``passes`` and ``nodes`` are empty where time was short or none was asked for."""

    passes: tuple[TimedPass, ...]
    nodes: tuple[ExecutedNode, ...]
    packed_graph: str | None = field(repr=False)

    @property
    def graph(self) -> onnx.GraphProto | None:
        """The graph the device's runtime executed, weights without data; None if it was not recorded.

        Raises:
            BadInputError: the record holds no graph, or one of more than ``MOST_GRAPH_BYTES``.
        """
        if self.packed_graph is None:
            return None
        unpacking = zlib.decompressobj()
        try:
            content = unpacking.decompress(base64.b64decode(self.packed_graph), MOST_GRAPH_BYTES)
            if unpacking.unconsumed_tail:
                raise ValueError(f"it has more than {MOST_GRAPH_BYTES} bytes")
            return onnx.load_from_string(content).graph
        except Exception as error:  # protobuf's decode errors have no public base
            raise BadInputError(
                f"model {self.id!r:.80}: its graph cannot be read ({error}); run the kit again"
            ) from error

    @property
    def latency_ms(self) -> float | None:
        """Fastest sample of all passes, None if it was not timed."""
        return min((float(timed.samples_ms.min()) for timed in self.passes), default=None)


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """A throttled block: a pass in which the reference ``model`` was ``ratio`` as slow as in its quiet moments."""

    model: str
    number: int
    ratio: float


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """How quiet the device was: rounds, the share that was disturbed, largest drift of a block, throttled blocks."""

    rounds: int
    disturbed_share: float
    largest: float
    events: tuple[DriftEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a plan was measured.

    ``timed`` counts models by pass; ``failed`` maps models to reasons; ``left_out`` are those never timed for lack of
    time.
    """

    models: int
    graphs: int
    timed: tuple[int, ...]
    profiled: int
    failed: Mapping[str, str]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class KitResult:
    """One plan's measurement on one device.

    Attributes:
        plan: the JSON of the plan as measured: ``info``, ``batch``, ``dtype``, ``inputs``, counts.
        provenance: of the first part; those of all parts are equal in what decides a latency.
        overhead_ms: fastest call that computes next to nothing.
        models: in the plan's order, those that were not measured included.
        notes: repairs, and what else should be known.
    """

    plan_hash: str
    plan: Mapping[str, Any]
    provenance: Provenance
    overhead_ms: float
    models: tuple[ModelResult, ...]
    drift: DriftSummary
    coverage: Coverage
    notes: tuple[str, ...]

    @cached_property
    def networks(self) -> Mapping[str, DescribedNetwork]:
        """The networks that were measured, by name.

        Raises:
            BadInputError: the plan names none.
        """
        return described_networks(self.plan["info"])

    def of(self, role: str, network: str | None = None) -> tuple[ModelResult, ...]:
        """The models of a role, of one network or of all."""
        return tuple(m for m in self.models if m.role == role and network in (None, m.network))


def _timed(record: Mapping[str, Any], median: float) -> tuple[TimedPass | None, int]:
    """The pass without impossible samples, None if none is left; and how many were dropped."""
    samples, reference = (np.array(record[key], dtype=np.float64) for key in ("samples_ms", "reference_ms"))
    with np.errstate(invalid="ignore"):
        good = (samples > median / ABSURD) & (samples < median * ABSURD) & (samples <= MOST_MS)
        good &= (reference > 0) & (reference <= MOST_MS)
    timed = TimedPass(int(record["pass"]), samples[good], reference[good]) if good.any() else None
    return timed, int((~good).sum())


def _passes(name: str, records: Sequence[Mapping[str, Any]], notes: list[str]) -> tuple[TimedPass, ...]:
    samples = np.array([ms for record in records for ms in record["samples_ms"]], dtype=np.float64)
    plausible = samples[(samples > 0) & (samples <= MOST_MS)]
    median = float(np.median(plausible)) if len(plausible) else 0.0
    read = [_timed(record, median) for record in sorted(records, key=lambda record: int(record["pass"]))]
    passes = tuple(timed for timed, _ in read if timed is not None)
    dropped = sum(count for _, count in read)
    if records and not passes:
        raise BadInputError(f"model {name}: none of its {dropped} times is a possible one; measure again")
    if dropped:
        notes.append(f"model {name}: {dropped} of {len(samples)} times are impossible and were left out")
    return passes


def _nodes(name: str, record: Mapping[str, Any] | None, notes: list[str]) -> tuple[ExecutedNode, ...]:
    if record is None:
        return ()
    nodes = tuple(ExecutedNode(*node) for node in record["nodes"])
    if all(0 <= node.us <= MOST_MS for node in nodes):
        return nodes
    notes.append(f"model {name}: its profile holds impossible times and was left out")
    return ()


def _model(planned: Mapping[str, Any], records: Records, notes: list[str]) -> ModelResult:
    name = str(planned["id"])
    timings = [record for (kind, model, _), record in records.items() if (kind, model) == ("timing", name)]
    graph = records.get(("graph", name, 0))
    return ModelResult(
        id=name,
        network=planned["network"],
        role=planned["role"],
        policy=planned["policy"],
        timed=planned["timed"],
        profiled=planned["profiled"],
        meta=planned["meta"],
        passes=_passes(name, timings, notes),
        nodes=_nodes(name, records.get(("profile", name, 0)), notes),
        packed_graph=None if graph is None else graph["graph"],
    )


def _coverage(models: Sequence[ModelResult], passes: int, records: Records) -> Coverage:
    numbers = [timed.number for model in models for timed in model.passes]
    failed = {
        model: printable(" ".join(record["reason"].split()))[:MOST_REASON]
        for (kind, model, _), record in records.items()
        if kind == "failed"
    }
    return Coverage(
        models=len(models),
        graphs=sum(model.packed_graph is not None for model in models),
        timed=tuple(numbers.count(number) for number in range(1, passes + 1)),
        profiled=sum(bool(model.nodes) for model in models),
        failed=failed,
        left_out=tuple(model.id for model in models if model.timed and not model.passes and model.id not in failed),
    )


def _state(lines: Sequence[Line], coverage: Coverage) -> list[str]:
    """What should be known besides repairs."""
    ends = [line.record for line in lines if line.record.get("kind") == "end"]
    notes = [] if ends else ["there is no end record: the run was broken off"]
    if coverage.left_out:
        notes.append(f"{len(coverage.left_out)} of {coverage.models} models were left out for lack of time")
    return notes + [f"model {name} could not be run: {reason}" for name, reason in coverage.failed.items()]


def _drift(lines: Sequence[Line], records: Records) -> DriftSummary:
    drift = Drift()
    drift.replay(_possible_reference(record) for (kind, _, _), record in records.items() if kind == "timing")
    throttled = (line.record for line in lines if line.record.get("kind") == "drift")
    events = tuple(DriftEvent(str(event["model"]), int(event["pass"]), float(event["ratio"])) for event in throttled)
    return DriftSummary(**drift.summary(), events=events)


def _possible_reference(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "reference_ms": [ms for ms in record["reference_ms"] if 0 < ms <= MOST_MS]}


def _result(headers: Sequence[Line], lines: Sequence[Line], notes: Sequence[str]) -> KitResult:
    """One plan's result from all lines that belong to it."""
    header = headers[0].record
    check_lines(lines, headers[0])
    records, doubled = once(lines)
    remarks = [*notes, *doubled]
    models = tuple(_model(planned, records, remarks) for planned in header["plan"]["models"])
    overheads = [ms for (kind, _, _), record in records.items() if kind == "overhead" for ms in record["samples_ms"]]
    overheads = [ms for ms in overheads if 0 < ms <= MOST_MS]
    if not overheads or not any(model.passes for model in models):
        raise BadInputError(f"{headers[0].place}: the result holds no time; run the kit again, it goes on")
    coverage = _coverage(models, int(header["plan"]["passes"]), records)
    return KitResult(
        plan_hash=header["plan_hash"],
        plan=header["plan"],
        provenance=Provenance.from_mapping(header["provenance"]),
        overhead_ms=float(min(overheads)),
        models=models,
        drift=_drift(lines, records),
        coverage=coverage,
        notes=(*remarks, *_state(lines, coverage)),
    )


def read_results(paths: Sequence[Path], plan_hash: str | None = None) -> tuple[KitResult, ...]:
    """Read what kits measured on one device.

    Args:
        paths: result files; parts of one plan's run are put together.
        plan_hash: the only plan to accept, if given.

    Returns:
        One result a plan, in the order of the files.

    Raises:
        BadInputError: no file, a file that cannot be used (see the module), two devices, or another plan.
    """
    if not paths:
        raise BadInputError("no result file is given; name at least one")
    headers: dict[str, list[Line]] = defaultdict(list)
    lines: dict[str, list[Line]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        read, repairs = lines_of(path)
        of_file = headers_of(read, path)
        plan = str(of_file[0].record["plan_hash"])
        if plan_hash not in (None, plan):
            raise BadInputError(f"{path} is a result of plan {plan[:12]}, not of {str(plan_hash)[:12]}; bring its own")
        headers[plan] += of_file
        lines[plan] += read
        notes[plan] += repairs
    check_one_device([header for of_plan in headers.values() for header in of_plan])
    return tuple(_result(headers[plan], lines[plan], notes[plan]) for plan in headers)
