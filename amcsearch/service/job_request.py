"""What any kind of job has: a request that is checked before it waits, and the engine that the operator gives it."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from amcsearch.config import AUTO, TABLES, Config, find, from_mapping
from amcsearch.core import BadInputError
from amcsearch.runs import StoredDocument

if TYPE_CHECKING:
    from amcsearch.jobs import Observer

__all__ = ["MOST_EVALUATIONS", "PLAIN", "ConfiguredRequest", "JobEngine", "JobRequest", "check_count", "check_table"]

MOST_EVALUATIONS: Final = 1_000_000


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


def check_count(name: str, value: int | None, least: int, most: int) -> None:
    """Check a whole number that may be left out.

    Raises:
        BadInputError: it is below ``least`` or above ``most``.
    """
    if value is not None and not least <= value <= most:
        raise BadInputError(f"{name} = {value}, must be at least {least} and at most {most}")
