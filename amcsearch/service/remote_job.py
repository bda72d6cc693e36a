"""A job of a service as its client sees it: followed, changed, and fetched."""

import html
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from amcsearch.config import RUN_CONFIG, files_here
from amcsearch.core import (
    MIB,
    BadInputError,
    Cost,
    Evaluation,
    InfeasibleBudgetError,
    PruningPolicy,
    Trial,
    TrialState,
    read_text,
)
from amcsearch.runs import expanded, make_folder, read_as, replacing
from amcsearch.service.connection import ServiceConnection
from amcsearch.service.records import JobProgress, JobRecord, JobState

if TYPE_CHECKING:
    from amcsearch.jobs import Observer, RunResult

__all__ = ["RemoteJob"]

_AGAIN_S: Final = 1.0  # between two tries to reach a service that is away
_ESCAPES: Final[Mapping[str, Callable[[str], str]]] = {
    ".json": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    ".html": html.escape,
}
"""How files that speak of their own folder, summaries and pages, write a text."""


class RemoteJob:
    """A job of a service; ``record`` is what was last heard of it.

    ``sent`` are the files that were sent for it: paths there, and paths here.
    """

    def __init__(
        self, connection: ServiceConnection, record: JobRecord, sent: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._connection, self.record, self._sent = connection, record, sent
        self.not_here: Mapping[str, str] = {}
        """Files of the service's machine that the fetched configuration names and are not here, by dotted key."""

    def __repr__(self) -> str:
        return f"RemoteJob(id={self.id!r}, kind={self.record.kind!r}, state={str(self.record.state)!r})"

    @property
    def id(self) -> str:
        """Its name at the service."""
        return self.record.id

    def follow(self) -> Iterator[JobRecord]:
        """Give the job at each change until it has ended; goes on where a connection broke.

        Raises:
            BadInputError: the service stays away, or the token is no longer valid.
        """
        last, heard_s = 0, time.monotonic()
        while time.monotonic() < heard_s + self._connection.patience_s:
            for record in self._connection.events(self.id, last):
                if record is not None:
                    self.record, last = record, record.revision
                    yield record
                    if record.has_ended:
                        return
                heard_s = time.monotonic()
            time.sleep(_AGAIN_S)
        raise self._connection.gone()

    def wait(self, observer: "Observer | None" = None, folder: Path | str | None = None) -> JobRecord:
        """Wait until the job is done, telling ``observer`` of its progress; return it.

        ``folder`` is where its files are fetched to: paths to them lead there. None shows them after the job's id.

        Raises:
            BadInputError, InfeasibleBudgetError: the job failed, or was cancelled.
        """
        place = self.id if folder is None else str(folder)
        progress, waited, record = JobProgress(), None, self.record
        for record in (each.with_files_in(place) for each in self.follow()):
            if observer is not None:
                _tell(observer, record.progress, progress)
                if record.device is not None and record.device != waited:
                    observer.phase(f"Waiting for {record.waits_for}")
                progress, waited = record.progress, record.device
        if record.state is JobState.CANCELLED:
            raise BadInputError(f"job {self.id} was cancelled; resume it, or submit another")
        if record.problem is not None:
            is_infeasible = record.problem.kind == "infeasible"
            raise (InfeasibleBudgetError if is_infeasible else BadInputError)(record.problem.detail)
        return record

    def cancel(self) -> JobRecord:
        """Cancel the job; raises BadInputError."""
        return self._changed("cancel")

    def resume(self) -> JobRecord:
        """Let the job go on, which was cancelled or failed; raises BadInputError."""
        return self._changed("resume")

    def extend(self, trials: int) -> JobRecord:
        """Add trials to a search that has ended, and let it go on; raises BadInputError.

        One that was cancelled or failed first makes up what it lacks.
        """
        return self._changed("extend", {"trials": trials})

    def _changed(self, action: str, body: Mapping[str, object] | None = None) -> JobRecord:
        answer = self._connection.ask("POST", f"/jobs/{self.id}/{action}", body)
        self.record = read_as(JobRecord, answer, "job")
        return self.record

    def result(self, folder: Path | str | None = None, observer: "Observer | None" = None) -> "RunResult":
        """Wait for a search, pruning or sparsification, and return what the local call returns.

        ``folder`` is where its files go, a new or empty one; None takes a temporary one, which goes with the result.

        Raises:
            BadInputError, InfeasibleBudgetError: as ``wait`` and ``fetch``.
        """
        from amcsearch.jobs import load

        self.wait(observer, folder)
        path = self.fetch(folder)
        result = load(path)
        if folder is None:
            weakref.finalize(result, shutil.rmtree, path.parent, ignore_errors=True)
        return result

    def fetch(self, folder: Path | str | None = None) -> Path:
        """Fetch the files of the job's run folder into a new or empty folder, and return it.

        Paths to them in summaries and pages lead there too, and no longer to the service's folder. The configuration
        names the files here that were sent, and devices and tables by the names that they have here. What else it names
        is ``not_here``.

        Raises:
            BadInputError: the folder holds files or cannot be written, or the service stays away.
        """
        target = Path(tempfile.mkdtemp(prefix="amcsearch-")) / self.record.name if folder is None else expanded(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BadInputError(f"cannot fetch into {target}: it is there already; name a new or an empty folder")
        make_folder(target)
        listed = read_as(
            tuple[Mapping[str, object], ...], self._connection.ask("GET", f"/jobs/{self.id}/files")["files"], ""
        )
        for path in (PurePosixPath(read_as(str, file["path"], "path")) for file in listed):
            if path.is_absolute() or ".." in path.parts:
                raise BadInputError(
                    f"the service names a file {str(path)!r} outside its run; is it an amcsearch service?"
                )
            make_folder((target / path).parent)
            self._connection.download(self.id, str(path), target / path)
            self._lead_to(target, target / path)
        self._name_files_here(target / RUN_CONFIG)
        return target

    def _name_files_here(self, file: Path) -> None:
        if not file.is_file():
            return
        before = read_text(file, most_bytes=MIB)
        after, self.not_here = files_here(before, self._sent)
        if after != before:
            with replacing(file) as temporary:
                temporary.write_text(after, encoding="utf-8")

    def _lead_to(self, folder: Path, file: Path) -> None:
        """Let the paths in a fetched file lead to the folder of all that was fetched."""
        escape, there = _ESCAPES.get(file.suffix), self.record.run_folder
        if escape is None or there is None:
            return
        before, after = (escape(place).encode() for place in (there, str(folder)))
        content = file.read_bytes()
        if before in content:
            file.write_bytes(content.replace(before, after))


def _tell(observer: "Observer", progress: JobProgress, before: JobProgress) -> None:
    """Tell an observer what changed."""
    if progress.phase != before.phase:
        observer.phase(progress.phase)
    for warning in progress.warnings:
        if warning not in before.warnings:
            observer.warn(warning)
    if progress.share is not None and progress.share != before.share:
        observer.progress(progress.share, progress.text)
    best = progress.best
    if best is not None and progress.evaluations != before.evaluations:
        trial = Trial(
            number=best.trial,
            agent=progress.text.partition(" ")[0],
            seed=0,
            state=TrialState.COMPLETE,
            policy=PruningPolicy(best.policy),
            evaluation=Evaluation(best.metric, float("nan"), 0.0),
            cost=Cost(best.costs),
            reward=float("nan"),
            judged_by=best.judged_by.metric,
        )
        observer.trial(trial, trial, progress.evaluations, progress.total)
