"""Arguments of ``amcsearch table``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from amcsearch.cli import table_verbs

if TYPE_CHECKING:
    from collections.abc import Callable

    Verb = Callable[..., argparse.ArgumentParser]

__all__ = ["add_table_verbs"]


def add_table_verbs(parts: object, verb: "Verb", config: "Callable[[argparse.ArgumentParser], None]") -> None:
    """Add every verb of tables to ``parts``, by the helpers of the main parser."""
    _kit(parts, verb)
    _build(parts, verb)
    _measure(parts, verb, config)
    _check(parts, verb, config)
    _show(parts, verb)


def _kit(parts: object, verb: "Verb") -> None:
    example = "amcsearch table kit configs/searches/digits.yaml -o kit.pyz"
    command = verb(parts, "kit", table_verbs.table_kit, "write one file that measures on a device", example)
    command.add_argument("configs", type=Path, nargs="+", metavar="config", help="configurations of the networks")
    command.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key in all"
    )
    command.add_argument("-o", "--out", type=Path, required=True, help="kit to write, such as kit.pyz")
    command.add_argument("--variants", type=int, help="pruned variants of each network that build the table (72)")
    command.add_argument(
        "--anchors", type=int, default=0, help="further variants of each that place a table which is there already (0)"
    )
    command.add_argument("--table", type=Path, help="table of the device: measure where it is least sure")


def _build(parts: object, verb: "Verb") -> None:
    example = "amcsearch table build result.jsonl -o latency_tables/my_device"
    command = verb(parts, "build", table_verbs.table_build, "make a table of what kits measured", example)
    command.add_argument("results", type=Path, nargs="+", help="result files of one device")
    command.add_argument("-o", "--out", type=Path, required=True, help="folder of the table; one that is there grows")
    command.add_argument(
        "--from", dest="source", type=Path, help="table of another device, to be carried over by the results' anchors"
    )
    command.add_argument("--force", action="store_true", help="replace a table that is there")


def _measure(parts: object, verb: "Verb", config: "Callable[[argparse.ArgumentParser], None]") -> None:
    example = "amcsearch table measure configs/searches/digits.yaml -o latency_tables/my_machine"
    command = verb(parts, "measure", table_verbs.table_measure, "measure a table on this machine", example)
    config(command)
    command.add_argument("-o", "--out", type=Path, required=True, help="folder of the table; one that is there grows")
    command.add_argument("--variants", type=int, help="pruned variants to measure (72; fewer where layers are known)")
    command.add_argument("--minutes", type=float, help="bound of the measuring")
    command.add_argument("--force", action="store_true", help="replace a table that is there")


def _check(parts: object, verb: "Verb", config: "Callable[[argparse.ArgumentParser], None]") -> None:
    example = "amcsearch table check latency_tables/my_machine configs/searches/digits.yaml --anchors 10 --write"
    command = verb(parts, "check", table_verbs.table_check, "hold a table to networks measured now", example)
    command.add_argument("table", type=Path, help="folder of the table")
    config(command)
    command.add_argument("--fresh", type=int, default=24, help="fresh variants to measure (24)")
    command.add_argument(
        "--anchors",
        type=int,
        default=0,
        help="further variants that bring the table up to date, or add the network (0)",
    )
    command.add_argument("--write", action="store_true", help="write what was learnt into the table")


def _show(parts: object, verb: "Verb") -> None:
    example = "amcsearch table show latency_tables/x86_epyc_avx512 -o curves"
    command = verb(parts, "show", table_verbs.table_show, "print a table's provenance, accuracy and grid", example)
    command.add_argument("table", type=Path, help="folder of the table")
    command.add_argument("-o", "--out", type=Path, help="folder for pictures of latency against width")
