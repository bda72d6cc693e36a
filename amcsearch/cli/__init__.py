"""The command line: verbs, no logic. Heavy libraries load inside a verb, so that help and signals work at once."""

from amcsearch.cli.main import main

__all__ = ["main"]
