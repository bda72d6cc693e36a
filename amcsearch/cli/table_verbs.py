"""The verbs of ``amcsearch table`` (kit, build, measure, check, show), and latency tables as text for a terminal."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amcsearch.cli.text import columns
from amcsearch.cli.verbs import load_config, show
from amcsearch.core import BadInputError

if TYPE_CHECKING:
    from amcsearch.costs import Accuracy, DriftRecord, LatencyTable
    from amcsearch.reporting import ProgressBar


__all__ = ["check_text", "table_build", "table_check", "table_kit", "table_measure", "table_show", "table_text"]

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
        f"{folder}: {len(table.rows)} rows, {len(table.networks)} networks",
        f"{where.cpu}, {where.cores} cores, ONNX Runtime {where.ort_version}, {settings}, "
        f"NCHWc block {where.nchwc_block}, measured {where.timestamp}",
        "",
        *columns([_HEAD, *(_errors(name, entry.accuracy) for name, entry in table.networks.items())]),
        "",
    ]
    for name, entry in table.networks.items():
        tried = () if entry.channel_grid is None else entry.channel_grid.tried
        steps = ", ".join(f"{s.multiple}: {s.time_saved:.0%} time for {s.macs_saved:.0%} MACs" for s in tried)
        lines.append(f"{name}: channel multiple {entry.channel_multiple}; a finer grid of … saves {steps}")
        if entry.drift is not None:
            lines.append(f"{name}: {_drift_text(entry.drift)}")
    return "\n".join(lines)


def _drift_text(drift: "DriftRecord") -> str:
    shares = {"disturbed_share": drift.disturbed_share, "largest": drift.largest}
    return ", ".join(f"{key} {value:.4g}" for key, value in shares.items() if value is not None)


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
    text = f"{kit.kit}: {kit.models} models, {kit.bytes / 2**20:.1f} MiB; on the device: {kit.run}"
    show(args, {**asdict(kit), "kit": str(kit.kit), "networks": list(kit.networks)}, text, kit.kit)


def table_build(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Make a table of what kits measured, or extend one that is there."""
    from amcsearch.jobs import build_into

    table = build_into(args.out, args.results, _read(args.source), force=args.force)
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
    said: dict[str, Any] = {name: None if error is None else error.as_mapping() for name, error in errors.items()}
    text = check_text(check.before, check.after)
    if folder is not None:
        said["written"], text = str(folder), f"{text}\nwritten to {folder}"
    console.close()
    show(args, said, text, folder)


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


def _show(
    args: argparse.Namespace, table: "LatencyTable", folder: Path, files: dict[str, Path], kept: Path | None = None
) -> None:
    said = {**table.as_mapping(), "rows": len(table.rows), **{name: str(path) for name, path in files.items()}}
    text = "\n".join([table_text(table, folder), *(f"{name}: {path}" for name, path in files.items())])
    show(args, said, text, kept)
