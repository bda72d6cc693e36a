"""The verbs of ``amcsearch table``: kit, build, measure, check, show."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amcsearch.cli.verbs import load_config, show
from amcsearch.core import BadInputError

if TYPE_CHECKING:
    from amcsearch.cli.console import Console
    from amcsearch.costs.latency_table import LatencyTable

__all__ = ["table_build", "table_check", "table_kit", "table_measure", "table_show"]


def table_kit(args: argparse.Namespace, console: "Console") -> None:
    """Write the one file that measures configurations' networks on a device."""
    from amcsearch.config import load
    from amcsearch.pipeline.tables import VARIANTS, make_kit

    configs = [load(path, args.overrides) for path in args.configs]
    found = make_kit(
        configs,
        args.out,
        console,
        variants=VARIANTS if args.variants is None else args.variants,
        anchors=args.anchors,
        table=_read(args.table),
    )
    console.close()
    text = f"{found['kit']}: {found['models']} models, {found['bytes'] / 2**20:.1f} MiB; on the device: {found['run']}"
    show(args, found, text)


def table_build(args: argparse.Namespace, console: "Console") -> None:
    """Make a table of what kits measured, or extend one that is there."""
    from amcsearch.pipeline.tables import build_table

    known = None if args.force else _existing(args.out)
    table = build_table(args.results, known, _read(args.source))
    _write(args, console, table)


def table_measure(args: argparse.Namespace, console: "Console") -> None:
    """Plan, measure and build on this machine; a table that is there is extended."""
    from amcsearch.pipeline.tables import measure_table

    known = None if args.force else _existing(args.out)
    table = measure_table(load_config(args), console, variants=args.variants, known=known, minutes=args.minutes)
    _write(args, console, table)


def table_check(args: argparse.Namespace, console: "Console") -> None:
    """Hold a table to networks measured now; with anchors, bring it up to date first."""
    from amcsearch.cli.table_text import check_text
    from amcsearch.config import read_latency_table, write_latency_table
    from amcsearch.pipeline.table_check import check_table

    found = check_table(
        read_latency_table(args.table), load_config(args), console, fresh=args.fresh, anchors=args.anchors
    )
    if args.write:
        write_latency_table(found.table, args.table)
    console.close()
    show(args, {"before": found.before, "after": found.after}, check_text(found.before, found.after))


def table_show(args: argparse.Namespace, console: "Console") -> None:
    """Print what a table says of itself, and draw latency against width."""
    del console
    from amcsearch.config import read_latency_table

    table = read_latency_table(args.table)
    files: dict[str, Path] = {}
    if args.out is not None:
        from amcsearch.reporting.latency_curves import write_latency_curves

        files = write_latency_curves(table, args.out)
    _show(args, table, args.table, files)


def _read(folder: Path | None) -> "LatencyTable | None":
    """The table of a folder that was named, None where none was."""
    from amcsearch.config import read_latency_table

    return None if folder is None else read_latency_table(folder)


def _existing(folder: Path) -> "LatencyTable | None":
    """The table of a folder, None where no table is there."""
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder} is a file; a latency table is a folder: name another one")
    return _read(folder) if folder.exists() else None


def _write(args: argparse.Namespace, console: "Console", table: "LatencyTable") -> None:
    from amcsearch.config import write_latency_table

    write_latency_table(table, args.out)
    console.close()
    _show(args, table, args.out, {})


def _show(args: argparse.Namespace, table: Any, folder: Path, files: dict[str, Path]) -> None:
    from amcsearch.cli.table_text import table_text

    said = {**table.info, "rows": len(table.rows), **{name: str(path) for name, path in files.items()}}
    show(args, said, "\n".join([table_text(table, folder), *(f"{name}: {path}" for name, path in files.items())]))
