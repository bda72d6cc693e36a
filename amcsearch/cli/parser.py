"""The parser of the command line: every verb with its arguments."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from amcsearch import __version__
from amcsearch.cli import table_verbs, verbs
from amcsearch.cli.arguments import (
    Parser,
    add_config,
    add_verb,
    count,
    counts,
    minutes,
    names,
    path,
)
from amcsearch.cli.device_verbs import add_device_verbs
from amcsearch.cli.service_verbs import add_service_verbs
from amcsearch.cli.token_verbs import add_token_verbs

if TYPE_CHECKING:
    from amcsearch.cli.arguments import Commands

__all__ = ["make_parser"]


def _table_verbs(parts: "Commands") -> None:
    _kit(parts)
    _build(parts)
    _measure(parts)
    _check(parts)
    _show(parts)


def _kit(parts: "Commands") -> None:
    example = "amcsearch table kit configs/searches/digits.yaml -o kit.pyz"
    command = add_verb(parts, "kit", table_verbs.table_kit, "write one file that measures on a device", example)
    command.add_argument("configs", type=path, nargs="+", metavar="config", help="configurations of the networks")
    command.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key in all"
    )
    command.add_argument("-o", "--out", type=path, required=True, help="kit to write, such as kit.pyz")
    command.add_argument(
        "--variants", type=count, help="pruned variants of each network that build the table, 0 or at least 12 (72)"
    )
    command.add_argument(
        "--anchors",
        type=count,
        default=0,
        help="further variants of each, to place a table which is there (0)",
    )
    command.add_argument("--table", type=path, help="table of the device: measure where it is least sure")


def _build(parts: "Commands") -> None:
    example = "amcsearch table build result.jsonl -o latency_tables/my_device"
    command = add_verb(parts, "build", table_verbs.table_build, "make a table of what kits measured", example)
    command.add_argument("results", type=path, nargs="+", help="result files of one device")
    command.add_argument("-o", "--out", type=path, required=True, help="folder of the table; one that is there grows")
    command.add_argument(
        "--from", dest="source", type=path, help="table of another device, to be carried over by the results' anchors"
    )
    command.add_argument("--force", action="store_true", help="replace a table that is there")
    command.add_argument("--connect", metavar="URL", help="a service, which builds and keeps the table, and has --from")


def _measure(parts: "Commands") -> None:
    example = "amcsearch table measure configs/searches/digits.yaml -o latency_tables/my_machine"
    command = add_verb(parts, "measure", table_verbs.table_measure, "measure a table on this machine", example)
    add_config(command)
    command.add_argument("-o", "--out", type=path, required=True, help="folder of the table; one that is there grows")
    command.add_argument(
        "--variants", type=count, help="pruned variants to measure, at least 12 (72; fewer for known layers)"
    )
    command.add_argument("--minutes", type=minutes, help="bound of the measuring")
    command.add_argument("--force", action="store_true", help="replace a table that is there")
    command.add_argument("--resume", action="store_true", help="go on with what an interrupted run measured")


def _check(parts: "Commands") -> None:
    example = "amcsearch table check latency_tables/my_machine configs/searches/digits.yaml --anchors 10 --write"
    command = add_verb(parts, "check", table_verbs.table_check, "hold a table to networks measured now", example)
    command.add_argument("table", type=path, help="folder of the table, or a name of `amcsearch list tables`")
    add_config(command)
    command.add_argument("--fresh", type=count, default=24, help="fresh variants to measure (24)")
    command.add_argument(
        "--anchors",
        type=count,
        default=0,
        help="further variants that bring the table up to date, or add the network (0)",
    )
    command.add_argument("--write", action="store_true", help="write what was learnt into the table")
    command.add_argument(
        "--resume", action="store_true", help="with --write: go on with what an interrupted run measured"
    )


def _show(parts: "Commands") -> None:
    example = "amcsearch table show latency_tables/x86_epyc_avx512 -o curves"
    text = "print a table's provenance, accuracy and grid, or hold several side by side"
    command = add_verb(parts, "show", table_verbs.table_show, text, example)
    command.add_argument(
        "tables",
        nargs="+",
        metavar="table",
        type=path,
        help="folder or name (`amcsearch list tables`); several are compared on the network of --config",
    )
    command.add_argument("--config", type=path, help="configuration whose network is priced by every table")
    command.add_argument("--policy", type=path, help="policy.json of a run, priced beside uniform policies")
    command.add_argument("-o", "--out", type=path, help="folder for pictures")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; the namespace's ``run`` is the verb's function."""
    parser: argparse.ArgumentParser = Parser(
        prog="amcsearch",
        description="Search how much to prune in every layer for a device, prove it by measurement, export to ONNX.",
    )
    parser.add_argument("--version", action="version", version=f"amcsearch {__version__}")
    commands = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _search(commands)
    _compare(commands)
    _front(commands)
    _table(commands)
    _sensitivity(commands)
    _energy(commands)
    _prune(commands)
    _sparsify(commands)
    add_device_verbs(commands)
    _report(commands)
    _list(commands)
    add_service_verbs(commands)
    add_token_verbs(commands)
    return parser


def _run_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", type=path, help="run folder (default: runs/<name>-<config hash>)")
    command.add_argument("--resume", action="store_true", help="go on with the run in the folder, or begin one there")
    command.add_argument(
        "--fail-on-miss",
        action="store_true",
        help="exit with 4 where the delivered network misses a limit, or its measurement leaves one undecided",
    )


def _engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=count, default=1, help="evaluations side by side, in processes")
    command.add_argument(
        "--scheduler", metavar="ADDRESS", help="tcp://HOST:8786 of a Dask scheduler, whose workers evaluate instead"
    )


def _search(commands: "Commands") -> None:
    example = "amcsearch search configs/searches/digits.yaml --set search.trials=100"
    text = "find a pruning policy, prove it, and export a smaller ONNX model"
    command = add_verb(commands, "search", verbs.search, text, example)
    add_config(command)
    _run_folder(command)
    command.add_argument(
        "--trials", metavar="N|+N", help="evaluations (search.trials); +N adds N to the run that --resume goes on with"
    )
    _engine(command)
    command.add_argument("--storage", help="Optuna storage URL, which drivers may share (default: study.db in the run)")
    command.add_argument("--strict", action="store_true", help="refuse a latency table made on other hardware")
    command.add_argument("--dry-run", action="store_true", help="print the plan, sizes and expected time, and stop")


def _compare(commands: "Commands") -> None:
    example = "amcsearch compare configs/searches/digits.yaml --agents dynamic_programming,uniform,random --seeds 0,1,2"
    text = "run agents under several seeds on one network: equal evaluations, equal seconds, with intervals"
    command = add_verb(commands, "compare", verbs.compare, text, example)
    add_config(command)
    command.add_argument(
        "--agents",
        type=names,
        required=True,
        help="names of `amcsearch list agents`, or specs; the first is the reference",
    )
    command.add_argument("--seeds", type=counts, default=[0, 1, 2], help="of the agents (0,1,2)")
    command.add_argument("-o", "--out", type=path, help="folder (default: runs/<name>-compared)")
    command.add_argument(
        "--resume", action="store_true", help="go on with what is there, also with more agents or seeds"
    )
    _engine(command)
    command.add_argument("--strict", action="store_true", help="refuse a latency table made on other hardware")


def _front(commands: "Commands") -> None:
    example = (
        "amcsearch front configs/searches/digits.yaml --devices x86_epyc_avx512,edge_cpu -o runs/front, then amcsearch "
        "front runs/front --budget latency_ms=0.4x --device x86_epyc_avx512"
    )
    text = "the best policy for every budget on several devices from one set of error tables, then that of any budget"
    command = add_verb(commands, "front", verbs.front, text, example)
    command.add_argument("config", type=path, help="configuration file or name; or the folder of a front, to ask it")
    command.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key, repeatable"
    )
    command.add_argument(
        "--devices",
        type=names,
        default=[],
        help="profiles and latency tables, by name, file or folder, with commas between (default: the configured one)",
    )
    command.add_argument(
        "--evaluations", type=count, default=12, help="policies evaluated, so that predictions can be trusted (12)"
    )
    command.add_argument("--resume", action="store_true", help="go on with what is there, also with more devices")
    _engine(command)
    command.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="COST=LIMIT",
        help="ask the front in a folder for a policy: 0.4x is that share of dense, a number is absolute; repeatable",
    )
    command.add_argument("--device", help="which device the budget is of (default: the only one)")
    command.add_argument(
        "-o",
        "--out",
        type=path,
        help="folder (default: runs/<name>-front); of a budget: policy file (policy-DEVICE-COST-LIMIT.json there)",
    )


def _table(commands: "Commands") -> None:
    table = commands.add_parser("table", help="latency tables", description="Latency tables of a device.")
    parts = table.add_subparsers(title="verbs", metavar="VERB", required=True)
    _table_verbs(parts)


def _sensitivity(commands: "Commands") -> None:
    example = "amcsearch sensitivity configs/searches/digits.yaml -o sensitivity"
    text = "loss and accuracy when one group alone is pruned, and whether losses add up: CSVs and plots"
    command = add_verb(commands, "sensitivity", verbs.sensitivity, text, example)
    add_config(command)
    command.add_argument("-o", "--out", type=path, default=Path("sensitivity"), help="folder for CSVs and plots")
    command.add_argument("--points", type=count, default=5, help="widths tried for each group")
    command.add_argument("--joint", type=count, default=50, help="random policies held against the sum of groups (50)")


def _energy(commands: "Commands") -> None:
    example = "amcsearch energy configs/searches/digits.yaml --policy runs/…/policy.json --device eyeriss_65nm"
    text = "where the energy goes, layer by layer: table, CSV and stacked bars, dense beside pruned"
    command = add_verb(commands, "energy", verbs.energy, text, example)
    add_config(command)
    command.add_argument("--policy", type=path, help="policy.json of a run, shown beside dense")
    command.add_argument("--densities", type=path, help="densities.csv of a sparsify run, shown beside dense as sparse")
    command.add_argument("--storage", default="bitmap", help="how sparse weights lie in DRAM, such as csr (bitmap)")
    command.add_argument(
        "--device", help="profile: a YAML file, or a name of `amcsearch list devices` (default: device.profile)"
    )
    command.add_argument("--measure", action="store_true", help="also measure on this machine, if it has a counter")
    command.add_argument("-o", "--out", type=path, default=Path("energy"), help="folder for the CSV and the picture")


def _prune(commands: "Commands") -> None:
    example = "amcsearch prune configs/searches/digits.yaml --target macs=0.5x, or --keep-accuracy 0.5"
    text = "prune by a known policy, to a cost, or as far as accuracy stays; fine-tune, export and measure"
    command = add_verb(commands, "prune", verbs.prune, text, example)
    add_config(command)
    goal = command.add_mutually_exclusive_group()
    goal.add_argument("--policy", type=path, help="policy.json of a run")
    goal.add_argument(
        "--target",
        metavar="COST=LIMIT",
        help="macs, params, bytes, latency_ms, energy_mj, model_bytes or peak_memory_bytes: 0.5x is half of dense, a "
        "number is absolute",
    )
    goal.add_argument(
        *("--keep-accuracy", "--keep-metric"),
        metavar="POINTS",
        help="percentage points that accuracy may lose, such as 0.5; of a metric that is no share, its own unit",
    )
    command.add_argument("--allocation", help="how groups share the pruning: exact, global, uniform or per_cost (auto)")
    command.add_argument("--rounds", metavar="N", help="reach the target in N rounds of pruning and training (1)")
    command.add_argument(
        "--round-shape",
        help="how the cost falls: geometric, an equal share of what remains goes each round; linear, an equal amount; "
        "cubic, most at first (default)",
    )
    _run_folder(command)


def _sparsify(commands: "Commands") -> None:
    example = "amcsearch sparsify configs/sparsify/digits-l0.yaml --set sparsify.target={sparsity: 0.6}"
    text = "prune while training, by gates or mask schedules, and keep the learned densities as a policy"
    command = add_verb(commands, "sparsify", verbs.sparsify, text, example)
    add_config(command)
    _run_folder(command)


def _report(commands: "Commands") -> None:
    command = add_verb(
        commands, "report", verbs.report, "write a run's report.html again", "amcsearch report runs/digits-resnet20-…"
    )
    command.add_argument("run_folder", type=path, metavar="run", help="run folder")


def _list(commands: "Commands") -> None:
    command = add_verb(
        commands,
        "list",
        verbs.list_registry,
        "what can be named in a configuration; module:Class or file.py:Class names one of your own",
        "amcsearch list agents",
    )
    command.add_argument("kind", nargs="?", choices=verbs.KINDS, help="registry to print (default: the registries)")
