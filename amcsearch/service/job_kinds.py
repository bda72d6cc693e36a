"""What a service can be asked for: a request for each verb, checked as the command line checks it, and how to run it.

A submission is an object of JSON: ``kind``, ``config`` (the configuration's keys as in YAML), ``settings`` (further
keys by dotted name, which win), and the arguments of the verb. Running imports torch, submitting does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from amcsearch.config import (
    AUTO,
    check_once,
    check_priced,
    check_seeds,
    find_target,
    from_mapping,
    hint,
    json_schema,
    label,
)
from amcsearch.core import BadInputError
from amcsearch.runs import read_as
from amcsearch.service.job_request import (
    MOST_EVALUATIONS,
    PLAIN,
    ConfiguredRequest,
    JobEngine,
    JobRequest,
    check_agents,
    check_count,
    check_named,
    check_network_names,
    check_table,
)
from amcsearch.service.measured_kinds import BuildRequest, CheckRequest, TableRequest, VerifyRequest

if TYPE_CHECKING:
    from amcsearch.jobs import Observer

__all__ = ["KINDS", "MEASURING", "read_request", "request_of", "submission_schema"]

_MOST_WORKERS: Final = 1024


@dataclass(frozen=True)
class SearchRequest(ConfiguredRequest):
    """``amcsearch search``."""

    workers: int = 1
    strict: bool = False

    def check(self) -> None:
        """Check workers and names, that the table is there, and that every limited cost can be priced."""
        check_count("workers", self.workers, 1, _MOST_WORKERS)
        config = self.configuration
        check_table(config)
        check_priced(config, config.limits, reward=True)
        check_network_names(config)
        check_agents(config, {"search.agent": config.search.agent, "search.baseline": config.search.baseline})

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Search."""
        from amcsearch import api

        result = api.search(
            config=engine.own_study(self.configuration, folder),
            folder=folder,
            resume=True,
            workers=engine.workers(self.workers),
            scheduler=engine.scheduler,
            storage=engine.storage,
            strict=self.strict,
            observer=observer,
        )
        return result.summary.to_json()

    def extended(self, trials: int) -> Self:
        """Return the request with further trials for the search that has ended."""
        check_count("trials", trials, 1, MOST_EVALUATIONS)
        further = (*self.configuration.search.further_trials, trials)
        config = from_mapping(self.config, "", {"search.further_trials": list(further)})
        return replace(self, config=config.model_dump(mode="json"))


@dataclass(frozen=True)
class PruneRequest(ConfiguredRequest):
    """``amcsearch prune``; its goal is in section ``prune`` of the configuration."""

    def check(self) -> None:
        """Check names, and that there is the configuration's table."""
        check_table(self.configuration)
        check_network_names(self.configuration)

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Prune."""
        del engine
        from amcsearch import api

        result = api.prune(config=self.configuration, folder=folder, resume=True, observer=observer)
        return result.summary.to_json()


@dataclass(frozen=True)
class SparsifyRequest(ConfiguredRequest):
    """``amcsearch sparsify``."""

    def check(self) -> None:
        """Check names, and that there is the configuration's table."""
        config = self.configuration
        check_table(config)
        check_network_names(config)
        check_named("sparsify.method", config.sparsify.method, "gates", "schedules")
        check_named("sparsify.criterion", config.sparsify.criterion, "criteria")

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Sparsify."""
        del engine
        from amcsearch import api

        result = api.sparsify(config=self.configuration, folder=folder, resume=True, observer=observer)
        return result.summary.to_json()


@dataclass(frozen=True)
class FrontRequest(ConfiguredRequest):
    """``amcsearch front``; ``devices`` are names of profiles and tables."""

    devices: tuple[str, ...] = ()
    evaluations: int = 12
    workers: int = 1

    def check(self) -> None:
        """Check counts, and that there is each device, once; without any, the configuration's table."""
        check_count("evaluations", self.evaluations, 0, MOST_EVALUATIONS)
        check_count("workers", self.workers, 1, _MOST_WORKERS)
        check_once("devices", self.devices)
        for device in self.devices:
            if device != AUTO:
                find_target(device)
        if not self.devices:
            check_table(self.configuration)
        check_network_names(self.configuration)

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Make the fronts."""
        from amcsearch import api

        result = api.front(
            config=self.configuration,
            devices=self.devices,
            evaluations=self.evaluations,
            workers=engine.workers(self.workers),
            scheduler=engine.scheduler,
            folder=folder,
            resume=True,
            observer=observer,
        )
        return result.to_json()


@dataclass(frozen=True)
class CompareRequest(ConfiguredRequest):
    """``amcsearch compare``; the first of ``agents`` is the reference."""

    agents: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: int = 1
    strict: bool = False

    def check(self) -> None:
        """Check that there are agents and seeds, each once, and the configuration's table."""
        check_count("workers", self.workers, 1, _MOST_WORKERS)
        if not self.agents or not self.seeds:
            raise BadInputError("agents and seeds: at least one of each is needed; name them")
        check_once("agents", [label(agent) for agent in self.agents])
        check_seeds(self.seeds)
        check_table(self.configuration)
        check_network_names(self.configuration)
        check_agents(self.configuration, {f"agents.{at}": agent for at, agent in enumerate(self.agents)})

    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Compare."""
        from amcsearch import api

        result = api.compare(
            config=self.configuration,
            agents=self.agents,
            seeds=self.seeds,
            workers=engine.workers(self.workers),
            scheduler=engine.scheduler,
            strict=self.strict,
            folder=folder,
            resume=True,
            observer=observer,
        )
        return result.to_json()


KINDS: Final[Mapping[str, type[JobRequest]]] = {
    "search": SearchRequest,
    "prune": PruneRequest,
    "sparsify": SparsifyRequest,
    "front": FrontRequest,
    "compare": CompareRequest,
    "table_measure": TableRequest,
    "table_build": BuildRequest,
    "table_check": CheckRequest,
    "verify": VerifyRequest,
}
"""Kinds of jobs by name."""
MEASURING: Final = frozenset({"table_measure", "table_check"})
"""Kinds that keep a machine to themselves while they measure it."""


def read_request(submission: object) -> tuple[str, JobRequest]:
    """Return the kind and the request of a submission, checked as the command line checks it.

    Raises:
        BadInputError: no object, an unknown kind or key, or a value that cannot be used.
    """
    values = dict(read_as(Mapping[str, object], submission, "the request"))
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadInputError(f"kind = {kind!r:.60}, expected one of {', '.join(KINDS)}{hint(str(kind), KINDS)}")
    is_configured = issubclass(KINDS[kind], ConfiguredRequest)
    known = [*(["settings"] if is_configured else []), *(item.name for item in fields(KINDS[kind]))]
    unknown = next((key for key in values if key not in known), None)
    if unknown is not None:
        close = hint(unknown, known) or f"; known: kind, {', '.join(known)}"
        raise BadInputError(f"unknown key {unknown:.60} of kind {kind}{close}")
    if is_configured:
        settings = read_as(Mapping[str, object], values.pop("settings", {}), "settings")
        config = from_mapping(read_as(Mapping[str, object], values.get("config", {}), "config"), "", settings)
        values["config"] = config.model_dump(mode="json")
    request = KINDS[kind].from_json(values, "the request")
    request.check()
    return kind, request


def request_of(kind: str, stored: Mapping[str, object]) -> JobRequest:
    """Return the request that the job table holds.

    Raises:
        BadInputError: another version wrote what this one does not know.
    """
    if kind not in KINDS:
        raise BadInputError(f"kind {kind} is not known to this version; known: {', '.join(KINDS)}")
    return KINDS[kind].from_json(stored, "the request")


def submission_schema() -> dict[str, object]:
    """JSON schema of a submission, for OpenAPI."""
    return {
        "type": "object",
        "required": ["kind"],
        "properties": {
            "kind": {"type": "string", "enum": list(KINDS)},
            "config": {**json_schema()},
            "settings": {"type": "object", "description": "further keys of the configuration by dotted name"},
            "workers": {"type": "integer", "minimum": 1, "maximum": _MOST_WORKERS},
            "strict": {"type": "boolean"},
            "devices": {"type": "array", "items": {"type": "string"}},
            "evaluations": {"type": "integer", "minimum": 0},
            "agents": {"type": "array", "items": {"type": "string"}},
            "seeds": {"type": "array", "items": {"type": "integer"}},
            "variants": {"type": ["integer", "null"]},
            "minutes": {"type": ["number", "null"]},
            "table": {"type": "string"},
            "fresh": {"type": "integer"},
            "anchors": {"type": "integer"},
            "job": {"type": "string"},
            "result": {"type": "string"},
            "name": {"type": "string"},
            "results": {"type": "array", "items": {"type": "string"}},
            "source": {"type": ["string", "null"]},
            "known": {"type": ["string", "null"]},
        },
        "additionalProperties": False,
    }
