"""What is measured for a latency table, kept in files until the table is there, so that a run broken off goes on.

``request.json`` says what is measured. A stage's results are in ``stage-N.jsonl``, a result file of the kit's program,
which adds and syncs a record at a time. A stage is closed once the next has begun: its results decided what that one
measures.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from amcsearch.config import Config, table_digest
from amcsearch.core import BadInputError, parse_json, read_text
from amcsearch.costs import LatencyTable, fingerprint
from amcsearch.measure import KitPlan, KitResult, MeasuredSubject, read_results
from amcsearch.runs import StoredDocument, make_folder, replacing
from amcsearch.runtime import CPU, ONNXRUNTIME, OPSET, full_provider_name

__all__ = ["Measurements", "MeasuringRequest", "request_of"]

_REQUEST: Final = "request.json"
_TIMING: Final = b'"kind":"timing"'


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
                f"{folder.parent} has measurements of an interrupted run; go on with --resume, or delete {folder} to "
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
    ) -> KitResult:
        """Return the results of a stage, counted from 1; what is missing of it is measured first.

        Raises:
            BadInputError: as ``make_plan`` and ``measure``, or a result file that is damaged.
        """
        out = self._stage(number)
        if not self._stage(number + 1).exists():
            plan = make_plan()
            self._write()
            measure(plan, out)
        return read_results([out])[0]

    def _stage(self, number: int) -> Path:
        return self.folder / f"stage-{number}.jsonl"

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
