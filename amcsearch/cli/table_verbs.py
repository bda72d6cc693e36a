"""The verbs of ``amcsearch table`` (kit, build, measure, check, show), and latency tables as text for a terminal."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amcsearch.cli.text import columns, with_sigma
from amcsearch.cli.verbs import client_of, load_config, show
from amcsearch.core import BadInputError, counted

if TYPE_CHECKING:
    from amcsearch.costs import Accuracy, LatencyTable
    from amcsearch.reporting import ProgressBar
    from amcsearch.runs import TableComparison


__all__ = [
    "check_text",
    "comparison_text",
    "table_build",
    "table_check",
    "table_kit",
    "table_measure",
    "table_show",
    "table_text",
]

_HEAD = ["", "variants", "mean error", "median", "worst", "within 5 %", "within 10 %", "rank corr.", "measured twice"]


def _errors(name: str, accuracy: "Accuracy | None", otherwise: str = "not checked") -> list[str]:
    if accuracy is None:
        return [name, otherwise, *[""] * (len(_HEAD) - 2)]
    return [
        name,
        "" if accuracy.variants is None else str(accuracy.variants),
        *(_share(share, 2) for share in (accuracy.mape, accuracy.median)),
        *(_share(share, 0) for share in (accuracy.worst, accuracy.within_5, accuracy.within_10)),
        "" if accuracy.spearman is None else f"{accuracy.spearman:.4f}",
        "once" if accuracy.noise_mape is None else _share(accuracy.noise_mape, 2),
    ]


def _share(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def check_text(before: "Accuracy | None", after: "Accuracy | None") -> str:
    """Errors of a table on networks measured now, as it was and after anchors, beside the noise of measuring twice."""
    rows = [_HEAD, _errors("table", before, "cannot predict it")] + ([_errors("after anchors", after)] if after else [])
    return "\n".join(columns(rows))


def table_text(table: "LatencyTable", folder: Path) -> str:
    """Provenance, networks with their accuracy on variants left out, and the channel grid of each."""
    where = table.provenance
    settings = f"threads {where.threads}, batch {where.batch}, dtype {where.dtype}, provider {where.provider}"
    lines = [
        f"{folder}: {counted(len(table.rows), 'row')}, {counted(len(table.networks), 'network')}",
        f"{where.cpu}, {where.cores} cores, {where.runtime_label}, {settings}, "
        f"NCHWc block {where.nchwc_block}, measured {where.timestamp}",
        "",
        *columns([_HEAD, *(_errors(name, entry.accuracy) for name, entry in table.networks.items())]),
        "",
    ]
    return "\n".join([*lines, *_grid_lines(table), *_quiet_lines(table)])


def _grid_lines(table: "LatencyTable") -> list[str]:
    """What a finer channel grid saves of the time, network by network, and which grid is rewarded."""
    grids = {
        name: {} if entry.channel_grid is None else {step.multiple: step for step in entry.channel_grid.tried}
        for name, entry in table.networks.items()
    }
    multiples = sorted({multiple for grid in grids.values() for multiple in grid}, reverse=True)
    rows = [["", "used", *(f"{2 * multiple} to {multiple}" for multiple in multiples)]]
    for name, grid in grids.items():
        steps = (grid.get(multiple) for multiple in multiples)
        saved = ["" if s is None else f"{s.time_saved:.0%} for {s.macs_saved:.0%}" for s in steps]
        rows.append([name, str(table.networks[name].channel_multiple or "not asked"), *saved])
    head = ["time saved for MACs saved by each halving of the channel multiple:"] if multiples else []
    return [*head, *columns(rows)]


def _quiet_lines(table: "LatencyTable") -> list[str]:
    """How quiet the device was, and since when each network is known."""
    rows = [["", "measured", "rounds disturbed", "largest drift", "anchors", "carried from"]]
    for name, entry in table.networks.items():
        drift, anchors = entry.drift, entry.anchors
        disturbed = None if drift is None else drift.disturbed_share
        largest = None if drift is None or drift.largest is None else drift.largest - 1.0
        rows.append(
            [
                name,
                entry.brought_up_to_date or table.provenance.timestamp or "",
                _share(disturbed, 1),
                "" if largest is None else f"{largest:+.1%}",
                "" if anchors is None or anchors.count is None else str(anchors.count),
                "" if anchors is None or anchors.from_cpu == table.provenance.cpu else anchors.from_cpu or "",
            ]
        )
    used = [at for at in range(len(rows[0])) if at < 2 or any(row[at] for row in rows[1:])]
    return ["", *columns([[row[at] for at in used] for row in rows])]


def comparison_text(comparison: "TableComparison") -> str:
    """Tables side by side: latency of the same policies, and how many times as fast as dense they are."""
    tables = comparison.tables
    rows = [["", "MACs", *(text for table in tables for text in (table.name, ""))]]
    for at, policy in enumerate(comparison.policies):
        each = ((f"{with_sigma(t.ms[at], t.sigma_ms[at])} ms", f"{t.speed_up[at]:.2f}x") for t in tables)
        rows.append([policy, f"{comparison.macs[at]:.0%}", *(text for pair in each for text in pair)])
    lines = [f"{comparison.network}: the same policies on {len(tables)} tables", "", *columns(rows), ""]
    return "\n".join([*lines, *(f"{table.name}: {table.description}" for table in tables)])


def table_kit(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Write the one file that measures configurations' networks on a device."""
    from amcsearch.config import load
    from amcsearch.jobs import VARIANTS, make_kit

    configs = [load(path, args.overrides) for path in args.configs]
    kit = make_kit(
        configs,
        args.out,
        console,
        variants=VARIANTS if args.variants is None else args.variants,
        anchors=args.anchors,
        table=_read(args.table),
    )
    console.close()
    text = f"{kit.kit}: {counted(kit.models, 'model')}, {kit.bytes / 2**20:.1f} MiB; on the device: {kit.run}"
    show(args, {**asdict(kit), "kit": str(kit.kit), "networks": list(kit.networks)}, text, kit.kit)


def table_build(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Make a table of what kits measured, or extend one that is there."""
    from amcsearch.jobs import build_into

    if args.connect is not None:
        _build_there(args, console)
        return
    table = build_into(args.out, args.results, _read(args.source), force=args.force)
    console.close()
    _show(args, table, args.out, {}, args.out)


def _build_there(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Let a service build the table, and fetch it."""
    if args.force or args.out.exists():
        raise BadInputError(f"-o {args.out}: with --connect a table is built anew; name a new folder, without --force")
    client = client_of(args.connect)
    source = None if args.source is None else str(args.source)
    table = client.build_latency_table(
        args.out.absolute().name, args.results, source=source, folder=args.out, observer=console
    )
    console.close()
    _show(args, table, args.out, {}, args.out)


def table_measure(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Plan, measure and build on this machine; a table that is there is extended."""
    from amcsearch.jobs import measure_into

    table = measure_into(
        args.out,
        load_config(args),
        console,
        variants=args.variants,
        minutes=args.minutes,
        force=args.force,
        resume=args.resume,
    )
    console.close()
    _show(args, table, args.out, {}, args.out)


def table_check(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Hold a table to networks measured now; with anchors, bring it up to date first."""
    from amcsearch.config import read_latency_table
    from amcsearch.jobs import check_into, check_table, learning_folder

    config = load_config(args)
    if args.resume and not args.write:
        raise BadInputError("--resume: without --write nothing is kept that could be gone on with; give both")
    folder = learning_folder(args.table, config) if args.write else None
    if folder is None:
        table = read_latency_table(args.table)
        check = check_table(table, config, console, fresh=args.fresh, anchors=args.anchors)
    else:
        check = check_into(
            folder, args.table, config, console, fresh=args.fresh, anchors=args.anchors, resume=args.resume
        )
    errors = {"before": check.before, "after": check.after}
    document: dict[str, Any] = {name: None if error is None else error.as_mapping() for name, error in errors.items()}
    text = check_text(check.before, check.after)
    if folder is not None:
        document["written"], text = str(folder), f"{text}\nwritten to {folder}"
    console.close()
    show(args, document, text, folder)


def table_show(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Print what a table says of itself and draw latency against width, or hold several tables side by side."""
    from amcsearch.config import read_latency_table

    if args.config is not None or len(args.tables) > 1:
        _compare(args, console)
        return
    if args.policy is not None:
        raise BadInputError("--policy is compared on the network of a configuration; name that with --config")
    table = read_latency_table(args.tables[0])
    files: dict[str, Path] = {}
    if args.out is not None:
        from amcsearch.reporting import write_latency_curves

        files = write_latency_curves(table, args.out)
    _show(args, table, args.tables[0], files)


def _compare(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Hold tables side by side on one network."""
    from amcsearch.config import load, read_latency_table
    from amcsearch.jobs import compare_tables

    if args.config is None:
        raise BadInputError(f"{len(args.tables)} tables are compared on one network; name it with --config CONFIG")
    tables = {name: read_latency_table(path) for name, path in _named(args.tables).items()}
    comparison = compare_tables(tables, load(args.config), args.policy)
    console.close()
    text, document = comparison_text(comparison), comparison.to_json()
    if args.out is not None:
        from amcsearch.reporting import write_table_comparison
        from amcsearch.runs import make_folder

        make_folder(args.out)
        files = write_table_comparison(comparison, args.out)
        text = "\n".join([text, "", *(f"{name}: {path}" for name, path in files.items())])
        document |= {name: str(path) for name, path in files.items()}
    show(args, document, text, args.out)


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by the shortest ends of their paths that tell them apart."""
    different = list(dict.fromkeys(folders))
    named: dict[str, Path] = {}
    for length in range(1, max(len(path.parts) for path in different) + 1):
        named = {str(Path(*path.parts[-length:])): path for path in different}
        if len(named) == len(different):
            break
    return named


def _read(folder: Path | None) -> "LatencyTable | None":
    """The table of a folder that was named, None where none was."""
    from amcsearch.config import read_latency_table

    return None if folder is None else read_latency_table(folder)


def _show(
    args: argparse.Namespace, table: "LatencyTable", folder: Path, files: dict[str, Path], kept: Path | None = None
) -> None:
    document = {**table.as_mapping(), "rows": len(table.rows), **{name: str(path) for name, path in files.items()}}
    text = "\n".join([table_text(table, folder), *(f"{name}: {path}" for name, path in files.items())])
    show(args, document, text, kept)
