"""What is measured for a latency table, kept in files until the table is there, so that a run broken off goes on.

``request.json`` says what is measured. A stage's results are in ``stage-N.jsonl``, a result file of the kit's program,
which adds and syncs a record at a time. A stage is closed once the next has begun: its results decided what that one
measures.

Networks that were timed only while the device was slow are measured again at once, beside the dense network anew, in
``stage-N-again-K.jsonl``, twice at most and within the minutes of their stage. Their new results count in place of the
old ones; where the dense network is among them, nothing tells the speed of the others, and all are measured again.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from amcsearch.config import Config, table_digest
from amcsearch.core import RESUME, BadInputError, parse_json, read_text
from amcsearch.costs import LatencyTable, fingerprint
from amcsearch.jobs.observer import Observer
from amcsearch.measure import REFERENCE, KitPlan, KitResult, MeasuredSubject, read_results, slowed_models
from amcsearch.runs import StoredDocument, make_folder, replacing
from amcsearch.runtime import CPU, ONNXRUNTIME, OPSET, full_provider_name

__all__ = ["Measurements", "MeasuringRequest", "request_of"]

_REQUEST: Final = "request.json"
_TIMING: Final = b'"kind":"timing"'
_S_PER_MIN: Final = 60.0
TRIES: Final = 2  # of measuring again what was measured while the device was slow
LEAST_MINUTES: Final = 0.25  # for it: a result without a time cannot be read


@dataclass(frozen=True)
class MeasuringRequest(StoredDocument):
    """What decides a measurement, besides the device: ``table`` is the hash of the table that it extends or checks."""

    verb: str
    network: str
    fingerprint: str
    seed: int
    threads: int
    batch: int
    dtype: str
    variants: int
    anchors: int
    table: str | None
    opset: int = OPSET
    provider: str = CPU
    runtime: str = ONNXRUNTIME


class Measurements:
    """Results in a folder, those of an interrupted run included where ``resume`` asks for them.

    ``anew`` measures anew, in place of refusing, where the interrupted run was asked for something else or its files
    are damaged.

    Raises:
        BadInputError: results of an interrupted run without ``resume``, or files that are damaged.
    """

    def __init__(self, folder: Path, *, resume: bool, anew: bool = False) -> None:
        self.folder, self._anew = folder, anew
        if folder.is_symlink():
            raise BadInputError(f"cannot write {folder}: it is a link; delete it")
        if not any(_TIMING in stage.read_bytes() for stage in folder.glob("stage-*.jsonl")):
            shutil.rmtree(folder, ignore_errors=True)  # nothing is lost
        self.before = self._read()
        """What an interrupted run was asked for, None where there is none."""
        if self.before is not None and not resume:
            raise BadInputError(
                f"{folder.parent} has measurements of an interrupted run; go on with {RESUME}, or delete {folder} to "
                "begin anew"
            )

    def begin(self, request: MeasuringRequest) -> None:
        """Say what will be measured.

        Raises:
            BadInputError: the interrupted run was asked for something else; names it.
        """
        self._request = request
        if self.before is None or self.before == request:
            return
        if self._anew:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.before = None
            return
        values = ((item.name, getattr(self.before, item.name), getattr(request, item.name)) for item in fields(request))
        name, was, now = next(each for each in values if each[1] != each[2])
        raise BadInputError(
            f"cannot go on with the measurements in {self.folder}: {name} was {was} and is {now}; restore "
            "it, or delete the folder to begin anew"
        )

    def stage(
        self,
        number: int,
        make_plan: Callable[[], KitPlan],
        measure: Callable[[KitPlan, Path], object],
        again: int = 0,
    ) -> KitResult:
        """Return the results of a stage, counted from 1; what is missing of it is measured first.

        ``again`` counts the times that some of it is measured again.

        Raises:
            BadInputError: as ``make_plan`` and ``measure``, or a result file that is damaged.
        """
        out = self._stage(number, again)
        if not (self._stage(number, again + 1).exists() or self._stage(number + 1).exists()):
            plan = make_plan()
            self._write()
            measure(plan, out)
        return read_results([out])[0]

    def settled(
        self,
        number: int,
        make_plan: Callable[[], KitPlan],
        measure: Callable[[float | None, KitPlan, Path], object],
        minutes: float | None,
        observer: Observer,
    ) -> list[KitResult]:
        """Return the results of a stage, those of networks that were measured again because the device was slow too.

        ``measure`` takes its bound in minutes first; ``minutes`` bounds all of it, None for none. A bound counts what
        this process measures.

        Raises:
            BadInputError: as ``stage``.
        """
        plan, begun = cache(make_plan), time.monotonic()
        results = [self.stage(number, plan, partial(measure, minutes))]
        slowed, tries = slowed_models(results), 0
        while slowed and tries < TRIES and not self._is_past(number, tries + 1):
            left = None if minutes is None else minutes - (time.monotonic() - begun) / _S_PER_MIN
            if left is not None and left < LEAST_MINUTES:
                break
            tries += 1
            bound = "" if left is None else f", at most {math.ceil(left)} minutes"
            observer.phase(f"{_slow(slowed, results[0])}; measuring them again ({tries} of {TRIES}{bound})")
            make_again = partial(_of_slowed, plan, slowed, tries)
            again = self.stage(number, make_again, partial(measure, left), tries)
            results = _in_place(results, again, slowed)
            slowed = slowed_models(results)
        if slowed:
            observer.warn(f"{_slow(slowed, results[0])}; a table of them may err: measure it again on an idle machine")
        return results

    def _is_past(self, number: int, again: int) -> bool:
        """Whether a run of before went on to the next stage without measuring this one so many times again."""
        return self._stage(number + 1).exists() and not self._stage(number, again).exists()

    def _stage(self, number: int, again: int = 0) -> Path:
        return self.folder / f"stage-{number}{f'-again-{again}' if again else ''}.jsonl"

    def _read(self) -> MeasuringRequest | None:
        path = self.folder / _REQUEST
        if not os.path.lexists(path):
            return None
        try:
            return MeasuringRequest.from_json(parse_json(read_text(path), path.name), path.name)
        except BadInputError as error:
            if self._anew:
                shutil.rmtree(self.folder, ignore_errors=True)
                return None
            raise BadInputError(f"{path} is damaged ({error}); delete {self.folder} to begin anew") from error

    def _write(self) -> None:
        make_folder(self.folder)
        with replacing(self.folder / _REQUEST) as temporary:
            temporary.write_text(json.dumps(self._request.to_json()) + "\n", encoding="utf-8")


def _slow(slowed: Mapping[str, float], result: KitResult) -> str:
    """How many networks were timed while the device was slow, and how slow it was."""
    timed = sum(bool(model["timed"]) for model in result.plan["models"])
    slower = max(slowed.values()) - 1.0
    return (
        f"{len(slowed)} of {timed} networks were timed only while the device was up to {slower:.0%} slower than in its "
        "quiet moments"
    )


def _of_slowed(make_plan: Callable[[], KitPlan], slowed: Mapping[str, float], tries: int) -> KitPlan:
    """The plan of the networks that were slowed and of the dense one, or of all where that was slowed."""
    plan = make_plan()
    is_all = any(model.role == REFERENCE and model.id in slowed for model in plan.models)
    models = (model for model in plan.models if is_all or model.role == REFERENCE or model.id in slowed)
    return replace(plan, models=tuple(models), seed=plan.seed + tries)


def _in_place(results: Sequence[KitResult], again: KitResult, slowed: Mapping[str, float]) -> list[KitResult]:
    """Results in which what was measured again takes the place of what it was; as before where time was too short."""
    before = {model.id: model for result in results for model in result.models if model.passes}
    whole = {
        model.id
        for model in again.models
        if model.passes and model.id in before and (model.nodes or not before[model.id].nodes)
    }
    references = {model.id for model in again.models if model.role == REFERENCE}
    if references & slowed.keys():
        return [again] if before.keys() <= whole else [*results]
    if not references <= whole:
        return [*results]
    kept = [_without(result, whole - references) for result in results]
    return [*kept, _without(again, {model.id for model in again.models} - whole)]


def _without(result: KitResult, names: set[str]) -> KitResult:
    return replace(result, models=tuple(model for model in result.models if model.id not in names))


def request_of(
    verb: str,
    config: Config,
    subject: MeasuredSubject,
    table: LatencyTable | None,
    seed: int,
    variants: int,
    anchors: int = 0,
) -> MeasuringRequest:
    """Return what a verb is asked to measure of a network, for ``table`` where there is one."""
    device = config.device
    return MeasuringRequest(
        verb=verb,
        network=subject.name,
        fingerprint=fingerprint(subject.trace.network),
        seed=seed,
        threads=device.threads,
        batch=device.batch,
        dtype=device.dtype,
        variants=variants,
        anchors=anchors,
        table=None if table is None else table_digest(table),
        opset=device.export.opset,
        provider=full_provider_name(device.provider),
        runtime=device.runtime,
    )
