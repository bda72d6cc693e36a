"""The client of a service: submit what a verb takes, follow it, and get back what the local call returns."""

import json
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, cast

from amcsearch.config import Config, read_latency_table, read_unchecked
from amcsearch.core import (
    BadInputError,
    Cost,
    Evaluation,
    InfeasibleBudgetError,
    PruningPolicy,
    Trial,
    TrialState,
)
from amcsearch.runs import FrontResult, expanded, make_folder, read_as
from amcsearch.service.connection import ServiceConnection
from amcsearch.service.records import JobProgress, JobRecord, JobState

if TYPE_CHECKING:
    from amcsearch.costs import LatencyTable
    from amcsearch.jobs import Comparison, Observer, RunResult, SearchResult, SparsifyResult

__all__ = ["Client", "RemoteJob", "connect"]

_AGAIN_S: Final = 1.0  # between two tries to reach a service that is away
_ANSWER_S: Final = 60.0  # that a service may take to answer
Limits = Mapping[str, str | float]


def connect(url: str, token: str | None = None, *, patience_s: float = 300.0) -> "Client":
    """Return a client of the service at an address such as ``https://amcsearch.example.org``.

    Args:
        url: of the service.
        token: made by its operator; None on the service's own machine.
        patience_s: that the service may be away, while it restarts for example, before a call is given up.

    Raises:
        BadInputError: no address, or the extra is not installed.
    """
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise BadInputError("the client needs the module httpx; type: pip install 'amcsearch[service]'") from error
    if not url.startswith(("http://", "https://")):
        raise BadInputError(f"{url[:80]!r} is no address of a service; write http://HOST:PORT or https://HOST")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return Client(ServiceConnection(httpx.Client(base_url=url, headers=headers, timeout=_ANSWER_S), patience_s))


class Client:
    """A service, through which verbs run elsewhere; ``connect`` makes it.

    ``config`` is a configuration file or name, a ``Config``, or its values as a mapping. Files and factories that it
    names are the service's: data and networks of this process cannot be sent. ``settings`` are further keys by dotted
    name. A verb waits for its job's end; interrupted, it leaves the job running, and ``job`` finds it again.
    """

    def __init__(self, connection: ServiceConnection) -> None:
        self._connection = connection

    def search(
        self,
        config: Config | Path | str | Mapping[str, object],
        *,
        budget: Limits | None = None,
        trials: int | None = None,
        seed: int | None = None,
        settings: Mapping[str, object] | None = None,
        workers: int = 1,
        strict: bool = False,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "SearchResult":
        """Search as ``amcsearch.search`` does, and return its result with the files of the run in ``folder``.

        Raises:
            BadInputError: as ``amcsearch.search``, or the service cannot be reached, refuses, or the job is cancelled.
            InfeasibleBudgetError: no policy meets the budget.
        """
        given = {"budget": budget, "search.trials": trials, "seed": seed}
        arguments: dict[str, object] = {"workers": workers, "strict": strict}
        job = self.submit("search", config, settings=_settings(settings, given), arguments=arguments)
        return cast("SearchResult", job.result(folder, observer))

    def prune(
        self,
        config: Config | Path | str | Mapping[str, object],
        *,
        target: Limits | None = None,
        keep_accuracy: float | None = None,
        seed: int | None = None,
        settings: Mapping[str, object] | None = None,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "SearchResult":
        """Prune as ``amcsearch.prune`` does; raises as ``search``."""
        given = {"prune.target": target, "prune.keep_accuracy": keep_accuracy, "seed": seed}
        job = self.submit("prune", config, settings=_settings(settings, given))
        return cast("SearchResult", job.result(folder, observer))

    def sparsify(
        self,
        config: Config | Path | str | Mapping[str, object],
        *,
        method: str | None = None,
        target: Limits | None = None,
        seed: int | None = None,
        settings: Mapping[str, object] | None = None,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "SparsifyResult":
        """Sparsify as ``amcsearch.sparsify`` does; raises as ``search``."""
        given = {"sparsify.method": method, "sparsify.target": target, "seed": seed}
        job = self.submit("sparsify", config, settings=_settings(settings, given))
        return cast("SparsifyResult", job.result(folder, observer))

    def front(
        self,
        config: Config | Path | str | Mapping[str, object],
        *,
        devices: Sequence[str] = (),
        evaluations: int = 12,
        seed: int | None = None,
        settings: Mapping[str, object] | None = None,
        workers: int = 1,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> FrontResult:
        """Make fronts as ``amcsearch.front`` does; raises as ``search``."""
        arguments: dict[str, object] = {"devices": list(devices), "evaluations": evaluations, "workers": workers}
        job = self.submit("front", config, settings=_settings(settings, {"seed": seed}), arguments=arguments)
        job.wait(observer)
        return FrontResult.open(job.fetch(folder))

    def compare(
        self,
        config: Config | Path | str | Mapping[str, object],
        *,
        agents: Sequence[str],
        seeds: Sequence[int] = (0, 1, 2),
        budget: Limits | None = None,
        trials: int | None = None,
        seed: int | None = None,
        settings: Mapping[str, object] | None = None,
        workers: int = 1,
        strict: bool = False,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "Comparison":
        """Compare agents as ``amcsearch.compare`` does; raises as ``search``."""
        from amcsearch.jobs import Comparison

        given = {"budget": budget, "search.trials": trials, "seed": seed}
        named = {"agents": list(agents), "seeds": list(seeds), "workers": workers, "strict": strict}
        job = self.submit("compare", config, settings=_settings(settings, given), arguments=named)
        job.wait(observer)
        return Comparison.open(job.fetch(folder))

    def measure_latency_table(
        self,
        config: Config | Path | str | Mapping[str, object],
        *,
        variants: int | None = None,
        minutes: float | None = None,
        seed: int | None = None,
        settings: Mapping[str, object] | None = None,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "LatencyTable":
        """Measure a table on the worker's machine, or on the device of ``device.location``; raises as ``search``."""
        arguments: dict[str, object] = {"variants": variants, "minutes": minutes}
        job = self.submit("table_measure", config, settings=_settings(settings, {"seed": seed}), arguments=arguments)
        job.wait(observer)
        return read_latency_table(job.fetch(folder))

    def verify(
        self,
        job: "RemoteJob | str",
        result: Path | str,
        *,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "SearchResult":
        """Finish the run of a job as ``amcsearch.verify`` does, with the file that its kit wrote on the device.

        The run of ``job`` stays as it is: what is returned is a copy with the measurement. Raises as ``search``.
        """
        name = job if isinstance(job, str) else job.id
        arguments: dict[str, object] = {"job": name, "result": self.upload(result)}
        return cast("SearchResult", self.submit("verify", arguments=arguments).result(folder, observer))

    def upload(self, file: Path | str) -> str:
        """Send a checkpoint or a kit's result, and return the path by which a configuration names it there.

        The same file again is the one that is there.

        Raises:
            BadInputError: as ``search``; a file that cannot be read, is too large, or is none of these.
        """
        path: str = read_as(str, self._connection.upload(expanded(file))["path"], "path")
        return path

    def submit(
        self,
        kind: str,
        config: Config | Path | str | Mapping[str, object] | None = None,
        *,
        settings: Mapping[str, object] | None = None,
        arguments: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
    ) -> "RemoteJob":
        """Submit a job and return it without waiting.

        Args:
            kind: such as ``search``; the service's OpenAPI lists all.
            config: as for the class; None for a verification, which has that of its job.
            settings: as for the class.
            arguments: of the verb, such as ``{"agents": ["random", "nsga2"]}`` of ``compare``.
            idempotency_key: the same key with the same request gives the same job; None makes one.

        Raises:
            BadInputError: as ``search``.
        """
        keys = {} if config is None else {"config": _values(config), "settings": dict(settings or {})}
        body = {"kind": kind, **keys, **(arguments or {})}
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return RemoteJob(
            self._connection, read_as(JobRecord, self._connection.ask("POST", "/jobs", body, headers), "job")
        )

    def job(self, name: str) -> "RemoteJob":
        """Return a job by its ``id``; raises BadInputError where there is none."""
        return RemoteJob(self._connection, read_as(JobRecord, self._connection.ask("GET", f"/jobs/{name}"), "job"))

    def jobs(self, state: JobState | None = None) -> Iterator[JobRecord]:
        """Give every job, the newest first, those of one state where one is named."""
        cursor: str | None = None
        while True:
            parameters = {"limit": "500", **({} if state is None else {"state": str(state)})}
            page = self._connection.ask(
                "GET", "/jobs", parameters=parameters if cursor is None else {**parameters, "cursor": cursor}
            )
            yield from read_as(tuple[JobRecord, ...], page["jobs"], "jobs")
            cursor = read_as(str | None, page["next_cursor"], "next_cursor")
            if cursor is None:
                return


class RemoteJob:
    """A job of a service; ``record`` is what was last heard of it."""

    def __init__(self, connection: ServiceConnection, record: JobRecord) -> None:
        self._connection, self.record = connection, record

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

    def wait(self, observer: "Observer | None" = None) -> JobRecord:
        """Wait until the job is done, telling ``observer`` of its progress.

        Raises:
            BadInputError, InfeasibleBudgetError: the job failed, or was cancelled.
        """
        progress, waited = JobProgress(), None
        for record in self.follow():
            if observer is not None:
                _tell(observer, record.progress, progress)
                if record.device is not None and record.device != waited:
                    observer.phase(f"Waiting for {record.waits_for}")
                progress, waited = record.progress, record.device
        if self.record.state is JobState.CANCELLED:
            raise BadInputError(f"job {self.id} was cancelled; resume it, or submit another")
        if self.record.problem is not None:
            is_infeasible = self.record.problem.kind == "infeasible"
            raise (InfeasibleBudgetError if is_infeasible else BadInputError)(self.record.problem.detail)
        return self.record

    def cancel(self) -> JobRecord:
        """Cancel the job; raises BadInputError."""
        return self._changed("cancel")

    def resume(self) -> JobRecord:
        """Let the job go on, which was cancelled or failed; raises BadInputError."""
        return self._changed("resume")

    def extend(self, trials: int) -> JobRecord:
        """Add trials to a search that has ended, and let it go on; raises BadInputError."""
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

        self.wait(observer)
        path = self.fetch(folder)
        result = load(path)
        if folder is None:
            weakref.finalize(result, shutil.rmtree, path.parent, ignore_errors=True)
        return result

    def fetch(self, folder: Path | str | None = None) -> Path:
        """Fetch the files of the job's run folder into a new or empty folder, and return it.

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
        return target


def _settings(settings: Mapping[str, object] | None, given: Mapping[str, object]) -> dict[str, object]:
    return {**(settings or {}), **{key: value for key, value in given.items() if value is not None}}


def _values(config: Config | Path | str | Mapping[str, object]) -> Mapping[str, object]:
    if isinstance(config, Config):
        return config.model_dump(mode="json")
    values = read_unchecked(config) if isinstance(config, Path | str) else config
    try:
        return cast(Mapping[str, object], json.loads(json.dumps(values)))
    except (TypeError, ValueError) as error:
        raise BadInputError(f"config cannot be sent as JSON ({error}); give plain values") from error


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
