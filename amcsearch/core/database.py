"""Databases, whoever opens one: its address as it may be shown, and the encoding that it must have."""

import re
from typing import Final

from amcsearch.core.errors import BadInputError

__all__ = ["check_encoding", "without_passwords"]

_ENCODING: Final = "UTF8"


def without_passwords(address: str) -> str:
    """Return what may be a database's address without passwords: neither the user's nor that of a parameter."""
    address = re.sub(r"(://[^:/?#]*):.*@", r"\1:***@", address, flags=re.DOTALL)
    return re.sub(r"([?&][^=&]*(?:pass|secret|token)[^=&]*=)[^&]*", r"\1***", address, flags=re.IGNORECASE)


def check_encoding(encoding: str | None, database: str) -> None:
    """Check the encoding that a PostgreSQL server tells of a database; ``database`` names that in the error.

    Raises:
        BadInputError: it does not hold every text.
    """
    if encoding != _ENCODING:
        raise BadInputError(
            f"the database {database} has the encoding {encoding}, must be {_ENCODING}; make one: "
            f"createdb -E {_ENCODING} -T template0 NAME"
        )
