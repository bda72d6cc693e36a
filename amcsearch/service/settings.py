"""Settings of a service, which its operator decides: database, runs, allowed factories, tokens and limits."""

from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from amcsearch.core import MIB, BadInputError

__all__ = ["ServiceLimits", "ServiceSettings", "default_database", "is_loopback"]


@dataclass(frozen=True)
class ServiceLimits:
    """What one caller may ask for.

    Args:
        waiting_jobs: jobs that wait or run at once.
        request_bytes: bytes of one request.
        upload_bytes: bytes of one file that is sent; 0 takes none.
        uploads: files that are kept at once.
    """

    waiting_jobs: int = 100
    request_bytes: int = MIB
    upload_bytes: int = 256 * MIB
    uploads: int = 16

    def jobs_of(self, most: int | None) -> int:
        """Jobs, and measurements without one, that a caller may have at once: ``most`` of its token where set."""
        return self.waiting_jobs if most is None else most

    def __post_init__(self) -> None:
        for name, value, least in (
            ("waiting_jobs", self.waiting_jobs, 1),
            ("request_bytes", self.request_bytes, 1),
            ("upload_bytes", self.upload_bytes, 0),
            ("uploads", self.uploads, 1),
        ):
            if value < least:
                raise BadInputError(f"{name} = {value}, must be at least {least}")


@dataclass(frozen=True)
class ServiceSettings:
    """A service.

    Args:
        runs: folder of all jobs, one a folder; workers see the same one.
        database: SQLAlchemy's address; "" is ``service.db`` in ``runs``.
        factories: patterns ``module:callable`` of the code that a request may name besides what ships, such as
            ``my_models:*``.
        needs_token: whether every request needs a bearer token; without it only this machine is answered.
        folders: whose files a request may name, besides tables and devices that have names, and what jobs left.
        limits: of one caller.
        poll_s: between two looks at a job that is followed.
    """

    runs: Path
    database: str = field(default="", repr=False)  # it may hold a password
    factories: tuple[str, ...] = ()
    needs_token: bool = False
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    poll_s: float = 0.5
    folders: tuple[Path, ...] = ()

    @property
    def database_url(self) -> str:
        """The address of the database."""
        return self.database or default_database(self.runs)


def is_loopback(host: str) -> bool:
    """Whether an address or a name means this machine alone."""
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


def default_database(runs: Path) -> str:
    """Return the address of the SQLite file in the folder of all jobs."""
    return f"sqlite:///{(runs / 'service.db').absolute()}"
