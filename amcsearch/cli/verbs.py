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
    "load_config",
    "prune",
    "report",
    "search",
    "sensitivity",
    "show",
    "sparsify",
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
    config = load_config(args)
    if args.dry_run:
        from amcsearch.pipeline.plan import plan

        found = plan(config, strict=args.strict)
        show(args, found, plan_text(found))
        return
    from amcsearch.pipeline.story import search as run_search

    digest = config_hash(config)
    folder = args.out or Path("runs") / f"{config.name}-{digest}"
    with RunFolder.create(folder, dump(config), digest, resume=args.resume) as run:
        summary = run_search(config, run, console, workers=args.workers, storage=args.storage, strict=args.strict)
        console.close()
        show(args, summary, summary_text(summary, run.path))


def sensitivity(args: argparse.Namespace, console: "Console") -> None:
    """Write per-group curves as CSV and picture."""
    from amcsearch.pipeline.sensitivity import write_sensitivity

    found = write_sensitivity(load_config(args), args.out, args.points, console, joint=args.joint)
    console.close()
    show(args, found, "\n".join(f"{name}: {value}" for name, value in found.items()))


def energy(args: argparse.Namespace, console: "Console") -> None:
    """Print where the energy goes, and write it as CSV and picture."""
    from amcsearch.cli.text import energy_text
    from amcsearch.core import PruningPolicy
    from amcsearch.pipeline.energy import energy_report

    policy = PruningPolicy.read(args.policy) if args.policy else None
    found = energy_report(
        load_config(args), args.out, console, policy=policy, densities=args.densities, storage=args.storage,
        device=args.device, measure=args.measure,
    )  # fmt: skip
    console.close()
    show(args, found, energy_text(found))


def prune(args: argparse.Namespace, console: "Console") -> None:
    """Prune by a known policy, to a cost, or as far as accuracy stays."""
    from amcsearch.cli.text import summary_text
    from amcsearch.config import config_hash, dump
    from amcsearch.pipeline.story import prune as run_prune
    from amcsearch.runs import RunFolder

    args.overrides += _goal(args)
    config = load_config(args)
    digest = config_hash(config)
    folder = args.out or Path("runs") / f"{config.name}-{digest}"
    with RunFolder.create(folder, dump(config), digest, resume=args.resume) as run:
        summary = run_prune(config, run, console)
        console.close()
        show(args, summary, summary_text(summary, run.path))


def _goal(args: argparse.Namespace) -> list[str]:
    """The goal as overrides of the configuration, in which the run folder keeps it."""
    policy = None if args.policy is None else json.dumps(str(args.policy))  # as YAML: a path may hold anything
    given = {"policy": policy, "target": args.target, "keep_accuracy": args.keep_accuracy}
    how = {"allocation": args.allocation, "rounds": args.rounds, "round_shape": args.round_shape}
    found = [f"prune.{name}={value}" for name, value in how.items() if value is not None]
    if all(value is None for value in given.values()):
        return found
    if args.target is not None:
        cost, equals, limit = args.target.partition("=")
        if not equals:
            raise BadInputError(f"--target {args.target}: expected COST=LIMIT, such as macs=0.5x")
        given["target"] = f"{{{cost}: {limit}}}"
    return found + [f"prune.{name}={'null' if value is None else value}" for name, value in given.items()]


def sparsify(args: argparse.Namespace, console: "Console") -> None:
    """Prune while training, by gates or mask schedules."""
    from amcsearch.cli.text import sparsify_text
    from amcsearch.config import config_hash, dump
    from amcsearch.pipeline.sparsify import sparsify as run_sparsify
    from amcsearch.runs import RunFolder

    config = load_config(args)
    digest = config_hash(config)
    folder = args.out or Path("runs") / f"{config.name}-{digest}"
    with RunFolder.create(folder, dump(config), digest, resume=args.resume) as run:
        summary = run_sparsify(config, run, console)
        console.close()
        show(args, summary, sparsify_text(summary, run.path))


def report(args: argparse.Namespace, console: "Console") -> None:
    """Write a run's page again."""
    del console
    from amcsearch.reporting.page import render
    from amcsearch.runs import RunFolder

    with RunFolder.open(args.run_folder) as run:
        run.write_report(render(run))
        show(args, {"report": str(run.report_html)}, str(run.report_html))


def list_registry(args: argparse.Namespace, console: "Console") -> None:
    """Print the names of a registry, each with its one-line description."""
    del console
    from amcsearch.cli.registries import entries

    found = entries(args.kind)
    width = max((len(name) for name in found), default=0)
    show(args, found, "\n".join(f"{name:{width}}  {text}" for name, text in found.items()))


def load_config(args: argparse.Namespace) -> "Config":
    """Read the configuration a verb was given, with its overrides."""
    from amcsearch.config import load

    return load(args.config, args.overrides)


def show(args: argparse.Namespace, found: Mapping[str, Any], text: str) -> None:
    """Print a result: as JSON if that was asked for, else as text."""
    print(json.dumps(found, indent=2, default=str) if args.json else text)
