"""Errors that a user's request can cause; the command line prints each as one line with its exit code."""

from typing import Final

__all__ = [
    "MOST_CHARACTERS",
    "OUT",
    "RESUME",
    "BadInputError",
    "DeliveryError",
    "DeviceAwayError",
    "DivergedError",
    "InfeasibleBudgetError",
]

MOST_CHARACTERS: Final = 2000
"""Of an error's line: a value from a file may be longer than anyone reads."""
OUT: Final = "--out (in Python: folder)"
"""The run folder as a cure names it, for the command line and for Python."""
RESUME: Final = "--resume (in Python: resume=True)"
"""How to go on with a run, likewise."""


class _RequestError(ValueError):
    """An error whose message is one line of at most ``MOST_CHARACTERS``; what is longer loses its middle.

    ``key`` is the key of the configuration that the message is about, and ``bound`` what it may be, where one is known.
    """

    def __init__(self, message: str, key: str | None = None, bound: str | None = None) -> None:
        self.key, self.bound = key, bound
        line = " ".join(part.strip() for part in message.splitlines()) if len(message.splitlines()) > 1 else message
        if len(line) > MOST_CHARACTERS:
            half = MOST_CHARACTERS // 2 - 2
            line = f"{line[:half]} … {line[-half:]}"
        super().__init__(line)


class BadInputError(_RequestError):
    """Input that cannot be used; the message names the value, the bound and the cure (exit code 2)."""


class InfeasibleBudgetError(_RequestError):
    """A budget no policy can meet; the message gives the smallest feasible value (exit code 3)."""


class DeliveryError(BadInputError):
    """A delivered file that is not the network that was judged; the run folder keeps everything (exit code 2)."""


class DeviceAwayError(BadInputError):
    """A device that is needed and does not answer; the same request goes on once its agent is back (exit code 2)."""

    def __init__(self, message: str, device: str) -> None:
        super().__init__(message)
        self.device = device


class DivergedError(BadInputError):
    """A training that ended far from where it was to go; names epoch, loss and learning rate (exit code 2)."""
