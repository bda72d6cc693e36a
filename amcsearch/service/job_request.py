"""What any kind of job has: a request that is checked before it waits, and the engine that the operator gives it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.config import AUTO, TABLES, Config, find, from_mapping, pick
from amcsearch.core import BadInputError
from amcsearch.runs import StoredDocument

if TYPE_CHECKING:
    from amcsearch.jobs import Observer

__all__ = [
    "MOST_EVALUATIONS",
    "PLAIN",
    "REGISTERED",
    "ConfiguredRequest",
    "JobEngine",
    "JobRequest",
    "check_agents",
    "check_count",
    "check_named",
    "check_network_names",
    "check_table",
]

MOST_EVALUATIONS: Final = 1_000_000
REGISTERED: Final[Mapping[str, frozenset[str]]] = {
    kind: frozenset(names.split())
    for kind, names in {
        "agents": (
            "ddpg nsga2 tpe gp cmaes dynamic_programming ladder grid random uniform erk sensitivity netadapt "
            "energy_aware"
        ),
        "criteria": (
            "magnitude taylor obd fisher movement activation_magnitude activation_variance wanda wanda_channels "
            "bn_scale random taylor_bn taylor_joint taylor_parameterwise taylor_per_sample taylor_act2017 true_fisher"
        ),
        "selectors": "amc thinet lasso obc discrimination_aware fisher_ratio",
        "rewards": "accuracy accuracy_guaranteed mnasnet mnasnet_hard hard_constraint weighted_sum",
        "tasks": "classification language_modelling segmentation regression binary multilabel embedding custom",
        "gates": "gumbel_softmax hard_concrete slimming soft_threshold variational_dropout",
        "schedules": "dynamic_surgery gradual iterative lottery movement one_shot rigl",
        "runtimes": "onnxruntime executorch",
    }.items()
}
"""Names of `amcsearch list`, by registry; a test compares them with the registries, which only torch can import."""


@dataclass(frozen=True)
class JobEngine:
    """What the operator lets searches run on: a Dask scheduler in place of their workers, and a shared storage.

    Args:
        scheduler: its address; None lets a job start as many workers as it asks for.
        storage: Optuna's address of a database for all studies; None keeps each in the folder of its run.

    Raises:
        BadInputError: no address of a scheduler, or Dask is not installed.
    """

    scheduler: str | None = None
    storage: str | None = field(default=None, repr=False)  # it may hold a password

    def __post_init__(self) -> None:
        if self.scheduler is None:
            return
        if not self.scheduler.startswith(("tcp://", "tls://")):
            raise BadInputError(
                f"scheduler = {self.scheduler!r:.80}, expected the address that `dask scheduler` prints, such as "
                "tcp://10.0.0.1:8786"
            )
        if find_spec("distributed") is None:
            raise BadInputError("scheduler needs the module distributed; type: pip install 'amcsearch[cluster]'")

    def workers(self, wanted: int) -> int:
        """Workers that a job starts itself."""
        return wanted if self.scheduler is None else 1

    def own_study(self, config: Config, folder: Path) -> Config:
        """A configuration whose study is the job's own, by its name, also where others' are in the same storage."""
        if self.storage is None:
            return config
        return config.model_copy(update={"name": f"{config.name[:60]}-{folder.parent.name}"})


PLAIN: Final = JobEngine()


@dataclass(frozen=True)
class JobRequest(StoredDocument):
    """A request of one kind."""

    @property
    @abstractmethod
    def job_name(self) -> str:
        """The name that the job is listed under."""

    @property
    def location(self) -> str:
        """Where it measures: ``here``, ``offline``, or the name of a device with an agent."""
        return "here"

    def check(self) -> None:
        """Check the values that are not the configuration's.

        Raises:
            BadInputError: one is out of bounds.
        """

    @abstractmethod
    def run(self, folder: Path, observer: "Observer", engine: JobEngine = PLAIN) -> Mapping[str, object]:
        """Do it in a folder, from where an earlier attempt ended; return what the verb prints with ``--json``.

        ``engine`` is what searches, comparisons and fronts evaluate with.

        Raises:
            BadInputError, InfeasibleBudgetError: as the verb.
        """


@dataclass(frozen=True)
class ConfiguredRequest(JobRequest):
    """A request with a configuration; ``config`` is all of it, every default written out."""

    config: Mapping[str, object]

    @property
    def configuration(self) -> Config:
        """The configuration, valid."""
        return from_mapping(self.config, "")

    @property
    def job_name(self) -> str:
        """The name of the configuration."""
        return self.configuration.name

    @property
    def location(self) -> str:
        """The configuration's ``device.location``."""
        section = self.config.get("device")
        return str(section.get("location", "here")) if isinstance(section, Mapping) else "here"


def check_table(config: Config) -> None:
    """Check that there is the latency table that a configuration names.

    Raises:
        BadInputError: there is none.
    """
    if config.device.table not in (None, AUTO):
        find(TABLES, config.device.table, where="device.table")


def check_named(key: str, name: str | None, *registries: str) -> None:
    """Check what a key names, unless it is code of the user's, which the worker alone may have.

    Raises:
        BadInputError: none of the registries has the name; says the nearest and all known ones.
    """
    if name is not None and ":" not in name:
        pick(dict.fromkeys(frozenset().union(*(REGISTERED[kind] for kind in registries))), name, key)


def check_network_names(config: Config) -> None:
    """Check the names of the task, of the runtime and of what selects channels.

    Raises:
        BadInputError: as ``check_named``.
    """
    check_named("task.name", None if config.task is None else config.task.name, "tasks")
    check_named("device.runtime", config.device.runtime, "runtimes")
    check_named("selection.criterion", config.selection.criterion, "criteria")
    check_named("selection.selector", config.selection.selector, "selectors")


def check_agents(config: Config, agents: Mapping[str, str | None]) -> None:
    """Check the names of the reward and of agents, by their keys.

    Raises:
        BadInputError: as ``check_named``.
    """
    check_named("search.reward.name", config.search.reward.name, "rewards")
    for key, agent in agents.items():
        check_named(key, agent, "agents")


def check_count(name: str, value: int | None, least: int, most: int) -> None:
    """Check a whole number that may be left out.

    Raises:
        BadInputError: it is below ``least`` or above ``most``.
    """
    if value is not None and not least <= value <= most:
        raise BadInputError(f"{name} = {value}, must be at least {least} and at most {most}")
