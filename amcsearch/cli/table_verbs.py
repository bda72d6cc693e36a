"""The verbs of ``amcsearch table`` (kit, build, measure, check, show), and latency tables as text for a terminal."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amcsearch.cli.text import columns
from amcsearch.cli.verbs import load_config, show
from amcsearch.core import BadInputError

if TYPE_CHECKING:
    from amcsearch.costs import LatencyTable
    from amcsearch.reporting import ProgressBar


__all__ = ["check_text", "table_build", "table_check", "table_kit", "table_measure", "table_show", "table_text"]

_HEAD = ["", "variants", "mean error", "median", "worst", "within 5 %", "within 10 %", "rank corr.", "measured twice"]


def _errors(name: str, found: Mapping[str, Any] | None, otherwise: str = "not checked") -> list[str]:
    if not found:
        return [name, otherwise, *[""] * (len(_HEAD) - 2)]
    spearman = found.get("spearman")
    return [
        name,
        str(found["variants"]),
        *(f"{found[key]:.2%}" for key in ("mape", "median")),
        *(f"{found[key]:.0%}" for key in ("worst", "within_5", "within_10")),
        "" if spearman is None else f"{spearman:.4f}",
        "once" if found["noise_mape"] is None else f"{found['noise_mape']:.2%}",
    ]


def check_text(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Errors of a table on networks measured now, as it was and after anchors, beside the noise of measuring twice."""
    rows = [_HEAD, _errors("table", before, "cannot predict it")] + ([_errors("after anchors", after)] if after else [])
    return "\n".join(columns(rows))


def table_text(table: "LatencyTable", folder: Path) -> str:
    """Provenance, networks with their accuracy on variants left out, and the channel grid of each."""
    where = table.provenance
    settings = ", ".join(f"{key} {where.get(key)}" for key in ("threads", "batch", "dtype", "provider"))
    lines = [
        f"{folder}: {len(table.rows)} rows, {len(table.networks)} networks",
        f"{where.get('cpu')}, {where.get('cores')} cores, ONNX Runtime {where.get('ort_version')}, {settings}, "
        f"NCHWc block {where.get('nchwc_block')}, measured {where.get('timestamp')}",
        "",
        *columns([_HEAD, *(_errors(name, entry.get("accuracy")) for name, entry in table.networks.items())]),
        "",
    ]
    for name, entry in table.networks.items():
        tried = (entry.get("channel_grid") or {}).get("tried", [])
        steps = ", ".join(f"{s['multiple']}: {s['time_saved']:.0%} time for {s['macs_saved']:.0%} MACs" for s in tried)
        lines.append(f"{name}: channel multiple {entry.get('channel_multiple')}; a finer grid of … saves {steps}")
        drift = entry.get("drift")
        if drift:
            lines.append(f"{name}: {_plain(drift)}")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_kit(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Write the one file that measures configurations' networks on a device."""
    from amcsearch.config import load
    from amcsearch.jobs import VARIANTS, make_kit

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


def table_build(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Make a table of what kits measured, or extend one that is there."""
    from amcsearch.jobs import build_table

    known = None if args.force else _existing(args.out)
    table = build_table(args.results, known, _read(args.source))
    _write(args, console, table)


def table_measure(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Plan, measure and build on this machine; a table that is there is extended."""
    from amcsearch.jobs import measure_table

    known = None if args.force else _existing(args.out)
    table = measure_table(load_config(args), console, variants=args.variants, known=known, minutes=args.minutes)
    _write(args, console, table)


def table_check(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Hold a table to networks measured now; with anchors, bring it up to date first."""
    from amcsearch.config import TABLES, read_latency_table, writable, write_latency_table
    from amcsearch.jobs import check_table

    folder = writable(TABLES, args.table) if args.write else None
    found = check_table(
        read_latency_table(args.table), load_config(args), console, fresh=args.fresh, anchors=args.anchors
    )
    said: dict[str, Any] = {"before": found.before, "after": found.after}
    text = check_text(found.before, found.after)
    if folder is not None:
        write_latency_table(found.table, folder)
        said["written"], text = str(folder), f"{text}\nwritten to {folder}"
    console.close()
    show(args, said, text)


def table_show(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Print what a table says of itself, and draw latency against width."""
    del console
    from amcsearch.config import read_latency_table

    table = read_latency_table(args.table)
    files: dict[str, Path] = {}
    if args.out is not None:
        from amcsearch.reporting import write_latency_curves

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


def _write(args: argparse.Namespace, console: "ProgressBar", table: "LatencyTable") -> None:
    from amcsearch.config import write_latency_table

    write_latency_table(table, args.out)
    console.close()
    _show(args, table, args.out, {})


def _show(args: argparse.Namespace, table: Any, folder: Path, files: dict[str, Path]) -> None:

    said = {**table.info, "rows": len(table.rows), **{name: str(path) for name, path in files.items()}}
    show(args, said, "\n".join([table_text(table, folder), *(f"{name}: {path}" for name, path in files.items())]))
