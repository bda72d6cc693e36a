"""Kinds of jobs that measure a device, or take what was measured on one: latency tables and verifications."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.config import LEAST_FRESH, TABLES, check_measuring, find, find_file
from amcsearch.core import BadInputError
from amcsearch.service.job_request import (
    MOST_EVALUATIONS,
    PLAIN,
    ConfiguredRequest,
    JobEngine,
    JobRequest,
    check_count,
)

if TYPE_CHECKING:
    from amcsearch.jobs import Observer

__all__ = ["BuildRequest", "CheckRequest", "TableRequest", "VerifyRequest"]

_JOB: Final = re.compile("[0-9a-f]{16}")
_NAME: Final = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MOST_RESULTS: Final = 64


@dataclass(frozen=True)
class TableRequest(ConfiguredRequest):
    """``amcsearch table measure``: a latency table of the machine that runs the job."""

    variants: int | None = None
    minutes: float | None = None

    def check(self) -> None:
        """Check how much is to be measured."""
        check_measuring(self.variants, self.minutes)

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Measure the table."""
        del engine
        from amcsearch import api

        table = api.measure_latency_table(
            config=self.configuration,
            variants=self.variants,
            minutes=self.minutes,
            folder=folder,
            resume=True,
            observer=observer,
        )
        return {**table.as_mapping(), "rows": len(table.rows)}


@dataclass(frozen=True)
class BuildRequest(JobRequest):
    """``amcsearch table build``: a latency table of what kits measured on one device.

    Args:
        name: of the job.
        results: files that kits wrote, as they were sent.
        source: a table of another device, carried over by the results' anchors.
        known: a table of the same device, which the new one extends; it stays as it is.
    """

    name: str
    results: tuple[str, ...]
    source: str | None = None
    known: str | None = None

    @property
    def job_name(self) -> str:
        """``name``."""
        return self.name

    def check(self) -> None:
        """Check that there are the results and tables, and that the name could be that of a configuration."""
        if not 1 <= len(self.results) <= _MOST_RESULTS:
            raise BadInputError(f"results: {len(self.results)} files, expected 1 to {_MOST_RESULTS} of one device")
        if not _NAME.fullmatch(self.name):
            raise BadInputError(f"name = {self.name!r:.90}, expected up to 80 letters, digits and . _ -")
        for number, path in enumerate(self.results):
            find_file(path, Path.cwd(), f"results.{number}")
        for key, table in (("source", self.source), ("known", self.known)):
            if table is not None:
                find(TABLES, table, where=key)

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Build the table."""
        del engine
        from amcsearch.config import read_latency_table
        from amcsearch.jobs import build_into

        observer.phase("Building the table")
        source, known = (None if path is None else read_latency_table(path) for path in (self.source, self.known))
        table = build_into(folder, [Path(path) for path in self.results], source, known=known, force=True)
        return {**table.as_mapping(), "rows": len(table.rows)}


@dataclass(frozen=True)
class CheckRequest(ConfiguredRequest):
    """``amcsearch table check``: a table held to networks measured now, on the machine that runs the job."""

    table: str
    fresh: int = 24
    anchors: int = 0

    def check(self) -> None:
        """Check counts, and that there is such a table."""
        check_count("fresh", self.fresh, LEAST_FRESH, MOST_EVALUATIONS)
        check_count("anchors", self.anchors, 0, MOST_EVALUATIONS)
        find(TABLES, self.table, where="table")

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Check the table; what anchors teach is written to the job's folder."""
        del engine
        from amcsearch.jobs import check_into

        checked = check_into(
            folder,
            self.table,
            self.configuration,
            observer,
            fresh=self.fresh,
            anchors=self.anchors,
            resume=True,
            keep_foreign=True,
        )
        errors = {"before": checked.before, "after": checked.after}
        return {name: None if error is None else error.as_mapping() for name, error in errors.items()}


@dataclass(frozen=True)
class VerifyRequest(ConfiguredRequest):
    """``amcsearch verify``: the run of a job whose device is offline, and what its kit measured there.

    The run is copied, so that of ``job`` stays as it is; ``config`` is its configuration.
    """

    job: str
    result: str

    def check(self) -> None:
        """Check the form of the job's name, which is that of a folder, and that there is the result."""
        if not _JOB.fullmatch(self.job):
            raise BadInputError(f"job = {self.job!r:.60}, expected the id of a job; GET /jobs lists them")
        find_file(self.result, Path.cwd(), "result")

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Copy the run, and finish it with what was measured."""
        del engine
        from amcsearch import api

        if not folder.exists():
            copied = folder.with_name(f".{folder.name}")
            shutil.rmtree(copied, ignore_errors=True)
            source = folder.parents[1] / self.job / folder.name
            try:
                shutil.copytree(source, copied)
            except (OSError, shutil.Error) as error:
                raise BadInputError(f"the run of job {self.job} cannot be copied: {error}") from error
            copied.rename(folder)
        return api.verify(folder, self.result, observer=observer).summary.to_json()
