"""One function a verb: arguments to a room, its result to text."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from amcsearch.core import BadInputError

if TYPE_CHECKING:
    from amcsearch.cli.console import Console
    from amcsearch.config import Config

__all__ = [
    "KINDS",
    "energy",
    "list_registry",
    "prune",
    "report",
    "search",
    "sensitivity",
    "sparsify",
    "table_measure",
    "table_show",
]

KINDS: Final = (
    "agents",
    "costs",
    "criteria",
    "datasets",
    "devices",
    "gates",
    "models",
    "rewards",
    "schedules",
    "selectors",
    "tables",
)


def search(args: argparse.Namespace, console: "Console") -> None:
    """Run the main job, or print its plan."""
    from amcsearch.cli.text import plan_text, summary_text
    from amcsearch.config import config_hash, dump
    from amcsearch.runs import RunFolder

    if args.workers < 1:
        raise BadInputError(f"--workers {args.workers}, must be at least 1")
    config = _load(args)
    if args.dry_run:
        from amcsearch.pipeline.plan import plan

        found = plan(config, strict=args.strict)
        _show(args, found, plan_text(found))
        return
    from amcsearch.pipeline.story import search as run_search

    digest = config_hash(config)
    folder = args.out or Path("runs") / f"{config.name}-{digest}"
    with RunFolder.create(folder, dump(config), digest, resume=args.resume) as run:
        summary = run_search(config, run, console, workers=args.workers, storage=args.storage, strict=args.strict)
        console.close()
        _show(args, summary, summary_text(summary, run.path))


def table_measure(args: argparse.Namespace, console: "Console") -> None:
    """Measure a latency table for a configuration's network on this machine."""
    from amcsearch.config import write_latency_table
    from amcsearch.pipeline.tables import measure_table

    config = _load(args)
    if args.out.exists() and not args.force:
        raise BadInputError(f"{args.out} exists; name another folder, or replace it with --force")
    table = measure_table(config, console, variants=args.variants)
    write_latency_table(table, args.out)
    console.close()
    _table(args, table, args.out)


def table_show(args: argparse.Namespace, console: "Console") -> None:
    """Print what a table says of itself."""
    del console
    from amcsearch.config import read_latency_table

    _table(args, read_latency_table(args.table), args.table)


def sensitivity(args: argparse.Namespace, console: "Console") -> None:
    """Write per-group curves as CSV and picture."""
    from amcsearch.pipeline.sensitivity import write_sensitivity

    found = write_sensitivity(_load(args), args.out, args.points, console)
    console.close()
    _show(args, found, "\n".join(f"{name}: {path}" for name, path in found.items()))


def energy(args: argparse.Namespace, console: "Console") -> None:
    """Print where the energy goes, and write it as CSV and picture."""
    from amcsearch.cli.text import energy_text
    from amcsearch.core import PruningPolicy
    from amcsearch.pipeline.energy import energy_report

    policy = PruningPolicy.read(args.policy) if args.policy else None
    found = energy_report(_load(args), args.out, console, policy=policy, device=args.device, measure=args.measure)
    console.close()
    _show(args, found, energy_text(found))


def prune(args: argparse.Namespace, console: "Console") -> None:
    """Apply a given policy: the end of a search without its beginning."""
    from amcsearch.cli.text import summary_text
    from amcsearch.config import config_hash, dump
    from amcsearch.core import PruningPolicy
    from amcsearch.pipeline.story import prune as run_prune
    from amcsearch.runs import RunFolder

    config = _load(args)
    policy = PruningPolicy.read(args.policy)
    with RunFolder.create(args.out, dump(config), config_hash(config), resume=False) as run:
        summary = run_prune(config, policy, run, console)
        console.close()
        _show(args, summary, summary_text(summary, run.path))


def sparsify(args: argparse.Namespace, console: "Console") -> None:
    """Prune while training, by gates or mask schedules."""
    from amcsearch.cli.text import sparsify_text
    from amcsearch.config import config_hash, dump
    from amcsearch.pipeline.sparsify import sparsify as run_sparsify
    from amcsearch.runs import RunFolder

    config = _load(args)
    digest = config_hash(config)
    folder = args.out or Path("runs") / f"{config.name}-{digest}"
    with RunFolder.create(folder, dump(config), digest, resume=args.resume) as run:
        summary = run_sparsify(config, run, console)
        console.close()
        _show(args, summary, sparsify_text(summary, run.path))


def report(args: argparse.Namespace, console: "Console") -> None:
    """Write a run's page again."""
    del console
    from amcsearch.reporting.page import render
    from amcsearch.runs import RunFolder

    with RunFolder.open(args.run_folder) as run:
        run.write_report(render(run))
        _show(args, {"report": str(run.report_html)}, str(run.report_html))


def list_registry(args: argparse.Namespace, console: "Console") -> None:
    """Print the names of a registry, each with its one-line description."""
    del console
    from amcsearch.cli.registries import entries

    found = entries(args.kind)
    width = max((len(name) for name in found), default=0)
    _show(args, found, "\n".join(f"{name:{width}}  {text}" for name, text in found.items()))


def _load(args: argparse.Namespace) -> "Config":
    from amcsearch.config import load

    return load(args.config, args.overrides)


def _table(args: argparse.Namespace, table: Any, folder: Path) -> None:
    from amcsearch.cli.text import table_text

    _show(args, {**table.info, "rows": len(table.rows)}, table_text(table, folder))


def _show(args: argparse.Namespace, found: Mapping[str, Any], text: str) -> None:
    print(json.dumps(found, indent=2, default=str) if args.json else text)
