"""The client of a service: submit what a verb takes, follow it, and get back what the local call returns."""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from amcsearch.config import Config, read_latency_table, read_unchecked
from amcsearch.core import BadInputError
from amcsearch.runs import FrontResult, expanded, read_as
from amcsearch.service.connection import ServiceConnection
from amcsearch.service.records import JobRecord, JobState
from amcsearch.service.remote_job import RemoteJob

if TYPE_CHECKING:
    from amcsearch.costs import LatencyTable
    from amcsearch.jobs import Comparison, Observer, SearchResult, SparsifyResult, TableCheck

__all__ = ["Client", "connect"]

_ANSWER_S: Final = 60.0  # that a service may take to answer
_SENDABLE: Final = re.compile(r"[!-~]+")  # in a header
Limits = Mapping[str, str | float]


def connect(url: str, token: str | None = None, *, patience_s: float = 300.0) -> "Client":
    """Return a client of the service at an address such as ``https://amcsearch.example.org``.

    Args:
        url: of the service.
        token: made by its operator; None on the service's own machine.
        patience_s: that the service may be away, while it restarts for example, before a call is given up; one that
            never answered is given up after 30 s.

    Raises:
        BadInputError: no address, a token that cannot be one, or the extra is not installed.
    """
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise BadInputError("the client needs the module httpx; type: pip install 'amcsearch[service]'") from error
    if not url.startswith(("http://", "https://")):
        raise BadInputError(f"{url[:80]!r} is no address of a service; write http://HOST:PORT or https://HOST")
    if token is not None and not _SENDABLE.fullmatch(token):
        raise BadInputError(
            f"the token of {len(token)} characters is none (AMCSEARCH_TOKEN, or token=); give one that amcsearch token "
            "create has made, or none on the service's own machine"
        )
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
        self._sent: dict[str, str] = {}

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
        job.wait(observer, folder)
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
        job.wait(observer, folder)
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
        job.wait(observer, folder)
        return read_latency_table(job.fetch(folder))

    def build_latency_table(
        self,
        name: str,
        results: Sequence[Path | str],
        *,
        source: str | None = None,
        known: str | None = None,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "LatencyTable":
        """Build a table of what kits measured on one device, as ``amcsearch table build`` does; raises as ``search``.

        Args:
            name: of the job.
            results: files that kits wrote, on this machine.
            source: name or folder, at the service, of another device's table, which the anchors carry over.
            known: name or folder, at the service, of a table that is extended; it stays as it is.
            folder: as for ``search``.
            observer: as for ``search``.
        """
        arguments = {"name": name, "results": [self.upload(file) for file in results], "source": source, "known": known}
        job = self.submit("table_build", arguments=arguments)
        job.wait(observer, folder)
        return read_latency_table(job.fetch(folder))

    def check_latency_table(
        self,
        table: str,
        config: Config | Path | str | Mapping[str, object],
        *,
        fresh: int | None = None,
        anchors: int = 0,
        settings: Mapping[str, object] | None = None,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "TableCheck":
        """Hold a table to networks measured now, as ``amcsearch table check`` does; raises as ``search``.

        Args:
            table: name, or folder at the service.
            config: of the network that is measured; where, says its ``device.location``.
            fresh: variants measured; None takes as many as the command line.
            anchors: variants that correct the table before it is held to the others.
            settings: as for ``search``.
            folder: as for ``search``; the corrected table is there.
            observer: as for ``search``.
        """
        from amcsearch.costs import Accuracy
        from amcsearch.jobs import TableCheck

        arguments = {"table": table, "anchors": anchors, **({} if fresh is None else {"fresh": fresh})}
        job = self.submit("table_check", config, settings=settings, arguments=arguments)
        result = read_as(Mapping[str, Mapping[str, object] | None], job.wait(observer, folder).result or {}, "result")
        errors = {name: None if error is None else Accuracy.from_mapping(error) for name, error in result.items()}
        return TableCheck(errors["before"], errors["after"], read_latency_table(job.fetch(folder)))

    def verify(
        self,
        job: "RemoteJob | str",
        result: Path | str,
        *,
        folder: Path | str | None = None,
        observer: "Observer | None" = None,
    ) -> "SearchResult | SparsifyResult":
        """Finish the run of a job as ``amcsearch.verify`` does, with the file that its kit wrote on the device.

        The run of ``job`` stays as it is: what is returned is a copy with the measurement. Raises as ``search``.
        """
        name = job if isinstance(job, str) else job.id
        arguments: dict[str, object] = {"job": name, "result": self.upload(result)}
        verified = self.submit("verify", arguments=arguments).result(folder, observer)
        return cast("SearchResult | SparsifyResult", verified)

    def upload(self, file: Path | str) -> str:
        """Send a checkpoint or a kit's result, and return the path by which a configuration names it there.

        The same file again is the one that is there.

        Raises:
            BadInputError: as ``search``; a file that cannot be read, is too large, or is none of these.
        """
        here = expanded(file)
        path: str = read_as(str, self._connection.upload(here)["path"], "path")
        self._sent[path] = str(here.absolute())
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
        record = read_as(JobRecord, self._connection.ask("POST", "/jobs", body, headers), "job")
        return RemoteJob(self._connection, record, self._sent)

    def job(self, name: str) -> "RemoteJob":
        """Return a job by its ``id``; raises BadInputError where there is none."""
        record = read_as(JobRecord, self._connection.ask("GET", f"/jobs/{name}"), "job")
        return RemoteJob(self._connection, record, self._sent)

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
