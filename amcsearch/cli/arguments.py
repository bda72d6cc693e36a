"""Readers of arguments, options that verbs share, and a parser whose errors say what was probably meant.

A misspelt verb, option or choice is answered with the nearest known one, and an option that is a key of the
configuration with ``--set KEY=VALUE``.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from amcsearch.core import BadInputError, printable
from amcsearch.runs import expanded

if TYPE_CHECKING:
    from amcsearch.reporting import ProgressBar

    Run = Callable[[argparse.Namespace, ProgressBar], None]
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["Parser", "add_config", "add_verb", "count", "counts", "minutes", "names", "path"]

MOST: Final = 1_000_000
_SET: Final = "--set"
_MEANT: Final = "; did you mean"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with what was probably meant."""

    _given: Sequence[str] = ()

    def parse_known_args(  # type: ignore[override]  # typeshed's overloads are of any namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Read arguments, and refuse unknown ones here, where the options of the verb are known."""
        self._given = sys.argv[1:] if args is None else list(args)
        known, unknown = super().parse_known_args(self._given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """End with the exit code of bad input."""
        near = "".join(map(self._nearest_option, self._unknown_options()))
        cure = near or ("" if _MEANT in message else f"; see {self.prog} --help")
        self.exit(2, f"{self.prog}: error: {printable(' '.join(message.split()) + cure)}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(action, error.message + _nearest_choice(action, str(value))) from error

    def _unknown_options(self) -> Iterator[str]:
        """Yield the options among what was given that this parser has not; some of them argparse does not come to."""
        for word in self._given:
            name = word.partition("=")[0]
            if word == "--":
                return
            if name.startswith("--") and not any(known.startswith(name) for known in self._option_string_actions):
                yield name

    def _nearest_option(self, name: str) -> str:
        """Say which option was probably meant, or which key of the configuration, where the verb has ``--set``."""
        from amcsearch.config import described_keys

        meant: dict[str, list[str]] = {}
        for key in described_keys() if _SET in self._option_string_actions else ():
            for word in {key, key.rpartition(".")[2]}:
                meant.setdefault(word, []).append(f"{_SET} {key}=…")
        options = [option for option in self._option_string_actions if option.startswith("--")]
        meant |= {option.removeprefix("--").replace("-", "_"): [option] for option in options}
        near = get_close_matches(name.removeprefix("--").replace("-", "_"), meant, n=1)
        return f"{_MEANT} {' or '.join(meant[near[0]])}?" if near else ""


def _nearest_choice(action: argparse.Action, value: str) -> str:
    """Say which choice was probably meant, or which verb of a verb: ``measure`` is one of ``table``."""
    meant = {str(choice): str(choice) for choice in action.choices or ()}
    if isinstance(action, argparse._SubParsersAction):
        parts = {part: f"{name} {part}" for name, verb in action.choices.items() for part in _verbs_of(verb)}
        meant = parts | meant
    near = get_close_matches(value, meant, n=1)
    return f"{_MEANT} {meant[near[0]]}?" if near else ""


def _verbs_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices


def add_verb(commands: "Commands", name: str, run: "Run", text: str, example: str) -> argparse.ArgumentParser:
    """Add a verb, which ``run`` does, with a line that says what it is and an example."""
    command = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def add_config(command: argparse.ArgumentParser) -> None:
    """Add the configuration and its overrides."""
    command.add_argument("config", type=path, help="configuration file, or the name of a shipped one, such as digits")
    command.add_argument(
        _SET, dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key, repeatable"
    )


def path(text: str) -> Path:
    """Read a path as a user typed it, ``~`` included."""
    try:
        return expanded(text)
    except BadInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """Read a whole number of things that take time or memory each; the verb knows the least that makes sense."""
    try:
        value = int(text)
    except ValueError:
        value = MOST + 1
    if value > MOST:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}, expected a whole number, at most {MOST}")
    return value


def counts(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    return [count(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Read names with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def minutes(text: str) -> float:
    """Read a duration, as ``count``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value <= MOST:  # true for NaN too
        raise argparse.ArgumentTypeError(f"{text[:40]!r}, expected minutes, at most {MOST}")
    return value
