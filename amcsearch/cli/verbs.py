"""One function a verb: parsed arguments in, the result of a job printed; and the registries that ``list`` prints."""

import argparse
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from amcsearch.core import BadInputError, Limit, printable

if TYPE_CHECKING:
    from amcsearch.config import Config, Override
    from amcsearch.jobs import RunResult
    from amcsearch.reporting import ProgressBar
    from amcsearch.service import Client

MOST_WORKERS: Final = 1024
_TOKEN_VARIABLE: Final = "AMCSEARCH_TOKEN"
_GOALS: Final = ("policy", "target", "keep_accuracy")

__all__ = [
    "KINDS",
    "client_of",
    "compare",
    "energy",
    "entries",
    "front",
    "list_registry",
    "load_config",
    "prune",
    "report",
    "search",
    "sensitivity",
    "show",
    "sparsify",
]


def client_of(url: str) -> "Client":
    """Return the client of a service, with the token of the environment."""
    from amcsearch.service import connect

    return connect(url, os.environ.get(_TOKEN_VARIABLE))


def entries(kind: str) -> dict[str, str]:
    """Return the names of one registry, each with the first line of its docstring."""
    return KINDS[kind]()


def _first_lines(registry: Mapping[str, Any]) -> dict[str, str]:
    return {name: (inspect.getdoc(entry) or "").split("\n", 1)[0] for name, entry in registry.items()}


def _agents() -> dict[str, str]:
    from amcsearch.search import AGENTS

    return _first_lines(AGENTS)


def _costs() -> dict[str, str]:
    return {
        "macs": "multiply-accumulates of one inference",
        "params": "parameters",
        "latency_ms": "measured ONNX Runtime latency, from device.table",
        "energy_mj": "memory accesses and MACs at the energies of device.profile",
        "model_bytes": "bytes of the delivered file's weights, in device.dtype",
        "peak_memory_bytes": "most bytes of inputs, outputs and maps that are live at once in one inference",
    }


def _criteria() -> dict[str, str]:
    from amcsearch.methods import ALIASES, CRITERIA

    aliases = {
        alias: f"Alias of {name} with {', '.join(f'{key}: {value}' for key, value in params.items())}."
        for alias, (name, params) in ALIASES.items()
    }
    return {**_first_lines(CRITERIA), **aliases}


def _datasets() -> dict[str, str]:
    from amcsearch.training import DATASETS

    return _factories(DATASETS)


def _registered(room: str, registry: str) -> dict[str, str]:
    return _first_lines(getattr(import_module(f"amcsearch.{room}"), registry))


def _keys() -> dict[str, str]:
    from amcsearch.config import described_keys

    return described_keys()


def _models() -> dict[str, str]:
    from amcsearch.training import MODELS

    return _factories(MODELS)


def _factories(registry: Mapping[str, Any]) -> dict[str, str]:
    lines = _first_lines(registry)
    return {f"{entry.__module__}:{entry.__name__}": lines[name] for name, entry in registry.items()}


def _devices() -> dict[str, str]:
    from amcsearch.config import DEVICES, listed, read_device

    return {
        name: f"words of {read_device(paths[0]).word_bits} bits, {_where(paths)}"
        for name, paths in listed(DEVICES).items()
    }


def _tables() -> dict[str, str]:
    from amcsearch.config import TABLES, listed, read_latency_table

    return {
        name: f"{read_latency_table(paths[0]).provenance.cpu}, {_where(paths)}"
        for name, paths in listed(TABLES).items()
    }


def _where(paths: Sequence[Path]) -> str:
    """The path that a name means, and those that it therefore hides."""
    hidden = " and ".join(map(str, paths[1:]))
    return f"{paths[0]}, instead of {hidden}" if hidden else str(paths[0])


KINDS: Final[dict[str, Callable[[], dict[str, str]]]] = {
    "agents": _agents,
    "costs": _costs,
    "criteria": _criteria,
    "datasets": _datasets,
    "devices": _devices,
    "gates": partial(_registered, "methods", "GATES"),
    "keys": _keys,
    "models": _models,
    "rewards": partial(_registered, "search", "REWARDS"),
    "runtimes": partial(_registered, "runtime", "RUNTIMES"),
    "tasks": partial(_registered, "training", "TASKS"),
    "schedules": partial(_registered, "methods", "SCHEDULES"),
    "selectors": partial(_registered, "methods", "SELECTORS"),
    "tables": _tables,
}


def search(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Run the main job, or print its plan."""
    from amcsearch import api
    from amcsearch.cli.run_text import summary_text
    from amcsearch.cli.text import plan_text
    from amcsearch.config import Override

    workers, trials = _workers(args), args.trials
    if trials is not None and trials.isdecimal():
        args.overrides, trials = [*args.overrides, Override(f"search.trials={trials}", f"--trials {trials}")], None
    config = load_config(args)
    if args.dry_run:
        if trials is not None:
            raise BadInputError(f"--trials {trials[:40]} adds to a run, which --dry-run does not plan; leave one out")
        from amcsearch.jobs import plan

        planned = plan(config, observer=console, strict=args.strict)
        show(args, planned.to_json(), plan_text(planned, workers, config.search.batch))
        return
    result = api.search(
        config=config,
        trials=trials,
        folder=_folder(args, config),
        resume=args.resume,
        workers=workers,
        scheduler=args.scheduler,
        storage=args.storage,
        strict=args.strict,
        observer=console,
    )
    console.close()
    _show_result(args, result, summary_text(result.summary, result.folder))


def _workers(args: argparse.Namespace) -> int:
    if not 1 <= args.workers <= MOST_WORKERS:
        raise BadInputError(f"--workers {args.workers}, must be at least 1 and at most {MOST_WORKERS}")
    return int(args.workers)


def _show_result(args: argparse.Namespace, result: "RunResult", text: str) -> None:
    """Print the result of a run; with ``--fail-on-miss``, the command ends by its verdict."""
    from amcsearch.runs import VerdictState

    show(args, result.summary.to_json(), text, result.folder)
    verdict = result.verdict
    if args.fail_on_miss and verdict.state is not VerdictState.MET:
        unmet = (limit.text for limit in verdict.limits if limit.state is not VerdictState.MET)
        args.not_met = f"--fail-on-miss: the budget is {verdict.state}: {'; '.join(unmet)}"


def _folder(args: argparse.Namespace, config: "Config") -> Path:
    """The run folder that was asked for, or the one that the configuration means."""
    from amcsearch.jobs import default_folder

    return args.out or default_folder(config, args.config)


def compare(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Put agents side by side."""
    from amcsearch import api
    from amcsearch.cli.text import comparison_text

    config = load_config(args)
    result = api.compare(
        config=config,
        agents=args.agents,
        seeds=args.seeds,
        folder=args.out or Path("runs") / f"{config.name}-compared",
        resume=args.resume,
        workers=_workers(args),
        scheduler=args.scheduler,
        strict=args.strict,
        observer=console,
    )
    console.close()
    show(args, result.to_json(), comparison_text(result), args.out)


def front(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Make fronts, or ask those in a folder for the policy of a budget."""
    if args.budget or (args.config / "front.json").is_file():
        _ask_front(args)
        return
    from amcsearch import api
    from amcsearch.cli.text import front_text

    if args.device is not None:
        raise BadInputError("--device goes with --budget, to ask a front; its devices are named by --devices")
    config = load_config(args)
    result = api.front(
        config=config,
        devices=args.devices,
        evaluations=args.evaluations,
        folder=args.out or Path("runs") / f"{config.name}-front",
        resume=args.resume,
        workers=_workers(args),
        scheduler=args.scheduler,
        observer=console,
    )
    console.close()
    show(args, result.to_json(), front_text(result), args.out)


def _ask_front(args: argparse.Namespace) -> None:
    """Print what a front holds, or the policy of a budget, which is written; imports nothing heavy."""
    from amcsearch.cli.text import choice_text, front_text
    from amcsearch.runs import FrontResult

    if args.devices or args.overrides or args.resume:
        raise BadInputError(f"{args.config}: a front is asked for a policy; --devices, --set and --resume make another")
    result = FrontResult.open(args.config)
    if not args.budget:
        show(args, result.to_json(), front_text(result), args.config)
        return
    budget = {}
    for text in args.budget:
        cost, equals, limit = text.partition("=")
        if not equals or cost in budget:
            raise BadInputError(f"--budget {text}: expected COST=LIMIT, each cost once, such as latency_ms=0.4x")
        budget[cost] = limit
    choice = result.within(budget, args.device)
    path = choice.save(args.out or args.config / _policy_file(choice.device, budget))
    show(args, {**choice.to_json(), "file": str(path)}, choice_text(choice, result.summary, path), path)


def _policy_file(device: str, budget: Mapping[str, str]) -> str:
    """The file of what a front answers, one for each question: ``policy-edge_cpu-energy_mj-0.5x.json``."""
    words = (device, *(f"{cost}-{limit}" for cost, limit in budget.items()))
    return re.sub(r"[^\w.-]", "_", "-".join(("policy", *words))) + ".json"


def sensitivity(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Write per-group curves as CSV and picture."""
    from amcsearch import api

    config = load_config(args)
    result = api.sensitivity(config=config, points=args.points, joint=args.joint, folder=args.out, observer=console)
    console.close()
    values = result.to_json()
    show(args, values, "\n".join(f"{name}: {value}" for name, value in values.items()), args.out)


def energy(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Print where the energy goes, and write it as CSV and picture."""
    from amcsearch import api
    from amcsearch.cli.text import energy_text
    from amcsearch.config import DEVICES, find

    energies = api.energy(
        config=load_config(args),
        profile=find(DEVICES, args.device, where="--device") if args.device else None,
        policy=args.policy,
        densities=args.densities,
        storage=args.storage,
        measure=args.measure,
        folder=args.out,
        observer=console,
    )
    console.close()
    show(args, energies.to_json(), energy_text(energies), args.out)


def prune(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Prune by a known policy, to a cost, or as far as accuracy stays."""
    from amcsearch import api
    from amcsearch.cli.run_text import summary_text

    args.overrides = [*args.overrides, *_goal(args)]
    config = load_config(args)
    result = api.prune(config=config, folder=_folder(args, config), resume=args.resume, observer=console)
    console.close()
    _show_result(args, result, summary_text(result.summary, result.folder))


def _goal(args: argparse.Namespace) -> list["Override"]:
    """The goal as overrides of the configuration, in which the run folder keeps it; it replaces any other goal."""
    from amcsearch.config import Override

    names = (*_GOALS, "allocation", "rounds", "round_shape")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    typed = {name: f"--{name.replace('_', '-')} {value}" for name, value in given.items()}
    if args.policy is not None:
        given["policy"] = json.dumps(str(args.policy))  # as YAML: a path may hold anything
    if args.target is not None:
        cost, equals, limit = args.target.partition("=")
        if not equals:
            raise BadInputError(f"--target {args.target}: expected COST=LIMIT, such as macs=0.5x")
        written = Limit.parse(cost, limit, f"--target {cost}").written
        given["target"] = f"{{{json.dumps(cost)}: {written}}}"
    goal = next((typed[name] for name in _GOALS if name in typed), None)
    values = given if goal is None else {**dict.fromkeys(_GOALS, "null"), **given}
    return [Override(f"prune.{name}={value}", typed.get(name) or str(goal)) for name, value in values.items()]


def sparsify(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Prune while training, by gates or mask schedules."""
    from amcsearch import api
    from amcsearch.cli.run_text import sparsify_text

    config = load_config(args)
    result = api.sparsify(config=config, folder=_folder(args, config), resume=args.resume, observer=console)
    console.close()
    _show_result(args, result, sparsify_text(result.summary, result.folder))


def report(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Write a run's page again."""
    del console
    from amcsearch.reporting import front_page, render
    from amcsearch.runs import FrontFiles, FrontResult, RunFolder

    with RunFolder.open(args.run_folder) as run:
        if run.summary_json.exists():
            run.read_summary()  # a damaged one is refused before the page is replaced
        is_front = FrontFiles.of(run).front.exists()
        run.write_report(front_page(FrontResult.open(run.path)) if is_front else render(run))
        show(args, {"report": str(run.report_html)}, str(run.report_html), run.report_html)


def list_registry(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Print the names of a registry, each with its one-line description; without one, the names of all."""
    del console

    lines = {kind: ", ".join(entries(kind)) for kind in KINDS} if args.kind is None else entries(args.kind)
    width = max((len(name) for name in lines), default=0)
    show(args, lines, "\n".join(f"{name:{width}}  {text}" for name, text in lines.items()))


def load_config(args: argparse.Namespace) -> "Config":
    """Read the configuration a verb was given, with its overrides."""
    from amcsearch.config import load

    return load(args.config, args.overrides)


def show(args: argparse.Namespace, values: Mapping[str, Any], text: str, kept: Path | None = None) -> None:
    """Leave a result to be printed when the verb has ended: as JSON if that was asked for, else as text.

    ``kept`` is where the result lies, too; None where it is only printed.
    """
    lines = json.dumps(values, indent=2, default=str) if args.json else text
    args.not_met = None
    args.shown, args.kept = "\n".join(map(printable, lines.split("\n"))), kept
